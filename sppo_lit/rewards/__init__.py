"""Judging answers: extraction, equivalence, and the worker processes that keep both out of the training process."""

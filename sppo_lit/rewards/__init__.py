"""Judging answers: extraction, equivalence, and the worker processes in which both run."""

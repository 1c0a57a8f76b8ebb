"""Figures of the paper, drawn from run folders and evaluations."""

"""Comparing algorithms: a grid of runs from one YAML file, run as separate processes, with a report at the end."""

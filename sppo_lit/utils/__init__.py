"""Utilities for every package: console, files, plotting style, run logs, peak memory."""

"""The command line: one thin layer over LightningCLI."""

STAGES = ("fit", "validate")
"""Subcommands of `sppo run`."""

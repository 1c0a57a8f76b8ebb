"""The command line: one thin layer over LightningCLI."""

STAGES = ("fit", "validate")
"""Subcommands of `sppo run`."""

SHORT_FLAGS = ("strategy", "devices", "num_nodes", "accelerator", "precision", "max_epochs")
"""Short forms of `--trainer.<flag>`."""

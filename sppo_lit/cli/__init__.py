"""The command line: one thin layer over LightningCLI."""

"""The trained networks: a causal language model as policy, a classifier of sequences or tokens as critic."""

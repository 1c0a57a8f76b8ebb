"""The trained networks: a causal language model as policy, a sequence classifier as critic."""

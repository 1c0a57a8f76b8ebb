"""The algorithm as pure functions on tensors, and one literal table that names its variants."""

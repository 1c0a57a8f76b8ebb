"""What counts as equal to a gold answer."""

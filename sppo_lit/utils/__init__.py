"""Console, files, plotting style and peak memory: what every package may use."""

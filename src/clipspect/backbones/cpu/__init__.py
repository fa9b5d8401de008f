"""Fast CPU arithmetic: int8, oneDNN linear layers, parallelism over images."""

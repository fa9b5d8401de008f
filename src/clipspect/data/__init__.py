"""Image files: finding, decoding with clear errors, tiling, and reading ahead in threads."""

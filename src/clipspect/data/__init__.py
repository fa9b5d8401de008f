"""Images: finding them, decoding them with clear errors, tiling large ones, reading ahead in threads."""

"""Training of the tiny offline model: a procedural renderer of parts and defects, losses, training loop."""

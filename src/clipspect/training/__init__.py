"""How the tiny offline model is made: a procedural renderer of parts and defects, losses, training loop."""

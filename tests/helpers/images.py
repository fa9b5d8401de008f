"""Rendered images of a plate."""

from __future__ import annotations

import numpy as np


def plate(seed: int, *, blot: bool = False, height: int = 60, width: int = 80) -> np.ndarray:
    """(height, width, 3) uint8: a grey plate with grain, and a dark blot at a seeded place."""
    random = np.random.default_rng(seed)
    pixels = 150 + 8 * random.standard_normal((height, width, 1)) + np.zeros((1, 1, 3))
    if blot:
        y, x = random.integers(15, height - 15), random.integers(15, width - 15)
        rows, columns = np.ogrid[:height, :width]
        pixels[(rows - y) ** 2 + (columns - x) ** 2 < 64] = 20
    return pixels.clip(0, 255).astype(np.uint8)

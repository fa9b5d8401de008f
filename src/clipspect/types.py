"""Plain data shared by all parts of the package. NumPy only; imports nothing of clipspect's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SIGNATURE_SIDE = 32
"""Cells per side of an image's signature, by which copies of an image are recognized."""


@dataclass(frozen=True)
class Region:
    """A connected part of an image whose map values reach the pixel threshold, in image pixels."""

    left: int
    top: int
    width: int
    height: int
    area: int
    """Pixels covered, at most width · height."""
    peak: float
    """Highest map value in the region, in [0, 1]."""
    peak_x: int
    peak_y: int


@dataclass(frozen=True)
class Thresholds:
    """From which values on an image and its pixels count as anomalous."""

    image: float
    """Scores ≥ this flag the image."""
    pixel: float
    """Map values ≥ this belong to regions."""
    source: Literal["given", "good images", "guess"]
    note: str
    """How they came about, in one or two sentences for people."""

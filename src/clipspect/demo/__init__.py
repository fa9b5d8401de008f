"""Photographs that ship with clipspect: rendered parts of a kind the offline model has never seen."""

from __future__ import annotations

from pathlib import Path

DEMO_PHOTOS = Path(__file__).parent / "photos"
DEMO_MASKS = Path(__file__).parent / "masks"
"""Ground truth of the defective ones, by stem."""
DEMO_OBJECT = "metal flange"
DEMO_METHOD = "dual-image"

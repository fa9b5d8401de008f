"""Images that ship with clipspect: rendered parts of a kind the offline model has never seen."""

from __future__ import annotations

from pathlib import Path

DEMO_IMAGES = Path(__file__).parent / "photos"
"""Ground truth of the defective ones lies beside it, in ``masks``, by stem."""
DEMO_GOOD = Path(__file__).parent / "good"
"""Ten known-good brackets, none of them among :data:`DEMO_IMAGES`."""
DEMO_OBJECT = "metal bracket"
DEMO_METHOD = "dual-image"

"""clipspect: zero-shot visual inspection with CLIP.

    detector = clipspect.load("anoclip", model="tiny")
    found = detector.detect("part.png", object="metal nut")
    found.score, found.anomaly_map, found.regions

Everything public is here; nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipspect.errors import (
    ClipspectError,
    ImageError,
    ProfileError,
    ReferencesError,
    ResultsError,
    UsageError,
    WeightsError,
)

if TYPE_CHECKING:
    from clipspect.config import DetectorConfig
    from clipspect.data.reading import read_image
    from clipspect.detection import Detection
    from clipspect.detector import Detector
    from clipspect.loading import load
    from clipspect.postprocess.calibration import Calibration
    from clipspect.product import Product, create_profile, load_product
    from clipspect.profile import Profile, read_profile
    from clipspect.references import GoodImages
    from clipspect.results.detections import Detections
    from clipspect.types import Region

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "ClipspectError",
    "Detection",
    "Detections",
    "Detector",
    "DetectorConfig",
    "GoodImages",
    "ImageError",
    "Product",
    "Profile",
    "ProfileError",
    "ReferencesError",
    "Region",
    "ResultsError",
    "UsageError",
    "WeightsError",
    "create_profile",
    "load",
    "load_product",
    "read_image",
    "read_profile",
]

_LAZY = {
    "Detection": "detection",
    "Detections": "results.detections",
    "DetectorConfig": "config",
    "Region": "types",
    "Calibration": "postprocess.calibration",
    "GoodImages": "references",
    "Detector": "detector",
    "load": "loading",
    "Product": "product",
    "create_profile": "product",
    "load_product": "product",
    "Profile": "profile",
    "read_profile": "profile",
    "read_image": "data.reading",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that ``import clipspect`` loads no torch."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*__all__, "__version__"])

"""What a detector's results depend on: its settings, and hashes of them that runs and calibrations are bound to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipspect import __version__
from clipspect.data.loader import source_name
from clipspect.data.prepare import hash_source

if TYPE_CHECKING:
    from clipspect.detector import Detector

NOT_IDENTITY = ("clipspect", "methods", "set_size", "max_pixels", "model", "weights")
"""Settings that a calibration does not depend on; the backbone's fingerprint stands for model and weights."""


def settings(detector: Detector) -> dict[str, Any]:
    """Everything a result depends on beside images, object and references, as JSON-able values."""
    backbone, prompts = detector.backbone, detector.model.prompts
    return {
        "clipspect": __version__,
        "methods": {m.name: m.settings() for m in detector.methods},
        "model": backbone.name,
        "weights": backbone.weights,
        "fingerprint": backbone.fingerprint,
        "precision": backbone.precision,
        "image_size": backbone.image_size,
        **detector.reader.settings(),
        "set_size": detector.set_size if detector.uses_sets else None,
        "domain": prompts.domain,
        "prompts": detector.model.prompt_digest,
        **({"object_as_is": True} if prompts.object_as_is else {}),
    }


def set_identity(detector: Detector, images: Sequence[Path]) -> str | None:
    """Hash of the contents of the images that serve as each other's references; None without set methods."""
    if not detector.uses_sets:
        return None
    chosen = detector.sample_pool([source_name(path, i) for i, path in enumerate(images)])
    hashes = sorted(hash_source(images[i]) for i in chosen)
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def fingerprint(detector: Detector, method: str) -> str:
    """Hash of model, method and preparation: what a calibration belongs to."""
    known = detector.settings()
    kept = {k: v for k, v in known.items() if k not in NOT_IDENTITY}
    made = {**kept, "method": method, "settings": known["methods"][method]}
    return hashlib.sha256(json.dumps(made, sort_keys=True, default=str).encode()).hexdigest()[:16]

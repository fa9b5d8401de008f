"""Units of a benchmark: the smallest resumable parts, their results and files.

OUT/results/<model>-<weights>-<seed>/<category>.json    results of one category, by method
OUT/results/<model>-<weights>-<seed>/<category>.npz     compact maps of a few images, for the figures

"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipspect.benchmark.accumulator import Figures, ProRule, Resolution
from clipspect.benchmark.candidates import Candidate
from clipspect.benchmark.samples import Category, Sample
from clipspect.config import DetectorConfig
from clipspect.errors import ResultsError
from clipspect.results.files import write_whole

TRAINED = "trained"
"""Command-line value for a model's trained weights, as opposed to "random"."""
EXAMPLES = 6
"""Images of a category whose maps are kept for the figures."""


@dataclass(frozen=True)
class Settings:
    """Settings of a benchmark besides its data, models, methods and seeds."""

    config: DetectorConfig = DetectorConfig()
    """Options of the detectors; method, model, weights and seed are those of each candidate and unit."""
    resolution: Resolution = "map"
    by_defect: bool = False
    """Whether to also compute metrics of each kind of defect against the good images."""
    pro: ProRule = "exact"

    def identity(self) -> dict[str, Any]:
        """What figures depend on, as JSON-serializable values; device and batch size change speed alone."""
        values = self.config.to_dict()
        names = [
            "image_size",
            "precision",
            "set_size",
            "aspect",
            "interpolation",
            "tile",
            "domain",
            "prompts",
        ]
        # results from before these options existed are resumed
        names += [
            name for name in ("bit_depth", "window", "normal", "abnormal", "object_as_is") if values[name]
        ]
        kept = {name: values[name] for name in names}
        rule = {} if self.pro == "exact" else {"pro": self.pro}
        return {**kept, "resolution": self.resolution, "by_defect": self.by_defect, **rule}


@dataclass(frozen=True)
class Unit:
    """Smallest resumable part of a run: one category under one model, weights and seed."""

    data: str
    category: Category
    model: str
    weights: str
    """"trained", "random", a pretrained tag or a checkpoint file."""
    seed: int

    @property
    def name(self) -> str:
        """Path below the results folder, without suffix; readable and valid in every file system."""
        place = f"{Path(self.model).name}-{Path(self.weights).name}-{self.seed}"
        return "/".join(re.sub(r"[^\w.+-]", "_", part) for part in (place, self.category.name))


@dataclass(frozen=True)
class Result:
    """Results of one candidate on one unit."""

    unit: str
    """Name of its unit (see :class:`Unit`)."""
    data: str
    category: str
    object: str
    label: str
    method: str
    chosen: Mapping[str, Any]
    shots: int
    model: str
    weights: str
    seed: int | None
    """None if the seed has no influence."""
    image_size: int
    figures: Figures
    seconds_per_image: float
    """Seconds for the features that this method needs and for its scoring, without decoding."""
    peak_memory_mb: float | None
    machine: str
    versions: Mapping[str, str]
    warnings: Sequence[str]
    kinds: Mapping[str, Figures] = field(default_factory=dict)
    """kind of defect → metrics against the good images."""
    fingerprint: str = ""
    """SHA-256 over the weights; empty in results from before it was kept."""


def write_unit(path: Path, out: Path, fingerprint: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Write the results of a unit atomically."""
    write_whole(out, path, json.dumps({"settings": fingerprint, "entrants": stored}, indent=1).encode())


def stored_result(candidate: Candidate, result: Result) -> dict[str, Any]:
    """Return a result in its stored form, with everything it depends on."""
    return {"settings": candidate.settings(), "result": asdict(result)}


def read_unit(path: Path, fingerprint: Mapping[str, Any], candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Read the candidates already measured. Raises ResultsError if their settings differ."""
    if not path.is_file():
        return {}
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        settings, stored = there["settings"], there["entrants"]
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsError(
            f"{path}: damaged ({error}); delete it; only its category is measured again"
        ) from error
    wanted = json.loads(json.dumps(fingerprint))
    known = {e.label: json.loads(json.dumps(e.settings())) for e in candidates}
    changed = [
        (k, settings.get(k), wanted.get(k))
        for k in {**settings, **wanted}
        if settings.get(k) != wanted.get(k)
    ]
    for label in stored.keys() & known.keys():
        old, new = stored[label]["settings"], known[label]
        changed += [
            (f"{label}: {k}", old.get(k), new.get(k)) for k in {**old, **new} if old.get(k) != new.get(k)
        ]
    if changed:
        what = ", ".join(f"{name} was {old!r}, now {new!r}" for name, old, new in changed)
        raise ResultsError(
            f"{path}: measured with other settings: {what}; choose another --out, or pass --overwrite"
        )
    return dict(stored)


def read_result(values: Mapping[str, Any]) -> Result:
    kinds = {kind: Figures(**figures) for kind, figures in values["kinds"].items()}
    return Result(**{**values, "figures": Figures(**values["figures"]), "kinds": kinds})


def examples(category: Category) -> list[Sample]:
    """Return a few example images: in turn from every kind of defect the first ones that have a mask."""
    by_kind: dict[str, list[Sample]] = {}
    for sample in category.samples:
        if sample.defective and sample.mask is not None:
            by_kind.setdefault(sample.kind, []).append(sample)
    rounds = max(map(len, by_kind.values()), default=0)
    turns = [own[i] for i in range(rounds) for own in by_kind.values() if i < len(own)]
    return turns[:EXAMPLES]


def write_examples(path: Path, out: Path, maps: Mapping[str, Any], *, keep: bool) -> None:
    if keep and path.is_file():
        with np.load(path) as there:
            maps = {**there, **maps}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **maps)
    write_whole(out, path, buffer.getvalue())


def read_examples(out: Path, unit: str) -> dict[str, Any]:
    """Read the compact maps (h, w) of a unit by "label|number of the example"; empty if none are stored."""
    path = out / "results" / f"{unit}.npz"
    if not path.is_file():
        return {}
    with np.load(path) as stored:
        return dict(stored)

"""Benchmark runs: methods × models × categories × seeds, each image encoded once per model, resumable."""

from __future__ import annotations

import os
import warnings as python_warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any, cast

import clipspect
from clipspect.backbones.base import RANDOM, Backbone
from clipspect.backbones.loader import load_backbone
from clipspect.benchmark.accumulator import Accumulator, Figures
from clipspect.benchmark.candidates import Candidate, Measured
from clipspect.benchmark.datasets import digest
from clipspect.benchmark.jobs import (
    TRAINED,
    Result,
    Settings,
    Unit,
    examples,
    read_result,
    read_unit,
    stored_result,
    write_examples,
    write_unit,
)
from clipspect.benchmark.metrics import PixelCurve, scikit_learn
from clipspect.benchmark.provenance import machine, peak_memory, versions
from clipspect.benchmark.samples import Category
from clipspect.config import make_reader
from clipspect.data.loader import load_images
from clipspect.detector import Detector
from clipspect.errors import UsageError
from clipspect.loading import make_prompts
from clipspect.methods.base import Method
from clipspect.model import AnomalyModel
from clipspect.postprocess.maps import shrink_map
from clipspect.precision import resolve_precision
from clipspect.results.files import RunLock, results_errors
from clipspect.tensors import image_tensor, sources_of

_TIMED = 8


Progress = Callable[[str, int, int], None]
"""Callback with (current unit, images done, total images)."""


def run_benchmark(
    data: str,
    categories: Sequence[Category],
    candidates: Sequence[Candidate],
    out: Path,
    *,
    models: Sequence[str] = ("tiny",),
    weights: Sequence[str] = (TRAINED,),
    seeds: Sequence[int] = (0,),
    settings: Settings | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Result]:
    """Measure everything that is not measured yet, and return all results in order.

    A seed only draws random weights, the references of few-shot methods and random pairs. Candidates that use none of
    them are measured under the first seed only.

    Args:
        data: name of the data set, for the tables.
        categories: from :func:`clipspect.benchmark.datasets.load_categories`.
        candidates: from :func:`clipspect.benchmark.candidates.make_candidates`.
        out: folder of the run's results; a stopped run resumes there.
        models: model names for ``clipspect.load``.
        weights: "trained" for a model's own, "random" for the control, a tag or a file.
        seeds: one run each.
        settings: settings of all runs.
        overwrite: measure again if stored results have other settings.
        progress: called as images are processed.

    Raises:
        ResultsError: the folder cannot be written, is in use, or holds results of other settings.
        UsageError: a method needs references and a category has no normal images outside the test split; or
            scikit-learn is missing.
    """
    scikit_learn()  # fail before the first category if it is missing
    with results_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = RunLock(out)
    try:
        results: list[Result] = []
        for model in models:
            for label in weights:
                for seed in seeds:
                    present = [e for e in candidates if seed == seeds[0] or uses_seed(e, label)]
                    if present:
                        station = _Station(model, label, seed, settings or Settings())
                        for category in categories:
                            unit = Unit(data, category, model, label, seed)
                            results += _resume(unit, present, station, out, overwrite, progress)
        return results
    finally:
        lock.release()


def uses_seed(candidate: Candidate, weights: str) -> bool:
    """Return whether a candidate's metrics depend on the seed."""
    pairs = candidate.method.uses_seed and not candidate.shots
    return weights.startswith(RANDOM) or candidate.shots > 0 or pairs


class _Station:
    """Model that is loaded on first use and then serves all categories."""

    def __init__(self, model: str, weights: str, seed: int, settings: Settings) -> None:
        self.model, self.weights, self.seed, self.settings = model, weights, seed, settings
        self._backbone: Backbone | None = None

    @property
    def backbone(self) -> Backbone:
        if self._backbone is None:
            with python_warnings.catch_warnings():  # rows and tables already mark random weights
                python_warnings.filterwarnings("ignore", message=".*random weights.*")
                loaded = load_backbone(
                    self.model,
                    None if self.weights == TRAINED else self.weights,
                    image_size=self.settings.config.image_size,
                    device=self.settings.config.device,
                    seed=self.seed,
                )
                self._backbone, _ = resolve_precision(loaded, self.settings.config.precision)
        return self._backbone

    def detector(self, measured: Sequence[Measured]) -> Detector:
        config = self.settings.config
        methods = cast(Sequence[Method], measured)
        model = AnomalyModel(self.backbone, tuple(methods), make_prompts(config), config.batch_size)
        reader = make_reader(config, self.backbone.image_size)
        return Detector(model, reader, set_size=config.set_size)


def _fingerprint(unit: Unit, station: _Station) -> dict[str, Any]:
    """Return what all candidates of a unit depend on, as JSON-serializable values."""
    return {
        "clipspect": clipspect.__version__,
        "data": unit.data,
        "images": digest(unit.category),
        "model": unit.model,
        "weights": unit.weights,
        "fingerprint": station.backbone.fingerprint,
        "seed": unit.seed,
        **station.settings.identity(),
    }


def _resume(
    unit: Unit,
    candidates: Sequence[Candidate],
    station: _Station,
    out: Path,
    overwrite: bool,
    progress: Progress | None,
) -> Iterator[Result]:
    """Return the unit's results: those on disk, and those of newly measured candidates."""
    path = out / "results" / f"{unit.name}.json"
    fingerprint = _fingerprint(unit, station)
    stored = {} if overwrite else read_unit(path, fingerprint, candidates)
    missing = [e for e in candidates if e.label not in stored]
    if missing:
        found, maps = _measure(unit, missing, station, progress)
        stored |= {r.label: stored_result(e, r) for e, r in zip(missing, found, strict=True)}
        write_examples(path.with_suffix(".npz"), out, maps, keep=not overwrite)
        write_unit(path, out, fingerprint, stored)
    for candidate in candidates:
        yield read_result(stored[candidate.label]["result"])


def _measure(
    unit: Unit, candidates: Sequence[Candidate], station: _Station, progress: Progress | None
) -> tuple[list[Result], dict[str, Any]]:
    """Score every image of a category once with all candidates."""
    measured = [Measured(replace(c, method=c.method.with_seed(unit.seed))) for c in candidates]
    detector = station.detector(measured)
    category = unit.category
    for one in measured:
        one.references = _references(one.candidate, unit, detector)
    samples = {sample.path: sample for sample in category.samples}
    kept = [sample.path for sample in examples(category)]
    kinds = sorted({s.kind for s in category.samples if s.defective}) if station.settings.by_defect else []
    accumulators = {one.name: _accumulators(station.settings, kinds) for one in measured}
    maps: dict[str, Any] = {}
    found = detector.stream(
        list(samples),
        object=category.object,
        root=Path(os.path.commonpath([path.parent for path in samples])),
    )
    paths = chain.from_iterable([path] * len(measured) for path in samples)
    for number, (path, detection) in enumerate(zip(paths, found, strict=True)):
        sample = samples[path]
        for kind, accumulator in accumulators[detection.method].items():
            if kind in ("", sample.kind) or not sample.defective:
                accumulator.add(sample, detection)
        if path in kept and detection.score_map is not None:
            maps[f"{detection.method}|{kept.index(path)}"] = shrink_map(detection.score_map)
        if progress is not None:
            what = f"{unit.model} {unit.weights} seed {unit.seed}: {category.name}"
            progress(what, number // len(measured) + 1, len(samples))
    seconds = _encoding_seconds(measured, detector, category)
    return [
        _finish(
            unit,
            one,
            {k: t.figures() for k, t in accumulators[one.name].items()},
            seconds[one.name],
            detector,
        )
        for one in measured
    ], maps


def _accumulators(settings: Settings, kinds: Sequence[str]) -> dict[str, Accumulator]:
    """Return one accumulator for all images, and a smaller one for each kind of defect."""
    return {
        "": Accumulator(settings.resolution, settings.pro),
        **{kind: Accumulator(settings.resolution, settings.pro, PixelCurve(1 << 17)) for kind in kinds},
    }


def _finish(
    unit: Unit, one: Measured, figures: Mapping[str, Figures], encoding: float, detector: Detector
) -> Result:
    candidate, whole = one.candidate, figures[""]
    scored = max(whole.images - len(whole.failed), 1)
    return Result(
        unit.name,
        unit.data,
        unit.category.name,
        unit.category.object,
        candidate.label,
        candidate.method.name,
        dict(candidate.chosen),
        candidate.shots,
        unit.model,
        unit.weights,
        unit.seed if uses_seed(candidate, unit.weights) else None,
        detector.backbone.image_size,
        whole,
        encoding + one.seconds / scored,
        peak_memory(),
        machine(),
        versions(),
        [*unit.category.warnings, *whole.warnings],
        {kind: found for kind, found in figures.items() if kind},
        detector.backbone.fingerprint,
    )


def _references(candidate: Candidate, unit: Unit, detector: Detector) -> Any:
    """Return a candidate's references: normal images outside the test split, drawn by seed."""
    if not candidate.shots:
        return None
    train = unit.category.train
    if len(train) < candidate.shots:
        raise UsageError(
            f"{candidate.label} takes {candidate.shots} normal images as references, and {unit.category.name} has"
            f" {len(train)} beside its test split; add some (a folder train/ or --references), or omit the method"
        )
    return detector.encode_references(Random(unit.seed).sample(list(train), candidate.shots))


def _encoding_seconds(
    measured: Sequence[Measured], detector: Detector, category: Category
) -> dict[str, float]:
    """Return seconds per image to encode the features that each candidate needs, on the first few images."""
    paths = [sample.path for sample in category.samples[:_TIMED]]
    entries = load_images(paths, detector.reader, ahead=_TIMED)
    images = [entry.image for entry in entries if entry.image is not None]
    seconds = {}
    for one in measured:
        model = replace(detector.model, methods=(one.candidate.method,), batch_size=min(_TIMED, 8))
        started = perf_counter()
        if images:
            model.encode(image_tensor(images, detector.backbone), sources_of(images))
        seconds[one.name] = (perf_counter() - started) / max(len(images), 1)
    return seconds

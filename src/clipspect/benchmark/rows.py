"""Rows: means and deviations over seeds, means over categories, and published results."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from statistics import fmean, stdev
from typing import Any

from clipspect.benchmark.accumulator import METRICS, Figures
from clipspect.benchmark.jobs import Result

MEAN = "mean"
"""Category name of the mean over all categories."""


@dataclass(frozen=True)
class Row:
    """Line of a table: a method under a model and weights on a category, over all its seeds."""

    data: str
    category: str
    label: str
    """The method with its settings; unique within a table."""
    method: str
    settings: Mapping[str, Any]
    references: int
    model: str
    weights: str
    series: Mapping[str, Sequence[float | None]]
    """metric → value in [0, 1] under each seed, None if undefined."""
    seeds: Sequence[int] = ()
    """Empty if the seed has no influence."""
    image_size: int | None = None
    images: int = 0
    seconds_per_image: float | None = None
    peak_memory_mb: float | None = None
    undefined: Mapping[str, str] = field(default_factory=dict)
    pixel_error: float = 0.0
    failed: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    """Source of a published row; empty for measured rows."""
    fingerprint: str = ""
    """SHA-256 over the weights, of the first seed."""

    @property
    def values(self) -> dict[str, float | None]:
        """Return metric → mean over seeds, None if it is undefined under one of them."""
        return {name: _mean(values) for name, values in self.series.items()}

    @property
    def deviations(self) -> dict[str, float | None]:
        """Return metric → sample standard deviation over seeds, None with fewer than two."""
        return {name: _deviation(values) for name, values in self.series.items()}


def make_rows(results: Iterable[Result]) -> list[Row]:
    """Return one row per method, model, weights and category, and per kind of defect if that was measured."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault((result.category, result.model, result.weights, result.label), []).append(result)
    rows = []
    for group in groups.values():
        rows.append(_row(group, [result.figures for result in group], ""))
        for kind in group[0].kinds:
            rows.append(_row(group, [result.kinds[kind] for result in group], f"/{kind}"))
    return rows


def _row(group: Sequence[Result], figures: Sequence[Figures], suffix: str) -> Row:
    first = group[0]
    return Row(
        first.data,
        first.category + suffix,
        first.label,
        first.method,
        first.chosen,
        first.shots,
        first.model,
        first.weights,
        {name: [f.values[name] for f in figures] for name in METRICS},
        [result.seed for result in group if result.seed is not None],
        first.image_size,
        figures[0].images,
        fmean(result.seconds_per_image for result in group),
        max((r.peak_memory_mb for r in group if r.peak_memory_mb is not None), default=None),
        figures[0].undefined,
        max(f.pixel_error for f in figures),
        {name: reason for f in figures for name, reason in f.failed.items()},
        () if suffix else first.warnings,
        first.machine,
        first.versions,
        fingerprint=first.fingerprint,
    )


def mean_rows(rows: Sequence[Row]) -> list[Row]:
    """Return one row per method, model and weights: the mean over categories, undefined if one of them is."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if "/" not in row.category:
            groups.setdefault((row.model, row.weights, row.label), []).append(row)
    return [group[0] if len(group) == 1 else _mean_row(group) for group in groups.values()]


def _mean_row(group: Sequence[Row]) -> Row:
    missing = {name: [row.category for row in group if row.values[name] is None] for name in METRICS}
    return replace(
        group[0],
        category=MEAN,
        series={
            name: [_mean(each) for each in zip(*(row.series[name] for row in group), strict=True)]
            for name in METRICS
        },
        images=sum(row.images for row in group),
        seconds_per_image=fmean(row.seconds_per_image or 0.0 for row in group),
        peak_memory_mb=max((r.peak_memory_mb for r in group if r.peak_memory_mb is not None), default=None),
        undefined={name: f"undefined for {', '.join(where)}" for name, where in missing.items() if where},
        pixel_error=max(row.pixel_error for row in group),
        failed={},  # listed in the rows of the categories
        warnings=(),
    )


def published_rows(data: str, measured: int) -> list[Row]:
    """Return published results on a data set with their sources, to compare with means over ``measured`` categories."""
    table = tomllib.loads(files("clipspect.benchmark").joinpath("published.toml").read_text(encoding="utf-8"))
    rows = []
    for entry in table["row"]:
        if entry["data"] == data:
            series = {name: [entry[name] / 100 if name in entry else None] for name in METRICS}
            count = table["categories"][data]
            over = "" if measured == count else f"; a mean over {count} categories, ours are over {measured}"
            undefined = {name: "not found in a public text" for name in METRICS if name not in entry}
            rows.append(
                Row(
                    data, MEAN, entry["method"], entry["method"], {}, 0, entry["model"], "published", series,
                    undefined=undefined, source=entry["source"] + over,
                )
            )  # fmt: skip
    return rows


def json_row(row: Row) -> dict[str, Any]:
    """Return a row as JSON values: an undefined metric is null, and ``undefined`` gives the reason."""
    plain = asdict(row)
    del plain["label"], plain["source"], plain["series"]
    plain["failed"], errors = len(row.failed), [{"image": k, "error": v} for k, v in row.failed.items()]
    return {
        "method": plain.pop("method"),
        "model": plain.pop("model"),
        "weights": plain.pop("weights"),
        "category": plain.pop("category"),
        **row.values,
        **{f"{name}_std": value for name, value in row.deviations.items()},
        **plain,
        "errors": errors,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _deviation(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return stdev(known) if len(known) == len(values) > 1 else None

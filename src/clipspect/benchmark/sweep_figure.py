"""Figure of a sweep: metrics against a setting, for one or several data sets. Needs matplotlib."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipspect.benchmark.figures import pyplot
from clipspect.benchmark.rows import MEAN, Row, mean_rows
from clipspect.errors import UsageError

_PANELS = (
    ("image_auroc", "image AUROC"),
    ("pixel_auroc", "pixel AUROC"),
    ("pixel_f1max", "pixel F1-max"),
    ("aupro", "AUPRO"),
)


@dataclass(frozen=True)
class Point:
    """Metrics of one method at one value of the swept setting."""

    line: str
    """Data set, method, other settings, model and weights."""
    value: Any
    figures: Mapping[str, float | None]
    deviations: Mapping[str, float | None]


def points_of(rows: Sequence[Row], setting: str) -> list[Point]:
    """Return the means over categories of rows that have the setting."""
    return [
        Point(
            _line(row.data, row.method, row.settings, setting, row.model, row.weights),
            row.settings[setting],
            row.values,
            row.deviations,
        )
        for row in mean_rows(rows)
        if setting in row.settings
    ]


def read_points(path: Path, setting: str) -> list[Point]:
    """Return the same from a file that ``benchmark --json`` wrote.

    Raises:
        UsageError: the file cannot be read, or is not such a file.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        groups: dict[tuple[str, Any], list[dict[str, Any]]] = {}
        for row in rows:
            if setting in row["settings"] and "/" not in row["category"] and row["category"] != MEAN:
                line = _line(
                    row["data"], row["method"], row["settings"], setting, row["model"], row["weights"]
                )
                groups.setdefault((line, row["settings"][setting]), []).append(row)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a file of clipspect benchmark --json ({error})") from error
    names = [name for name, _ in _PANELS]
    return [
        Point(
            line,
            value,
            {name: _mean([row[name] for row in group]) for name in names},
            {name: _mean([row[f"{name}_std"] for row in group]) for name in names},
        )
        for (line, value), group in groups.items()
    ]


def draw_sweep(path: Path, points: Sequence[Point], setting: str) -> None:
    """Plot metrics against a setting, with standard deviations over seeds where there are several.

    Numbers are joined by lines, names are not. A metric that no value of the setting changes is left out: an
    adaptation of maps, for example, changes no image score.

    Args:
        path: PNG or PDF to write.
        points: from :func:`points_of` or :func:`read_points`.
        setting: name of the setting, for the axis.

    Raises:
        UsageError: no method has results for two values of the setting.
    """
    lines: dict[str, list[Point]] = {}
    for point in points:
        lines.setdefault(point.line, []).append(point)
    lines = {name: own for name, own in lines.items() if len(own) > 1}
    if not lines:
        raise UsageError(
            f"no method has results for two values of {setting}; sweep it: --sweep {setting}=1,2,4"
        )
    values = list(dict.fromkeys(point.value for own in lines.values() for point in own))
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    panels = [panel for panel in _PANELS if any(_varies(own, panel[0]) for own in lines.values())]
    if not panels:
        raise UsageError(f"no metric changes with {setting}; there is nothing to draw")
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.4 * len(panels) + 0.4, 3.2 + 0.24 * len(lines)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, (metric, head) in zip(axes[0], panels, strict=True):
        for number, (name, own) in enumerate(lines.items()):
            shown = [p for p in own if p.figures[metric] is not None]
            x = [p.value if numeric else values.index(p.value) + _aside(number, len(lines)) for p in shown]
            spread = [p.deviations[metric] or 0.0 for p in shown]
            style = {"marker": "o", "ms": 4, "lw": 1.4, "ls": "-" if numeric else "none"}
            bars = spread if any(spread) else None
            axis.errorbar(x, [p.figures[metric] for p in shown], yerr=bars, capsize=3, label=name, **style)
        if numeric and min(values) > 0 and max(values) / min(values) >= 16:
            axis.set_xscale("log", base=2)
        axis.set_xticks(values if numeric else range(len(values)), labels=[f"{v}" for v in values])
        if not numeric:
            axis.set_xlim(-0.5, len(values) - 0.5)
        axis.tick_params(labelsize=8)
        if max(len(str(value)) for value in values) > 8:
            plt.setp(axis.get_xticklabels(), rotation=25, ha="right", rotation_mode="anchor")
        axis.set_xlabel(setting.replace("_", " "), fontsize=9)
        axis.set_title(head, fontsize=10)
        axis.grid(alpha=0.3)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", fontsize=8, ncols=1, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _line(data: str, method: str, settings: Mapping[str, Any], setting: str, model: str, weights: str) -> str:
    others = [f"{k}={v}" for k, v in settings.items() if k != setting]
    return ", ".join([data, " ".join([method, *others]), f"{model} {weights}"])


def _varies(own: Sequence[Point], metric: str) -> bool:
    known = [value for p in own if (value := p.figures[metric]) is not None]
    return len(known) > 1 and max(known) - min(known) > 1e-9


def _aside(number: int, count: int) -> float:
    """Return a small offset, so that names on one place do not cover each other."""
    return 0.12 * (number - (count - 1) / 2)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None

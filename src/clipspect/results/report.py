"""HTML report: one self-contained file, generated from a results folder's rows and manifest."""

from __future__ import annotations

import base64
import heapq
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from clipspect.postprocess.calibration import Calibration
from clipspect.postprocess.heatmap import COOL, INFERNO, WARM
from clipspect.postprocess.verdict import WORDS, describe
from clipspect.results.files import open_whole
from clipspect.results.outputs import method_suffix
from clipspect.results.rows import map_of
from clipspect.results.store import OVERLAYS, REPORT, iterate_rows, read_manifest

MAX_CARDS = 500
MAX_ERRORS = 200
BINS = 40
HEAT_SIDE = 256
"""Long side of the maps in the report, equal to that of its images."""
ROWS_MARK = "/*rows*/"
"""Position in the template where rows are inserted."""


NO_CALIBRATION = Calibration("none", 1.0, 0.0, (0.0,), (1.0,))
"""Text for rows of an unfinished run."""


@dataclass
class _Overview:
    """Summary of the light columns of all rows."""

    total: int = 0
    flagged: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    seconds: float = 0.0
    scores: list[float] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    warnings: dict[str, None] = field(default_factory=dict)
    best: list[tuple[float, str]] = field(default_factory=list)
    """Heap of the highest (score, path)."""
    first: dict[str, Any] = field(default_factory=dict)


def write_report(out: Path) -> Path:
    """Write OUT/report.html: the 500 images with the highest scores, the first 200 errors, all counts.

    Raises ResultsError.
    """
    manifest = read_manifest(out)
    overview = _read_overview(out, next(iter(manifest["settings"]["methods"])))
    methods = list(manifest["settings"]["methods"])
    stored = manifest.get("calibrations", {})
    calibrations = {m: Calibration.from_dict(stored[m]) if m in stored else NO_CALIBRATION for m in methods}
    shown = {path for _, path in overview.best}
    place = files("clipspect.results")
    template, style, script = (
        place.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    template = template.replace("{{style}}", style).replace("{{script}}", script)
    before, after = template.split(ROWS_MARK)
    before = before.replace("{{title}}", html.escape(_title(overview)))
    before = before.replace("{{data}}", _script_json(_header(out, manifest, overview, calibrations)))
    target = out / REPORT
    with open_whole(out, target) as file:
        file.write(before.encode())
        _write_rows(file, _cards(out, shown, calibrations))
        file.write(after.encode())
    return target


def _read_overview(out: Path, method: str) -> _Overview:
    """Return the counts of one method's rows; if several methods are compared, of the first."""
    overview = _Overview()
    columns = [
        "path",
        "score",
        "flag",
        "verdict",
        "error",
        "seconds",
        "warnings",
        "object",
        "method",
        "model",
    ]
    columns += ["weights", "threshold", "threshold_source", "missing"]
    for row in iterate_rows(out, columns):
        if row["method"] != method or row["missing"]:
            continue
        overview.first = overview.first or row
        overview.total += 1
        overview.seconds += row["seconds"] or 0.0
        overview.warnings.update(dict.fromkeys(row["warnings"] or []))
        if row["error"] is not None:
            overview.failed += 1
            if len(overview.errors) < MAX_ERRORS:
                overview.errors.append((row["path"], row["error"]))
            continue
        overview.flagged += bool(row["flag"])
        if row["score"] is None:  # scored, but the run did not finish
            continue
        overview.verdicts[row["verdict"]] = overview.verdicts.get(row["verdict"], 0) + 1
        overview.scores.append(row["score"])
        push = heapq.heappush if len(overview.best) < MAX_CARDS else heapq.heappushpop
        push(overview.best, (row["score"], row["path"]))
    return overview


def _title(overview: _Overview) -> str:
    return f"{overview.first.get('object', 'Inspection')}: {overview.flagged} of {overview.total} flagged"


def _header(
    out: Path, manifest: Mapping[str, Any], overview: _Overview, calibrations: Mapping[str, Calibration]
) -> dict[str, Any]:
    settings = manifest.get("settings", {})
    first = overview.first
    return {
        "object": first.get("object", ""),
        "method": first.get("method", ""),
        "model": first.get("model", ""),
        "weights": first.get("weights", ""),
        "folder": _folder_name(settings.get("source", str(out))),
        "settings": _flat(settings),
        "created": manifest.get("created", ""),
        "version": manifest.get("clipspect", ""),
        "total": overview.total,
        "flagged": overview.flagged,
        "verdicts": overview.verdicts,
        "words": WORDS,
        "failed": overview.failed,
        "seconds": overview.seconds,
        "threshold": first.get("threshold"),
        "thresholdSource": first.get("threshold_source"),
        "good": bool(first) and calibrations[first["method"]].is_good,
        "results": out.resolve().name,
        "scores": _base64((np.array(overview.scores) * 65535 + 0.5).astype("<u2").tobytes()),
        "thresholdNote": describe(calibrations[first["method"]]) if first else "",
        "warnings": list(overview.warnings),
        "errors": overview.errors,
        "histogram": _histogram(overview.scores, first.get("threshold")),
        "colors": INFERNO.tolist(),
        "clear": [COOL, WARM],
        "cardLimit": MAX_CARDS,
    }


def _folder_name(source: str | Sequence[str]) -> str:
    """Return the last name of the images' folder, or of the merged folders."""
    return ", ".join(Path(place).name for place in ([source] if isinstance(source, str) else source))


def _histogram(scores: Sequence[float], threshold: float | None) -> dict[str, Any]:
    """Return the counts of all scores, with the threshold inside the displayed range."""
    if not scores:
        return {"low": 0.0, "high": 1.0, "counts": []}
    marks = [*scores, *([] if threshold is None else [threshold])]
    low, high = min(marks), max(marks)
    margin = max((high - low) * 0.03, 0.005)
    low, high = max(0.0, low - margin), min(1.0, high + margin)
    return {"low": low, "high": high, "counts": np.histogram(scores, BINS, (low, high))[0].tolist()}


def _cards(out: Path, shown: set[str], calibrations: Mapping[str, Calibration]) -> Iterator[dict[str, Any]]:
    """Yield one card per image: the first method's findings, and those of the other methods."""
    columns = [
        "path",
        "method",
        "width",
        "height",
        "score",
        "flag",
        "verdict",
        "regions",
        "seconds",
        "missing",
    ]
    columns += ["layers", "class_logit", "map_height", "map_width", "preview"]
    order = {method: number for number, method in enumerate(calibrations)}
    several = len(order) > 1
    for path, group in groupby(iterate_rows(out, columns), key=lambda row: row["path"]):
        if path not in shown:
            continue
        rows = sorted(group, key=lambda row: order[row["method"]])
        first = rows[0]
        yield {
            "name": path,
            "width": first["width"],
            "height": first["height"],
            "seconds": first["seconds"],
            "photo": first["preview"] and _base64(first["preview"]),
            **_findings(out, first, calibrations, several=several),
            "others": [_findings(out, row, calibrations, several=several) for row in rows[1:]],
        }


def _findings(
    out: Path, row: Mapping[str, Any], calibrations: Mapping[str, Calibration], *, several: bool
) -> dict[str, Any]:
    overlay = f"{OVERLAYS}/{row['path']}{method_suffix(row['method'], several=several)}.png"
    return {
        "method": row["method"],
        "score": row["score"],
        "flag": row["flag"],
        "verdict": row["verdict"],
        "regions": [
            [r["left"], r["top"], r["width"], r["height"], r["area"], round(r["peak"], 4)]
            for r in row["regions"] or []
        ],
        "heat": _heat_png(map_of(row, calibrations[row["method"]])),
        "overlay": quote(overlay) if (out / overlay).is_file() else None,
    }


def _heat_png(score_map: NDArray[np.float32] | None) -> str | None:
    """Encode the map as an 8-bit grayscale PNG, black to white for scores 0 to 1; the page colors it."""
    from PIL import Image

    if score_map is None:
        return None
    share = np.clip(score_map, 0, 1)
    picture = Image.fromarray((share * 255 + 0.5).astype(np.uint8))
    picture.thumbnail((HEAT_SIDE, HEAT_SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return _base64(buffer.getvalue())


def _write_rows(file: IO[bytes], cards: Iterator[dict[str, Any]]) -> None:
    for number, card in enumerate(cards):
        file.write(((",\n" if number else "") + _script_json(card)).encode())


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (dotted name, text)."""
    pairs: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((prefix + name, value if isinstance(value, str) else json.dumps(value)))
    return pairs


def _script_json(value: Any) -> str:
    """Return JSON that is safe inside a script element: without ``</script>`` and ``<!--``."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")

"""HTML report: one self-contained file with the viewer, generated from a results folder's rows and manifest."""

from __future__ import annotations

import base64
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote

import numpy as np

from clipspect.postprocess.calibration import Calibration
from clipspect.postprocess.verdict import WORDS, describe
from clipspect.results.files import open_whole
from clipspect.results.outputs import method_suffix
from clipspect.results.pictures import PictureReader
from clipspect.results.settings import settings_in_words
from clipspect.results.store import OVERLAYS, REPORT, iterate_rows, read_manifest
from clipspect.viewer import report_page

MAX_CARDS = 10_000
"""Images in a report: with more, the browser needs over a gigabyte."""
FULL_CARDS = 500
"""Images with the stored preview and a 16-bit map; the others have a small thumbnail and an 8-bit map."""
LARGE_PHOTOS = 60
"""Images with a larger photo and their template, read from their files where those are still there."""
MAX_ERRORS = 200
BLOCK = 20
"""Images of one block of pictures: the viewer parses a block when one of its images is shown (embedded.ts)."""
GOOD_FOLDER = "good"

NO_CALIBRATION = Calibration("none", 1.0, 0.0, (0.0,), (1.0,))
"""For rows of an unfinished run."""


@dataclass
class _MethodOverview:
    """Summary of one method's rows."""

    first: dict[str, Any] = field(default_factory=dict)
    flagged: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)


@dataclass
class _Overview:
    """Summary of the light columns of all rows."""

    methods: dict[str, _MethodOverview]
    total: int = 0
    seconds: float = 0.0
    errors: list[tuple[str, str]] = field(default_factory=list)
    failed: int = 0
    warnings: dict[str, None] = field(default_factory=dict)
    best: list[tuple[float, str]] = field(default_factory=list)
    """Heap of the highest (score, path) of the first method."""


def write_report(out: Path) -> Path:
    """Write OUT/report.html: the 10,000 images with the highest scores, the first 200 errors, all counts.

    Raises ResultsError.
    """
    manifest = read_manifest(out)
    methods = list(manifest["settings"]["methods"])
    overview = _read_overview(out, methods)
    stored = manifest.get("calibrations", {})
    calibrations = {m: Calibration.from_dict(stored[m]) if m in stored else NO_CALIBRATION for m in methods}
    ranked = [path for _, path in sorted(overview.best, reverse=True)]
    reader = PictureReader(
        manifest, calibrations, full=set(ranked[:FULL_CARDS]), large=set(ranked[:LARGE_PHOTOS])
    )
    truth = _labels(ranked)
    data = _script_json(_header(out, manifest, overview, calibrations, has_truth=bool(truth)))
    before, after = report_page(_title(overview), data)
    target, shown = out / REPORT, set(ranked)
    with open_whole(out, target) as file:
        file.write(before.encode())
        _write_list(file, "rows", _rows(out, shown, methods, truth))
        for number, block in enumerate(_blocks(_pictures(out, shown, methods, reader), BLOCK)):
            _write_list(file, f"pictures-{number}", block)
        file.write(after.encode())
    return target


def _read_overview(out: Path, methods: Sequence[str]) -> _Overview:
    overview = _Overview({method: _MethodOverview() for method in methods})
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
        if row["missing"]:
            continue
        own, is_first = overview.methods[row["method"]], row["method"] == methods[0]
        own.first = own.first or row
        overview.warnings.update(dict.fromkeys(row["warnings"] or []))
        if is_first:
            overview.total += 1
            overview.seconds += row["seconds"] or 0.0
        if row["error"] is not None:
            overview.failed += is_first
            if is_first and len(overview.errors) < MAX_ERRORS:
                overview.errors.append((row["path"], row["error"]))
            continue
        own.flagged += bool(row["flag"])
        if row["score"] is None:  # scored, but the run did not finish
            continue
        own.verdicts[row["verdict"]] = own.verdicts.get(row["verdict"], 0) + 1
        own.scores.append(row["score"])
        if is_first:
            push = heapq.heappush if len(overview.best) < MAX_CARDS else heapq.heappushpop
            push(overview.best, (row["score"], row["path"]))
    return overview


def _title(overview: _Overview) -> str:
    own = next(iter(overview.methods.values()))
    return f"{own.first.get('object', 'Inspection')}: {own.flagged} of {overview.total} flagged"


def _header(
    out: Path,
    manifest: Mapping[str, Any],
    overview: _Overview,
    calibrations: Mapping[str, Calibration],
    *,
    has_truth: bool,
) -> dict[str, Any]:
    settings = manifest.get("settings", {})
    first = next(iter(overview.methods.values())).first
    return {
        "object": first.get("object", ""),
        "folder": _folder_name(settings.get("source", str(out))),
        "results": out.resolve().name,
        "created": manifest.get("created", ""),
        "version": manifest.get("clipspect", ""),
        "model": first.get("model", ""),
        "weights": first.get("weights", ""),
        "total": overview.total,
        "failed": overview.failed,
        "seconds": overview.seconds,
        "cardLimit": MAX_CARDS,
        "errors": overview.errors,
        "warnings": list(overview.warnings),
        "settings": [
            *settings_in_words(settings),
            ("Computing time", f"{overview.seconds:.1f} s"),
        ],
        "words": WORDS,
        "methods": [_method_summary(name, own, calibrations[name]) for name, own in overview.methods.items()],
        "truthSource": f"folder names ({GOOD_FOLDER} and others)" if has_truth else None,
    }


def _method_summary(name: str, own: _MethodOverview, calibration: Calibration) -> dict[str, Any]:
    scores = (np.array(own.scores) * 65535 + 0.5).astype("<u2").tobytes()
    return {
        "name": name,
        "threshold": own.first.get("threshold"),
        "thresholdSource": own.first.get("threshold_source"),
        "note": describe(calibration) if own.first else "",
        "good": calibration.is_good,
        "verdicts": own.verdicts,
        "flagged": own.flagged,
        "scores": base64.b64encode(scores).decode("ascii"),
    }


def _folder_name(source: str | Sequence[str]) -> str:
    """Return the last name of the images' folder, or of the merged folders."""
    return ", ".join(Path(place).name for place in ([source] if isinstance(source, str) else source))


def _labels(paths: Sequence[str]) -> dict[str, str]:
    """Return "good" or "defect" by path, where images lie in a folder "good" and in folders beside it."""
    parents = {path: PurePosixPath(path).parent for path in paths}
    roots = {parent.parent for parent in parents.values() if parent.name == GOOD_FOLDER}
    labels = {
        path: "good" if parent.name == GOOD_FOLDER else "defect"
        for path, parent in parents.items()
        if parent.name and parent.parent in roots
    }
    return labels if len(set(labels.values())) == 2 else {}


def _groups(
    out: Path, shown: set[str], methods: Sequence[str], columns: Sequence[str]
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each shown image, in the order of the methods; the images have the order of the store."""
    order = {method: number for number, method in enumerate(methods)}
    for path, group in groupby(iterate_rows(out, columns), key=lambda row: row["path"]):
        if path in shown:
            yield sorted(group, key=lambda row: order[row["method"]])


def _rows(
    out: Path, shown: set[str], methods: Sequence[str], truth: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    columns = ["path", "method", "object", "width", "height", "score", "verdict", "regions", "seconds"]
    for rows in _groups(out, shown, methods, columns):
        first = rows[0]
        yield {
            "name": first["path"],
            "object": first["object"],
            "width": first["width"],
            "height": first["height"],
            "seconds": first["seconds"],
            "truth": truth.get(first["path"]),
            "findings": [_finding(out, row, several=len(methods) > 1) for row in rows],
        }


def _finding(out: Path, row: Mapping[str, Any], *, several: bool) -> dict[str, Any]:
    overlay = f"{OVERLAYS}/{row['path']}{method_suffix(row['method'], several=several)}.png"
    return {
        "score": row["score"],
        "verdict": row["verdict"],
        "regions": [
            [r["left"], r["top"], r["width"], r["height"], r["area"], round(r["peak"], 4)]
            for r in row["regions"] or []
        ],
        "overlay": quote(overlay) if (out / overlay).is_file() else None,
    }


def _pictures(
    out: Path, shown: set[str], methods: Sequence[str], reader: PictureReader
) -> Iterator[dict[str, Any]]:
    columns = [
        "path",
        "method",
        "content_hash",
        "layers",
        "class_logit",
        "map_height",
        "map_width",
        "preview",
    ]
    for rows in _groups(out, shown, methods, columns):
        yield reader.pictures(rows)


def _blocks(items: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    block: list[dict[str, Any]] = []
    for item in items:
        block.append(item)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


def _write_list(file: IO[bytes], name: str, items: Iterable[dict[str, Any]]) -> None:
    file.write(f'<script type="application/json" id="{name}">['.encode())
    for number, item in enumerate(items):
        file.write(((",\n" if number else "") + _script_json(item)).encode())
    file.write(b"]</script>\n")


def _script_json(value: Any) -> str:
    """Return JSON that is safe inside a script element: without ``</script>`` and ``<!--``."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

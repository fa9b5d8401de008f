"""HTML report: one self-contained file with the viewer, generated from a results folder's rows and manifest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote

from clipspect.postprocess.calibration import Calibration
from clipspect.results.files import open_whole
from clipspect.results.outputs import method_suffix, output_path
from clipspect.results.overview import MAX_ERRORS, Overview, finding
from clipspect.results.pictures import PictureReader
from clipspect.results.settings import model_notes, settings_in_words
from clipspect.results.similar import SIMILAR_COLUMNS, group_rows
from clipspect.results.store import OVERLAYS, REPORT, iterate_rows, read_manifest
from clipspect.viewer import report_page

MAX_CARDS = 10_000
"""Images in a report: with more, the browser needs over a gigabyte."""
FULL_CARDS = 500
"""Images with the stored preview and a 16-bit map; the others have a small thumbnail and an 8-bit map."""
LARGE_PHOTOS = 60
"""Images with a larger photo and their template, read from their files where those are still there."""
BLOCK = 20
"""Images of one block of pictures: the viewer parses a block when one of its images is shown (embedded.ts)."""
GOOD_FOLDER = "good"

NO_CALIBRATION = Calibration("none", 1.0, 0.0, (0.0,), (1.0,))
"""For rows of an unfinished run."""


def write_report(out: Path) -> Path:
    """Write OUT/report.html: the 10,000 images with the highest scores, the first 200 errors, all counts.

    Raises ResultsError.
    """
    manifest = read_manifest(out)
    methods = list(manifest["settings"]["methods"])
    overview = _read_overview(out, methods)
    stored = manifest.get("calibrations", {})
    calibrations = dict.fromkeys(methods, NO_CALIBRATION)
    calibrations |= {key: Calibration.from_dict(one) for key, one in stored.items()}
    ranked = overview.ranked()
    reader = PictureReader(
        manifest, calibrations, full=set(ranked[:FULL_CARDS]), large=set(ranked[:LARGE_PHOTOS])
    )
    truth = _labels(ranked)
    settings = manifest.get("settings", {})
    header = overview.header(
        calibrations,
        folder=_folder_name(settings.get("source", str(out))),
        results=out.resolve().name,
        created=manifest.get("created", ""),
        version=manifest.get("clipspect", ""),
        settings=[*settings_in_words(settings), *model_notes(settings)],
        truth_source=f"folder names ({GOOD_FOLDER} and others)" if truth else None,
    )
    before, after = report_page(_title(overview), _script_json(header))
    target, shown = out / REPORT, set(ranked)
    with open_whole(out, target) as file:
        file.write(before.encode())
        similar = group_rows(iterate_rows(out, SIMILAR_COLUMNS))
        _write_list(file, "rows", _rows(out, shown, methods, truth, similar))
        for number, block in enumerate(_blocks(_pictures(out, shown, methods, reader), BLOCK)):
            _write_list(file, f"pictures-{number}", block)
        file.write(after.encode())
    return target


def _read_overview(out: Path, methods: Sequence[str]) -> Overview:
    overview = Overview(methods, MAX_CARDS, MAX_ERRORS)
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
        if not row["missing"]:
            overview.add(row)
    return overview


def _title(overview: Overview) -> str:
    own = overview.first
    return f"{own.first.get('object', 'Inspection')}: {own.flagged} of {overview.total} flagged"


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
    out: Path,
    shown: set[str],
    methods: Sequence[str],
    truth: Mapping[str, str],
    similar: Mapping[tuple[str, str], int],
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
            "findings": [
                finding(
                    row,
                    _overlay(out, row, several=len(methods) > 1),
                    similar.get((row["path"], row["method"])),
                )
                for row in rows
            ],
        }


def _overlay(out: Path, row: Mapping[str, Any], *, several: bool) -> str | None:
    """Return the address of a row's overlay file beside the report; None if there is no file."""
    overlay = output_path(out / OVERLAYS, row["path"], method_suffix(row["method"], several=several) + ".png")
    return quote(overlay.relative_to(out).as_posix()) if overlay.is_file() else None


def _pictures(
    out: Path, shown: set[str], methods: Sequence[str], reader: PictureReader
) -> Iterator[dict[str, Any]]:
    columns = [
        "path",
        "method",
        "object",
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

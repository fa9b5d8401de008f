"""Export of results as JSON values and CSV, from detections in memory or rows of a results folder."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from clipspect.detection import Detection
from clipspect.results.rows import detection_to_row, light_row
from clipspect.results.schema import LIGHT_COLUMNS
from clipspect.results.store import iterate_rows


def json_rows(out: Path) -> Iterator[dict[str, Any]]:
    """Yield each image's row as JSON values, without images and layers; rows of missing files are skipped."""
    for row in iterate_rows(out, LIGHT_COLUMNS):
        if not row["missing"]:
            yield _jsonable(row)


def detection_json(detection: Detection) -> dict[str, Any]:
    """Return a detection with a verdict under the names of a row's light columns, as JSON-serializable values."""
    return _jsonable(light_row(detection_to_row(detection, preview=None, judged=True)))


def light_rows(detections: Sequence[Detection]) -> Iterator[dict[str, Any]]:
    """Yield the light columns that a results folder would contain for these detections."""
    for detection in detections:
        yield light_row(detection_to_row(detection, preview=None, judged=True))


def _jsonable(row: dict[str, Any]) -> dict[str, Any]:
    when = row["finished_at"]
    return {**row, "finished_at": when.isoformat() if when else None}


def write_csv(file: IO[bytes], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of :data:`LIGHT_COLUMNS` as CSV, regions as JSON; UTF-8 with a byte order mark, for spreadsheets."""
    columns = [column for column in LIGHT_COLUMNS if column != "regions"] + ["region_count", "regions"]
    text = io.TextIOWrapper(file, "utf-8-sig", newline="", write_through=True)
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {
                **row,
                "path": _as_text(row["path"]),
                "error": _as_text(row["error"]),
                "region_count": len(row["regions"] or []),
                "regions": json.dumps(row["regions"] or []),
                "warnings": "; ".join(row["warnings"] or []),
                "finished_at": row["finished_at"].isoformat(timespec="seconds"),
            }
        )
    text.detach()


def _as_text(cell: str | None) -> str | None:
    """Return a cell that spreadsheets treat as text, because a file name may look like a formula."""
    return f"'{cell}" if cell and cell[0] in "=+-@\t\r" else cell

"""Results for machines: JSON values and CSV, of detections in memory and of the rows of a results folder."""

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
    """Each image's row as JSON-able values, without pictures and layers; rows of missing files are left out."""
    for row in iterate_rows(out, LIGHT_COLUMNS):
        if not row["missing"]:
            yield _jsonable(row)


def detection_json(detection: Detection) -> dict[str, Any]:
    """A judged detection under the names of a row's light columns, as JSON-able values."""
    return _jsonable(light_row(detection_to_row(detection, preview=None, judged=True)))


def light_rows(detections: Sequence[Detection]) -> Iterator[dict[str, Any]]:
    """The light columns a results folder would hold of these detections."""
    for detection in detections:
        yield light_row(detection_to_row(detection, preview=None, judged=True))


def _jsonable(row: dict[str, Any]) -> dict[str, Any]:
    when = row["finished_at"]
    return {**row, "finished_at": when.isoformat() if when else None}


def write_csv(file: IO[bytes], rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows of :data:`LIGHT_COLUMNS` as CSV, regions as JSON; UTF-8 with a mark, for spreadsheets."""
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
    """A cell a spreadsheet takes for text: a file may be named like a formula."""
    return f"'{cell}" if cell and cell[0] in "=+-@\t\r" else cell

"""Results for machines: JSON values and CSV, of detections in memory and of the rows of a results folder."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from clipspect.detection import Detection
from clipspect.results.rows import LIGHT_COLUMNS, detection_to_row

_PICTURES = ("map", "map_height", "map_width", "preview")


def json_rows(out: Path) -> Iterator[dict[str, Any]]:
    """Each image's row as JSON-able values, without its pictures, read batch by batch."""
    import pyarrow.dataset

    dataset = pyarrow.dataset.dataset(out / "detections", format="parquet")
    names = [name for name in dataset.schema.names if name not in _PICTURES]
    for batch in dataset.to_batches(columns=names):
        for row in batch.to_pylist():
            row["finished_at"] = row["finished_at"].isoformat() if row["finished_at"] else None
            row["score"] = None if row["score"] != row["score"] else row["score"]
            yield row


def detection_json(detection: Detection) -> dict[str, Any]:
    """A detection as JSON-able values, without its pictures; score, flag and thresholds are None where it failed."""
    failed = detection.score_map is None
    used = None if failed else detection.thresholds_used
    return {
        "path": detection.path,
        "content_hash": detection.content_hash,
        "width": detection.width,
        "height": detection.height,
        "object": detection.object,
        "method": detection.method,
        "model": detection.model,
        "weights": detection.weights,
        "score": None if failed else detection.score,
        "flag": detection.flag,
        "threshold": used.image if used else None,
        "pixel_threshold": used.pixel if used else None,
        "threshold_source": used.source if used else None,
        "regions": [asdict(region) for region in detection.regions],
        "error": detection.error,
        "seconds": detection.seconds,
        "warnings": list(detection.warnings),
    }


def row_json(detection: Detection) -> dict[str, Any]:
    """:func:`detection_json` under the names of a results folder's columns."""
    own = detection_json(detection)
    return {"image_threshold" if name == "threshold" else name: value for name, value in own.items()}


def light_rows(detections: Sequence[Detection]) -> Iterator[dict[str, Any]]:
    """The rows a results folder would hold of these detections, judged by their own thresholds."""
    for detection in detections:
        own = detection_json(detection)
        row = detection_to_row(detection, preview=None) | {
            "flag": own["flag"],
            "regions": own["regions"],
            "image_threshold": own["threshold"],
            "pixel_threshold": own["pixel_threshold"],
            "threshold_source": own["threshold_source"],
        }
        yield {name: row[name] for name in LIGHT_COLUMNS}


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

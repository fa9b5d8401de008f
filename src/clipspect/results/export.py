"""The rows of a results folder for machines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PICTURES = ("map", "map_height", "map_width", "preview")


def json_rows(out: Path) -> Iterator[dict[str, Any]]:
    """Each photograph's row as JSON-able values, without its pictures, read batch by batch."""
    import pyarrow.dataset

    dataset = pyarrow.dataset.dataset(out / "detections", format="parquet")
    names = [name for name in dataset.schema.names if name not in _PICTURES]
    for batch in dataset.to_batches(columns=names):
        for row in batch.to_pylist():
            row["finished_at"] = row["finished_at"].isoformat() if row["finished_at"] else None
            row["score"] = None if row["score"] != row["score"] else row["score"]
            yield row

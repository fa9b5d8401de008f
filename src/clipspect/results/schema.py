"""Schema of a result row, from which Parquet, CSV, JSON, the service's responses and the docs derive."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

REGION_FIELDS = {
    "left": "int32", "top": "int32", "width": "int32", "height": "int32", "area": "int64",
    "peak": "float64", "peak_x": "int32", "peak_y": "int32",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """Column of a row."""

    name: str
    kind: str
    """"string", "bool", "int32", "int64", "float64", "binary", "time", "strings", "floats" or "regions"."""
    about: str
    is_light: bool = True
    """Whether tables and JSON include it; the other columns contain images and layers."""
    in_response: bool = True
    """Whether a result of the service includes it, if light: not what holds for a whole request or for a folder."""
    nullable: bool = True
    """Whether it may be null where the image failed or the run has no such value."""


COLUMNS = (
    Column(
        "path", "string", "path below the folder that was scored, with forward slashes", in_response=False
    ),
    Column("content_hash", "string", "SHA-256 of the file", nullable=False),
    Column("width", "int32", "pixels", nullable=False),
    Column("height", "int32", "pixels", nullable=False),
    Column("object", "string", "what is on the image", in_response=False),
    Column("method", "string", "method of this row", in_response=False),
    Column("model", "string", "backbone", in_response=False),
    Column("weights", "string", "label of the weights", in_response=False),
    Column("score", "float64", "calibrated anomaly score in [0, 1]; null where the image failed"),
    Column("flag", "bool", "whether the verdict asks for a look; null where the image failed"),
    Column("verdict", "string", "flagged, clean, stands_out, suspicious, undecided or error", nullable=False),
    Column("threshold", "float64", "score from which on images are flagged; null where none can be given"),
    Column("threshold_source", "string", "rule behind the threshold (docs/calibration.md)"),
    Column("profile", "string", "product profile that judged it, name@version; null without one"),
    Column(
        "regions",
        "regions",
        "boxes in pixels, highest peak first; one or more if and only if flagged",
        nullable=False,
    ),
    Column("raw_score", "float64", "the method's own image score, as published"),
    Column("error", "string", "why the image failed; null otherwise"),
    Column("warnings", "strings", "what to know of this row", nullable=False),
    Column("seconds", "float64", "to score the image", in_response=False),
    Column("missing", "bool", "whether the file was gone when the run was last finished", in_response=False),
    Column("finished_at", "time", "UTC", in_response=False),
    Column("host", "string", "name of the machine", in_response=False),
    Column("class_logit", "float64", "log-odds of the class token's text score; null without one", False),
    Column("peaks", "floats", "highest value of each layer, log-odds", False),
    Column("medians", "floats", "median of each layer, log-odds", False),
    Column(
        "layers",
        "binary",
        "(peaks, map_height, map_width) little-endian float16 log-odds, -inf outside the region of interest",
        False,
    ),
    Column("map_height", "int32", "cells of a layer", False),
    Column("map_width", "int32", "cells of a layer", False),
    Column(
        "embedding",
        "binary",
        "unit little-endian float16: mean patch token of the strongest region less that of its tile; null without",
        False,
    ),
    Column("preview", "binary", "JPEG of at most 256 pixels a side", False),
)
LIGHT_COLUMNS = tuple(column.name for column in COLUMNS if column.is_light)
"""Columns without images, layers and their summaries."""
SUMMARY_COLUMNS = ("path", "method", "object", "missing", "class_logit", "peaks", "medians")
"""Columns that a calibration reads."""


@cache
def arrow_schema() -> Any:
    """Return the Arrow schema of a part of a results folder."""
    import pyarrow as pa

    simple = {
        "string": pa.string(), "bool": pa.bool_(), "int32": pa.int32(), "int64": pa.int64(),
        "float64": pa.float64(), "binary": pa.binary(), "time": pa.timestamp("ms", tz="UTC"),
        "strings": pa.list_(pa.string()), "floats": pa.list_(pa.float64()),
    }  # fmt: skip
    region = pa.struct([(name, simple[kind]) for name, kind in REGION_FIELDS.items()])
    return pa.schema([(c.name, pa.list_(region) if c.kind == "regions" else simple[c.kind]) for c in COLUMNS])


def markdown_table() -> str:
    """Return the columns as a table for docs/results.md."""
    lines = ["| column | type | meaning |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| `{c.name}` | {c.kind} | {c.about} |" for c in COLUMNS)])


if __name__ == "__main__":
    print(markdown_table())

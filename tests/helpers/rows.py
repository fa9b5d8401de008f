"""Stored rows of a results folder."""

from __future__ import annotations

from pathlib import Path

from clipspect.results.store import iterate_rows


def rows_of(out: Path) -> list[dict]:
    """Every row, in no particular order."""
    return list(iterate_rows(out))


def rows_by_path(out: Path) -> dict[str, dict]:
    """Path → row, where each image has one."""
    rows = rows_of(out)
    by_path = {row["path"]: row for row in rows}
    assert len(by_path) == len(rows), "an image has two rows"
    return by_path

"""Replacement of a benchmark's tables in a documentation page."""

from __future__ import annotations

from pathlib import Path


def replace_between(page: Path, start: str, end: str, text: str) -> None:
    """Replace the text between the markers ``start`` and ``end`` of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(start)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}", encoding="utf-8")

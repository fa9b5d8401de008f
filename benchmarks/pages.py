"""Tables that a benchmark keeps up to date inside a page of documentation."""

from __future__ import annotations

from pathlib import Path


def replace_between(page: Path, start: str, end: str, text: str) -> None:
    """Put ``text`` between the marks ``start`` and ``end`` of a page, in place of what was there."""
    before, _, rest = page.read_text(encoding="utf-8").partition(start)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}", encoding="utf-8")

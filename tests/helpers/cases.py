"""Small files that earlier versions read wrongly (tests/fixtures/cases)."""

from __future__ import annotations

from pathlib import Path

CASES = Path(__file__).parents[1] / "fixtures" / "cases"

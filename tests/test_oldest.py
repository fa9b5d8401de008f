"""`make test-oldest` installs what pyproject.toml declares as the oldest versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_oldest_versions_are_the_declared_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = dict(re.match(r"([\w-]+)>=([\d.]+)", one).groups() for one in project["dependencies"])
    text = (ROOT / "tests" / "oldest.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", text, re.MULTILINE))
    assert pinned.items() >= declared.items()

"""A folder of images of parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.fake_detector import write_parts


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_parts(tmp_path / "photos", good=12, dark=4)
    return tmp_path / "photos"

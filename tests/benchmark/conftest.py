"""A data set of a plate, as small as the runs need."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipspect.training.layouts import render_pictures, write_layout


@pytest.fixture(scope="module")
def pictures():
    return render_pictures(side=64, train=5, good=5, defective=5)


@pytest.fixture
def own(tmp_path, pictures) -> Path:
    write_layout("folder", tmp_path / "data", "plate", pictures)
    return tmp_path / "data" / "plate"

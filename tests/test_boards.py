"""From files of real boards to rows: `tiny` beside each board's own template."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipspect
from helpers.rows import rows_by_path

BOARDS = Path(__file__).parent / "fixtures" / "images"
NAMES = [f"{number:02d}.png" for number in range(1, 5)]


@pytest.fixture(scope="module")
def detections():
    detector = clipspect.load("dual-image", "tiny")
    paths = [BOARDS / "boards" / name for name in NAMES]
    found = detector.stream(
        paths, object="printed circuit board", templates=lambda path: BOARDS / "templates" / path.name
    )
    return {Path(one.path).name: one for one in found}


@pytest.mark.parametrize("name", NAMES)
def test_the_peak_lies_on_a_defect(detections, name):
    defective = np.asarray(Image.open(BOARDS / "masks" / name)) > 0
    scores = detections[name].anomaly_map
    assert scores.shape == defective.shape
    assert defective[np.unravel_index(scores.argmax(), scores.shape)]
    assert detections[name].verdict == "undecided"  # no known-good image


def test_the_command_line_gives_the_same_scores(run, tmp_path, detections):
    words = ("--object", "printed circuit board", "--templates", str(BOARDS / "templates"))
    out = tmp_path / "out"
    code, _, _ = run("detect", str(BOARDS / "boards"), *words, "--out", str(out), model=False)
    assert code == 0
    rows = rows_by_path(out)
    assert sorted(rows) == NAMES
    for name, row in rows.items():
        assert row["raw_score"] == pytest.approx(detections[name].raw_score, abs=1e-6)
    assert (out / "report.html").is_file()

"""The report is one file that holds everything, reaches for nothing and lets no file name run as code."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipspect.errors import ResultsError
from clipspect.results import report as report_module
from clipspect.results.report import write_report
from clipspect.results.run import run_folder
from helpers.fake_detector import KNOWN_GOOD, DarkSpotDetector, write_parts


def parse(text: str) -> tuple[dict, list[dict]]:
    """The two embedded JSON documents."""
    data, rows = re.findall(r'<script type="application/json" id="\w+">(.*?)</script>', text, re.DOTALL)
    return json.loads(data), json.loads(rows)


def run(tmp_path: Path, **options: object) -> Path:
    options = {"good": KNOWN_GOOD, **options}
    return run_folder(
        DarkSpotDetector(), tmp_path / "photos", object="part", out=tmp_path / "out", **options
    ).report


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_parts(tmp_path / "photos", good=12, dark=4)
    (tmp_path / "photos" / "empty.jpg").write_bytes(b"")
    return tmp_path / "photos"


def test_the_report_shows_counts_scores_regions_pictures_and_errors(photos: Path, tmp_path: Path):
    data, rows = parse(run(tmp_path).read_text())
    assert (data["total"], data["flagged"], data["failed"]) == (17, 4, 1)
    assert (data["object"], data["method"], data["model"]) == ("part", "dark", "fake")
    assert (data["thresholdSource"], data["threshold"]) == ("conformal", 0.5)
    assert data["verdicts"] == {"clean": 12, "flagged": 4}
    assert "40 known-good images" in data["thresholdNote"]
    assert data["errors"] == [["empty.jpg", "the file is empty (0 bytes); copy it again from its source"]]
    assert sum(data["histogram"]["counts"]) == 16
    assert data["histogram"]["low"] < data["threshold"] < data["histogram"]["high"]
    assert ["model", "fake"] in data["settings"]
    dark = next(row for row in rows if row["name"] == "part-0013.png")
    assert dark["regions"][0][:5] == [10, 20, 10, 10, 100]
    assert dark["overlay"] == "overlays/part-0013.png.png"
    assert Image.open(io.BytesIO(base64.b64decode(dark["photo"]))).size == (64, 48)
    heat = np.asarray(Image.open(io.BytesIO(base64.b64decode(dark["heat"]))))
    assert heat[25, 15] > 128  # over the threshold
    assert heat[5, 50] < 64  # clear
    assert dark["verdict"] == "flagged"


def test_the_report_reaches_for_nothing_outside_itself(photos: Path, tmp_path: Path):
    text = run(tmp_path).read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//|file:)""", text)
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize(
    "name", ["</script><script>alert(1)</script>.png", "<!--<script>.png", "a&b'\"\u2028.png"]
)
def test_file_names_stay_text(tmp_path: Path, name: str):
    write_parts(tmp_path / "photos", good=1, dark=0)
    target = tmp_path / "photos" / name
    target.parent.mkdir(parents=True, exist_ok=True)  # a slash in the name is a folder
    (tmp_path / "photos" / "part-0000.png").rename(target)
    text = run(tmp_path).read_text()
    assert text.count("<script") == 3
    assert text.count("</script>") == 3
    _, rows = parse(text)
    assert [row["name"] for row in rows] == [name]


def test_the_object_stays_text_in_the_title(tmp_path: Path, photos: Path):
    text = run_folder(
        DarkSpotDetector(), photos, object="</title><b>x", out=tmp_path / "out"
    ).report.read_text()
    assert "</title><b>" not in text


def test_a_report_can_be_made_again_from_the_rows_alone(photos: Path, tmp_path: Path):
    first = run(tmp_path).read_text()
    for file in photos.iterdir():
        file.unlink()
    (tmp_path / "out" / "report.html").unlink()
    assert write_report(tmp_path / "out").read_text() == first


def test_without_known_good_images_no_image_is_called_clean(photos: Path, tmp_path: Path):
    data, rows = parse(run(tmp_path, good=None).read_text())
    assert data["threshold"] is None
    assert data["verdicts"] == {"undecided": 16}
    assert "no threshold can be estimated" in data["thresholdNote"]
    assert not any(row["regions"] for row in rows)


def test_a_large_run_shows_its_highest_scores_and_counts_all(photos: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(report_module, "MAX_CARDS", 5)
    monkeypatch.setattr(report_module, "MAX_ERRORS", 2)
    for number in range(3):
        (photos / f"bad-{number}.png").write_bytes(b"")
    data, rows = parse(run(tmp_path).read_text())
    assert {f"part-{n:04d}.png" for n in range(12, 16)} <= {row["name"] for row in rows}
    assert len(rows) == 5
    assert len(data["errors"]) == 2
    assert (data["total"], data["failed"], data["cardLimit"]) == (20, 4, 5)
    assert sum(data["histogram"]["counts"]) == 16


def test_a_folder_without_results_says_so(tmp_path: Path):
    with pytest.raises(ResultsError, match="no results of clipspect"):
        write_report(tmp_path)

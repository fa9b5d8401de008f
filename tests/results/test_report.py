"""The report is one file that holds everything, reaches for nothing and lets no file name run as code."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipspect.backbones.presets import PRESETS
from clipspect.data.templates import match_templates
from clipspect.errors import ResultsError
from clipspect.postprocess.calibration import Calibration
from clipspect.results import report as report_module
from clipspect.results.pictures import encode_map
from clipspect.results.report import write_report
from clipspect.results.run import run_folder
from clipspect.results.settings import model_notes, settings_in_words
from helpers.fake_detector import KNOWN_GOOD, DarkSpotDetector, write_parts


def documents(text: str) -> dict[str, Any]:
    """The embedded JSON documents by id."""
    found = re.findall(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', text, re.DOTALL)
    return {name: json.loads(content) for name, content in found}


def parse(text: str) -> tuple[dict, list[dict]]:
    """The data of all images, and the rows with the pictures put in."""
    found = documents(text)
    blocks = [found[f"pictures-{number}"] for number in range(len(found) - 2)]
    pictures = [picture for block in blocks for picture in block]
    assert all(len(block) == report_module.BLOCK for block in blocks[:-1])
    return found["data"], [{**row, **own} for row, own in zip(found["rows"], pictures, strict=True)]


def values_of(encoded: dict) -> np.ndarray:
    """The map of a row: 1 is the threshold, 0 the level of good images."""
    numbers = np.frombuffer(
        zlib.decompress(base64.b64decode(encoded["data"])), "u1" if encoded["bytes"] == 1 else "<u2"
    )
    largest = 255 if encoded["bytes"] == 1 else 65535
    return numbers.reshape(encoded["height"], encoded["width"]) * (encoded["top"] / largest)


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
    data, rows = parse(run(tmp_path).read_text(encoding="utf-8"))
    assert (data["total"], data["failed"]) == (17, 1)
    (method,) = data["methods"]
    assert (data["object"], method["name"], data["model"]) == ("part", "dark", "fake")
    assert (method["thresholdSource"], method["threshold"], method["good"]) == ("conformal", 0.5, True)
    assert (method["verdicts"], method["flagged"]) == ({"clean": 12, "flagged": 4}, 4)
    assert "40 known-good images" in method["note"]
    assert data["errors"] == [["empty.jpg", "the file is empty (0 bytes); copy it again from its source"]]
    scores = np.frombuffer(base64.b64decode(method["scores"]), "<u2") / 65535
    assert (len(scores), (scores >= 0.5).sum()) == (16, 4)
    assert ["Model", "fake"] in data["settings"]
    dark = next(row for row in rows if row["name"] == "part-0013.png")
    (finding,) = dark["findings"]
    assert finding["regions"][0][:5] == [10, 20, 10, 10, 100]
    assert finding["overlay"] == "overlays/part-0013.png.png"
    assert finding["verdict"] == "flagged"
    assert Image.open(io.BytesIO(base64.b64decode(dark["photo"]))).size == (64, 48)
    heat = values_of(dark["maps"][0])
    assert heat.shape == (48, 64)  # the stored resolution
    assert heat[25, 15] > 1  # over the threshold
    assert heat[5, 50] < 0.5  # clear


def test_the_report_reaches_for_nothing_outside_itself(photos: Path, tmp_path: Path):
    text = run(tmp_path).read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//|file:)""", text)
    assert "url(" not in text
    assert "@import" not in text


def test_the_policy_lets_the_viewer_run_and_nothing_else(photos: Path, tmp_path: Path):
    text = run(tmp_path).read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for kind, content in (("style", "<style>(.*?)</style>"), ("script", "<script>(.*?)</script>")):
        (own,) = re.findall(content, text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize(
    "name", ["</script><script>alert(1)</script>.png", "<!--<script>.png", "a&b'\"\u2028.png"]
)
def test_file_names_stay_text(tmp_path: Path, name: str):
    write_parts(tmp_path / "photos", good=1, dark=0)
    target = tmp_path / "photos" / name
    target.parent.mkdir(parents=True, exist_ok=True)  # a slash in the name is a folder
    (tmp_path / "photos" / "part-0000.png").rename(target)
    text = run(tmp_path).read_text(encoding="utf-8")
    assert text.count("<script") == 4  # data, rows, one block of pictures, the viewer
    assert text.count("</script>") == 4
    assert "<!--" not in text
    _, rows = parse(text)
    assert [row["name"] for row in rows] == [name]


def test_the_object_stays_text_in_the_title(tmp_path: Path, photos: Path):
    text = run_folder(
        DarkSpotDetector(), photos, object="</title><b>x", out=tmp_path / "out"
    ).report.read_text(encoding="utf-8")
    assert "</title><b>" not in text


def test_a_report_can_be_made_again_from_the_rows_alone(photos: Path, tmp_path: Path):
    first = run(tmp_path).read_text(encoding="utf-8")
    for file in photos.iterdir():
        file.unlink()
    (tmp_path / "out" / "report.html").unlink()
    assert write_report(tmp_path / "out").read_text(encoding="utf-8") == first


def test_without_known_good_images_no_image_is_called_clean(photos: Path, tmp_path: Path):
    data, rows = parse(run(tmp_path, good=None).read_text(encoding="utf-8"))
    (method,) = data["methods"]
    assert (method["threshold"], method["good"]) == (None, False)
    assert method["verdicts"] == {"undecided": 16}
    assert "no threshold can be estimated" in method["note"]
    assert not any(row["findings"][0]["regions"] for row in rows)


def test_a_large_run_shows_its_highest_scores_and_counts_all(photos: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(report_module, "MAX_CARDS", 5)
    monkeypatch.setattr(report_module, "MAX_ERRORS", 2)
    monkeypatch.setattr(report_module, "FULL_CARDS", 3)
    for number in range(3):
        (photos / f"bad-{number}.png").write_bytes(b"")
    data, rows = parse(run(tmp_path).read_text(encoding="utf-8"))
    assert {f"part-{n:04d}.png" for n in range(12, 16)} <= {row["name"] for row in rows}
    assert len(rows) == 5
    assert len(data["errors"]) == 2
    assert (data["total"], data["failed"], data["cardLimit"]) == (20, 4, 5)
    assert len(base64.b64decode(data["methods"][0]["scores"])) == 2 * 16
    assert sorted(row["maps"][0]["bytes"] for row in rows) == [1, 1, 2, 2, 2]
    fine, coarse = (
        next(values_of(row["maps"][0]) for row in rows if row["maps"][0]["bytes"] == width)
        for width in (2, 1)
    )
    assert fine.shape == coarse.shape


def test_high_scores_carry_a_larger_photo_and_their_template_while_the_files_are_there(tmp_path: Path):
    write_parts(tmp_path / "photos", good=3, dark=1, size=(700, 300))
    write_parts(tmp_path / "templates", good=4, dark=0, size=(700, 300))
    templates = match_templates(tmp_path / "templates", tmp_path / "photos")
    _, rows = parse(run(tmp_path, templates=templates).read_text(encoding="utf-8"))
    for row in rows:
        photo, template = (
            np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
            for data in (row["large"], *row["references"])
        )
        assert photo.shape == template.shape == (300, 700, 3)
        assert abs(float(photo[25, 15].mean()) - 200) < 20 or row["name"] == "part-0003.png"
        assert abs(float(template[25, 15].mean()) - 200) < 20
    Image.new("RGB", (700, 300)).save(tmp_path / "photos" / "part-0003.png")  # another image now
    (tmp_path / "photos" / "part-0002.png").unlink()
    _, rows = parse(write_report(tmp_path / "out").read_text(encoding="utf-8"))
    assert [row["large"] is not None for row in rows] == [True, True, False, False]


def test_the_map_tells_what_is_outside_of_the_region_of_interest():
    layers = np.full((1, 3, 4), 1.0, np.float16)
    layers[:, :, 0] = -np.inf
    row = {"layers": layers.astype("<f2").tobytes(), "map_height": 3, "map_width": 4, "class_logit": None}
    encoded = encode_map(row, Calibration("conformal", 0.0, -2.0, (0.0,), (1.0,)), 2)
    assert values_of(encoded)[:, 0].tolist() == [0, 0, 0]
    assert values_of(encoded)[:, 1:].min() == pytest.approx(1.5, abs=1e-3)
    inside = np.frombuffer(zlib.decompress(base64.b64decode(encoded["inside"])), "u1").reshape(3, 4)
    assert inside.tolist() == [[0, 1, 1, 1]] * 3


def test_folder_names_are_the_ground_truth_where_one_is_named_good(tmp_path: Path):
    write_parts(tmp_path / "photos" / "test" / "good", good=3, dark=0)
    write_parts(tmp_path / "photos" / "test" / "scratch", good=1, dark=1)
    write_parts(tmp_path / "photos" / "other", good=1, dark=0)
    data, rows = parse(run(tmp_path).read_text(encoding="utf-8"))
    labels = {row["name"]: row["truth"] for row in rows}
    assert labels["test/good/part-0001.png"] == "good"
    assert labels["test/scratch/part-0001.png"] == "defect"
    assert labels["other/part-0000.png"] is None
    assert data["truthSource"] == "folder names (good and others)"


def test_without_a_folder_named_good_there_is_no_ground_truth(photos: Path, tmp_path: Path):
    data, rows = parse(run(tmp_path).read_text(encoding="utf-8"))
    assert data["truthSource"] is None
    assert {row["truth"] for row in rows} == {None}


def test_settings_are_in_words():
    settings = {
        "object": "part", "model": "tiny", "aspect": "squash", "tile": None, "max_pixels": 100_000_000,
        "good": "96168e58b20c04a0d681ffed44b3ad73", "methods": {"dual-image": {"text_weight": 0.5, "path": ""}},
    }  # fmt: skip
    assert settings_in_words(settings) == [
        ("Object", "part"),
        ("Method", "dual-image"),
        ("Model", "tiny"),
        ("Aspect ratio", "squashed to a square"),
        ("Largest image allowed, pixels", "100,000,000"),
        ("Digest of the known-good images", "96168e58b20c…"),
        ("dual-image: text weight", "0.5"),
    ]


def test_the_report_says_what_the_name_of_the_object_does_with_the_offline_model(
    photos: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setitem(PRESETS, "fake", PRESETS["tiny"])
    assert any("object's name only picks" in text for _, text in model_notes({"model": "tiny"}))
    assert model_notes({"model": "ViT-B-16-plus-240"}) == []
    settings = parse(run(tmp_path).read_text(encoding="utf-8"))[0]["settings"]
    assert ["About the model", model_notes({"model": "tiny"})[0][1]] in settings


def test_a_folder_without_results_says_so(tmp_path: Path):
    with pytest.raises(ResultsError, match="no results of clipspect"):
        write_report(tmp_path)

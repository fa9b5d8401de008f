"""Detections: a sequence with exports and a table for notebooks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import clipspect
from clipspect import Detections
from clipspect.results.export import json_rows
from clipspect.results.run import run_folder
from helpers.images import plate


@pytest.fixture(scope="module")
def detector(small_model: Path):
    return clipspect.load("anoclip", str(small_model))


@pytest.fixture(scope="module")
def found(detector) -> Detections:
    return detector.detect([plate(0, blot=True), b"not an image", plate(1)], "plate")


def test_many_images_are_a_sequence(found):
    assert isinstance(found, Detections)
    assert len(found) == 3
    assert [one.verdict for one in found] == [found[0].verdict, "error", found[-1].verdict]
    assert isinstance(found[1:], Detections)
    assert list(found[1:]) == [found[1], found[2]]
    assert Detections.merge([found[:1], found[1:]]) == found
    assert Detections.merge([found[1:], found[:1]]) != found


def test_the_representation_counts_images_by_verdict(found):
    assert repr(found) == "Detections(3 images: 2 undecided, 1 failed)"
    assert repr(Detections()) == "Detections(0 images)"
    assert repr(found[0]).startswith("Detection('image 1', undecided, score ")
    assert "error: " in repr(found[1])


def test_two_methods_over_one_image_are_detections(small_model):
    both = clipspect.load(["anoclip", "clip"], str(small_model)).detect(plate(0), "plate")
    assert repr(both).startswith("Detections(1 image, 2 methods: ")
    assert [one.method for one in both] == ["anoclip", "clip"]


def test_rows_are_those_of_a_results_folder(detector, plates, tmp_path):
    rows = detector.detect(plates, "plate").to_dict()
    run_folder(detector, plates, object="plate", out=tmp_path / "out", report=False, overlays="none")
    stored = {row["path"]: row for row in json_rows(tmp_path / "out")}
    json.dumps(rows)
    assert len(rows) == len(stored) == 10
    for row in rows:
        there = stored[row["path"]]
        assert row.keys() == there.keys()
        for name in ("content_hash", "verdict", "flag", "regions", "error", "score"):
            assert row[name] == pytest.approx(there[name]) if name == "score" else row[name] == there[name], (
                name
            )


def test_a_data_frame_has_a_line_per_detection(found):
    frame = found.to_pandas()
    assert list(frame["path"]) == [one.path for one in found]
    assert list(frame["verdict"]) == [one.verdict for one in found]


def test_notebooks_show_a_table_with_pictures_and_escaped_names(detector, tmp_path):
    from PIL import Image

    for name in ("a.png", "<b>.png"):
        Image.fromarray(plate(3, blot=True)).save(tmp_path / name)
    page = detector.detect(tmp_path, "plate")._repr_html_()
    assert page.count("<img src=") == 2
    assert "&lt;b&gt;.png" in page
    assert "<b>" not in page

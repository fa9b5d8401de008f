"""Benchmark runs: right figures, one encoding, resumed, refused after changes, repeatable;"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipspect
from clipspect.benchmark import runner as module
from clipspect.benchmark.candidates import make_candidates
from clipspect.benchmark.datasets import load_categories
from clipspect.benchmark.jobs import Settings
from clipspect.benchmark.metrics import image_metrics, pixel_metrics
from clipspect.benchmark.rows import json_row, make_rows, mean_rows
from clipspect.benchmark.runner import run_benchmark
from clipspect.benchmark.samples import thinned
from clipspect.benchmark.tables import notes
from clipspect.config import DetectorConfig
from clipspect.errors import ResultsError, UsageError
from clipspect.registry import list_methods, method_class
from clipspect.training.layouts import write_layout
from helpers.benchmark import COLUMNS, SMALL, run, values

DATA = Path(os.environ.get("CLIPSPECT_DATA", "data"))
"""Real images for larger tests, which are not part of the repository."""


def test_the_figures_are_those_of_the_detector(own, tmp_path):
    (result,) = run(own, tmp_path / "out")
    detector = clipspect.load("anoclip", image_size=64)
    (category,) = load_categories("folder", own)
    found = detector.detect([s.path for s in category.samples], "plate")
    labels = np.array([s.defective for s in category.samples])
    masks = [
        np.asarray(Image.open(s.mask)) > 0 if s.mask else np.zeros((64, 64), bool) for s in category.samples
    ]
    image = image_metrics(labels, np.array([d.raw_score for d in found]))
    pixel = pixel_metrics(masks, [d.score_map for d in found])
    expected = [image.auroc, image.ap, image.f1_max, pixel.auroc, pixel.ap, pixel.f1_max, pixel.aupro]
    assert list(result.figures.values.values()) == pytest.approx(expected, abs=1e-12)
    assert result.seconds_per_image > 0
    assert result.figures.images == 10


def test_all_methods_in_one_run_and_again_are_the_same(own, tmp_path):
    small = Settings(DetectorConfig(image_size=32))
    first, second = (run(own, tmp_path / name, "all", small) for name in ("one", "two"))
    without_file = [name for name in list_methods() if not method_class(name).needs_file]
    assert [r.method for r in first] == without_file
    assert values(first) == values(second)
    assert {r.method: r.shots for r in first}["winclip+"] == 4


def test_methods_together_score_as_each_alone(own, tmp_path):
    together = run(own, tmp_path / "all", "anoclip,dual-image,winclip+,mutual")
    for result in together:
        (alone,) = run(own, tmp_path / result.method, result.method)
        for name, value in alone.figures.values.items():
            assert result.figures.values[name] == pytest.approx(value, abs=1e-6), (result.method, name)


def test_each_image_is_encoded_once(own, tmp_path, monkeypatch):
    counted = []
    encode = module.Backbone.encode

    def counting(self, images, request):
        counted.append(len(images))
        return encode(self, images, request)

    monkeypatch.setattr(module.Backbone, "encode", counting)
    monkeypatch.setattr(module, "_encoding_seconds", lambda measured, *_: {m.name: 0.0 for m in measured})
    run(own, tmp_path / "out", "anoclip,dual-image,mutual,winclip+")
    assert sum(counted) == 10 + 4  # and the references


def test_a_finished_category_is_not_measured_again_and_a_new_method_joins_it(own, tmp_path, monkeypatch):
    first = run(own, tmp_path / "out")
    measured = []
    measure = module._measure
    monkeypatch.setattr(
        module,
        "_measure",
        lambda unit, candidates, *rest: measured.append(candidates) or measure(unit, candidates, *rest),
    )
    assert run(own, tmp_path / "out") == first
    assert measured == []
    both = run(own, tmp_path / "out", "anoclip,dual-image")
    assert [[e.label for e in candidates] for candidates in measured] == [["dual-image"]]
    assert both[0] == first[0]


def test_other_settings_are_refused_until_told_to_overwrite(own, tmp_path):
    run(own, tmp_path / "out")
    with pytest.raises(ResultsError, match="image_size was 64, now 96"):
        run(own, tmp_path / "out", settings=Settings(DetectorConfig(image_size=96)))
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(own / "good/000.jpg")
    with pytest.raises(ResultsError, match="images was"):
        run(own, tmp_path / "out")
    (again,) = run(own, tmp_path / "out", settings=Settings(DetectorConfig(image_size=96)), overwrite=True)
    assert again.image_size == 96


@pytest.mark.integration
def test_a_killed_run_goes_on_with_what_is_missing(tmp_path, pictures):
    for name in ("a", "b", "c"):
        write_layout("folder", tmp_path / "data", name, pictures)
    out = tmp_path / "out"
    words = [
        sys.executable, "-m", "clipspect.cli", "benchmark", "--data", "folder", "--root", str(tmp_path / "data"),
        "--image-size", "64", "--out", str(out),
    ]  # fmt: skip
    script = "import sys; sys.argv[0] = 'clipspect'; from clipspect.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", script, *words[3:]], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.rglob("a.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    assert "a.json" in done
    results = run(tmp_path / "data", out)
    assert [r.category for r in results] == ["a", "b", "c"]
    assert {n: p.stat().st_mtime_ns for p in out.rglob("*.json") if (n := p.name) in done} == done
    fresh = values(run(tmp_path / "data", tmp_path / "fresh"))
    assert values(results) == [
        pytest.approx(one, abs=1e-5) for one in fresh
    ]  # two processes round differently


def test_seeds_touch_random_weights_and_drawn_references_only(own, tmp_path):
    results = run(
        own, tmp_path / "out", "anoclip,winclip+", weights=["trained", "random"], seeds=[0, 1], shots=2
    )
    kinds = [(r.weights, r.label, r.seed) for r in results]
    assert kinds == [
        ("trained", "anoclip", None), ("trained", "winclip+ 2-shot", 0), ("trained", "winclip+ 2-shot", 1),
        ("random", "anoclip", 0), ("random", "winclip+ 2-shot", 0),
        ("random", "anoclip", 1), ("random", "winclip+ 2-shot", 1),
    ]  # fmt: skip
    rows = {(row.weights, row.method): row for row in make_rows(results)}
    assert rows["trained", "anoclip"].deviations["pixel_auroc"] is None
    series = rows["random", "anoclip"].series["pixel_auroc"]
    assert rows["random", "anoclip"].values["pixel_auroc"] == pytest.approx(np.mean(series))
    assert rows["random", "anoclip"].deviations["pixel_auroc"] == pytest.approx(np.std(series, ddof=1))
    assert series[0] != series[1]


def test_a_broken_image_and_a_mask_of_another_size_are_error_rows(own, tmp_path):
    (own / "good/001.jpg").write_bytes(b"broken")
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(own / "masks/dent/002.png")
    (result,) = run(own, tmp_path / "out")
    assert result.figures.images == 10
    assert "not a JPEG" in result.figures.failed["good/001.jpg"]
    assert "12×10 pixels and the image 64×64" in result.figures.failed["dent/002.jpg"]
    (row,) = make_rows([result])
    assert json_row(row)["failed"] == 2
    assert any("dent/002.jpg failed and is excluded from all metrics" in note for note in notes([row]))


def test_undefined_metrics_are_null_with_a_reason(own, tmp_path):
    (category,) = load_categories("folder", own)
    good = replace(category, name="good", samples=[s for s in category.samples if not s.defective])
    bad = replace(category, name="bad", samples=[s for s in category.samples if s.defective])
    bare = replace(category, name="bare", samples=[replace(s, mask=None) for s in category.samples])
    candidates = make_candidates(["anoclip"], {}, {}, None)
    results = run_benchmark("folder", [good, bad, bare], candidates, tmp_path / "out", settings=SMALL)
    rows = {row.category: json_row(row) for row in make_rows(results)}
    assert all(rows["good"][name] is None for name in COLUMNS[4:])
    assert rows["good"]["undefined"]["aupro"] == "no defective images"
    assert rows["bad"]["image_auroc"] is None
    assert rows["bad"]["undefined"] == dict.fromkeys(COLUMNS[4:7], "no normal images")
    assert rows["bad"]["aupro"] is not None
    assert rows["bare"]["image_auroc"] is not None
    assert rows["bare"]["undefined"]["pixel_ap"] == "no masks"
    (mean,) = mean_rows(make_rows(results))
    assert mean.values["pixel_auroc"] is None
    assert mean.undefined["pixel_auroc"] == "undefined for good, bare"


def test_grey_masks_are_told(own, tmp_path):
    path = own / "masks/dent/001.png"
    shades = np.asarray(Image.open(path)).copy()
    shades[0, :20] = np.arange(20) * 12 + 5
    Image.fromarray(shades).save(path)
    (result,) = run(own, tmp_path / "out")
    assert result.warnings == [
        "masks that are not binary, thresholded between black and their maximum value: 1"
    ]


def test_too_few_references_say_so(own, tmp_path):
    with pytest.raises(UsageError, match="winclip\\+ 9-shot takes 9 normal images .* and plate has 5"):
        run(own, tmp_path / "out", "winclip+", shots=9)


def test_full_size_and_kinds_of_defects(own, tmp_path):
    settings = Settings(DetectorConfig(image_size=32), resolution="photo", by_defect=True)
    (result,) = run(own, tmp_path / "out", settings=settings)
    assert (
        result.figures.values["pixel_auroc"]
        != values(run(own, tmp_path / "map", settings=Settings(DetectorConfig(image_size=32))))[0][
            "pixel_auroc"
        ]
    )
    assert result.kinds["dent"].values == result.figures.values  # the only kind


def test_a_thinned_category_keeps_every_kind_and_says_so(own):
    (category,) = load_categories("folder", own)
    few = thinned(category, 4)
    assert len(few.samples) == 4
    assert {s.kind for s in few.samples} == {"good", "dent"}
    assert few.warnings == ("--limit: measured on 4 of 10 images",)
    assert thinned(category, 10) is category


@pytest.mark.skipif(
    not (DATA / "magnetic_tile").is_dir(), reason="set CLIPSPECT_DATA to a folder with magnetic_tile"
)
def test_real_images_with_every_method(tmp_path):
    (category,) = load_categories("folder", DATA / "magnetic_tile")
    assert (len(category.samples), len(category.train)) == (283, 40)
    candidates = make_candidates(["all"], {}, {}, None)
    few = [thinned(category, 12)]
    first, second = (
        run_benchmark("folder", few, candidates, tmp_path / n, settings=SMALL) for n in ("one", "two")
    )
    assert values(first) == values(second)
    assert all(v is not None and 0 <= v <= 1 for found in values(first) for v in found.values())


def test_empty_full_and_vanished_masks_are_told(own, tmp_path):
    dot = np.zeros((64, 64), np.uint8)
    dot[0, 0] = 255
    for name, mask in (("000", dot * 0), ("001", dot * 0 + 255), ("002", dot)):
        Image.fromarray(mask).save(own / f"masks/dent/{name}.png")
    (result,) = run(own, tmp_path / "out", settings=Settings(DetectorConfig(image_size=32)))
    assert result.warnings == [
        "masks of defective images that are empty: 1, the first is that of dent/000.jpg",
        "masks that mark the whole image as defective: 1, the first is that of dent/001.jpg",
        "masks with no pixel left at the map's size, whose defects count as normal (use --full-size): 1, the first is"
        " that of dent/002.jpg",
    ]


def test_a_depth_that_looks_wrong_is_told_and_can_be_given(own, tmp_path):
    for path in own.rglob("*.jpg"):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
        path.unlink()
        Image.fromarray(grey).save(path.with_suffix(".png"))
    (dark,) = run(own, tmp_path / "dark")
    assert sum("it is dark at full scale" in warning for warning in dark.warnings) >= 1
    (right,) = run(
        own, tmp_path / "right", settings=replace(SMALL, config=SMALL.config.replace(bit_depth=12))
    )
    (again,) = run(
        own, tmp_path / "right", settings=replace(SMALL, config=SMALL.config.replace(bit_depth=12))
    )
    assert right.warnings == []
    assert again.figures.values == right.figures.values != dark.figures.values


def test_random_pairs_are_drawn_by_the_seeds_of_a_run(own, tmp_path):
    """With one random partner each, seeds give other scores; nearest partners have no seed."""
    found = {}
    for rule in ("random", "nearest"):
        candidates = make_candidates(["dual-image"], {"pairing": rule, "references": 1}, {}, None)
        found[rule] = run_benchmark(
            "folder",
            load_categories("folder", own),
            candidates,
            tmp_path / rule,
            settings=SMALL,
            seeds=[0, 1],
        )
    assert [result.seed for result in found["random"]] == [0, 1]
    assert len({str(v) for v in values(found["random"])}) == 2
    assert [result.seed for result in found["nearest"]] == [None]

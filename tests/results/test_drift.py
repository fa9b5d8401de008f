"""Drift is found where a distribution has changed, and too few images are not judged."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from clipspect.results.drift import MIN_AFTER, compare_samples, look_of, stability_index
from helpers.images import plate


def test_the_stability_index_is_that_of_its_formula():
    before = np.arange(100.0)
    assert stability_index(before, before) == 0
    after = np.concatenate([np.arange(50.0), np.full(50, 99.0)])
    p = np.full(10, 10.5 / 105)
    q = np.array([10.5] * 5 + [0.5] * 4 + [50.5]) / 105
    assert stability_index(before, after) == pytest.approx(((q - p) * np.log(q / p)).sum())


def test_equal_distributions_are_unchanged_and_shifted_ones_are_not():
    rng = np.random.default_rng(1)
    for seed in range(50):
        rng = np.random.default_rng(seed)
        assert compare_samples(rng.normal(size=40), rng.normal(size=200)).has_changed is False
        assert compare_samples(rng.normal(size=40), rng.normal(1.5, size=200)).has_changed is True


def test_nothing_is_said_of_few_images():
    found = compare_samples(np.arange(9.0), np.arange(100.0))
    assert found.has_changed is None
    assert found.psi is None
    assert compare_samples(np.arange(50.0), np.arange(MIN_AFTER - 1.0)).has_changed is None


def test_a_blurred_image_is_less_sharp():
    def look(pixels):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
        return look_of(buffer.getvalue())

    pixels = plate(1)
    soft = np.asarray(Image.fromarray(pixels).resize((20, 15)).resize((80, 60)))
    assert look(soft)[1] < look(pixels)[1] / 10
    assert look(pixels)[0] == pytest.approx(pixels.mean(), abs=2)


def fill(folder, numbers, shift: int = 0):
    folder.mkdir()
    for number in numbers:
        pixels = np.clip(plate(number).astype(int) + shift, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_two_runs_are_compared_by_command(tmp_path, run):
    fill(tmp_path / "monday", range(60))
    fill(tmp_path / "tuesday", range(60, 120))
    fill(tmp_path / "dark", range(60, 120), shift=-90)
    for name in ("monday", "tuesday", "dark"):
        options = [
            "--object",
            "plate",
            "-m",
            "anoclip",
            "--out",
            str(tmp_path / f"{name}-out"),
            "--overlays",
            "none",
        ]
        code, _, errors = run("detect", str(tmp_path / name), *options, "--no-report")
        assert code == 0, errors
    places = [str(tmp_path / f"{name}-out") for name in ("monday", "tuesday", "dark")]
    code, said, _ = run("results", "drift", places[1], places[0], model=False)
    assert code == 0
    assert "unchanged" in said
    code, said, _ = run("results", "drift", places[2], places[0], "--json", model=False)
    assert code == 1
    [found] = [json.loads(line) for line in said.splitlines()]
    assert found["has_changed"]
    assert found["brightness"]["median_after"] == pytest.approx(60, abs=5)
    code, said, errors = run("results", "drift", places[0], str(tmp_path / "monday"), model=False)
    assert code == 2


def test_changed_verdicts_come_with_a_reason(tmp_path, plates, run):
    first, second = tmp_path / "first", tmp_path / "second"
    for out, threshold in ((first, "0.01"), (second, "0.99")):
        options = ["--object", "plate", "-m", "anoclip", "--out", str(out), "--threshold", threshold]
        code, _, errors = run("detect", str(plates), *options)
        assert code == 0, errors
    code, said, _ = run("results", "compare", str(first), str(second), model=False)
    assert code == 0
    assert "flagged → undecided" in said
    assert "the same map, judged by another calibration or threshold" in said
    assert "score threshold 0.01 → 0.99" in said
    Image.fromarray(plate(77)).save(plates / "a" / "plate 1.png")
    run(
        "detect",
        str(plates),
        "--object",
        "plate",
        "-m",
        "anoclip",
        "--out",
        str(second),
        "--threshold",
        "0.99",
    )
    code, said, _ = run("results", "compare", str(first), str(second), "--json", model=False)
    changes = {one["path"]: one["reason"] for one in json.loads(said)["changes"]}
    assert changes["a/plate 1.png"] == "the image has changed"

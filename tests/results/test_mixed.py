"""A folder with several objects: one report, and sets, references and thresholds per object."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import clipspect
from clipspect.data.objects import read_objects
from clipspect.errors import UsageError
from clipspect.results.store import iterate_rows
from helpers.images import plate


@pytest.fixture
def mixed(tmp_path):
    """Bright and dark plates in one folder, good ones per object, and their table."""
    lines = ["image,object"]
    for number in range(12):
        name, shift = ("steel plate", 0) if number % 2 else ("rubber mat", -90)
        pixels = np.clip(plate(number, blot=number in (3, 4)).astype(int) + shift, 0, 255).astype(np.uint8)
        path = tmp_path / "in" / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
        lines.append(f"{path.name},{name}")
        good = tmp_path / "good" / name / f"{number}.png"
        good.parent.mkdir(parents=True, exist_ok=True)
        clean = np.clip(plate(100 + number).astype(int) + shift, 0, 255).astype(np.uint8)
        Image.fromarray(clean).save(good)
    (tmp_path / "objects.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_each_object_is_judged_as_if_alone(mixed, run, small_model):
    out = mixed / "out"
    options = ["--objects", str(mixed / "objects.csv"), "--good", str(mixed / "good"), "-m", "dual-image"]
    code, said, errors = run("detect", str(mixed / "in"), *options, "--out", str(out), "--json")
    assert code == 0, errors
    rows = {row["path"]: row for row in map(json.loads, said.splitlines())}
    detector = clipspect.load("dual-image", str(small_model))
    for name, odd in (("rubber mat", 0), ("steel plate", 1)):
        good = detector.calibrate(mixed / "good" / name, name)
        images = [mixed / "in" / f"{number:02}.png" for number in range(odd, 12, 2)]
        for one in detector.detect(images, name, good=good):
            assert rows[one.path]["score"] == pytest.approx(one.score, abs=1e-6)
            assert rows[one.path]["object"] == name
            assert rows[one.path]["verdict"] == one.verdict
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    keys = {"dual-image", "dual-image/rubber mat", "dual-image/steel plate"}
    assert set(manifest["calibrations"]) == keys
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "rubber mat: Threshold from 6 known-good images" in report
    code, said, errors = run("detect", str(mixed / "in"), *options, "--out", str(out))
    assert "12 images" in said
    code, _, errors = run(
        "results", "export", str(out), "--format", "coco", "-o", str(mixed / "c.json"), model=False
    )
    assert code == 0, errors


def test_without_good_images_objects_are_compared_among_themselves(mixed, run):
    out = mixed / "out"
    options = ["--objects", str(mixed / "objects.csv"), "-m", "anoclip", "--out", str(out)]
    code, _, errors = run("detect", str(mixed / "in"), *options)
    assert code == 0, errors
    found = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["calibrations"]
    assert {found[f"anoclip/{name}"]["images"] for name in ("rubber mat", "steel plate")} == {6}
    assert len(list(iterate_rows(out, ["path"]))) == 12


def test_tables_that_do_not_fit_are_refused(mixed, run, tmp_path):
    table = mixed / "objects.csv"
    text = table.read_text(encoding="utf-8")
    cases = {
        "1 image is not in the table: 11.png": text.rsplit("11.png", 1)[0],
        "in the table and not in the folder: absent.png": text + "absent.png,x\n",
        "columns image and object": "file,name\n00.png,x\n",
        "line 2: image or object is empty": "image,object\n00.png,\n",
        "has two objects": text + "00.png,other\n",
    }
    for reason, wrong in cases.items():
        table.write_text(wrong)
        code, _, errors = run("detect", str(mixed / "in"), "--objects", str(table), "--out", str(mixed / "o"))
        assert code == 2
        assert reason in errors
    with pytest.raises(UsageError, match="cannot be read"):
        read_objects(mixed / "absent.csv")
    table.write_text(text)
    for words, reason in (
        (["--object", "x"], "--object is not used with --objects"),
        (["--good", str(mixed / "in")], "no folder named"),
    ):
        code, _, errors = run("detect", str(mixed / "in"), "--objects", str(table), *words)
        assert code == 2
        assert reason in errors

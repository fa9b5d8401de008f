"""Known-good images that are copies, too few, or among the images that are judged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

import clipspect
from clipspect.demo import DEMO_GOOD
from clipspect.references import COPY
from clipspect.stitching import AMONG_GOOD
from helpers.images import plate


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A folder of four different known-good images."""
    folder = tmp_path / "good"
    folder.mkdir()
    for path in sorted(DEMO_GOOD.iterdir())[:4]:
        with Image.open(path) as image:
            image.save(folder / f"{path.stem}.png")
    return folder


@pytest.fixture
def detector(small_model):
    return lambda method: clipspect.load(method, str(small_model), device="cpu")


def save_again(source: Path, target: Path, quality: int = 80) -> None:
    with Image.open(source) as image:
        image.convert("RGB").save(target, quality=quality)


@pytest.mark.parametrize("method", ["anoclip", "dual-image"])
def test_copies_of_a_good_image_are_named_and_give_no_threshold(detector, method, good):
    plain = detector(method).calibrate(good, "plate").calibrations[method]
    shutil.copy(good / "01.png", good / "same.png")
    save_again(good / "02.png", good / "saved again.jpg")
    made = detector(method).calibrate(good, "plate")
    assert dict(made.failed) == {"same.png": COPY, "saved again.jpg": COPY}
    assert made.calibrations[method].images == plain.images == 4
    assert made.calibrations[method].hashes == plain.hashes
    assert made.notes == ()


def test_good_images_of_one_part_alone_are_told(detector, tmp_path, good):
    alike = tmp_path / "alike"
    alike.mkdir()
    for quality in (70, 75, 80, 85):
        save_again(good / "01.png", alike / f"{quality}.jpg", quality)
    (note,) = detector("anoclip").calibrate(alike, "plate").notes
    assert note.startswith("4 of 4 images known to be good look almost the same.")


def test_one_good_image_is_no_reference_of_itself(detector, good):
    (one, *_) = sorted(good.iterdir())
    with pytest.raises(
        clipspect.UsageError, match="one known-good image cannot be compared with itself: give 3"
    ):
        detector("dual-image").calibrate([one], "plate")
    assert detector("anoclip").calibrate([one], "plate").calibrations["anoclip"].rule == "none"


def test_a_good_image_that_is_judged_says_so(detector, good):
    one = detector("anoclip")
    calibrated = one.calibrate(good, "plate")
    assert one.detect(good / "01.png", "plate", good=calibrated).warnings == (AMONG_GOOD,)
    assert one.detect(plate(30), "plate", good=calibrated).warnings == ()


def test_the_command_line_says_once_that_a_good_image_is_judged(run, good, tmp_path):
    words = ("--object", "plate", "--good", str(good), "-m", "anoclip")
    code, text, _ = run("detect", str(good / "01.png"), *words)
    assert (code, text.count(AMONG_GOOD)) == (0, 1)
    out = tmp_path / "results"
    code, text, _ = run("detect", str(good), *words, "--out", str(out))
    assert (code, text.count(AMONG_GOOD), text.count("4 images are both in the run")) == (
        0,
        0,
        1,
    )
    assert AMONG_GOOD in (out / "report.html").read_text(encoding="utf-8")


def test_images_in_place_of_what_is_made_of_them_are_refused_with_what_to_do(detector, good):
    dual, one = detector("dual-image"), good / "01.png"
    calibrated = dual.calibrate(good, "plate")
    for wrong in (good, str(good), [one]):
        with pytest.raises(clipspect.UsageError, match=r"pass what calibrate\(images, object\) returns"):
            dual.detect(one, "plate", good=wrong)
        with pytest.raises(clipspect.UsageError, match=r"pass what encode_references\(images\) returns"):
            dual.detect(one, "plate", references=wrong)
    with pytest.raises(clipspect.UsageError, match="good was calibrated for dual-image, and the detector"):
        detector("anoclip").detect(one, "plate", good=calibrated)


def test_references_are_an_image_a_folder_or_several_images(detector, good):
    dual, one = detector("dual-image"), good / "01.png"
    for given, count in ((one, 1), (str(one), 1), (good, 4), (str(good), 4), ([one], 1)):
        assert len(dual.encode_references(given)) == count


def test_a_folder_of_copies_or_of_one_image_that_can_be_read_is_told(detector, tmp_path, good):
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(good / "01.png", folder / "a.png")
    for method in ("dual-image", "mutual"):
        for name, data in (("copy.png", (good / "01.png").read_bytes()), ("broken.png", b"no image")):
            (folder / name).write_bytes(data)
            with pytest.raises(
                clipspect.UsageError, match=r"only one that can be read \(copies count once\)"
            ):
                detector(method).detect(folder, "plate")
            (folder / name).unlink()

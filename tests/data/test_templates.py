"""Each image's own reference is found by its path, and by its name alone only where that is unambiguous."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipspect.data.templates import match_templates
from clipspect.errors import ImageError, UsageError
from helpers.cases import CASES


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def reference(tmp_path: Path, images: list[str], references: list[str], image: str) -> str:
    photos, folder = touch(tmp_path / "photos", *images), touch(tmp_path / "refs", *references)
    return match_templates(folder, photos)(photos / image).relative_to(folder).as_posix()


def test_another_folders_file_of_the_same_name_is_no_reference():
    templates = match_templates(CASES / "templates_refs", CASES / "templates_photos")
    assert templates(CASES / "templates_photos/l1/x.jpg") == CASES / "templates_refs/l1/x.jpg"
    with pytest.raises(ImageError, match=r"no reference at l2.x.jpg .* may belong to another image"):
        templates(CASES / "templates_photos/l2/x.jpg")


@pytest.mark.parametrize(
    ("images", "references", "image", "expected"),
    [
        (["l1/x.jpg", "l2/x.jpg"], ["l1/x.jpg", "l2/x.jpg"], "l2/x.jpg", "l2/x.jpg"),
        (["l1/x.jpg", "l2/x.jpg"], ["l1/x.png", "l2/x.png"], "l2/x.jpg", "l2/x.png"),
        (["l1/x.jpg", "l1/y.jpg"], ["x.png", "y.png"], "l1/y.jpg", "y.png"),
        (["x.jpg"], ["deep/x.png"], "x.jpg", "deep/x.png"),
        (["x.jpg", "x.png"], ["x.jpg", "x.png"], "x.jpg", "x.jpg"),
        (["x.tif#2"], ["x.tif"], "x.tif#2", "x.tif#2"),
    ],
)
def test_paths_come_first_and_unambiguous_names_second(tmp_path, images, references, image, expected):
    if "#" in image:
        images, expected = ["x.tif"], "x.tif"
    assert reference(tmp_path, images, references, image) == expected


@pytest.mark.parametrize(
    ("images", "references", "message"),
    [
        (["l1/x.jpg", "l2/x.jpg"], ["x.png"], "may belong to another image"),
        (["l1/x.jpg"], ["l2/x.png", "l3/x.png"], "2 files in .* are named 'x'"),
        (["l1/x.jpg"], ["l1/x.png", "l1/x.bmp"], "2 files in .* are named 'x'"),
        (["l1/x.jpg"], ["l1/y.jpg"], "no reference named 'x'"),
        (["l1/x.jpg", "l1/x.png"], ["l1/x.png"], "may belong to another image"),
        (["l1/x.jpg", "l1/x.png"], ["l1/x.bmp"], "may belong to another image"),
    ],
)
def test_what_could_mean_several_is_no_reference(tmp_path, images, references, message):
    with pytest.raises(ImageError, match=message):
        reference(tmp_path, images, references, "l1/x.jpg")


def test_the_images_themselves_are_no_references(tmp_path):
    with pytest.raises(UsageError, match="the images themselves"):
        match_templates(touch(tmp_path, "x.png"), tmp_path)

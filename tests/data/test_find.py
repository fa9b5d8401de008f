"""A folder's images are found wherever they lie, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipspect.data import formats
from clipspect.data.find import RESULTS_MARKER, check_source, find_images, scan_folder
from clipspect.errors import UsageError
from helpers.links import link


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def found(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_images(folder)]


def test_images_are_found_in_subfolders_sorted_and_whatever_the_case_of_their_suffix(tmp_path: Path):
    touch(tmp_path, "b.PNG", "a/z.jpeg", "a/b.TIF", "c.webp", "notes.txt", "a/readme.md", "d.bmp")
    assert found(tmp_path) == ["a/b.TIF", "a/z.jpeg", "b.PNG", "c.webp", "d.bmp"]


def test_hidden_files_and_results_of_earlier_runs_are_left_out(tmp_path: Path):
    touch(
        tmp_path, "a.png", ".hidden.png", ".cache/b.png", "out/overlays/a.png", "other/a.png", "broken/a.png"
    )
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({"kind": RESULTS_MARKER}))
    (tmp_path / "other" / "manifest.json").write_text(json.dumps({"kind": "a web app"}))
    (tmp_path / "broken" / "manifest.json").write_text("{")
    assert found(tmp_path) == ["a.png", "broken/a.png", "other/a.png"]


def test_links_in_a_circle_come_to_an_end(tmp_path: Path):
    touch(tmp_path, "a/b.png")
    link(tmp_path / "a" / "again", tmp_path)
    assert found(tmp_path) == ["a/b.png"]


def test_a_single_file_is_its_own_list(tmp_path: Path):
    touch(tmp_path, "photo.dat")
    assert find_images(tmp_path / "photo.dat") == [tmp_path / "photo.dat"]


def test_a_missing_path_says_so(tmp_path: Path):
    with pytest.raises(UsageError, match="nowhere: no such file or folder"):
        find_images(tmp_path / "nowhere")


def test_a_folder_without_images_says_what_was_looked_for(tmp_path: Path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(UsageError, match=r"no images .* bmp, dib, gif, jfif, .*png, .*webp"):
        find_images(tmp_path)


def test_what_is_left_out_is_counted_by_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(formats, "_can_read", lambda wanted: False)
    touch(
        tmp_path,
        "a.png",
        "1.HEIC",
        "x/2.heic",
        "3.heif",
        "4.jxl",
        "5.dcm",
        "6.psd",
        "n.txt",
        "m.json",
        ".hidden.heic",
    )
    scan = scan_folder(tmp_path)
    assert [path.name for path in scan.images] == ["a.png"]
    assert scan.summary() == (
        "Left out: 1 DICOM (needs clipspect[dicom]), 3 HEIC (needs clipspect[heif]), 1 JPEG XL (needs clipspect[jxl]),"
        " 1 PSD not supported; 2 other files."
    )
    monkeypatch.setattr(formats, "_can_read", lambda wanted: wanted is formats.HEIC)
    assert len(scan_folder(tmp_path).images) == 4
    (tmp_path / "b").mkdir()
    touch(tmp_path / "b", "only.jxl")
    with pytest.raises(UsageError, match=r"no images .* Left out: 1 JPEG XL \(needs clipspect\[jxl\]\)"):
        scan_folder(tmp_path / "b")


def test_masks_beside_images_are_left_out(tmp_path: Path):
    touch(
        tmp_path,
        "a.jpg",
        "a_mask.png",
        "b.png",
        "b_GT.png",
        "c_mask.png",
        "x/masks/a.png",
        "Ground_Truth/b.png",
        "groundtruth/b.png",
        "ground truth/b.png",
        "a-mask.png",
        "a.mask.png",
        "b_label.bmp",
        "label.png",
    )
    scan = scan_folder(tmp_path)
    assert [path.name for path in scan.images] == ["a.jpg", "b.png", "c_mask.png", "label.png"]
    assert scan.summary() == "Left out: 9 masks."
    assert len(find_images(tmp_path / "Ground_Truth")) == 1


def test_a_folder_of_masks_alone_is_what_was_asked_for(tmp_path: Path):
    touch(tmp_path, "masks/1.png", "masks/2.png")
    assert scan_folder(tmp_path).summary() is None
    assert len(find_images(tmp_path)) == 2


@pytest.mark.parametrize("path", ["", "  "])
def test_an_empty_path_is_not_the_current_folder(path):
    with pytest.raises(UsageError, match="the path is empty"):
        check_source(path)

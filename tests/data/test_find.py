"""A folder's images are found wherever they lie, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipspect.data.find import RESULTS_MARKER, find_images
from clipspect.errors import UsageError


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
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert found(tmp_path) == ["a/b.png"]


def test_a_single_file_is_its_own_list(tmp_path: Path):
    touch(tmp_path, "photo.dat")
    assert find_images(tmp_path / "photo.dat") == [tmp_path / "photo.dat"]


def test_a_missing_path_says_so(tmp_path: Path):
    with pytest.raises(UsageError, match="nowhere: no such file or folder"):
        find_images(tmp_path / "nowhere")


def test_a_folder_without_images_says_what_was_looked_for(tmp_path: Path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(UsageError, match=r"no images .* bmp, dib, jfif, .*png, .*webp"):
        find_images(tmp_path)

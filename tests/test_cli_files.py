"""`clipspect detect` on one image, and on files with unusual names, depths and pages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from urllib.parse import quote

import pytest

from helpers.cases import CASES
from helpers.rows import rows_of

OVERLAYS = Path("clipspect-overlays")


def test_one_image_gives_its_score_here_and_an_overlay_in_the_current_folder(run, plates):
    before = sorted((plates / "b").iterdir())
    code, text, _ = run("detect", str(plates / "b" / "plate 0.png"), "--object", "plate")
    assert code == 0
    assert "score" in text
    assert (OVERLAYS / "plate 0.png.clipspect.png").is_file()
    assert sorted((plates / "b").iterdir()) == before, "nothing is written where the images lie"
    code, text, _ = run("detect", str(plates / "b" / "plate 0.png"), "--object", "plate", "--json")
    answer = json.loads(text)
    assert answer["path"] == "plate 0.png"
    assert 0 <= answer["score"] <= 1
    assert (answer["verdict"], answer["threshold"]) == ("undecided", None)


def test_one_image_that_fails_is_an_object_for_machines_too(run, plates):
    (plates / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    code, text, error = run("detect", str(plates / "broken.jpg"), "--object", "plate", "--json")
    answer = json.loads(text)
    assert code == 3
    assert (answer["path"], answer["score"], answer["overlay"]) == ("broken.jpg", None, None)
    assert answer["error"]
    assert "broken.jpg" in error


def test_one_image_in_a_read_only_folder_is_scored(run, plates, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("PIL.Image.Image.save", refuse)
    code, text, error = run("detect", str(plates / "b" / "plate 0.png"), "--object", "plate", "--json")
    assert (code, json.loads(text)["overlay"]) == (0, None)
    assert "is read-only; give --out FOLDER" in error


def test_one_image_without_a_folder_draws_what_is_asked_for(run, plates):
    words = ("detect", str(plates / "b" / "plate 0.png"), "--object", "plate")
    code, text, _ = run(*words, "--overlays", "none")
    assert (code, "overlay" in text) == (0, False)
    assert not OVERLAYS.exists()
    code, _, error = run(*words, "--csv")
    assert (code, "--out" in error) == (2, True)


def test_one_image_says_how_it_was_judged(run, plates):
    words = ("detect", str(plates / "b" / "plate 0.png"), "--object", "plate")
    _, text, error = run(*words)
    assert "undecided" in text
    assert "no threshold can be estimated" in " ".join(text.split())
    assert "method: anoclip" in error
    _, text, _ = run(*words, "--threshold", "0.1")
    assert "threshold 0.1" in text
    assert "flagged" in text
    assert "region at" in text


def test_overlays_of_single_images_are_not_taken_for_images(run, plates, tmp_path):
    run("detect", str(plates / "b" / "plate 0.png"), "--object", "plate")
    shutil.move(OVERLAYS / "plate 0.png.clipspect.png", plates / "b")
    out = tmp_path / "results"
    run("detect", str(plates), "--object", "plate", "--out", str(out), "--no-report", "--overlays", "none")
    assert len(rows_of(out)) == 10


def test_a_pair_is_needed_where_there_is_one_image(run, plates):
    code, _, error = run(
        "detect", str(plates / "b" / "plate 0.png"), "--object", "plate", "--method", "dual-image"
    )
    assert code == 2
    assert "pair" in error or "reference" in error


def test_two_images_of_one_stem_have_two_overlays(run, tmp_path):
    shutil.copytree(CASES / "twin_overlay", tmp_path / "twins")
    for name in ("part.jpg", "part.png"):
        assert run("detect", str(tmp_path / "twins" / name), "--object", "part")[0] == 0
        assert (OVERLAYS / f"{name}.clipspect.png").is_file()


@pytest.mark.parametrize("length", [251, 252, 255])
def test_names_of_up_to_255_bytes_are_written(run, plates, tmp_path, length):
    folder = tmp_path / "long"
    folder.mkdir()
    for start in ("é", "e"):
        name = start + "x" * (length - 4 - len(start.encode())) + ".png"
        shutil.copy(plates / "b" / "plate 0.png", folder / name)
    out = tmp_path / "r"
    code, _, _ = run(
        *("detect", str(folder), "--object", "plate", "--out", str(out), "--maps", "npy"),
        *("--method", "anoclip"),
    )
    assert code == 0
    assert [len(list((out / part).iterdir())) for part in ("maps", "overlays")] == [2, 2]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(quote(f"overlays/{overlay.name}") in page for overlay in (out / "overlays").iterdir())
    assert run("detect", str(folder / name), "--object", "plate")[0] == 0


def test_a_folder_named_like_an_output_file_is_an_error_that_says_so(run, plates, tmp_path):
    folder = tmp_path / "images"
    (folder / "a.png.png").mkdir(parents=True)
    shutil.copy(plates / "b" / "plate 0.png", folder / "a.png")
    shutil.copy(plates / "b" / "plate 0.png", folder / "a.png.png" / "b.png")
    code, _, error = run(
        *("detect", str(folder), "--object", "plate", "--out", str(tmp_path / "s"), "--maps", "png16"),
        *("--method", "anoclip"),
    )
    assert (code, "named like the output of another image" in error) == (2, True)
    (OVERLAYS / "a.png.clipspect.png").mkdir(parents=True)
    code, _, error = run("detect", str(folder / "a.png"), "--object", "plate")
    assert (code, "a.png.clipspect.png: cannot be written" in error) == (2, True)


def test_what_a_folder_scan_leaves_out_is_counted_by_kind(run, plates, tmp_path):
    for name in ("photo.svg", "clip.mp4", "notes.txt", "b/plate 0_mask.png", "masks/1.png"):
        (plates / name).parent.mkdir(exist_ok=True)
        (plates / name).write_bytes(b"x")
    words = ("detect", str(plates), "--object", "plate", "--out", str(tmp_path / "r"), "--no-report")
    code, text, _ = run(*words, "--overlays", "none")
    assert code == 0
    assert "Left out: 1 SVG, 1 video not supported; 2 masks; 1 other file." in " ".join(text.split())
    assert "10 images" in text


def test_bit_depth_belongs_to_the_run_and_its_warning_to_the_row(run, tmp_path):
    folder = tmp_path / "deep"
    folder.mkdir()
    shutil.copy(CASES / "g12bit_in16.tif", folder)
    words = ("detect", str(folder), "--object", "plate", "--no-report", "--overlays", "none", "--out")
    code, text, _ = run(*words, str(tmp_path / "r"))
    assert (code, "--bit-depth 12" in " ".join(text.split())) == (0, True)
    assert any("--bit-depth 12" in warning for warning in rows_of(tmp_path / "r")[0]["warnings"])
    code, _, error = run(*words, str(tmp_path / "r"), "--bit-depth", "12")
    assert (code, "bit_depth was None, now 12" in error) == (2, True)
    code, text, _ = run(*words, str(tmp_path / "s"), "--bit-depth", "12")
    assert (code, "--bit-depth" in text, rows_of(tmp_path / "s")[0]["warnings"]) == (0, False, [])
    assert run(*words, str(tmp_path / "t"), "--window", "0,4095")[0] == 0
    assert rows_of(tmp_path / "t")[0]["score"] == rows_of(tmp_path / "s")[0]["score"]
    assert "two numbers" in run(*words, str(tmp_path / "u"), "--window", "5")[2]


def test_every_page_is_a_row_of_its_own_and_is_resumed(run, plates, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    shutil.copy(CASES / "multipage.tif", folder)
    shutil.copy(plates / "b" / "plate 0.png", folder)
    words = ("detect", str(folder), "--object", "plate", "--out", str(tmp_path / "r"), "--pages", "all")
    assert run(*words)[0] == 0
    names = ["multipage.tif#1", "multipage.tif#2", "multipage.tif#3", "plate 0.png"]
    rows = sorted(rows_of(tmp_path / "r"), key=lambda row: row["path"])
    assert [row["path"] for row in rows] == names
    assert len({row["content_hash"] for row in rows}) == 4
    assert [row["warnings"] for row in rows] == [[]] * 4
    assert {p.name for p in (tmp_path / "r" / "overlays").iterdir()} == {f"{name}.png" for name in names}
    assert "4 from an earlier run" in run(*words)[1]
    code, text, _ = run(*words[:-2], "--overwrite")
    assert (code, "2 images" in text, "3 pages" in " ".join(text.split())) == (0, True, True)

"""Results folders merged, filtered, exported and repaired from their rows alone."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from clipspect.cli import main
from clipspect.errors import ResultsError, UsageError
from clipspect.references import GoodImages
from clipspect.results.merge import RowFilter, merge_results, recover_manifest
from clipspect.results.report import write_report
from clipspect.results.run import run_folder
from clipspect.results.store import read_manifest
from helpers.fake_detector import KNOWN_GOOD, DarkSpotDetector, write_parts
from helpers.rows import rows_by_path


def run(photos: Path, out: Path, model: str = "fake", good: GoodImages | None = KNOWN_GOOD) -> Path:
    options = {"overlays": "none", "report": False, "good": good}
    run_folder(DarkSpotDetector(model), photos, object="part", out=out, **options)
    return out


@pytest.fixture
def lines(tmp_path: Path) -> tuple[Path, Path]:
    """Results of two lines: images 0…7, two of them dark; 8…15, one of them dark, and one that fails."""
    write_parts(tmp_path / "one", good=6, dark=2)
    write_parts(tmp_path / "all", good=15, dark=1)
    (tmp_path / "two").mkdir()
    for number in range(8, 16):
        shutil.copy(tmp_path / "all" / f"part-{number:04d}.png", tmp_path / "two")
    (tmp_path / "two" / "empty.png").write_bytes(b"")
    return run(tmp_path / "one", tmp_path / "out one"), run(tmp_path / "two", tmp_path / "out two")


def test_two_folders_become_one_with_every_image_once_and_a_report(lines, tmp_path):
    outcome = merge_results(lines, tmp_path / "merged")
    before = rows_by_path(lines[0]) | rows_by_path(lines[1])
    after = rows_by_path(tmp_path / "merged")
    assert (outcome.images, outcome.flagged, outcome.failed) == (17, 3, 1)
    assert after == before
    assert outcome.calibrations == KNOWN_GOOD.calibrations
    assert "part-0015.png" in outcome.report.read_text(encoding="utf-8")


def test_an_image_of_both_is_taken_once_and_a_scored_one_before_a_failed_one(lines, tmp_path):
    shutil.copy(tmp_path / "one" / "part-0003.png", tmp_path / "two" / "part-0003.png")
    (tmp_path / "one" / "empty.png").write_bytes((tmp_path / "one" / "part-0000.png").read_bytes())
    first, second = run(tmp_path / "one", tmp_path / "a"), run(tmp_path / "two", tmp_path / "b")
    for folders in ([first, second], [second, first]):
        merge_results(folders, tmp_path / "merged", overwrite=True)
        rows = rows_by_path(tmp_path / "merged")
        assert len(rows) == 17
        assert rows["empty.png"]["error"] is None
        assert rows["part-0003.png"] == rows_by_path(second)["part-0003.png"]  # the latest


def test_one_name_for_two_images_is_refused_until_the_folders_names_tell_them_apart(lines, tmp_path):
    shutil.copy(tmp_path / "one" / "part-0000.png", tmp_path / "two" / "part-0009.png")
    write_parts(tmp_path / "one", good=10, dark=0)
    first, second = run(tmp_path / "one", tmp_path / "a"), run(tmp_path / "two", tmp_path / "b")
    with pytest.raises(ResultsError, match=r"part-0009.png: is one image in .* --prefix"):
        merge_results([first, second], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    merge_results([first, second], tmp_path / "merged", prefix=True)
    assert {"a/part-0009.png", "b/part-0009.png"} <= rows_by_path(tmp_path / "merged").keys()


def test_scores_of_different_settings_are_not_merged(lines, tmp_path):
    other = run(tmp_path / "two", tmp_path / "other", model="another")
    with pytest.raises(ResultsError, match=r"other settings than .* \(model\)"):
        merge_results([lines[0], other], tmp_path / "merged")


def test_verdicts_of_different_known_good_images_are_not_merged(lines, tmp_path):
    known = KNOWN_GOOD.calibrations["dark"]
    other_good = GoodImages({"dark": replace(known, threshold=0.3)}, None)
    other = run(tmp_path / "two", tmp_path / "other", good=other_good)
    with pytest.raises(ResultsError, match="another calibration"):
        merge_results([lines[0], other], tmp_path / "merged")


def test_runs_over_different_sets_are_not_merged(lines, tmp_path):
    for folder, digest in zip(lines, ("a", "b"), strict=True):
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        manifest["settings"]["set"] = digest
        (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ResultsError, match=r"other settings than .* \(set\)"):
        merge_results(lines, tmp_path / "merged")


def test_runs_without_a_record_of_their_sets_are_not_merged(lines, tmp_path):
    for folder in lines:
        (folder / "manifest.json").unlink()
    with pytest.raises(ResultsError, match=r"other settings than .* \(set\)"):
        merge_results(lines, tmp_path / "merged")
    assert merge_results([lines[0]], tmp_path / "merged").images == 8


@pytest.mark.parametrize("good", [KNOWN_GOOD, None], ids=["known-good", "compared"])
def test_rows_of_files_that_are_gone_stay_out_of_merged_counts(lines, tmp_path, good, monkeypatch, capsys):
    (tmp_path / "one" / "part-0000.png").rename(tmp_path / "one" / "renamed.png")
    (tmp_path / "one" / "part-0006.png").unlink()
    run(tmp_path / "one", tmp_path / "a", good=good)
    write_parts(tmp_path / "one", good=7, dark=1)
    for name in ("part-0000.png", "renamed.png"):
        (tmp_path / "one" / name).unlink()
    first = run(tmp_path / "one", tmp_path / "a", good=good)
    second = run(tmp_path / "two", tmp_path / "b", good=good)
    outcome = merge_results([first, second], tmp_path / "merged")
    assert (outcome.images, outcome.missing) == (16, 1)
    rows = rows_by_path(tmp_path / "merged")
    assert [name for name, row in rows.items() if row["missing"]] == ["renamed.png"]
    assert outcome.calibrations["dark"].images == (KNOWN_GOOD.calibrations["dark"].images if good else 15)
    target = tmp_path / "rows.csv"
    code, _ = call(monkeypatch, capsys, "export", tmp_path / "merged", "--out", target)
    assert (code, "renamed.png" in target.read_text(encoding="utf-8-sig")) == (0, False)
    code, said = call(monkeypatch, capsys, "filter", tmp_path / "merged", "--out", tmp_path / "some")
    assert (code, "1 no longer in their folder" in said) == (0, True)


def test_an_image_that_is_there_is_taken_before_a_row_of_one_that_is_gone(lines, tmp_path):
    shutil.copy(tmp_path / "one" / "part-0007.png", tmp_path / "two" / "part-0000.png")
    run(tmp_path / "two", tmp_path / "b")
    (tmp_path / "two" / "part-0000.png").unlink()
    second = run(tmp_path / "two", tmp_path / "b")
    for folders in ([lines[0], second], [second, lines[0]]):
        merge_results(folders, tmp_path / "merged", overwrite=True)
        row = rows_by_path(tmp_path / "merged")["part-0000.png"]
        assert (row["missing"], row["flag"]) == (False, False)


def test_without_known_good_images_the_merged_ones_are_compared(lines, tmp_path):
    folders = [run(tmp_path / name, tmp_path / f"{name} alone", good=None) for name in ("one", "two")]
    assert merge_results(folders, tmp_path / "merged").verdicts == {"undecided": 16, "error": 1}


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (RowFilter(flagged=True), {"part-0015.png"}),
        (RowFilter(failed=True), {"empty.png"}),
        (RowFilter(least=0.6), {"part-0015.png"}),
        (RowFilter(names="*-001?.png", flagged=False), {f"part-001{n}.png" for n in range(5)}),
        (RowFilter(most=0.01), set()),
    ],
)
def test_filters_take_whole_images(lines, tmp_path, choice, names):
    outcome = merge_results([lines[1]], tmp_path / "some", choice=choice)
    rows = rows_by_path(tmp_path / "some")
    assert rows.keys() == names
    assert outcome.images == len(names)
    assert all(row == rows_by_path(lines[1])[name] for name, row in rows.items())


def test_results_are_not_written_over_nor_into_themselves(lines, tmp_path):
    with pytest.raises(UsageError, match="one of the folders themselves"):
        merge_results(lines, lines[0])
    merge_results(lines, tmp_path / "merged")
    with pytest.raises(ResultsError, match="holds results already"):
        merge_results(lines, tmp_path / "merged")
    assert len(rows_by_path(tmp_path / "merged")) == 17


def test_the_report_comes_back_from_parquet_alone(lines, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(lines[1] / "detections", alone / "detections")
    recover_manifest(alone)
    manifest, before = read_manifest(alone), read_manifest(lines[1])
    assert manifest["settings"]["model"] == "fake"
    assert before["calibrations"]["dark"]["rule"] == "conformal"
    assert (
        manifest["calibrations"]["dark"]["rule"] == "none"
    )  # lost with the manifest; verdicts are in the rows
    page = write_report(alone).read_text(encoding="utf-8")
    assert page.count('"name": "part-') == 8
    assert "empty.png" in page
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ResultsError, match="neither a manifest nor rows"):
        recover_manifest(tmp_path / "nothing")


def call(monkeypatch, capsys, *words: object) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["clipspect", "results", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out + captured.err


def test_the_command_merges_filters_exports_and_reports(lines, tmp_path, monkeypatch, capsys):
    merged = tmp_path / "merged"
    code, said = call(monkeypatch, capsys, "merge", *lines, "--out", merged, "--threshold", 0.55)
    assert (code, "17 images: 3 flagged, 1 failed" in said) == (0, True)
    code, said = call(monkeypatch, capsys, "filter", merged, "--out", tmp_path / "bad", "--flagged")
    assert (code, "3 images: 3 flagged" in said) == (0, True)
    assert call(monkeypatch, capsys, "export", merged, "--out", tmp_path / "rows.csv")[0] == 0
    with (tmp_path / "rows.csv").open(encoding="utf-8-sig", newline="") as file:
        assert len(list(csv.DictReader(file))) == 17
    (merged / "report.html").unlink()
    assert call(monkeypatch, capsys, "report", merged)[0] == 0
    assert (merged / "report.html").is_file()
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")) == []
    code, said = call(monkeypatch, capsys, "export", merged, "--out", tmp_path / "x", "--method", "clip")
    assert (code, "there are: dark" in said) == (2, True)


def test_coco_holds_every_region_as_a_box_of_its_image(lines, tmp_path, monkeypatch, capsys):
    target = tmp_path / "coco.json"
    assert call(monkeypatch, capsys, "export", lines[1], "--format", "coco", "--out", target)[0] == 0
    coco = json.loads(target.read_text(encoding="utf-8"))
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    assert sorted(names.values()) == [f"part-{n:04d}.png" for n in range(8, 16)]  # the failed one has no size
    rows = rows_by_path(lines[1])
    boxes = {
        (names[a["image_id"]], *a["bbox"], a["area"], a["score"], a["category_id"])
        for a in coco["annotations"]
    }
    expected = {
        (name, r["left"], r["top"], r["width"], r["height"], r["area"], r["peak"], 1)
        for name, row in rows.items() for r in row["regions"]
    }  # fmt: skip
    assert boxes == expected
    assert ("part-0015.png", 10, 20, 10, 10, 100) in {box[:6] for box in boxes}
    assert len({annotation["id"] for annotation in coco["annotations"]}) == len(coco["annotations"])
    assert [category["id"] for category in coco["categories"]] == [1]
    for annotation in coco["annotations"]:
        left, top, width, height = annotation["bbox"]
        (polygon,) = annotation["segmentation"]
        assert polygon == [left, top, left + width, top, left + width, top + height, left, top + height]

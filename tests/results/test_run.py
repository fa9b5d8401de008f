"""A run over a folder ends with one row per image, whatever happens on the way."""

from __future__ import annotations

import csv
import gc
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipspect
import clipspect.results.run as run_module
from clipspect.data.find import scan_folder
from clipspect.data.objects import read_objects
from clipspect.detection import Detection
from clipspect.errors import ImageError, ResultsError, UsageError
from clipspect.results.merge import merge_results
from clipspect.results.mixed import mixed_engine
from clipspect.results.outputs import output_path
from clipspect.results.run import LocalEngine, Progress, run_engine, run_folder
from helpers.fake_detector import KNOWN_GOOD, DarkSpotDetector, write_parts
from helpers.images import plate
from helpers.links import link
from helpers.rows import rows_by_path


def test_a_folder_becomes_rows_overlays_and_a_report(photos: Path, tmp_path: Path):
    out = tmp_path / "out"
    summary = run_folder(DarkSpotDetector(), photos, object="part", out=out, good=KNOWN_GOOD)
    rows = rows_by_path(out)
    assert (summary.images, summary.computed, summary.kept, summary.failed) == (16, 16, 0, 0)
    assert summary.flagged == 4
    assert [name for name, row in sorted(rows.items()) if row["flag"]] == [
        f"part-{n:04d}.png" for n in range(12, 16)
    ]
    (region,) = rows["part-0013.png"]["regions"]
    assert [region[key] for key in ("left", "top", "width", "height", "area")] == [10, 20, 10, 10, 100]
    assert rows["part-0001.png"]["regions"] == []
    assert {row["threshold_source"] for row in rows.values()} == {"conformal"}
    assert summary.verdicts == {"clean": 12, "flagged": 4}
    assert len(list((out / "overlays").glob("*.png"))) == 16
    assert Image.open(out / "overlays" / "part-0013.png.png").size == (64, 48)
    assert max(Image.open(io.BytesIO(rows["part-0013.png"]["preview"])).size) == 64
    assert summary.report == out / "report.html"
    assert summary.warnings == ("no real model",)
    assert list((out / ".writing").iterdir()) == []


def test_bad_files_become_error_rows_and_the_run_goes_on(photos: Path, tmp_path: Path):
    good = (photos / "part-0000.png").read_bytes()
    (photos / "empty.png").write_bytes(b"")
    (photos / "half.png").write_bytes(good[: len(good) // 2])
    (photos / "notes.jpg").write_bytes(b"no picture")
    link(photos / "gone.png", photos / "nowhere.png")
    Image.new("RGB", (1, 1)).save(photos / "tiny.png")
    summary = run_folder(DarkSpotDetector(), photos, object="part", out=tmp_path / "out")
    rows = rows_by_path(tmp_path / "out")
    assert summary.failed == 4
    assert dict(summary.errors).keys() == {"empty.png", "half.png", "notes.jpg", "gone.png"}
    assert "0 bytes" in rows["empty.png"]["error"]
    assert "no such file" in rows["gone.png"]["error"]
    assert rows["half.png"]["score"] is None
    assert rows["half.png"]["flag"] is None
    assert rows["tiny.png"]["error"] is None
    assert len(rows) == 21


def test_running_again_keeps_finished_rows_and_tries_failed_ones_again(photos: Path, tmp_path: Path):
    (photos / "later.png").write_bytes(b"")
    run_folder(DarkSpotDetector(), photos, object="part", out=tmp_path / "out")
    before = rows_by_path(tmp_path / "out")
    (photos / "later.png").write_bytes((photos / "part-0000.png").read_bytes())
    (photos / "part-0001.png").write_bytes((photos / "part-0015.png").read_bytes())
    write_parts(photos / "more", good=1, dark=0)
    detector = DarkSpotDetector()
    summary = run_folder(detector, photos, object="part", out=tmp_path / "out")
    after = rows_by_path(tmp_path / "out")
    assert sorted(detector.scored) == ["later.png", "more/part-0000.png", "part-0001.png"]
    assert (summary.computed, summary.kept, summary.failed) == (3, 15, 0)
    assert len(after) == 18
    assert after["part-0001.png"]["score"] == after["part-0015.png"]["score"]
    assert after["part-0002.png"]["finished_at"] == before["part-0002.png"]["finished_at"]


def test_another_threshold_judges_the_old_rows_without_scoring_again(photos: Path, tmp_path: Path):
    out = tmp_path / "out"
    run_folder(DarkSpotDetector(), photos, object="part", out=out, good=KNOWN_GOOD)
    detector = DarkSpotDetector()
    summary = run_folder(detector, photos, object="part", out=out, good=KNOWN_GOOD, threshold=0.01)
    assert detector.scored == []
    assert summary.flagged == 16
    assert {row["threshold"] for row in rows_by_path(out).values()} == {0.01}
    assert all(row["regions"] for row in rows_by_path(out).values())
    with pytest.raises(UsageError, match="between 0 and 1"):
        run_folder(detector, photos, object="part", out=out, threshold=1.5)


def test_without_known_good_images_few_images_are_ranked_and_many_compared(photos: Path, tmp_path: Path):
    few = run_folder(DarkSpotDetector(), photos, object="part", out=tmp_path / "few")
    assert few.verdicts == {"undecided": 16}
    rows = rows_by_path(tmp_path / "few")
    assert {row["threshold"] for row in rows.values()} == {None}
    assert {name for name, row in rows.items() if row["score"] > 0.45} == {
        f"part-{n:04d}.png" for n in range(12, 16)
    }
    write_parts(photos / "more", good=12, dark=0)
    many = run_folder(DarkSpotDetector(), photos, object="part", out=tmp_path / "many")
    assert many.verdicts == {"undecided": 24, "stands_out": 4}


def test_an_image_is_flagged_if_and_only_if_it_has_a_region(photos: Path, tmp_path: Path):
    for options in ({"good": KNOWN_GOOD}, {}, {"threshold": 0.3}):
        run_folder(DarkSpotDetector(), photos, object="part", out=tmp_path / "out", overwrite=True, **options)
        for row in rows_by_path(tmp_path / "out").values():
            assert row["flag"] == bool(row["regions"])


def test_rows_of_files_that_are_gone_are_kept_and_not_counted(photos: Path, tmp_path: Path):
    options = {"object": "part", "out": tmp_path / "out", "good": KNOWN_GOOD, "csv": True}
    run_folder(DarkSpotDetector(), photos, **options)
    (photos / "part-0013.png").unlink()
    (photos / "part-0001.png").rename(photos / "renamed.png")
    summary = run_folder(DarkSpotDetector(), photos, **options)
    assert (summary.images, summary.flagged, summary.missing) == (15, 3, 2)
    assert any("2 images are no longer in the folder" in warning for warning in summary.warnings)
    rows = rows_by_path(tmp_path / "out")
    assert {name for name, row in rows.items() if row["missing"]} == {"part-0013.png", "part-0001.png"}
    assert "part-0013.png" not in summary.report.read_text(encoding="utf-8")
    with summary.csv.open(encoding="utf-8-sig", newline="") as file:
        assert len(list(csv.DictReader(file))) == 15
    write_parts(photos, good=12, dark=4)
    assert run_folder(DarkSpotDetector(), photos, **options).missing == 0


def test_known_good_images_in_the_run_are_told(photos: Path, tmp_path: Path):
    from dataclasses import replace

    from clipspect.data.decode import hash_file

    known = KNOWN_GOOD.calibrations["dark"]
    good = replace(
        KNOWN_GOOD, calibrations={"dark": replace(known, hashes=(hash_file(photos / "part-0002.png"),))}
    )
    summary = run_folder(DarkSpotDetector(), photos, object="part", out=tmp_path / "out", good=good)
    assert any(
        "1 image is both in the run and among the known-good" in warning for warning in summary.warnings
    )


def test_other_settings_are_refused_and_overwrite_replaces(photos: Path, tmp_path: Path):
    run_folder(DarkSpotDetector(), photos, object="part", out=tmp_path / "out")
    with pytest.raises(ResultsError, match="model was 'fake', now 'other'"):
        run_folder(DarkSpotDetector("other"), photos, object="part", out=tmp_path / "out")
    with pytest.raises(ResultsError, match="object was 'part', now 'plate'"):
        run_folder(DarkSpotDetector(), photos, object="plate", out=tmp_path / "out")
    run_folder(DarkSpotDetector("other"), photos, object="part", out=tmp_path / "out", overwrite=True)
    assert {row["model"] for row in rows_by_path(tmp_path / "out").values()} == {"other"}


def test_results_inside_the_folder_of_images_are_not_images(photos: Path):
    run_folder(DarkSpotDetector(), photos, object="part", out=photos / "results")
    summary = run_folder(DarkSpotDetector(), photos, object="part", out=photos / "results")
    assert (summary.images, summary.computed) == (16, 0)


def test_one_image_and_an_empty_folder(photos: Path, tmp_path: Path):
    summary = run_folder(DarkSpotDetector(), photos / "part-0015.png", object="part", out=tmp_path / "out")
    assert (summary.images, summary.flagged) == (1, 0)
    assert summary.verdicts == {"undecided": 1}
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="no images"):
        run_folder(DarkSpotDetector(), tmp_path / "none", object="part", out=tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def test_a_run_in_which_every_image_fails_still_ends(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    summary = run_folder(
        DarkSpotDetector(), tmp_path / "photos", object="part", out=tmp_path / "out", csv=True
    )
    assert (summary.images, summary.failed, summary.flagged) == (1, 1, 0)
    assert summary.report.exists()


@pytest.mark.parametrize("maps", ["png16", "npy"])
def test_maps_have_the_size_of_the_image_and_full_precision(photos: Path, tmp_path: Path, maps):
    run_folder(DarkSpotDetector(), photos, object="part", out=tmp_path / "out", maps=maps, good=KNOWN_GOOD)
    folder = tmp_path / "out" / "maps"
    if maps == "npy":
        values = np.load(folder / "part-0015.png.npy")
        assert values.dtype == np.float32
    else:
        values = np.asarray(Image.open(folder / "part-0015.png.png")) / 65535
    assert values.shape == (48, 64)
    darkness = 1 - 15 / 255
    expected = KNOWN_GOOD.calibrations["dark"].probability(np.log(darkness / (1 - darkness)))
    assert values[25, 15] == pytest.approx(float(expected), abs=1e-3)  # layers are stored as float16


@pytest.mark.parametrize(("choice", "drawn"), [("all", 16), ("flagged", 4), ("none", 0)])
def test_overlays_are_drawn_as_chosen_and_old_ones_do_not_stay(photos: Path, tmp_path: Path, choice, drawn):
    run_folder(DarkSpotDetector(), photos, object="part", out=tmp_path / "out")
    run_folder(
        DarkSpotDetector(), photos, object="part", out=tmp_path / "out", overlays=choice, good=KNOWN_GOOD
    )
    assert len(list((tmp_path / "out").glob("overlays/*.png"))) == drawn


def test_the_csv_holds_every_row_without_pictures(photos: Path, tmp_path: Path):
    (photos / 'Größe, "quoted".png').write_bytes(b"")
    summary = run_folder(
        DarkSpotDetector(),
        photos,
        object="part",
        out=tmp_path / "out",
        csv=True,
        report=False,
        good=KNOWN_GOOD,
    )
    with summary.csv.open(encoding="utf-8-sig", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert len(rows) == 17
    assert rows["part-0015.png"]["region_count"] == "1"
    assert json.loads(rows["part-0015.png"]["regions"])[0]["area"] == 100
    assert "0 bytes" in rows['Größe, "quoted".png']["error"]
    assert summary.report is None
    assert not (tmp_path / "out" / "report.html").exists()


def test_progress_counts_every_image_in_both_stages(photos: Path, tmp_path: Path):
    (photos / "zzz.png").write_bytes(b"")
    seen: list[Progress] = []
    run_folder(DarkSpotDetector(), photos, object="part", out=tmp_path / "out", progress=seen.append)
    for stage in ("detect", "finish"):
        assert [p.done for p in seen if p.stage == stage] == list(range(1, 18))
    assert seen[-1].total == 17
    assert (seen[16].path, seen[16].failed) == ("zzz.png", 1)
    seen.clear()
    run_folder(DarkSpotDetector(), photos, object="part", out=tmp_path / "out", progress=seen.append)
    assert (seen[0].stage, seen[0].done, seen[0].kept) == ("detect", 17, 16)


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "a/../../b.png"])
def test_no_name_leads_out_of_the_results_folder(path):
    assert "out/overlays" in output_path(Path("out/overlays"), path, ".png").as_posix()
    assert ".." not in output_path(Path("out/overlays"), path, ".png").parts


def test_no_more_detections_are_alive_for_many_images_than_for_few(tmp_path: Path):
    write_parts(tmp_path / "photos", good=300, dark=0, size=(16, 16))
    most = 0

    def count(progress: Progress) -> None:
        nonlocal most
        if progress.done % 50 == 0:
            most = max(most, sum(type(thing) is Detection for thing in gc.get_objects()))

    gc.collect()
    run_folder(
        DarkSpotDetector(), tmp_path / "photos", object="part", out=tmp_path / "out", progress=count,
        overlays="none", report=False,
    )  # fmt: skip
    assert most <= 3


@pytest.fixture
def written(monkeypatch) -> list[int]:
    """Numbers of rows of the parts that were written, in order."""
    monkeypatch.setattr("clipspect.results.store.FLUSH_ROWS", 8)
    sizes: list[int] = []
    write = run_module.ResultStore.write_part

    def count(self, part, rows, judged_by=None):
        sizes.append(len(rows))
        write(self, part, rows, judged_by)

    monkeypatch.setattr(run_module.ResultStore, "write_part", count)
    return sizes


def test_finishing_holds_one_part_of_rows_at_a_time(tmp_path: Path, written):
    write_parts(tmp_path / "photos", good=64, dark=0, size=(16, 16))
    options = {"object": "part", "out": tmp_path / "out", "overlays": "none"}
    run_folder(DarkSpotDetector(), tmp_path / "photos", **options)
    assert written == [8] * 16  # eight parts, written and judged
    run_folder(DarkSpotDetector(), tmp_path / "photos", **options)
    assert written == [8] * 16  # nothing has changed


def test_with_known_good_images_rows_are_judged_as_they_are_written(photos: Path, tmp_path: Path, written):
    for overlays in ("none", "all"):
        options = {"object": "part", "good": KNOWN_GOOD, "overlays": overlays}
        summary = run_folder(DarkSpotDetector(), photos, out=tmp_path / overlays, **options)
        assert written == [8, 8]
        assert summary.flagged == 4
        assert summary.verdicts == {"flagged": 4, "clean": 12}
        written.clear()
    # Another threshold writes each part again, and back.
    before = rows_by_path(tmp_path / "all")
    options = {"object": "part", "good": KNOWN_GOOD, "overlays": "none"}
    run_folder(DarkSpotDetector(), photos, out=tmp_path / "all", threshold=0.4, **options)
    run_folder(DarkSpotDetector(), photos, out=tmp_path / "all", **options)
    assert written == [8, 8, 8, 8]
    assert rows_by_path(tmp_path / "all") == before


def test_a_file_that_goes_away_changes_only_its_part(photos: Path, tmp_path: Path, written):
    options = {"object": "part", "good": KNOWN_GOOD, "overlays": "none", "out": tmp_path / "out"}
    run_folder(DarkSpotDetector(), photos, **options)
    (photos / "part-0002.png").unlink()
    written.clear()
    summary = run_folder(DarkSpotDetector(), photos, **options)
    assert written == [8]
    assert (summary.images, summary.missing) == (15, 1)


def test_overlays_are_read_with_the_detector_s_own_limit_of_pixels(photos: Path, tmp_path: Path, monkeypatch):
    """An image that a raised --max-pixels let in is drawn too: the limit is the detector's, not the default."""
    detector = DarkSpotDetector()
    engine = LocalEngine(detector, photos, "part", tmp_path / "out")
    settings = detector.settings()
    monkeypatch.setattr(detector, "settings", lambda: {**settings, "max_pixels": 64 * 48 - 1})
    with pytest.raises(ImageError, match="more than the limit of 3,071"):
        engine.pixels("part-0000.png")
    monkeypatch.setattr(detector, "settings", lambda: {**settings, "max_pixels": 64 * 48})
    assert LocalEngine(detector, photos, "part", tmp_path / "out").pixels("part-0000.png").shape == (
        48,
        64,
        3,
    )


def test_a_folder_of_one_image_is_judged_as_that_image_alone(tmp_path: Path):
    detector = clipspect.load("anoclip", device="cpu")
    folder, out, filtered = tmp_path / "photos", tmp_path / "out", tmp_path / "filtered"
    folder.mkdir()
    path = folder / "part.png"
    Image.fromarray(plate(3, blot=True)).save(path)
    alone = detector.detect(path, "plate")
    assert alone.calibration_used.rule == "shipped level"
    run_folder(detector, folder, object="plate", out=out)
    merge_results([out], filtered)
    (listed,) = detector.detect([path], "plate")
    for row in (*rows_by_path(out).values(), *rows_by_path(filtered).values()):
        found = (row["score"], row["verdict"], row["threshold"], row["threshold_source"])
        assert found == (pytest.approx(alone.score), alone.verdict, 0.5, "shipped level")
    assert (listed.score, listed.verdict) == (alone.score, alone.verdict)
    Image.fromarray(plate(4)).save(folder / "other.png")
    run_folder(detector, folder, object="plate", out=out)
    assert {row["threshold_source"] for row in rows_by_path(out).values()} == {"none"}

    table = tmp_path / "objects.csv"
    table.write_text("image,object\npart.png,plate\nother.png,board\n")
    run_engine(mixed_engine(detector, folder, read_objects(table), table, {}), out=tmp_path / "mixed")
    rows = rows_by_path(tmp_path / "mixed")
    assert {row["threshold_source"] for row in rows.values()} == {"shipped level"}
    assert rows["part.png"]["score"] == pytest.approx(alone.score)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
def test_a_pipe_among_the_images_is_an_error_row_and_the_run_ends(photos: Path, tmp_path: Path):
    os.mkfifo(photos / "pipe.png")
    summary = run_folder(clipspect.load("anoclip", device="cpu"), photos, object="part", out=tmp_path / "out")
    assert dict(summary.errors) == {"pipe.png": "not a regular file; give the path of one image"}
    with pytest.raises(UsageError, match="not a regular file"):
        scan_folder(photos / "pipe.png")

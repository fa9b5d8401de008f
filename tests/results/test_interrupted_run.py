"""A run that is killed, or whose disk or folder changes under it, is completed by the next one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import clipspect.results.run as run_module
from clipspect.errors import ResultsError
from clipspect.results.run import Progress, run_folder
from clipspect.results.store import iterate_rows
from helpers.fake_detector import KNOWN_GOOD, DarkSpotDetector, write_parts
from helpers.rows import rows_by_path

pytestmark = pytest.mark.integration


def test_a_full_disk_ends_the_run_with_its_reason_and_the_next_run_completes_it(
    photos, tmp_path, monkeypatch
):
    monkeypatch.setattr("clipspect.results.store.FLUSH_ROWS", 4)
    real, calls = os.fsync, []

    def fill_up(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 3:  # the manifest and two parts
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("clipspect.results.files.os.fsync", fill_up)
    with pytest.raises(ResultsError, match="the disk is full"):
        run_folder(DarkSpotDetector(), photos, object="part", out=tmp_path / "out")
    monkeypatch.undo()
    assert len(rows_by_path(tmp_path / "out")) == 8
    summary = run_folder(DarkSpotDetector(), photos, object="part", out=tmp_path / "out")
    assert (summary.kept, summary.computed) == (8, 8)


def start(photos: Path, out: Path, log: Path, delay: str) -> subprocess.Popen:
    script = Path(__file__).parents[1] / "helpers" / "fake_detector.py"
    source = str(Path(run_module.__file__).parents[2])
    environment = {**os.environ, "DELAY": delay, "PYTHONPATH": source}
    return subprocess.Popen([sys.executable, script, photos, out, log], env=environment)


def test_killed_in_the_middle_of_200_images_every_one_is_there_once_and_none_is_scored_twice(
    tmp_path: Path,
):
    photos, out, log = tmp_path / "photos", tmp_path / "out", tmp_path / "scored.txt"
    write_parts(photos, good=150, dark=50, size=(32, 32))
    run = start(photos, out, log, "0.02")
    while run.poll() is None and not list(out.glob("detections/*.parquet")):
        time.sleep(0.05)
    written = len(list(iterate_rows(out)))
    while run.poll() is None and len(log.read_text(encoding="utf-8").split()) <= written:
        time.sleep(0.01)  # until an image is scored but not yet written
    assert run.poll() is None, "the run ended before it could be killed"
    run.kill()
    run.wait()
    finished = {row["path"] for row in iterate_rows(out)}
    assert 0 < len(finished) < 200
    assert start(photos, out, log, "0").wait() == 0
    assert rows_by_path(out).keys() == {f"part-{n:04d}.png" for n in range(200)}
    assert all(row["flag"] is not None for row in rows_by_path(out).values())
    times = Counter(log.read_text(encoding="utf-8").split())
    assert {name for name in finished if times[name] > 1} == set()
    assert max(times.values()) <= 2


def test_killed_while_finishing_the_next_run_only_finishes(tmp_path: Path, photos: Path):
    detector = DarkSpotDetector()

    def kill(progress: Progress) -> None:
        if progress.stage == "finish" and progress.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_folder(detector, photos, object="part", out=tmp_path / "out", progress=kill)
    assert len(rows_by_path(tmp_path / "out")) == 16
    summary = run_folder(detector, photos, object="part", out=tmp_path / "out", good=KNOWN_GOOD)
    assert len(detector.scored) == 16
    assert summary.flagged == 4


def test_a_disk_that_fills_up_while_overlays_are_drawn_is_not_taken_for_unreadable_images(
    photos, tmp_path, monkeypatch
):
    def full(*_: object, **__: object) -> None:
        raise ResultsError("overlay.png: the disk is full")

    monkeypatch.setattr("clipspect.results.finalize._draw", full)
    with pytest.raises(ResultsError, match="the disk is full"):
        run_folder(DarkSpotDetector(), photos, object="part", out=tmp_path / "out")


def test_an_image_that_went_away_only_lacks_its_overlay(photos: Path, tmp_path: Path):
    def take_away(progress: Progress) -> None:
        if progress.stage == "detect" and progress.done == 16:
            (photos / "part-0003.png").unlink()

    summary = run_folder(DarkSpotDetector(), photos, object="part", out=tmp_path / "out", progress=take_away)
    assert len(list((tmp_path / "out").glob("overlays/*.png"))) == 15
    assert any("overlays are missing" in warning for warning in summary.warnings)
    assert rows_by_path(tmp_path / "out")["part-0003.png"]["error"] is None


def test_rows_removed_under_a_run_are_missed_and_the_next_run_makes_them_again(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("clipspect.results.store.FLUSH_ROWS", 4)
    out = tmp_path / "out"

    def remove(progress: Progress) -> None:
        if progress.done == 10:
            (out / "detections" / "part-000000.parquet").unlink()

    with pytest.raises(ResultsError, match=r"rows of 4 images were removed .* run the same command again"):
        run_folder(DarkSpotDetector(), photos, object="part", out=out, progress=remove)
    summary = run_folder(DarkSpotDetector(), photos, object="part", out=out)
    assert (summary.kept, summary.computed, len(rows_by_path(out))) == (12, 4, 16)


def test_a_clock_that_goes_back_a_day_confuses_no_run(photos, tmp_path, monkeypatch):
    times = iter([datetime(2026, 11, 21, tzinfo=UTC) - timedelta(hours=n) for n in range(100)])

    class Backwards(datetime):
        @classmethod
        def now(cls, tz=None):
            return next(times)

    monkeypatch.setattr("clipspect.results.rows.datetime", Backwards)
    (photos / "part-0003.png").rename(tmp_path / "later.png")
    run_folder(DarkSpotDetector(), photos, object="part", out=tmp_path / "out")
    (tmp_path / "later.png").rename(photos / "part-0003.png")
    summary = run_folder(DarkSpotDetector(), photos, object="part", out=tmp_path / "out")
    assert (summary.kept, summary.computed, len(rows_by_path(tmp_path / "out"))) == (15, 1, 16)

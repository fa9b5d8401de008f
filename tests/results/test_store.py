"""Rows survive what happens to runs: kills, full disks, other settings, other processes."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from clipspect.detection import Detection
from clipspect.errors import ResultsError
from clipspect.results import files
from clipspect.results.rows import detection_to_row, layers_of, row_path
from clipspect.results.store import FLUSH_ROWS, ResultStore, _changes, iterate_rows
from helpers.links import link

SETTINGS = {"methods": {"anoclip": {}}, "model": "tiny", "object": "plate"}


def detection(number: int, *, error: str | None = None, content: str = "h") -> Detection:
    score_map = np.full((6, 8), number / 1000, np.float32)
    return Detection(
        path=f"{number:04d}.png", content_hash=f"{content}{number}", width=80, height=60, object="plate",
        method="anoclip", model="tiny", weights="w", raw_score=float("nan") if error else number / 1000,
        score_map=None if error else score_map, seconds=0.5, error=error, warnings=("careful",),
    )  # fmt: skip


def add(store: ResultStore, found: Detection, preview: bytes | None = None) -> None:
    store.add(detection_to_row(found, preview))


def table(out: Path):
    return ds.dataset(out / "detections").to_table()


def test_rows_are_one_dataset_that_reads_back_what_was_found(tmp_path: Path):
    with ResultStore(tmp_path / "out", SETTINGS) as store:
        add(store, detection(100), b"jpeg")
        add(store, detection(7, error="the file is empty"))
    good, failed = table(tmp_path / "out").to_pylist()
    assert (good["path"], good["content_hash"], good["width"], good["height"]) == ("0100.png", "h100", 80, 60)
    assert (good["raw_score"], good["error"], good["preview"], good["warnings"]) == (
        0.1,
        None,
        b"jpeg",
        ["careful"],
    )
    np.testing.assert_array_equal(layers_of(good), np.full((1, 6, 8), np.log(0.1 / 0.9), np.float16))
    assert (failed["raw_score"], failed["flag"], failed["layers"]) == (None, None, None)
    assert failed["error"] == "the file is empty"
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["settings"] == SETTINGS
    assert manifest["schema_version"] == 3


def test_rows_are_written_every_256_and_nothing_half_written_is_seen(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("clipspect.results.store.FLUSH_SECONDS", 1e9)
    with ResultStore(tmp_path / "out", SETTINGS) as store:
        for number in range(FLUSH_ROWS + 10):
            add(store, detection(number))
        assert table(tmp_path / "out").num_rows == FLUSH_ROWS
    assert table(tmp_path / "out").num_rows == FLUSH_ROWS + 10
    assert len(list((tmp_path / "out" / "detections").iterdir())) == 2


def test_rows_are_written_when_a_second_has_passed(tmp_path: Path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("clipspect.results.store.time.monotonic", lambda: clock[0])
    with ResultStore(tmp_path / "out", SETTINGS) as store:
        add(store, detection(1))
        assert store.parts() == []
        clock[0] = 1.0
        add(store, detection(2))
        assert table(tmp_path / "out").num_rows == 2


def test_an_interrupted_run_keeps_what_was_waiting(tmp_path: Path):
    store = ResultStore(tmp_path / "out", SETTINGS)
    add(store, detection(1))
    store.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert table(tmp_path / "out").num_rows == 1


def test_the_next_run_finds_finished_rows_and_drops_failed_ones_and_leftovers(tmp_path: Path):
    with ResultStore(tmp_path / "out", SETTINGS) as store:
        for number in range(4):
            add(store, detection(number, error="damaged" if number == 2 else None))
    (tmp_path / "out" / files.STAGING / "half.tmp").write_bytes(b"PAR1")
    with ResultStore(tmp_path / "out", SETTINGS) as store:
        assert store.finished() == {("0000.png", "h0"), ("0001.png", "h1"), ("0003.png", "h3")}
        assert not (tmp_path / "out" / files.STAGING / "half.tmp").exists()
        add(store, detection(2))
    assert sorted(table(tmp_path / "out")["path"].to_pylist()) == [f"{n:04d}.png" for n in range(4)]


def test_images_that_changed_are_forgotten(tmp_path: Path):
    with ResultStore(tmp_path / "out", SETTINGS) as store:
        add(store, detection(1))
        add(store, detection(2))
    with ResultStore(tmp_path / "out", SETTINGS) as store:
        store.forget(["0001.png"])
        assert store.finished() == {("0002.png", "h2")}
        add(store, detection(1, content="new"))
    rows = {row["path"]: row["content_hash"] for row in iterate_rows(tmp_path / "out")}
    assert rows == {"0001.png": "new1", "0002.png": "h2"}


def test_a_part_without_rows_left_is_removed(tmp_path: Path):
    with ResultStore(tmp_path / "out", SETTINGS) as store:
        add(store, detection(1, error="damaged"))
    with ResultStore(tmp_path / "out", SETTINGS) as store:
        assert store.parts() == []


def test_other_settings_are_refused_naming_them_and_the_way_out(tmp_path: Path):
    with ResultStore(tmp_path / "out", SETTINGS) as store:
        add(store, detection(1))
    with pytest.raises(ResultsError, match=r"model was 'tiny', now 'ViT-B-16'; .*--overwrite") as caught:
        ResultStore(tmp_path / "out", {**SETTINGS, "model": "ViT-B-16"})
    assert "object was" not in str(caught.value)
    assert table(tmp_path / "out").num_rows == 1


def test_settings_of_a_run_that_scored_nothing_bind_nobody(tmp_path: Path):
    ResultStore(tmp_path / "out", SETTINGS).__exit__(None, None, None)
    with ResultStore(tmp_path / "out", {**SETTINGS, "model": "other"}) as store:
        assert store.manifest["settings"]["model"] == "other"


def test_a_folder_of_a_later_version_is_refused_even_without_rows_and_gives_way_to_overwrite(tmp_path: Path):
    ResultStore(tmp_path / "out", SETTINGS).__exit__(None, None, None)
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(
        json.dumps({**json.loads(manifest.read_text(encoding="utf-8")), "schema_version": 99})
    )
    with pytest.raises(ResultsError, match="version 99"):
        ResultStore(tmp_path / "out", SETTINGS)
    with ResultStore(tmp_path / "out", SETTINGS, overwrite=True) as store:
        assert store.manifest["schema_version"] < 99


def test_overwrite_starts_afresh_and_removes_only_results(tmp_path: Path):
    out = tmp_path / "out"
    with ResultStore(out, SETTINGS) as store:
        add(store, detection(1))
    (out / "overlays").mkdir()
    (out / "overlays" / "0001.png.png").write_bytes(b"x")
    (out / "notes.txt").write_text("mine")
    with ResultStore(out, {**SETTINGS, "model": "other"}, overwrite=True) as store:
        assert store.finished() == set()
        assert store.manifest["settings"]["model"] == "other"
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert not (out / "overlays").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_never_taken_for_results(tmp_path: Path, overwrite):
    (tmp_path / "detections").mkdir()
    (tmp_path / "detections" / "mine.txt").write_text("mine")
    with pytest.raises(ResultsError, match="holds other files"):
        ResultStore(tmp_path, SETTINGS, overwrite=overwrite)
    assert (tmp_path / "detections" / "mine.txt").read_text(encoding="utf-8") == "mine"


def test_overwrite_does_not_follow_a_link_out_of_the_folder(tmp_path: Path):
    with ResultStore(tmp_path / "out", SETTINGS):
        pass
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.txt").write_text("mine")
    link(tmp_path / "out" / "overlays", elsewhere)
    with ResultStore(tmp_path / "out", SETTINGS, overwrite=True):
        pass
    assert (elsewhere / "mine.txt").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ResultsError, match="is a file"):
        ResultStore(tmp_path / "out", SETTINGS)


def test_an_unwritable_folder_says_so(tmp_path: Path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ResultsError, match=r"out: may not be written; choose another folder"):
        ResultStore(tmp_path / "out", SETTINGS)


def test_two_runs_into_one_folder_are_refused_until_the_first_ends(tmp_path: Path):
    with ResultStore(tmp_path / "out", SETTINGS), pytest.raises(ResultsError, match="another run is writing"):
        ResultStore(tmp_path / "out", SETTINGS)
    with ResultStore(tmp_path / "out", SETTINGS):
        pass


def test_a_full_disk_says_so_and_loses_nothing_written(tmp_path: Path, monkeypatch):
    out = tmp_path / "out"
    store = ResultStore(out, SETTINGS)
    add(store, detection(1))
    store.flush()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    add(store, detection(2))
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ResultsError, match="the disk is full; free some space and run the same command"):
        store.__exit__(None, None, None)
    assert table(out)["path"].to_pylist() == ["0001.png"]
    assert list((out / files.STAGING).iterdir()) == []
    monkeypatch.undo()
    with ResultStore(out, SETTINGS) as again:
        assert again.finished() == {("0001.png", "h1")}


def test_a_damaged_part_is_named_with_the_remedy(tmp_path: Path):
    with ResultStore(tmp_path / "out", SETTINGS) as store:
        add(store, detection(1))
    (part,) = store.parts()
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(ResultsError, match=r"part-000000.parquet: damaged .* delete this file and run again"):
        ResultStore(tmp_path / "out", SETTINGS)
    part.unlink()  # the remedy works, and the failed attempt has let go of the folder
    with ResultStore(tmp_path / "out", SETTINGS) as store:
        assert store.finished() == set()


def test_a_flipped_bit_in_a_part_is_noticed(tmp_path: Path):
    with ResultStore(tmp_path / "out", SETTINGS) as store:
        add(store, detection(1), b"a preview of some length" * 20)
    (part,) = store.parts()
    whole = part.read_bytes()
    column = pq.ParquetFile(part).metadata.row_group(0).column(0)
    place = column.data_page_offset + column.total_compressed_size - 3
    part.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ResultsError, match="damaged"):
        list(iterate_rows(tmp_path / "out"))


def test_a_folder_removed_under_a_run_is_told_and_not_made_again(tmp_path: Path):
    store = ResultStore(tmp_path / "out", SETTINGS)
    add(store, detection(1))
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(ResultsError, match="was removed while it was written; run the same command again"):
        store.__exit__(None, None, None)
    assert not (tmp_path / "out").exists()


def test_the_longer_a_run_the_less_often_rows_are_written(tmp_path: Path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("clipspect.results.store.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("clipspect.results.store.PARTS_TO_DOUBLE", 4)
    with ResultStore(tmp_path / "out", SETTINGS) as store:
        for number in range(100):
            clock[0] += 1
            add(store, detection(number))
        assert len(store.parts()) == 26  # four each at 1, 2, 3 … seconds, not a hundred
    assert table(tmp_path / "out").num_rows == 100


def test_names_that_are_not_utf8_can_be_stored(tmp_path: Path):
    odd = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    with ResultStore(tmp_path / "out", SETTINGS) as store:
        add(store, replace(detection(1), path=odd))
    assert table(tmp_path / "out")["path"].to_pylist() == [row_path(odd)] == ["caf\\udce9.png"]


def test_parts_are_compressed_parquet(tmp_path: Path):
    with ResultStore(tmp_path / "out", SETTINGS) as store:
        add(store, detection(1))
    assert pq.ParquetFile(store.parts()[0]).metadata.row_group(0).column(0).compression == "ZSTD"


def test_an_image_is_finished_when_every_method_of_the_run_has_its_row(tmp_path):
    settings = {**SETTINGS, "methods": {"anoclip": {}, "dual-image": {}}}
    with ResultStore(tmp_path / "out", settings) as store:
        add(store, detection(1))
        add(store, replace(detection(1), method="dual-image"))
        add(store, detection(2))
    with ResultStore(tmp_path / "out", settings) as store:
        assert {path for path, _ in store.finished()} == {detection(1).path}
    assert len(list(iterate_rows(tmp_path / "out", ["path"]))) == 2


def test_other_settings_are_named_without_those_that_are_equal():
    one = {"methods": {"anoclip": {"block": -1, "views": "none"}}, "model": "tiny", "set": None}
    two = {"methods": {"anoclip": {"block": 3, "views": "none"}}, "model": "tiny", "set": None}
    three = {"methods": {"mutual": {"block": 3}}, "model": "tiny", "set": "0f", "set_size": 128}
    assert list(_changes(one, two)) == ["anoclip block was -1, now 3"]
    assert list(_changes(two, three)) == ["methods was anoclip, now mutual"]
    assert list(_changes(two, two)) == []

"""Results of an earlier version go on in this one; those of a later one are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clipspect.errors import ResultsError
from clipspect.results.report import write_report
from clipspect.results.schema import arrow_schema
from clipspect.results.store import ResultStore, iterate_rows, read_manifest

VERSION_1 = Path(__file__).with_name("version_1")
"""Written by clipspect as it was before rows had a host: three images and an empty file."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.copytree(VERSION_1, tmp_path / "old")
    return tmp_path / "old"


def test_an_old_folder_is_read_as_it_lies(old: Path):
    before = {file: file.read_bytes() for file in old.rglob("*") if file.is_file()}
    rows = list(iterate_rows(old))
    assert [row["path"] for row in rows] == ["empty.png", "part-0000.png", "part-0001.png", "part-0002.png"]
    assert [row["host"] for row in rows] == [None] * 4
    assert read_manifest(old)["schema_version"] == 3
    assert before == {file: file.read_bytes() for file in old.rglob("*") if file.is_file()}
    assert write_report(old).stat().st_size > 10_000


def test_a_run_that_goes_on_in_an_old_folder_brings_it_up_to_date_and_keeps_its_rows(old: Path):
    before = [row for row in iterate_rows(old) if row["error"] is None]
    with ResultStore(old, read_manifest(old)["settings"]) as store:
        assert {path for path, _ in store.finished()} == {row["path"] for row in before}
    assert list(iterate_rows(old)) == before
    assert json.loads((old / "manifest.json").read_text(encoding="utf-8"))["schema_version"] == 3
    assert [pq.read_schema(part) for part in store.parts()] == [arrow_schema()]


def test_killed_while_it_is_brought_up_to_date_the_next_run_does_it_again(old: Path, monkeypatch):
    settings = read_manifest(old)["settings"]

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ResultStore, "_write_manifest", kill)
        with pytest.raises(KeyboardInterrupt):
            ResultStore(old, settings)
    assert json.loads((old / "manifest.json").read_text(encoding="utf-8"))["schema_version"] == 1
    with ResultStore(old, settings) as store:
        assert len(store.finished()) == 3
    assert json.loads((old / "manifest.json").read_text(encoding="utf-8"))["schema_version"] == 3


@pytest.mark.parametrize("version", [4, 0, None, "2"])
def test_a_version_nobody_here_knows_is_refused_by_readers_and_by_runs(old: Path, version):
    manifest = json.loads((old / "manifest.json").read_text(encoding="utf-8"))
    (old / "manifest.json").write_text(json.dumps({**manifest, "schema_version": version}))
    with pytest.raises(ResultsError, match="upgrade clipspect"):
        read_manifest(old)
    with pytest.raises(ResultsError, match="upgrade clipspect"):
        ResultStore(old, manifest["settings"])

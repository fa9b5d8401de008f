"""What workers do, without Ray: rows as a run in one process gives them, however the images are dealt out."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

import clipspect
from clipspect.distributed.ray_engine import RayEngine, pack_references
from clipspect.distributed.sources import LocalFolder
from clipspect.distributed.worker import FAILURE, ScoreBatch, hash_batch, output_schema, pool_name
from clipspect.results.run import run_folder
from clipspect.results.store import iterate_rows
from helpers.links import link

OWN = {
    "seconds",
    "finished_at",
    FAILURE,
    "flag",
    "regions",
    "verdict",
    "score",
    "threshold",
    "threshold_source",
}
"""What differs from run to run, and what only the end of a run decides."""


def score(build, plates: Path, blocks: list[list[str]], references=None) -> dict[str, dict]:
    """Rows of a worker that is handed blocks of names."""
    detector, source = build(), LocalFolder(plates)
    names = list(source.names())
    pool = detector.sample_pool([pool_name(name) for name in names]) if detector.uses_sets else []
    worker = ScoreBatch(
        build, source, object="plate", references=references, pool=[(p, names[p]) for p in pool],
        settings=detector.settings(),
    )  # fmt: skip
    rows = []
    for block in blocks:
        found = worker(pa.table({"position": [names.index(name) for name in block], "name": block}))
        assert found.schema == output_schema()
        rows += found.to_pylist()
    assert [row[FAILURE] for row in rows] == [None] * len(rows)
    return {row["path"]: row for row in rows}


@pytest.mark.parametrize("method", ["anoclip", "dual-image", "mutual"])
def test_blocks_in_any_order_give_the_rows_of_a_run_in_one_process(small_model, plates, tmp_path, method):
    build = partial(clipspect.load, method, str(small_model), set_size=6)  # a pool smaller than the set
    run_folder(build(), plates, object="plate", out=tmp_path / "whole", overlays="none", report=False)
    whole = {row["path"]: row for row in iterate_rows(tmp_path / "whole")}
    names = sorted(whole, reverse=True)
    dealt = score(build, plates, [names[:3], names[3:4], names[4:]])
    assert dealt.keys() == whole.keys()
    for name, row in dealt.items():
        assert row["raw_score"] == pytest.approx(whole[name]["raw_score"], abs=1e-6)
        same = row.keys() - OWN - {"score", "map"}
        assert {key: row[key] for key in same} == {key: whole[name][key] for key in same}


def test_references_travel_as_a_file_and_are_checked_on_arrival(small_model, plates):
    build = partial(clipspect.load, "dual-image", str(small_model))
    good = plates / "a"
    packed = pack_references(build(), good, "plate")
    assert packed.digest == build().read_references(good, "plate").digest
    names = list(LocalFolder(plates).names())
    rows = score(build, plates, [names], packed.data)
    assert all(row["error"] is None for row in rows.values())
    worker = ScoreBatch(
        build, LocalFolder(plates), object="plate", references=packed.data[:-1], pool=[],
        settings=build().settings(),
    )  # fmt: skip
    assert "damaged" in worker(pa.table({"position": [0], "name": names[:1]}))[FAILURE][0].as_py()


def test_an_image_that_cannot_be_read_is_a_row_with_its_reason_and_its_hash(small_model, plates):
    (plates / "broken.png").write_bytes(b"no picture")
    link(plates / "gone.png", plates / "nowhere")
    build = partial(clipspect.load, "anoclip", str(small_model))
    rows = score(build, plates, [["broken.png", "gone.png"]])
    assert "not a JPEG" in rows["broken.png"]["error"]
    assert rows["broken.png"]["content_hash"] == hashlib.sha256(b"no picture").hexdigest()
    assert "no such file" in rows["gone.png"]["error"]
    assert rows["gone.png"]["score"] is None


def test_a_worker_with_other_weights_says_so_instead_of_scoring(small_model, plates):
    worker = ScoreBatch(
        partial(clipspect.load, "anoclip", str(small_model)), LocalFolder(plates), object="plate", references=None,
        pool=[], settings={**clipspect.load("anoclip", str(small_model)).settings(), "fingerprint": "other"},
    )  # fmt: skip
    table = worker(pa.table({"position": [0], "name": ["a/plate 1.png"]}))
    assert "differs from the driver's in fingerprint" in table[FAILURE][0].as_py()
    assert table["path"].to_pylist() == [None]


def test_what_is_no_images_fault_comes_back_as_a_failure(plates):
    def build():
        raise RuntimeError("the accelerator is on fire")

    worker = ScoreBatch(build, LocalFolder(plates), object="plate", references=None, pool=[], settings={})
    assert "on fire" in worker(pa.table({"position": [0], "name": ["x.png"]}))[FAILURE][0].as_py()


def test_hashes_are_those_of_the_files_and_null_where_there_is_none(plates):
    names = ["a/plate 1.png", "gone.png"]
    found = hash_batch(pa.table({"name": names}), LocalFolder(plates)).to_pylist()
    digest = hashlib.sha256((plates / names[0]).read_bytes()).hexdigest()
    assert found == [{"name": names[0], "hash": digest}, {"name": names[1], "hash": None}]


def test_what_is_lost_with_a_neighbours_worker_is_scored_in_a_pass_of_its_own(small_model, tmp_path):
    class Unlucky(RayEngine):
        """Every worker dies of one image, and takes the one that waits behind it along."""

        passes = ()

        def _pass(self, numbered, size):
            names = [name for _, name in numbered]
            self.passes = (*self.passes, (size, names))
            lost = {"poison"} | ({"waiting"} if "poison" in names else set())
            yield from ({"path": name, "error": None} for name in names if name not in lost)

    engine = Unlucky(
        clipspect.load("anoclip", str(small_model)), lambda: None, LocalFolder(tmp_path), "plate"
    )
    engine._names = ["fine", "poison", "waiting"]
    rows = {row["path"]: row["error"] for row in engine.score(engine._names)}
    assert rows["fine"] is None
    assert rows["waiting"] is None
    assert "the worker crashed" in rows["poison"]
    assert engine.passes[-2:] == ((1, ["poison"]), (1, ["waiting"]))

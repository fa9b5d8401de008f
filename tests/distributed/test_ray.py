"""Real workers on a real Ray, started once, small, and stopped whatever happens."""

from __future__ import annotations

import os
import sys

import pytest

import clipspect
from clipspect.cli import main
from clipspect.distributed import ray_engine
from clipspect.distributed.ray_engine import RayEngine, ray_cluster
from clipspect.distributed.sources import LocalFolder
from clipspect.results.run import run_engine, run_folder
from clipspect.results.store import iterate_rows

ray = pytest.importorskip("ray", reason="clipspect[ray] is not installed")

pytestmark = pytest.mark.integration
POISON = b"segfaults whoever opens it"


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One worker on this machine."""
    os.environ.update(
        {"RAY_worker_niceness": "0"}
    )  # a busy test machine would leave a nice worker without a turn
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    try:
        with ray_cluster():
            yield
    finally:
        ray.shutdown()


def poisoned_build(model: str):
    """Makes a detector whose process dies of one image, as of a decoder's bug."""

    def build():
        import os
        import signal

        import clipspect
        from clipspect.data.prepare import ImageLoader

        class Fragile(ImageLoader):
            def read(self, source, name=None):
                if source == POISON:
                    os.kill(os.getpid(), signal.SIGSEGV)
                return super().read(source, name)

        detector = clipspect.load("anoclip", model)
        detector.reader = Fragile(detector.reader.fit)
        return detector

    return build


def test_an_image_that_kills_its_worker_is_one_row_and_the_rest_is_done(
    small_model, plates, tmp_path, monkeypatch
):
    monkeypatch.setattr(ray_engine, "BLOCKS", (6, 1))
    (plates / "a" / "poison.png").write_bytes(POISON)
    detector = clipspect.load("anoclip", str(small_model))
    engine = RayEngine(detector, poisoned_build(str(small_model)), LocalFolder(plates), "plate")
    out = tmp_path / "out"
    summary = run_engine(engine, out=out, overlays="none", report=False)
    assert (summary.images, summary.failed) == (11, 1)
    ((name, reason),) = summary.errors
    assert (name, "the worker crashed" in reason) == ("a/poison.png", True)

    (plates / "a" / "poison.png").write_bytes((plates / "a" / "plate 1.png").read_bytes())
    local = run_folder(detector, plates, object="plate", out=out, overlays="none", report=False)
    assert (local.kept, local.computed, local.failed) == (10, 1, 0)
    run_folder(detector, plates, object="plate", out=tmp_path / "local", overlays="none", report=False)
    scores = [{r["path"]: r["score"] for r in iterate_rows(folder)} for folder in (out, tmp_path / "local")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_the_command_scores_on_ray_goes_on_and_scores_what_has_changed(
    small_model, plates, tmp_path, monkeypatch, capsys
):
    words = (
        *(
            "clipspect",
            "detect",
            str(plates),
            "--object",
            "plate",
            "--model",
            str(small_model),
            "--engine",
            "ray",
        ),
        *("--out", str(tmp_path / "out"), "--overlays", "flagged", "--no-report"),
    )
    for kept in (0, 9):
        if kept == 9:
            (plates / "a" / "plate 1.png").write_bytes((plates / "a" / "plate 3.png").read_bytes())
        monkeypatch.setattr(sys, "argv", list(words))
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code
        said = capsys.readouterr().out
        assert (f"{kept} from an earlier run" in said) is (kept > 0)
    rows = {row["path"]: row for row in iterate_rows(tmp_path / "out")}
    assert len(rows) == 10
    assert rows["a/plate 1.png"]["score"] == rows["a/plate 3.png"]["score"]

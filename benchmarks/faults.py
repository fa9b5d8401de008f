"""Inject real faults into runs, check the results folder after each, and check that the same command finishes.

python benchmarks/faults.py --out runs/faults                 (all of them)
python benchmarks/faults.py --out runs/faults --only kill disk

kill       the process is killed (-9) at random moments, repeatedly in one run
disk       a small disk (tmpfs, needs permission to mount) fills up
removed    the results folder is removed during the run
clock      the clock is set back by a day during the run
poison     an image that crashes its reader (segfault), on Ray
node       two Ray nodes on this machine, one of them killed during the run
storage    S3 (moto) that answers 503 and stalls, on Ray

After each fault every part is read back in full; at the end every image must have exactly one row.

"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import pyarrow.parquet as pq

import clipspect
from clipspect.benchmark.provenance import provenance
from clipspect.distributed.ray_engine import RayEngine, ray_cluster
from clipspect.distributed.sources import LocalFolder, open_source
from clipspect.results import rows
from clipspect.results.run import Engine, Progress, run_engine, run_folder
from long_run import write_images

OBJECT = "metal bracket"
POISON = b"segfaults whoever opens it"
RunTotals = dict[str, object]


def verify(out: Path, names: set[str] | None = None) -> Counter[str]:
    """Count rows per image of complete parts; with ``names``, check that each has one row and no others exist."""
    found: Counter[str] = Counter()
    for part in sorted((out / "detections").glob("*")):
        found.update(pq.read_table(part)["path"].to_pylist())
    assert all(count == 1 for count in found.values()), found.most_common(3)
    assert names is None or found.keys() == names, names.symmetric_difference(found)
    return found


def errors_in(out: Path) -> list[str]:
    """Return the names of images with an error."""
    table = pq.read_table(out / "detections", columns=["path", "error"]).to_pylist()
    return [row["path"] for row in table if row["error"] is not None]


def command(photos: Path, out: Path) -> subprocess.Popen[str]:
    """Start the command as a user would."""
    words = ["detect", photos, "--object", OBJECT, "--out", out, "--overlays", "none"]
    main = "from clipspect.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", main, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def newest(out: Path) -> int:
    """Return the number of the newest part, -1 if there is none."""
    return max((int(part.stem.split("-")[1]) for part in (out / "detections").glob("*.parquet")), default=-1)


def wait_for_rows(run: subprocess.Popen[str], out: Path, parts: int) -> None:
    """Wait until the run has written that many parts, or has ended."""
    before = newest(out)
    while run.poll() is None and newest(out) < before + parts:
        time.sleep(0.02)


def kill(photos: Path, out: Path, kills: int) -> RunTotals:
    """Kill, check and restart: three of four times while rows are written, otherwise during start-up."""
    names, generator = set(LocalFolder(photos).names()), random.Random(8)
    seen: list[int] = []
    for number in range(kills):
        run = command(photos, out)
        if number % 4 != 3:
            wait_for_rows(run, out, 1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(generator.uniform(0, 6))
        assert run.poll() is None, "too few images for so many kills"
        run.send_signal(signal.SIGKILL)
        run.communicate()
        seen.append(verify(out).total())
    assert sorted(seen) == seen, "rows were lost"
    run = command(photos, out)
    said, _ = run.communicate()
    assert run.returncode == 0, said
    assert f"{seen[-1]} of them from an earlier run" in said, said
    verify(out, names)
    return {"kills": kills, "rows after each": seen, "rows": len(names)}


def disk(photos: Path, out: Path) -> RunTotals:
    """Run on a disk of 300 KB, then on a larger one."""
    names = set(LocalFolder(photos).names())
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], check=True)
        try:
            run = command(photos, Path(folder) / "out")
            _, error = run.communicate()
            assert run.returncode == 2, (run.returncode, error)
            assert "the disk is full" in error, error
            left = verify(Path(folder) / "out").total()
            subprocess.run(["mount", "-o", "remount,size=200m", folder], check=True)
            run = command(photos, Path(folder) / "out")
            said, error = run.communicate()
            assert run.returncode == 0, error
            assert f"{left} of them from an earlier run" in said, said
            verify(Path(folder) / "out", names)
        finally:
            subprocess.run(["umount", folder], check=True)
    return {"said": "the disk is full", "rows kept": left, "rows": len(names)}


def removed(photos: Path, out: Path) -> RunTotals:
    """Remove the folder; the run must report it and must not create a partial folder."""
    run = command(photos, out)
    wait_for_rows(run, out, 3)
    shutil.rmtree(out)
    _, error = run.communicate()
    assert run.returncode == 2, error
    assert "was removed while it was written" in error, error
    left = sorted(path.name for path in out.iterdir()) if out.exists() else []
    run = command(photos, out)
    _, error = run.communicate()
    assert run.returncode == 0, error
    verify(out, set(LocalFolder(photos).names()))
    return {"said": "was removed while it was written", "left behind": left, "rows": len(verify(out))}


def clock(photos: Path, out: Path) -> RunTotals:
    """Set the clock back by a day during the run, stop the run there and resume it."""
    names = LocalFolder(photos).names()
    detector, now = clipspect.load(), datetime.datetime.now(datetime.UTC)
    stopped = threading.Event()

    class Backwards(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return now - datetime.timedelta(days=1) if stopped.is_set() else now

    def stop(state: Progress) -> None:
        if state.done == len(names) // 2:
            stopped.set()
            raise KeyboardInterrupt

    start = partial(run_folder, detector, photos, object=OBJECT, out=out, overlays="none")
    with mock.patch.object(rows, "datetime", Backwards):
        with contextlib.suppress(KeyboardInterrupt):
            start(progress=stop)
        summary = start()
    verify(out, set(names))
    return {"rows kept": summary.kept, "rows": summary.images}


def fragile_detector() -> clipspect.Detector:
    """Return a detector whose process crashes on one image."""
    from clipspect.data.prepare import ImageLoader, PreparedImage

    class Fragile(ImageLoader):
        def read(self, source: object, name: str | None = None) -> PreparedImage:
            if source == POISON:
                os.kill(os.getpid(), signal.SIGSEGV)
            return super().read(source, name)

    detector = clipspect.load()
    detector.reader = Fragile(detector.reader.fit)
    return detector


def poison(photos: Path, out: Path) -> RunTotals:
    """Run with images that crash their worker."""
    folder = out.with_name("poisoned")
    shutil.copytree(photos, folder)
    bad = sorted(LocalFolder(folder).names())[5::20][:3]
    for name in bad:
        (folder / name).write_bytes(POISON)
    run_on_ray(folder, out, fragile_detector)
    verify(out, set(LocalFolder(folder).names()))
    assert sorted(errors_in(out)) == bad
    for name in bad:
        shutil.copy(photos / name, folder / name)
    again = run_on_ray(folder, out, clipspect.load)
    verify(out, set(LocalFolder(folder).names()))
    assert errors_in(out) == []
    return {"isolated": bad, "rescored once mended": again.computed, "rows": again.images}


def run_on_ray(photos: Path, out: Path, build: Callable[[], clipspect.Detector]):
    """Run on this machine's Ray."""
    with ray_cluster():
        engine: Engine = RayEngine(clipspect.load(), build, LocalFolder(photos), OBJECT)
        return run_engine(engine, out=out, overlays="none", report=False)


def node(photos: Path, out: Path) -> RunTotals:
    """Run with no worker on the driver's node, and kill one of two other nodes after the first rows."""
    import ray
    from ray.cluster_utils import Cluster

    names = set(LocalFolder(photos).names())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
    ray.init(cluster.address, log_to_driver=False)
    killed_at: list[int] = []

    def watch(state: Progress) -> None:
        if state.stage == "detect" and state.done >= len(names) // 3 and not killed_at:
            killed_at.append(state.done)
            cluster.remove_node(nodes[0], allow_graceful=False)

    try:
        with ray_cluster():
            engine = RayEngine(clipspect.load(), clipspect.load, LocalFolder(photos), OBJECT)
            summary = run_engine(engine, out=out, overlays="none", report=False, progress=watch)
    finally:
        ray.shutdown()
        cluster.shutdown()
    verify(out, names)
    assert errors_in(out) == []
    return {"killed after rows": killed_at[0], "errors": summary.failed, "rows": summary.images}


@contextlib.contextmanager
def storage_credentials() -> Iterator[None]:
    """Set dummy credentials that S3 clients require; the server accepts any."""
    names = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with mock.patch.dict(os.environ, names):
        yield


def storage(photos: Path, out: Path) -> RunTotals:
    """Run on S3 where a third of the objects answer 503 four times and a third stall once beyond the timeout."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from pyarrow import fs
    from scale.faulty_s3 import faulty_s3

    with storage_credentials(), faulty_s3("photos") as (faults, tail):
        s3, _ = fs.FileSystem.from_uri(f"s3://photos{tail}")
        for number, name in enumerate(LocalFolder(photos).names()):
            with s3.open_output_stream(f"photos/line/{number:04d}.png") as file:
                file.write((photos / name).read_bytes())
        source = open_source(f"s3://photos/line{tail}")
        with ray_cluster():
            engine = RayEngine(clipspect.load(), clipspect.load, source, OBJECT)
            summary = run_engine(engine, out=out, overlays="none", report=False)
            verify(out, set(source.names()))
            assert errors_in(out) == []
            again = run_engine(engine, out=out, overlays="none", report=False)
    assert (again.kept, again.computed) == (summary.images, 0)
    answers = Counter(min(times, faults.errors + 1) for times in faults.seen.values())
    return {"errors": summary.failed, "rows": summary.images, "objects by readings": dict(answers)}


FAULTS = {"kill": kill, "disk": disk, "removed": removed, "clock": clock, "poison": poison, "node": node}
FAULTS["storage"] = storage


def main() -> None:
    """Run each fault in a separate folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for images, results, faults.json")
    parser.add_argument("--only", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    arguments = parser.parse_args()
    photos = arguments.out / f"photos {arguments.images}"
    write_images(photos, arguments.images)
    record: dict[str, object] = {"provenance": provenance("python benchmarks/faults.py")}
    for name in arguments.only:
        place = arguments.out / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        started = time.monotonic()
        options = {"kills": arguments.kills} if name == "kill" else {}
        outcome = FAULTS[name](photos, place / "results", **options)
        record[name] = {**outcome, "seconds": round(time.monotonic() - started)}
        print(name, record[name], flush=True)
        (arguments.out / "faults.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()

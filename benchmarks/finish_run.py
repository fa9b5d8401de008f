"""Time the end of long runs: verdicts of rows that are there, and the report. No image is scored or drawn.

    python benchmarks/finish_run.py --out benchmarks/results/finish_run.json --page docs/speed.md

``judged as written``: known-good images were given, so that each row was stored with its verdict. ``judged at the
end``: the images of the run are compared with each other, so that every part is read, judged and written again.
Each case runs in a new process; memory is the highest resident size beyond that before the measurement.

"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from clipspect.benchmark.provenance import provenance
from clipspect.detection import Detection
from clipspect.postprocess.calibration import calibrate_good
from clipspect.postprocess.heatmap import encode_preview
from clipspect.results.finalize import finish_run
from clipspect.results.rows import detection_to_row
from clipspect.results.store import ResultStore
from pages import replace_between

START, END = "<!-- finishing -->", "<!-- end of finishing -->"
CASES = ("judged as written", "judged at the end")
DISTINCT = 64
WIDTH = 256
"""Length of an embedding; the rows have random ones."""


def measure(count: int, case: str) -> dict[str, Any]:
    """Return seconds and memory of finishing a run of ``count`` rows."""
    generator = np.random.default_rng(0)
    preview = encode_preview(generator.integers(90, 110, (192, 256, 3), dtype=np.uint8))
    distinct = []
    for _ in range(DISTINCT):
        layers = generator.normal(-3, 0.5, (2, 96, 96)).astype(np.float16)
        direction = generator.normal(size=WIDTH)
        embedding = (direction / np.linalg.norm(direction)).astype(np.float16)
        detection = Detection(
            "",
            "0" * 64,
            1000,
            1000,
            "part",
            "anoclip",
            "tiny",
            "tiny",
            0.5,
            layers[0],
            0.1,
            embedding=embedding,
        )
        distinct.append((detection_to_row(detection, preview), detection))
    summaries = [detection.summary for _, detection in distinct]
    calibrations = {"anoclip": calibrate_good(summaries)} if case == CASES[0] else {}
    with (
        tempfile.TemporaryDirectory() as folder,
        ResultStore(Path(folder) / "run", {"methods": {"anoclip": {}}}) as store,
    ):
        store.calibrations = calibrations
        started = time.process_time()
        for number in range(count):
            store.add({**distinct[number % DISTINCT][0], "path": f"{number:06d}.jpg"})
        store.flush()
        adding, before = time.process_time() - started, _memory()
        seconds = []
        for report in (False, True):
            started = time.process_time()
            finish_run(
                store, None, calibrations=calibrations, threshold=None, present=None, overlays="none", csv=False,
                report=report, progress=lambda *_: None,
            )  # fmt: skip
            seconds.append(time.process_time() - started)
    return {
        "rows": count,
        "case": case,
        "add": adding,
        "judge": seconds[0],
        "judge_again_and_report": seconds[1],
        "memory_mb": _memory() - before,
    }


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--page", type=Path, help="documentation page whose table is replaced")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--one", nargs=2, metavar=("ROWS", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(int(arguments.one[0]), arguments.one[1])))
        return
    rows = []
    for count in arguments.rows:
        for case in CASES:
            words = [sys.executable, __file__, "--one", str(count), case]
            rows.append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
            print(rows[-1], flush=True)
    about = provenance("python benchmarks/finish_run.py")
    table = [
        "| rows | verdicts | writing, ms a row | finishing, ms a row | again with report, ms a row | memory, MB |"
    ]
    table.append("|---:|---|" + "---:|" * 4)
    for row in rows:
        each = [1000 * row[key] / row["rows"] for key in ("add", "judge", "judge_again_and_report")]
        cells = " | ".join(f"{value:.2f}" for value in each)
        table.append(f"| {row['rows']:,} | {row['case']} | {cells} | {row['memory_mb']:.0f} |")
    table += ["", ", ".join(f"{key}: {value}" for key, value in about.items())]
    if arguments.out:
        arguments.out.write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")
    if arguments.page:
        replace_between(arguments.page, START, END, "\n".join(table))


if __name__ == "__main__":
    main()

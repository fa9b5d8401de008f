"""Measure the speed of pipelines, encoders and start-up, with baselines and the ceiling of the machine, in one run.

    python benchmarks/speed.py --json runs/speed.json

prints tables, writes them as JSON, and with ``--docs docs/speed.md`` into that page. Backbones have random weights of
the real shapes (``tiny`` its trained ones). Subjects alternate over rounds; medians are reported. anomalib's WinCLIP
runs in a separate environment, created on the first run (``benchmarks/baselines``), and is checked against recorded
numbers before it is timed.

"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F

from baselines.process import Rival
from clipspect.benchmark.provenance import provenance
from clipspect.demo import DEMO_IMAGES
from clipspect.methods.patch_index import PatchIndex
from clipspect.methods.visual import nearest_distances
from clipspect.registry import list_methods
from pages import replace_between
from speed_subjects import (
    OBJECT,
    OPEN_CLIP,
    SLOW,
    VALUE,
    WINCLIP,
    Subject,
    ceiling,
    encoders,
    exported,
    folder_of_images,
    load,
    measure,
    pipeline,
    plain_open_clip,
    synchronise,
)

MARKS = ("<!-- figures: benchmarks/speed.py -->", "<!-- end of figures -->")


@dataclass(frozen=True)
class Row:
    """Line of the main table."""

    model: str
    threads: int
    what: str
    name: str
    precision: str
    batch: int
    milliseconds: float
    """Per image, median."""
    images_per_second: float
    ratio_vs_winclip: float | None
    """Ratio of images per second to anomalib's WinCLIP in fp32, for pipelines."""
    ratio_vs_anoclip: float | None
    """Ratio of time to the anoclip pipeline in the same precision and batch."""
    ratio_vs_plain: float | None
    """Ratio of time to the encoder's ordinary path, which computes only what is requested."""
    ratio_vs_open_clip: float | None
    """Ratio of time to open_clip's ``encode_image`` in the same precision."""
    gflops: float | None
    fraction_of_ceiling: float | None
    """Fraction of the machine's rate in the same precision on the encoder's matmuls alone."""
    ratio_at_ceiling: float | None
    """``ratio_vs_winclip`` of an AnoCLIP whose encoder reaches that rate without other costs."""
    encoder_busy: float | None
    """Share of time in which the pipeline's encoder had a batch to process, median."""


def time_model(
    model: str, threads: int, options: argparse.Namespace
) -> tuple[list[Row], list[dict[str, Any]], list[dict[str, Any]]]:
    """Time one model with one number of threads; return rows, text embedding times and agreement with float32."""
    torch.set_num_threads(threads)
    subjects: list[Subject] = []
    anchors: list[dict[str, Any]] = []
    agreements: list[dict[str, Any]] = []
    rival = None
    if model != "tiny" and not options.no_rival:
        rival = Rival(model, OBJECT, threads=threads, device=options.device, parity=options.parity)
        anchors.append(
            {
                "model": model,
                "threads": threads,
                "name": WINCLIP,
                "cold": rival.loaded["anchors"],
                "cached": None,
            }
        )
    with (
        folder_of_images(options.images) as many,
        folder_of_images(2) as few,
        tempfile.TemporaryDirectory() as scratch,
    ):
        for precision in options.precisions:
            anchors.append(time_anchors(model, precision, threads, options.device))
            agreed = load("anoclip", model, precision, 1, options.device).agreement
            if agreed is not None:
                agreements.append({"model": model, "runtime": f"torch {precision}", **asdict(agreed)})
            for batch in options.batches:
                detector = load("anoclip", model, precision, batch, options.device)
                subjects += [ceiling(detector.backbone, precision, batch), *encoders(detector, batch)]
                if model != "tiny" and precision != "int8":
                    subjects.append(plain_open_clip(model, precision, batch, options.device))
                if options.runtimes and precision == "fp32" and options.device == "cpu":
                    subjects += exported(detector, Path(scratch), batch, agreements)
            for method in options.methods:
                slow = method in SLOW
                detector = load(method, model, precision, 1 if slow else max(options.batches), options.device)
                subjects.append(pipeline(detector, few if slow else many, 2 if slow else options.images))
        if rival is not None:
            photo = str(next(few.iterdir()))

            def ask(what: str, **more: Any) -> Any:
                return lambda: rival.ask(what, batch=1, **more)["seconds"]

            subjects.append(Subject("pipeline", WINCLIP, "fp32", 1, 1, ask("image", photo=photo)))
            subjects.append(Subject("encoder", WINCLIP, "fp32", 1, 1, ask("encode")))
        seconds = measure(subjects, options.rounds, options.say)
    if rival is not None:
        rival.close()
    return rows_of(model, threads, subjects, seconds), anchors, agreements


def rows_of(model: str, threads: int, subjects: Sequence[Subject], seconds: dict[int, float]) -> list[Row]:
    """Compute the ratios between measurements."""
    taken = {(s.what, s.name, s.precision, s.batch): seconds[i] for i, s in enumerate(subjects)}
    winclip = taken.get(("pipeline", WINCLIP, "fp32", 1))
    rows = []
    for number, subject in enumerate(subjects):
        own, key = seconds[number], (subject.precision, subject.batch)
        anoclip = taken.get(("pipeline", "anoclip", *key))
        plain = taken.get(("encoder", "ordinary path", *key))
        theirs = taken.get(("encoder", OPEN_CLIP, *key))
        rate = subject.flops / own if subject.flops else None
        highest = next(
            (s.flops / seconds[i] for i, s in enumerate(subjects)
             if s.what == "ceiling" and s.flops and (s.precision, s.batch) == key), None,
        )  # fmt: skip
        piped, encoded = subject.what == "pipeline", subject.what == "encoder"
        rows.append(
            Row(
                model, threads, subject.what, subject.name, *key, 1000 * own, 1 / own,
                winclip / own if winclip and piped else None,
                own / anoclip if anoclip and piped else None,
                own / plain if plain and encoded else None,
                own / theirs if theirs and encoded else None,
                rate / 1e9 if rate else None,
                rate / highest if rate and highest else None,
                winclip * highest / subject.flops if winclip and highest and piped and subject.flops else None,
                median(subject.busy[1:]) if subject.busy[1:] else None,
            )
        )  # fmt: skip
    return rows


def time_anchors(model: str, precision: str, threads: int, device: str) -> dict[str, Any]:
    """Return the seconds for the text embeddings of one object: computed, and read from the disk cache."""
    before = os.environ.get("CLIPSPECT_CACHE")
    with tempfile.TemporaryDirectory() as empty:
        os.environ["CLIPSPECT_CACHE"] = empty
        detector = load("anoclip", model, precision, 1, device)
        detector.backbone.tokenize(["a nut"])  # the tokenizer's start-up is measured separately
        assert detector.backbone.fingerprint  # a hash of the weights, once per loaded model
        seconds = []
        for _ in range(2):
            detector.model._cache.clear()
            started = time.perf_counter()
            detector.model.set_object(OBJECT)
            synchronise()
            seconds.append(time.perf_counter() - started)
    if before is None:
        del os.environ["CLIPSPECT_CACHE"]
    else:
        os.environ["CLIPSPECT_CACHE"] = before
    name = f"clipspect {precision}"
    return {"model": model, "threads": threads, "name": name, "cold": seconds[0], "cached": seconds[1]}


def time_startup(rounds: int) -> list[dict[str, Any]]:
    """Return the wall seconds from the shell to the result of one image, and of its required imports."""
    photo = sorted(DEMO_IMAGES.glob("*crack*"))[0]
    detect = "import sys; from clipspect.cli import main; sys.argv[0] = 'clipspect'; main()"
    rows = []
    with tempfile.TemporaryDirectory() as out:
        steps = {
            "python": ["-c", "pass"],
            "python, import torch": ["-c", "import torch"],
            "python, import open_clip (not needed any more)": ["-c", "import open_clip"],
            "clipspect detect part.jpg": ["-c", detect, "detect", str(photo), "--object", OBJECT, "--json",
                                          "--out", f"{out}/r", "--overwrite"],
        }  # fmt: skip
        for name, words in steps.items():
            taken = []
            for _ in range(rounds + 1):
                started = time.perf_counter()
                subprocess.run([sys.executable, *words], check=True, capture_output=True)
                taken.append(time.perf_counter() - started)
            rows.append({"name": name, "seconds": median(taken[1:])})
    return rows


def time_mutual(sizes: Sequence[int], patches: int = 225, width: int = 640) -> list[dict[str, Any]]:
    """Return the seconds to compare N images with each other, one block: exactly, and with the index."""
    rows = []
    for size in sizes:
        tokens = F.normalize(torch.randn(size, patches, width), dim=-1)
        started = time.perf_counter()
        for image in tokens:
            nearest_distances(image, tokens)
        exact = time.perf_counter() - started
        started = time.perf_counter()
        index = PatchIndex(tokens)
        for number, image in enumerate(tokens):
            index.lowest_mean(image, (number,), max(round(0.3 * (size - 1)), 1))
        rows.append({"images": size, "exact": exact, "index": time.perf_counter() - started})
    return rows


def profile(model: str, precision: str, batch: int, device: str) -> list[dict[str, Any]]:
    """Profile the V-V encoding: operators above one percent of the time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    backbone = load("anoclip", model, precision, batch, device).backbone
    side = backbone.image_size
    images = torch.randn(batch, 3, side, side, device=backbone.device)
    request = backbone.resolve(VALUE)
    on_cuda = device != "cpu" and torch.cuda.is_available()
    activities = [ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]
    with torch.inference_mode():
        backbone.features(images, request)  # in this thread: the profiler sees no other
        with record(activities=activities) as recorded:
            for _ in range(3):
                backbone.features(images, request)
    spent = {
        e.key.removeprefix("aten::"): e.self_device_time_total if on_cuda else e.self_cpu_time_total
        for e in recorded.key_averages()
    }
    total = sum(spent.values())
    listed = sorted(spent.items(), key=lambda one: -one[1])
    return [
        {"precision": precision, "operator": name, "share": s / total}
        for name, s in listed
        if s > 0.01 * total
    ]


def instructions() -> str:
    """Return the CPU's instructions that matter for matmuls, as reported by the system (x86 and Arm names)."""
    listing = Path("/proc/cpuinfo")
    flags = set(listing.read_text(encoding="utf-8", errors="replace").split()) if listing.is_file() else set()
    wanted = (
        "avx2",
        "asimd",
        "i8mm",
        "bf16",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_bf16",
        "amx_int8",
    )
    return ", ".join(flag for flag in wanted if flag in flags) or "not told"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows with the same keys as Markdown, without keys that are empty in every row."""

    def cell(key: str, value: Any) -> str:
        if value is None:
            return ""
        if not isinstance(value, float):
            return str(value)
        if key == "rank_correlation":
            return f"{value:.5f}"
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"

    keys = [key for key in rows[0] if any(row[key] is not None for row in rows)]
    lines = [keys, ["---"] * len(keys), *([cell(key, row.get(key)) for key in keys] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def page(result: dict[str, Any]) -> str:
    """Return all tables as Markdown."""
    told = "; ".join(f"{key} {value}" for key, value in result["provenance"].items())
    parts = [f"Medians of {result['rounds']} rounds in turns. {told}."]
    for title, what in (
        ("Pipelines: files in, maps and rows out", "pipeline"),
        ("Encoders", "encoder"),
        ("Exported files", "runtime"),
        ("The machine's own ceiling: the products of the encoder's shapes", "ceiling"),
    ):
        rows = [
            {k: v for k, v in row.items() if k != "what"} for row in result["rows"] if row["what"] == what
        ]
        if rows:
            parts.append(f"### {title}\n\n{table(rows)}")
    for title, key in (
        ("Agreement with torch in fp32: maps and scores of AnoCLIP, worst image", "agreement"),
        ("Text anchors of one object, seconds", "anchors"),
        ("From the shell to an image's score, seconds", "startup"),
        ("Mutual scoring of N images, seconds a block", "mutual"),
        ("Where the V-V encoder's time goes", "profile"),
    ):
        if result[key]:
            parts.append(f"### {title}\n\n{table(result[key])}")
    return "\n\n".join(parts)


def keep(result: dict[str, Any], path: Path | None) -> None:
    """Write the measurements so far, because a run takes many minutes."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line."""
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--docs", type=Path, help="write the tables into this page, between its markers")
    parser.add_argument("--models", nargs="+", default=["ViT-B-16-plus-240", "tiny"])
    parser.add_argument("--methods", nargs="*", default=list(list_methods()))
    parser.add_argument(
        "--precisions", nargs="+", default=["fp32", "bf16"] if cuda else ["fp32", "bf16", "int8"]
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64] if cuda else [1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[cores])
    parser.add_argument("--images", type=int, default=16, help="1000×1000 JPEGs in a pipeline")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--mutual", nargs="*", type=int, default=[16, 32, 64, 128, 256])
    parser.add_argument("--no-rival", action="store_true", help="skip anomalib's WinCLIP")
    parser.add_argument("--no-startup", action="store_true", help="skip the start-up measurement")
    parser.add_argument("--runtimes", action="store_true", help="also ONNX Runtime and OpenVINO")
    recorded = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "parity"
    parser.add_argument(
        "--parity", type=Path, default=recorded, help="recorded numbers to check the baseline against"
    )
    return parser.parse_args()


def main() -> None:
    """Measure, print and write results."""
    options = parse()
    options.say = lambda text: print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    result: dict[str, Any] = {
        "provenance": provenance("python benchmarks/speed.py") | {"instructions": instructions()},
        "rounds": options.rounds,
    }
    result |= {"rows": [], "agreement": [], "anchors": [], "startup": [], "mutual": [], "profile": []}
    for model in options.models:
        for threads in options.threads:
            rows, anchors, agreements = time_model(model, threads, options)
            result["rows"] += [asdict(row) for row in rows]
            result["agreement"] += agreements
            keep(result, options.json)
            result["anchors"] += anchors
    torch.set_num_threads(max(options.threads))
    if not options.no_startup:
        result["startup"] = time_startup(options.rounds)
        keep(result, options.json)
    result["mutual"] = time_mutual(options.mutual)
    for precision in options.precisions:
        result["profile"] += profile(options.models[0], precision, max(options.batches), options.device)
    print("\r\033[K" + page(result))
    keep(result, options.json)
    if options.docs:
        replace_between(options.docs, *MARKS, page(result))


if __name__ == "__main__":
    main()

"""Speed and agreement on a CUDA device, within ten minutes; without one, the same at small sizes on the CPU.

    bash benchmarks/gpu.sh runs/gpu.json

Prints the matmul rate of the device, the encoder's images per second and share of that rate, every method's images
per second from files on disk, peak memory, and how scores and maps agree with the CPU's in float32. Backbones have
random weights of the real shapes; ``tiny`` has its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

import clipspect
from clipspect.benchmark.provenance import provenance
from clipspect.demo import DEMO_IMAGES
from clipspect.detector import Detector
from clipspect.postprocess.agreement import compare_maps

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
PRODUCTS = torch.bfloat16 if CUDA else torch.float32  # CPUs without bf16 instructions emulate it
MODELS = (("tiny", 256), ("ViT-B-16-plus-240", 240), ("ViT-L-14-336", 518)) if CUDA else (("tiny", 128),)
METHODS = ("anoclip", "anoclip+", "dual-image", "mutual")
BATCH, IMAGES = (64, 256) if CUDA else (4, 8)


def timed(work: Callable[[], Any], rounds: int = 5) -> float:
    """Return the median seconds of ``work``, after one warm-up round."""
    seconds = []
    for number in range(rounds + 1):
        if CUDA:
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if CUDA:
            torch.cuda.synchronize()
        if number:
            seconds.append(time.perf_counter() - started)
    return median(seconds)


def matmul_rate() -> float:
    """Return the operations per second of one large matmul on random values: bf16 on a device, fp32 on the CPU."""
    side = 8192 if CUDA else 512
    a, b = (torch.randn(side, side, device=DEVICE, dtype=PRODUCTS) for _ in range(2))
    return 2 * side**3 / timed(lambda: a @ b)


def encoder_operations(detector: Detector) -> float:
    """Return the operations of the matmuls of one encoding with the V-V stream."""
    backbone = detector.backbone
    visual: Any = backbone.network.visual
    blocks = visual.transformer.resblocks
    width, inner = blocks[0].attn.embed_dim, blocks[0].mlp.c_fc.out_features
    n = (backbone.image_size // backbone.patch) ** 2 + 1
    ordinary = 2 * n * width * (4 * width + 2 * inner) + 4 * n * n * width
    stream = 2 * n * width * width + 4 * n * n * width
    return float(len(blocks) * (ordinary + stream))


def load(method: str, model: str, size: int, precision: str, device: str = DEVICE) -> Detector:
    """Return a detector on the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clipspect.load(
            method, model, None if model == "tiny" else "random", image_size=size, device=device,
            precision=precision, batch_size=BATCH,
        )  # fmt: skip


def agreement(method: str, model: str, size: int, precision: str, files: list[Path]) -> str:
    """Return the agreement of the device's maps and scores with the CPU's in float32."""
    results = []
    for device, chosen in ((DEVICE, precision), ("cpu", "fp32")):
        found = load(method, model, size, chosen, device).detect(files, object="metal bracket")
        results.append((np.stack([d.score_map for d in found]), np.array([d.raw_score for d in found])))
    (maps, scores), (exact, exact_scores) = results
    return str(compare_maps(exact, maps, exact_scores, scores))


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?", default=None)
    parser.add_argument("--seconds", type=float, default=540, help="stop beginning new rows after this")
    arguments = parser.parse_args()
    started = time.perf_counter()
    rate = matmul_rate()
    name = torch.cuda.get_device_name() if CUDA else "CPU"
    print(f"{name}: {PRODUCTS} matmul {rate / 1e12:.2f} TFLOP/s", flush=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        sources = sorted(DEMO_IMAGES.glob("*.jpg"))
        files = []
        for number in range(IMAGES):
            with Image.open(sources[number % len(sources)]) as image:
                files.append(Path(folder) / f"{number:04}.jpg")
                image.rotate(3 * (number // len(sources))).save(files[-1], quality=92)
        for model, size in MODELS:
            for precision in ("bf16", "fp32") if CUDA else ("fp32",):
                if time.perf_counter() - started > arguments.seconds:
                    break
                try:
                    detector = load("anoclip", model, size, precision)
                except clipspect.UsageError as error:
                    rows.append({"model": model, "precision": precision, "refused": str(error)})
                    print(rows[-1], flush=True)
                    continue
                images = torch.randn(BATCH, 3, size, size, device=DEVICE)
                # The backbone's encoding, because the model's also hashes tensors that come from no file.
                encode = partial(detector.backbone.encode, images, detector.model.request)
                seconds = timed(lambda f=encode: f().image.sum()) / BATCH  # type: ignore[misc]
                share = encoder_operations(detector) / seconds / rate
                rows.append(
                    {"what": "encoder", "model": model, "size": size, "precision": precision, "batch": BATCH,
                     "images_per_second": round(1 / seconds, 1), "share_of_matmul_rate": round(share, 3)}
                )  # fmt: skip
                print(rows[-1], flush=True)
                for method in METHODS:
                    if time.perf_counter() - started > arguments.seconds:
                        break
                    if CUDA:
                        torch.cuda.reset_peak_memory_stats()
                    one = load(method, model, size, precision)
                    one.detect(files[:BATCH], object="metal bracket")  # anchors, kernels
                    begun = time.perf_counter()
                    one.detect(files, object="metal bracket")
                    row = {
                        "what": method, "model": model, "size": size, "precision": precision, "images": IMAGES,
                        "images_per_second": round(IMAGES / (time.perf_counter() - begun), 1),
                    }  # fmt: skip
                    if CUDA:
                        row["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
                    if model == "tiny" or (precision == "fp32" and model == "ViT-B-16-plus-240"):
                        row["agreement_with_cpu"] = agreement(method, model, size, precision, files[:6])
                    rows.append(row)
                    print(rows[-1], flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(
            json.dumps({"device": name, "rate": rate, "rows": rows, **provenance()}, indent=1)
        )


if __name__ == "__main__":
    main()

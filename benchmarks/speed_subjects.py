"""Subjects of ``benchmarks/speed.py``: encoders, pipelines, exported files, the baseline, the machine's ceiling."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image

import clipspect
from clipspect import scoring
from clipspect.backbones.cpu.int8 import Int8Linear
from clipspect.backbones.cpu.linear import linear
from clipspect.backbones.features import FeatureRequest
from clipspect.backbones.openclip.backbone import OpenClipBackbone
from clipspect.demo import DEMO_IMAGES
from clipspect.detector import Detector
from clipspect.registry import make_method
from clipspect.results.run import run_folder

OBJECT = "metal nut"
WINCLIP, OPEN_CLIP = "anomalib WinCLIP", "open_clip encode_image"
PHOTO_SIDE = 1000
VALUE = FeatureRequest(value_blocks=frozenset([-1]))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SLOW = ("winclip", "winclip+")


@dataclass(frozen=True)
class Subject:
    """Subject to time."""

    what: str
    """"pipeline" (file in, map and row out), "encoder", "runtime" (an exported file) or "ceiling"."""
    name: str
    precision: str
    batch: int
    images: int
    """Images per run."""
    run: Callable[[], float | None]
    """Function that runs once; returns its seconds if it measures them itself."""
    flops: float | None = None
    """Floating-point operations of the matmuls, per image."""
    busy: list[float] = field(default_factory=list)
    """Per run of a pipeline, the share of time, from the first batch's start to the last one's end, in which a
    batch was encoded and scored.
    """


def measure(subjects: list[Subject], rounds: int, say: Callable[[str], None]) -> dict[int, float]:
    """Return the median seconds per image of each subject, in alternating rounds after one warm-up round."""
    seconds: dict[int, list[float]] = {number: [] for number in range(len(subjects))}
    for turn in range(rounds + 1):
        for number, subject in enumerate(subjects):
            say(
                f"round {turn} of {rounds}: {subject.what} {subject.name} {subject.precision} ×{subject.batch}"
            )
            if subject.what != "pipeline" and subject.name != WINCLIP:
                subject.run()  # warm up threads and caches after the previous subject
                synchronise()
            started = time.perf_counter()
            own = subject.run()
            synchronise()
            if turn:
                seconds[number].append((own or time.perf_counter() - started) / subject.images)
    return {number: median(taken) for number, taken in seconds.items()}


def synchronise() -> None:
    """Wait for the accelerator."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def load(method: str, model: str, precision: str, batch: int, device: str) -> Detector:
    """Return a detector with random weights of the real shapes; the offline model with its trained weights."""
    first = _loaded(model, precision, device)
    model = replace(first.model, methods=(make_method(method),), batch_size=batch)
    return Detector(model, first.reader, agreement=first.agreement)


@cache
def _loaded(model: str, precision: str, device: str) -> Detector:
    """Return a cached backbone for all subjects of a model and precision; only method and batch differ."""
    weights = None if model == "tiny" else "random"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clipspect.load("anoclip", model, weights, precision=precision, device=device)


def encoders(detector: Detector, batch: int) -> Iterator[Subject]:
    """Yield the V-V encoding that AnoCLIP requests, and the ordinary path alone, on a prepared batch."""
    backbone = detector.backbone
    side = backbone.image_size
    images = torch.randn(batch, 3, side, side, device=backbone.device)
    for name, request in (("V-V", VALUE), ("ordinary path", FeatureRequest())):

        def encode(request: FeatureRequest = request) -> None:
            backbone.encode(images, request)

        yield Subject(
            "encoder", name, backbone.precision, batch, batch, encode, flops(backbone, value=name == "V-V")
        )


def plain_open_clip(model: str, precision: str, batch: int, device: str) -> Subject:
    """Return open_clip's ``encode_image`` with all weights cast."""
    theirs = _open_clip(model, precision, device)
    side = theirs.visual.image_size
    side = side if isinstance(side, int) else side[0]
    images = torch.randn(batch, 3, side, side, device=device, dtype=DTYPES[precision])

    @torch.inference_mode()
    def encode() -> None:
        theirs.encode_image(images)

    return Subject("encoder", OPEN_CLIP, precision, batch, batch, encode)


@cache
def _open_clip(model: str, precision: str, device: str) -> Any:
    made = open_clip.create_model(model, load_weights=False, pretrained_text=False)
    return made.eval().to(device, DTYPES[precision])


def ceiling(backbone: OpenClipBackbone, precision: str, batch: int) -> Subject:
    """Return the four matmuls of one block, at the encoder's shapes, with nothing between them."""
    rows, width, inner = batch * tokens_of(backbone), *widths_of(backbone)
    shapes = [(width, 3 * width), (width, width), (width, inner), (inner, width)]
    operations = sum(2 * rows * a * b for a, b in shapes)
    made = {"device": backbone.device, "dtype": DTYPES.get(precision, torch.float32)}
    pairs = [(torch.randn(rows, a, **made), torch.randn(b, a, **made)) for a, b in shapes]
    rounded = (
        [Int8Linear(right, torch.zeros(len(right))) for _, right in pairs] if precision == "int8" else []
    )

    @torch.inference_mode()
    def multiply() -> None:
        for left, right in pairs if not rounded else ():
            linear(left, right)  # the faster library here
        for (left, _), product in zip(pairs, rounded, strict=False):
            for image in left.chunk(batch):  # each quantized by its own range, as in the encoder
                product(image)

    return Subject("ceiling", "matrix products", precision, batch, batch, multiply, operations / batch)


def pipeline(detector: Detector, images: Path, count: int) -> Subject:
    """Return a pipeline: a folder of images is read, scored and written as rows, with cached text embeddings."""
    method = detector.methods[0]
    detector.model.set_object(OBJECT)
    options: dict[str, Any] = {}
    if method.needs_references:
        options["references"] = detector.encode_references(sorted(images.iterdir())[:1])

    busy: list[float] = []
    spans: list[tuple[float, float]] = []
    score_batch: Any = scoring._score

    def timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        scored = score_batch(*arguments)
        spans.append((started, time.perf_counter()))
        return scored

    def run() -> None:
        spans.clear()
        with tempfile.TemporaryDirectory() as out, patch.object(scoring, "_score", timed):
            run_folder(
                detector, images, object=OBJECT, out=Path(out), overlays="none", report=False, **options
            )
        if method.scope == "image":  # a set is encoded before its images are scored
            busy.append(sum(end - start for start, end in spans) / (spans[-1][1] - spans[0][0]))

    simple = method.name == "anoclip"
    batch = detector.model.batch_size
    operations = flops(detector.backbone, value=True) if simple else None
    return Subject("pipeline", method.name, detector.backbone.precision, batch, count, run, operations, busy)


def exported(
    detector: Detector, folder: Path, batch: int, agreements: list[dict[str, Any]]
) -> Iterator[Subject]:
    """Yield the network in ONNX Runtime and in OpenVINO (float32, bfloat16, int8), pixels in, score and map out.

    The agreement of each runtime's maps with PyTorch is added to ``agreements``, once per model.
    """
    import onnxruntime
    import openvino

    from clipspect.export.exporter import agreement_of, export_detector, openvino_options, run_onnx

    side, threads = detector.backbone.image_size, torch.get_num_threads()
    known = {row["runtime"] for row in agreements if row["model"] == detector.backbone.name}

    def compare(runtime: str, precision: str, run: Callable[[NDArray[np.uint8]], Any]) -> None:
        if f"{runtime} {precision}" not in known:
            found = agreement_of(detector, OBJECT, run)
            row = {"model": detector.backbone.name, "runtime": f"{runtime} {precision}", **asdict(found)}
            agreements.append(row)

    pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    network = folder / f"{detector.backbone.name}.onnx"
    if not network.is_file():
        export_detector(detector, OBJECT, network)
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    compare("ONNX Runtime", "fp32", lambda images: run_onnx(network, images))
    yield Subject(
        "runtime", "ONNX Runtime", "fp32", batch, batch, lambda: session.run(None, {"image": pixels}) and None
    )
    core = openvino.Core()
    for precision in ("fp32", "bf16", "int8"):
        path = network
        if precision == "int8":
            path = folder / f"{detector.backbone.name}-int8.xml"
            if not path.is_file():
                images = sorted(DEMO_IMAGES.glob("*.jpg"))
                export_detector(detector, OBJECT, path, precision="int8", calibrate=images, bar=0.9)
        settings = {**openvino_options(precision), "INFERENCE_NUM_THREADS": threads}
        compiled = core.compile_model(path, "CPU", settings)

        def infer(compiled: Any = compiled) -> None:
            compiled(pixels)

        def outputs(images: NDArray[np.uint8], compiled: Any = compiled) -> Any:
            found = compiled(images)
            return {name: found[name] for name in ("score", "map")}

        compare("OpenVINO", precision, outputs)

        yield Subject("runtime", "OpenVINO", precision, batch, batch, infer)


def tokens_of(backbone: OpenClipBackbone) -> int:
    """Return the number of tokens of one image, including the class token."""
    return (backbone.image_size // backbone.patch) ** 2 + 1


def widths_of(backbone: OpenClipBackbone) -> tuple[int, int]:
    """Return the widths of the stream and of the MLPs."""
    mlp = backbone.network.visual.transformer.resblocks[0].mlp
    return mlp.c_fc.in_features, mlp.c_fc.out_features


def flops(backbone: OpenClipBackbone, *, value: bool) -> float:
    """Return the matmul operations of one encoding as executed: the last block for the class token only."""
    n, (width, inner) = tokens_of(backbone), widths_of(backbone)
    products, attention = 2 * n * width * (4 * width + 2 * inner), 4 * n * n * width
    last = 2 * n * width * 2 * width + 4 * n * width + 2 * width * (2 * width + 2 * inner)
    patches = 2 * (n - 1) * 3 * backbone.patch**2 * width
    stream = backbone.depth * (2 * n * width * width + attention) if value else 0
    return patches + (backbone.depth - 1) * (products + attention) + last + stream


@contextmanager
def folder_of_images(count: int) -> Iterator[Path]:
    """Provide a folder of different 1000×1000 JPEGs generated from those in the wheel."""
    with tempfile.TemporaryDirectory(prefix="clipspect-speed-") as folder:
        sources = sorted(DEMO_IMAGES.glob("*.jpg"))
        for number in range(count):
            with Image.open(sources[number % len(sources)]) as opened:
                photo = opened.convert("RGB").resize((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.BICUBIC)
            photo.rotate(3 * (number // len(sources))).save(Path(folder) / f"{number:04}.jpg", quality=92)
        yield Path(folder)

"""Export to ONNX (one file, any runtime) and to OpenVINO (float32, bfloat16, or int8 through NNCF), each held to torch.

A file is written beside its place, run on images, compared with torch, and moved into place where its maps agree.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clipspect.detector import Detector
from clipspect.errors import ResultsError, UsageError
from clipspect.export.exported_model import INPUT, MAP, SCORE, ExportedDetector, metadata
from clipspect.postprocess.agreement import MIN_AGREEMENT, MapAgreement, compare_maps
from clipspect.postprocess.calibration import Calibration

ExportPrecision = Literal["fp32", "bf16", "int8"]
FORMATS = (".onnx", ".xml")
_OPSET = 18
_COMPARED = 8
_MOST_CALIBRATED = 300  # NNCF's own default


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    agreement: MapAgreement
    """With torch in fp32, on the images compared."""
    compared: int
    """How many images."""


def export_detector(
    detector: Detector,
    object: str,
    path: Path,
    *,
    calibration: Calibration | None = None,
    precision: ExportPrecision = "fp32",
    calibrate: Sequence[Path] = (),
    bar: float = MIN_AGREEMENT,
) -> Exported:
    """Write a network that scores images of one object without clipspect.

    Args:
        detector: one exportable method in fp32.
        object: what is on the images.
        path: ``.onnx`` for one file with everything in it, ``.xml`` for OpenVINO's pair of files.
        calibration: baked into the network, whose scores then have the threshold 0.5.
        precision: "fp32"; for OpenVINO also "bf16", which asks the runtime for bfloat16, and "int8".
        calibrate: images for int8, and to compare with torch; those in the wheel where none are given and none
            are needed.
        bar: least rank correlation with torch's maps.

    Raises:
        UsageError: a method or precision that cannot be exported, a missing package, maps that agree too little.
        ResultsError: the file cannot be written.
        ImageError: an image that cannot be read.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: end it in .onnx (one file) or .xml (OpenVINO)")
    if path.suffix == ".onnx" and precision != "fp32":
        raise UsageError(f"{precision} is exported for OpenVINO: end the file's name in .xml")
    if precision == "int8" and not calibrate:
        raise UsageError("int8 needs images to calibrate on; name a folder with --calibrate")
    network = ExportedDetector(detector, object, calibration).eval()
    described = {**metadata(detector, object, calibration), "precision": precision}
    images = _pieces(detector, calibrate)
    compared = images[:: max(len(images) // _COMPARED, 1)][:_COMPARED]
    with tempfile.TemporaryDirectory(prefix="clipspect-export-") as folder:
        written = Path(folder) / f"network{path.suffix}"
        onnx_file = written.with_suffix(".onnx")
        write_onnx(network, onnx_file, described)
        if path.suffix == ".onnx":
            found = run_onnx(onnx_file, compared)
        else:
            if precision == "int8":
                write_int8(onnx_file, written, described, network, images)
            else:
                write_openvino(onnx_file, written, described)
            found = run_openvino(written, compared, precision)
        agreement = _compare(network, compared, found)
        agreement.check(f"{path.name} in {precision}", bar)
        parts = [written] if path.suffix == ".onnx" else [written, written.with_suffix(".bin")]
        _move(parts, path)
    return Exported(path, agreement, len(compared))


def write_onnx(network: ExportedDetector, path: Path, described: Mapping[str, str]) -> None:
    """One ONNX file with weights, anchors and metadata inside; the batch is free."""
    onnx = _package("onnx", "export")
    _package("onnxscript", "export")
    size = network.backbone.image_size
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=_OPSET,
            input_names=[INPUT],
            output_names=[SCORE, MAP],
            dynamic_shapes=({0: batch},),
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, dict(described))
    onnx.save(model, path)


def write_openvino(onnx_file: Path, path: Path, described: Mapping[str, str]) -> None:
    """An OpenVINO model of an ONNX file."""
    openvino = _package("openvino", "openvino")
    _save_openvino(openvino.Core().read_model(onnx_file), path, described)


def write_int8(
    onnx_file: Path,
    path: Path,
    described: Mapping[str, str],
    network: ExportedDetector,
    calibration: NDArray[np.uint8],
) -> None:
    """The same with the perceptrons in int8, calibrated by NNCF on (N, S, S, 3) images.

    Attention, both streams and the scores stay as they are: in int8 as well, they cost most of the agreement
    (docs/export.md), and the perceptrons are two thirds of the products.

    Raises:
        UsageError: no perceptrons (a ResNet).
    """
    openvino, nncf = _package("openvino", "openvino"), _package("nncf", "openvino")
    logging.getLogger("nncf").setLevel(logging.WARNING)  # else a line for each of hundreds of operations
    visual = network.network.visual
    assert isinstance(visual, nn.Module)
    wide = {part.out_features for name, part in visual.named_modules() if name.endswith("mlp.c_fc")}
    model = openvino.Core().read_model(onnx_file)
    others = [op.get_friendly_name() for op in model.get_ops() if not _is_mlp(op, wide)]
    if len(others) == len(model.get_ops()):
        raise UsageError("int8 is for vision transformers: this backbone has no perceptrons to quantise")
    pieces = calibration[:_MOST_CALIBRATED]
    quantised = nncf.quantize(
        model,
        nncf.Dataset([piece[None] for piece in pieces]),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(pieces),
        ignored_scope=nncf.IgnoredScope(names=others, validate=False),
    )
    _save_openvino(quantised, path, described)


def _is_mlp(op: Any, wide: set[int]) -> bool:
    """Whether an operation is a product with a perceptron's weights, told by their width."""
    if op.get_type_name() != "MatMul":
        return False
    shape = op.input_value(1).get_partial_shape()
    return bool(shape.is_static and len(shape) == 2 and wide & {int(d) for d in shape.to_shape()})


def _save_openvino(model: Any, path: Path, described: Mapping[str, str]) -> None:
    for key, value in described.items():
        model.set_rt_info(value, ["clipspect", key])
    _package("openvino", "openvino").save_model(model, path, compress_to_fp16=False)


def run_onnx(path: Path, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(B,) scores and (B, S, S) maps of an ONNX file in ONNX Runtime, on the processor."""
    runtime = _package("onnxruntime", "export")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    score, maps = session.run([SCORE, MAP], {INPUT: images})
    return score, maps


def run_openvino(
    path: Path, images: NDArray[np.uint8], precision: ExportPrecision = "fp32"
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(B,) scores and (B, S, S) maps of an OpenVINO model on the processor."""
    openvino = _package("openvino", "openvino")
    compiled = openvino.Core().compile_model(path, "CPU", openvino_options(precision))
    found = compiled(images)
    return found[SCORE], found[MAP]


def openvino_options(precision: ExportPrecision) -> dict[str, str]:
    """What to compile a model with: left alone, OpenVINO rounds to bfloat16 wherever the processor has it."""
    return {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}


def agreement_of(
    detector: Detector,
    object: str,
    run: Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]],
) -> MapAgreement:
    """How the (B,) scores and (B, S, S) maps ``run`` gives for the wheel's images agree with torch in float32."""
    images = _pieces(detector, ())
    images = images[:: max(len(images) // _COMPARED, 1)][:_COMPARED]
    return _compare(ExportedDetector(detector, object).eval(), images, run(images))


def _compare(
    network: ExportedDetector,
    images: NDArray[np.uint8],
    found: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> MapAgreement:
    with torch.inference_mode():
        scores, maps = network(torch.from_numpy(images))
    # Calibrated maps are 0 over large areas, where the order of rounding errors means nothing.
    exact, rough = (np.round(one, 5) if network.calibration else one for one in (maps.numpy(), found[1]))
    return compare_maps(exact, rough, scores.numpy(), found[0])


def _pieces(detector: Detector, images: Iterable[Path]) -> NDArray[np.uint8]:
    """(N, S, S, 3) of images as the network takes them; of those in the wheel where none are given."""
    from clipspect.demo import DEMO_IMAGES

    paths = list(images) or sorted(DEMO_IMAGES.glob("*.jpg"))
    return np.concatenate([detector.reader.read(path).pieces for path in paths])


def _move(parts: Sequence[Path], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for part in parts:
            path.with_suffix(part.suffix).write_bytes(part.read_bytes())
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written ({error.strerror or error})") from error


def _package(name: str, extra: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise UsageError(f"export needs {name}: pip install 'clipspect[{extra}]'") from error

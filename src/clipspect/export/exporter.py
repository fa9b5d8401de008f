"""Export to ONNX (one file, any runtime) and to OpenVINO (float32, bfloat16, or int8 through NNCF).

Each export writes a temporary file, runs it on images and compares its maps with PyTorch. It moves the file to its
final path only if the maps agree.

"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clipspect.detector import Detector
from clipspect.errors import ResultsError, UsageError
from clipspect.export.exported_model import ExportedDetector, metadata
from clipspect.export.onnx_detector import INPUT, MAP, RAW_MAP, SCORE
from clipspect.postprocess.agreement import MIN_AGREEMENT, MapAgreement, compare_maps, rank_correlation
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
    """Agreement with PyTorch in fp32 on the compared images."""
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
        object: name of the object in the images.
        path: ``.onnx`` for a single file, ``.xml`` for OpenVINO's pair of files.
        calibration: included in the network, whose scores then have the threshold 0.5.
        precision: "fp32"; for OpenVINO also "bf16", which requests bfloat16 from the runtime, and "int8".
        calibrate: images for int8 calibration and for the comparison with PyTorch; default: the images in the wheel,
            except for int8.
        bar: minimum rank correlation with PyTorch's maps.

    Raises:
        UsageError: a method or precision that cannot be exported, a missing package, or insufficient agreement.
        ResultsError: the file cannot be written.
        ImageError: an image cannot be read.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: use the suffix .onnx (one file) or .xml (OpenVINO)")
    if path.suffix == ".onnx" and precision != "fp32":
        raise UsageError(f"{precision} is available for OpenVINO only; use a file name that ends in .xml")
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
    """Write one ONNX file with weights, text embeddings and metadata; the batch size is dynamic."""
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
            output_names=network.output_names(),
            dynamic_shapes=({0: batch},),
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, dict(described))
    onnx.save(model, path)


def write_openvino(onnx_file: Path, path: Path, described: Mapping[str, str]) -> None:
    """Convert an ONNX file to an OpenVINO model."""
    openvino = _package("openvino", "openvino")
    _save_openvino(openvino.Core().read_model(onnx_file), path, described)


def write_int8(
    onnx_file: Path,
    path: Path,
    described: Mapping[str, str],
    network: ExportedDetector,
    calibration: NDArray[np.uint8],
) -> None:
    """Convert with the MLPs in int8, calibrated by NNCF on (N, S, S, 3) images.

    Attention, both streams and the scores keep their precision: quantizing them costs most of the agreement
    (docs/export.md), and the MLPs are two thirds of the matmul operations.

    Raises:
        UsageError: the backbone has no MLPs (a ResNet).
    """
    openvino, nncf = _package("openvino", "openvino"), _package("nncf", "openvino")
    logging.getLogger("nncf").setLevel(logging.WARNING)  # NNCF logs a line for each of hundreds of operations
    visual = network.network.visual
    assert isinstance(visual, nn.Module)
    wide = {part.out_features for name, part in visual.named_modules() if name.endswith("mlp.c_fc")}
    model = openvino.Core().read_model(onnx_file)
    others = [op.get_friendly_name() for op in model.get_ops() if not _is_mlp(op, wide)]
    if len(others) == len(model.get_ops()):
        raise UsageError("int8 is for vision transformers: this backbone has no MLPs to quantize")
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
    """Return whether an operation is a matmul with an MLP's weights, identified by their width."""
    if op.get_type_name() != "MatMul":
        return False
    shape = op.input_value(1).get_partial_shape()
    return bool(shape.is_static and len(shape) == 2 and wide & {int(d) for d in shape.to_shape()})


def _save_openvino(model: Any, path: Path, described: Mapping[str, str]) -> None:
    for key, value in described.items():
        model.set_rt_info(value, ["clipspect", key])
    _package("openvino", "openvino").save_model(model, path, compress_to_fp16=False)


def run_onnx(path: Path, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Return the outputs of an ONNX file for (B, S, S, 3) images by name, in ONNX Runtime on the CPU."""
    runtime = _package("onnxruntime", "export")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {INPUT: images}), strict=True))


def run_openvino(
    path: Path, images: NDArray[np.uint8], precision: ExportPrecision = "fp32"
) -> dict[str, NDArray[np.float32]]:
    """Return the outputs of an OpenVINO model for (B, S, S, 3) images by name, on the CPU."""
    openvino = _package("openvino", "openvino")
    compiled = openvino.Core().compile_model(path, "CPU", openvino_options(precision))
    found = compiled(images)
    return {name: found[name] for output in compiled.outputs for name in output.get_names()}


def openvino_options(precision: ExportPrecision) -> dict[str, str]:
    """Return compile options: by default OpenVINO uses bfloat16 on every CPU that supports it."""
    return {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}


def agreement_of(
    detector: Detector,
    object: str,
    run: Callable[[NDArray[np.uint8]], Mapping[str, NDArray[np.float32]]],
) -> MapAgreement:
    """Return the agreement with PyTorch in float32 of ``run``, which gives outputs by name, on the wheel's images."""
    images = _pieces(detector, ())
    images = images[:: max(len(images) // _COMPARED, 1)][:_COMPARED]
    return _compare(ExportedDetector(detector, object).eval(), images, run(images))


def _compare(
    network: ExportedDetector, images: NDArray[np.uint8], found: Mapping[str, NDArray[np.float32]]
) -> MapAgreement:
    with torch.inference_mode():
        exact = dict(zip(network.output_names(), network(torch.from_numpy(images)), strict=True))
    agreement = compare_maps(exact[MAP].numpy(), found[MAP], exact[SCORE].numpy(), found[SCORE])
    if RAW_MAP not in exact:
        return agreement
    # Calibrated maps, and maps outside of a region of interest, are 0 over large areas: ties, which hide differences.
    pairs = zip(exact[RAW_MAP].numpy(), found[RAW_MAP], strict=True)
    return replace(agreement, rank_correlation=min(rank_correlation(one, other) for one, other in pairs))


def _pieces(detector: Detector, images: Iterable[Path]) -> NDArray[np.uint8]:
    """Return (N, S, S, 3) network inputs of images; of those in the wheel if none are given."""
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

"""Precision by measurement: what a device is fast at, held against float32 on images before it is used.

Every precision but fp32 is measured once per (weights, device, version of torch) on the images in the wheel; what
was found is kept beside the text anchors. Nothing is ever used that was not asked for: "auto" is a question, and a
precision that is named is used or refused.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from clipspect.backbones.base import Backbone
from clipspect.backbones.cpu.int8 import fast_int8, has_vnni
from clipspect.backbones.cpu.linear import onednn_is_faster
from clipspect.backbones.openclip.blocks import fast_bf16
from clipspect.data.decode import read_image
from clipspect.data.transforms import ResizeSpec, normalize
from clipspect.errors import UsageError
from clipspect.methods.anoclip import AnoCLIP
from clipspect.methods.scoring import smooth
from clipspect.model import AnomalyModel
from clipspect.postprocess.agreement import MapAgreement, compare_maps
from clipspect.prompts import PromptConfig, load_prompts
from clipspect.prompts.anchors import cache_folder, make_anchors
from clipspect.types import Precision, PrecisionChoice

_PROBE_IMAGES = 4
_ROUNDS = 3
_SENTENCES = (
    ["a photo of a flawless object", "a photo of an object without defect"],
    ["a photo of a damaged object", "a photo of an object with a defect"],
)


@dataclass(frozen=True)
class Measured:
    """What one precision gave on this device."""

    milliseconds: float
    """Per image, encoder alone, median."""
    agreement: MapAgreement


def resolve_precision(backbone: Backbone, wanted: PrecisionChoice) -> tuple[Backbone, MapAgreement | None]:
    """The backbone in the precision that was asked for, and how its maps agree with float32's.

    Args:
        backbone: in fp32.
        wanted: "auto" for the fastest on its device whose maps agree, or one by name.

    Returns:
        A backbone in that precision, the same one for fp32; and its agreement, None for fp32.

    Raises:
        UsageError: the named precision's maps agree less than ``MIN_AGREEMENT``.
    """
    if wanted == "fp32":
        return backbone, None
    candidates = [p for p in fast_precisions(backbone.device) if backbone.supports_int8 or p != "int8"]
    found = measure_precisions(backbone, candidates if wanted == "auto" else (wanted,))
    if wanted != "auto":
        found[wanted].agreement.check(f"precision {wanted} of {backbone.name} ({backbone.weights})")
        return backbone.with_precision(wanted), found[wanted].agreement
    best = choose(found)
    return (backbone, None) if best == "fp32" else (backbone.with_precision(best), found[best].agreement)


def choose(found: Mapping[Precision, Measured]) -> Precision:
    """The fastest precision whose maps agree with float32's."""

    def agrees(one: Measured) -> bool:
        try:
            one.agreement.check("")
        except UsageError:
            return False
        return True

    return min((name for name in found if agrees(found[name])), key=lambda name: found[name].milliseconds)


def fast_precisions(device: torch.device) -> list[Precision]:
    """The precisions below fp32 that a device has instructions for."""
    if device.type == "cuda":
        return ["bf16", "fp16"] if torch.cuda.is_bf16_supported() else ["fp16"]
    if device.type == "cpu":
        known: dict[Precision, bool] = {"bf16": fast_bf16(), "int8": fast_int8()}
        return [name for name, fast in known.items() if fast]
    return []


def measure_precisions(backbone: Backbone, names: Sequence[Precision]) -> dict[Precision, Measured]:
    """Time and agreement of fp32 and of the named precisions, from the cache where they have been measured before.

    Args:
        backbone: in fp32.
        names: precisions beside fp32.
    """
    stored = {name: _recall(backbone, name) for name in names}
    exact = _recall(backbone, "fp32")
    known = {name: measured for name, measured in stored.items() if measured is not None}
    if exact is not None and len(known) == len(names):
        return {"fp32": exact, **known}
    backbones: dict[Precision, Backbone] = {"fp32": backbone}
    backbones |= {name: backbone.with_precision(name) for name in names}
    images = torch.from_numpy(_make_probe_images(backbone))
    models = {name: _probe_model(one) for name, one in backbones.items()}
    seconds: dict[Precision, list[float]] = {name: [] for name in backbones}
    for _ in range(_ROUNDS):  # interleaved, so that a busy moment hits all alike
        for name, model in models.items():
            started = perf_counter()
            model.encode(images).features.image.cpu()
            seconds[name].append((perf_counter() - started) / len(images))
    outputs = {name: _maps(model, images) for name, model in models.items()}
    found: dict[Precision, Measured] = {}
    for name, (maps, scores) in outputs.items():
        agreement = compare_maps(outputs["fp32"][0], maps, outputs["fp32"][1], scores)
        found[name] = Measured(1000 * median(seconds[name]), agreement)
        _remember(backbone, name, found[name])
    return found


def _probe_model(backbone: Backbone) -> AnomalyModel:
    """AnoCLIP with two plain sentences a side."""
    anchors = make_anchors(*(backbone.encode_text(side) for side in _SENTENCES))
    return AnomalyModel(backbone, (AnoCLIP(),), PromptConfig(load_prompts()), anchors={"anoclip": anchors})


def _maps(model: AnomalyModel, images: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """AnoCLIP's maps on the patch grid and its image scores."""
    scores = model(images)["anoclip"]
    assert scores.text is not None
    return smooth(scores.text).cpu().numpy(), scores.image.cpu().numpy()


def _make_probe_images(backbone: Backbone) -> NDArray[np.float32]:
    """(B, 3, S, S) of the images in the wheel."""
    from clipspect.demo import DEMO_IMAGES

    fit = ResizeSpec(backbone.image_size)
    paths = sorted(DEMO_IMAGES.glob("*.jpg"))[-_PROBE_IMAGES:]  # good parts come first, defects last
    pieces = np.stack([fit.apply(read_image(path)[0]) for path in paths])
    return normalize(pieces, backbone.mean, backbone.std)


def _device_key(device: torch.device) -> list[str | bool]:
    """What rounding and speed depend on: machines of several kinds may share a cache folder."""
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device)]
    capability = torch.backends.cpu.get_cpu_capability()
    return [device.type, platform.machine(), capability, has_vnni(), fast_bf16(), onednn_is_faster()]


def _cached(backbone: Backbone, name: str) -> Path:
    device, threads = _device_key(backbone.device), torch.get_num_threads()
    what = [2, backbone.fingerprint, backbone.image_size, name, device, threads, torch.__version__]
    return cache_folder() / "precision" / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()}.json"


def _recall(backbone: Backbone, name: str) -> Measured | None:
    try:
        stored = json.loads(_cached(backbone, name).read_bytes())
        return Measured(stored["milliseconds"], MapAgreement(**stored["agreement"]))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # absent, damaged or of another version: measured again
        return None


def _remember(backbone: Backbone, name: str, measured: Measured) -> None:
    path = _cached(backbone, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as temporary:
            json.dump(asdict(measured), temporary)
        Path(temporary.name).replace(path)
    except OSError:  # a cache that cannot be written costs time, never a run
        return

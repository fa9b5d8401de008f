"""load(): from names to a Detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, Literal

from clipspect.backbones.loader import load_backbone
from clipspect.backbones.presets import DEFAULT_MODEL
from clipspect.data.convert import MAX_PIXELS
from clipspect.data.prepare import ImageLoader
from clipspect.data.ranges import ValueRange
from clipspect.data.transforms import Aspect, Interpolation, ResizeSpec
from clipspect.detector import Detector
from clipspect.errors import UsageError
from clipspect.methods.base import Method
from clipspect.model import AnomalyModel
from clipspect.precision import PrecisionChoice, check_precision, resolve_precision
from clipspect.prompts import PromptConfig, load_prompts
from clipspect.registry import DEFAULT_METHOD, make_method


def load(
    method: str | Method | Sequence[str | Method] = DEFAULT_METHOD,
    model: str = DEFAULT_MODEL,
    weights: str | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    device: str = "auto",
    precision: PrecisionChoice = "fp32",
    aspect: Aspect = "squash",
    interpolation: Interpolation = "bicubic",
    tile: int | Literal["square"] | None = None,
    domain: str = "auto",
    prompts: Path | None = None,
    normal: Sequence[str] = (),
    abnormal: Sequence[str] = (),
    batch_size: int = 8,
    set_size: int = 128,
    max_pixels: int = MAX_PIXELS,
    bit_depth: int | None = None,
    window: tuple[float, float] | None = None,
    seed: int = 0,
) -> Detector:
    """Load a detector.

    Args:
        method: a name of ``clipspect methods``, a method object with its settings, or several to compare.
        model: a preset of ``clipspect models``, an open_clip architecture, "hf-hub:org/name", "timm:NAME", a folder, a
            checkpoint.
        weights: a pretrained tag, a checkpoint file, "random" for a seeded control; None = the preset's own.
        settings: settings of the named method, field → value; a setting several methods share goes to each.
        image_size: input side in pixels, a multiple of the backbone's patch; None = the preset's own.
        device: "auto", "cpu", "cuda", …
        precision: "fp32", or "bf16", "fp16" or "int8" in the towers' products, which is measured against fp32 on first
            use and refused below a rank correlation of 0.999; "auto" for the fastest that is not.
        aspect: "squash" to a square as the papers do, or "pad".
        interpolation: "bicubic" or "bilinear".
        tile: side in image pixels to cut large images into overlapping tiles; "square" for VisA's setting.
        domain: "auto", or a domain of the prompt table: "object", "texture", "medical", …
        prompts: a TOML file merged over the shipped prompt table.
        normal: further normal states, such as "{} fresh from the mould".
        abnormal: further abnormal states, such as "{} with a scratch".
        batch_size: images encoded at once.
        set_size: most images of a set that serve as each other's references.
        max_pixels: larger images are refused before they are decoded.
        bit_depth: bits of images that do not declare their own, such as 12-bit values in 16-bit files.
        window: (low, high), the values that are black and white in images with more than 8 bits.
        seed: of random weights.

    Raises:
        UsageError: an unknown name or an impossible setting; the message lists what there is.
        WeightsError: weights that are not here; the message says which file and how to pass it.
    """
    value_range = ValueRange(bit_depth, None if window is None else (float(window[0]), float(window[1])))
    wanted = [method] if isinstance(method, str | Method) else list(method)
    made = [_make(one, settings or {}, alone=len(wanted) == 1) for one in wanted]
    for key in settings or {}:
        if not any(key in one.settings() for one in made):
            names = ", ".join(one.name for one in made)
            raise UsageError(f"none of {names} has a setting {key!r}; see: clipspect methods NAME")
    prompt_config = PromptConfig(load_prompts(prompts), domain, tuple(normal), tuple(abnormal))
    for one in made:
        prompt_config.sentences(
            one.prompts, "object"
        )  # a bad domain or phrase is told before weights are loaded
    check_precision(precision)
    backbone = load_backbone(
        model,
        weights,
        image_size=image_size,
        device=device,
        seed=seed,
        request=reduce(or_, (one.request() for one in made)),
        needs_text=any(one.needs_text for one in made),
    )
    backbone, agreement = resolve_precision(backbone, precision)
    reader = ImageLoader(
        ResizeSpec(backbone.image_size, aspect, interpolation), tile, max_pixels, value_range
    )
    anomaly_model = AnomalyModel(backbone, tuple(made), prompt_config, batch_size)
    return Detector(anomaly_model, reader, set_size=set_size, agreement=agreement)


def _make(method: str | Method, settings: Mapping[str, Any], *, alone: bool) -> Method:
    if isinstance(method, Method):
        return method
    if alone:
        return make_method(method, dict(settings))
    known = make_method(method).settings()
    return make_method(method, {key: value for key, value in settings.items() if key in known})

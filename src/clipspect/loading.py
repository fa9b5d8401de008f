"""load(): from options to a Detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import reduce
from inspect import signature
from operator import or_
from typing import Any, ParamSpec

from clipspect.backbones.base import RANDOM, Backbone
from clipspect.backbones.loader import load_backbone
from clipspect.backbones.pair import BackbonePair
from clipspect.config import DetectorConfig, check_names, fill_preset, make_reader, spec_of
from clipspect.detector import Detector
from clipspect.errors import UsageError
from clipspect.methods.base import Method
from clipspect.model import AnomalyModel
from clipspect.precision import resolve_precision
from clipspect.prompts import PromptConfig, load_prompts
from clipspect.registry import make_method

P = ParamSpec("P")
POSITIONAL = ("method", "model", "weights")
"""Options that :func:`load` takes by position too."""


def _takes(config: Callable[P, DetectorConfig]) -> Callable[[Callable[..., Detector]], Callable[P, Detector]]:
    """Give a function the signature of the configuration, and its options as documentation."""

    def decorate(function: Callable[..., Detector]) -> Callable[P, Detector]:
        specs = {one.name: spec_of(one) for one in fields(DetectorConfig)}
        options = "\n".join(
            f"        {name}: {spec.help}{f' Default: {spec.absent}.' if spec.absent else ''}"
            for name, spec in specs.items()
        )
        function.__doc__ = (function.__doc__ or "").replace("    OPTIONS", options)
        function.__signature__ = signature(config).replace(return_annotation="Detector")  # type: ignore[attr-defined]
        return function

    return decorate


@_takes(DetectorConfig)
def load(*arguments: Any, **options: Any) -> Detector:  # noqa: D417
    """Load a detector.

    Args:
    OPTIONS

    Raises:
        UsageError: an unknown name or an impossible setting; the message lists what there is.
        WeightsError: weights that are not here; the message says which file and how to pass it.
    """
    check_names(options)
    placed = dict(zip(POSITIONAL, arguments, strict=False))
    if len(arguments) > len(POSITIONAL) or placed.keys() & options:
        DetectorConfig(*arguments, **options)  # Python's own error
    return build_detector(DetectorConfig(**fill_preset({**placed, **options})))


def build_detector(config: DetectorConfig, backbone: Backbone | None = None) -> Detector:
    """Load the detector that a configuration describes, on a backbone that is loaded already if one is given.

    Raises as :func:`load`.
    """
    methods = _make_methods(config)
    prompts = make_prompts(config)
    for one in methods:
        prompts.sentences(
            one.prompts, "object", one.prompt_domain
        )  # a bad domain or phrase is an error before weights are loaded
        _ = one.anchor_source  # and so is a file of learned prompts
    agreement = None
    if backbone is None:
        backbone, agreement = resolve_precision(_load_backbones(config, methods), config.precision)
    model = AnomalyModel(backbone, methods, prompts, config.batch_size)
    reader = make_reader(config, backbone.image_size)
    return Detector(model, reader, set_size=config.set_size, agreement=agreement, config=config)


def _load_backbones(config: DetectorConfig, methods: Sequence[Method]) -> Backbone:
    """Load the model, or the two models, of a configuration."""
    request = reduce(or_, (one.request() for one in methods))
    needs_text = any(one.needs_text for one in methods)
    options: dict[str, Any] = {"device": config.device, "seed": config.seed}
    visual = None
    if config.visual_model is not None:
        if request.visual is None or not needs_text:
            names = ", ".join(one.name for one in methods)
            raise UsageError(
                f"visual_model goes with a method that compares images with sentences and with each other, such as"
                f" dual-image or mutual, not with {names} alone; name the one model with --model"
            )
        weights = RANDOM if config.weights == RANDOM else None  # other weights belong to the first model
        visual = load_backbone(config.visual_model, weights, request=request.visual, **options)
        request = replace(request, visual=None)
    text = load_backbone(
        config.model,
        config.weights,
        image_size=config.image_size,
        request=request,
        needs_text=needs_text,
        **options,
    )
    return text if visual is None else BackbonePair(text, visual)


def make_prompts(config: DetectorConfig) -> PromptConfig:
    """The prompts of a configuration. Raises UsageError for a file that cannot be used."""
    return PromptConfig(
        load_prompts(config.prompts),
        config.domain,
        tuple(config.normal),
        tuple(config.abnormal),
        config.object_as_is,
    )


def _make_methods(config: DetectorConfig) -> tuple[Method, ...]:
    alone = len(config.methods) == 1
    methods = tuple(_make(one, config, alone=alone) for one in config.methods)
    for key in config.settings:
        if not any(key in one.settings() for one in methods):
            names = ", ".join(one.name for one in methods)
            raise UsageError(f"none of {names} has a setting {key!r}; see: clipspect methods NAME")
    return methods


def _make(method: str | Method, config: DetectorConfig, *, alone: bool) -> Method:
    if isinstance(method, Method):
        return method
    known = make_method(method).settings()
    own = {key: value for key, value in config.settings.items() if alone or key in known}
    preset = {key: value for key, value in config.preset_settings.items() if key in known}
    return make_method(method, {**preset, **own})

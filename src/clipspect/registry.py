"""Methods and backbones by name: those of the package, and those of installed plug-ins.

A plug-in is a package with entry points in the group ``clipspect.methods`` (name → a :class:`Method` class) or
``clipspect.backbones`` (prefix → a loader; users type ``prefix:name`` as the model). See ``examples/plugin``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from clipspect.errors import UsageError, suggest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from clipspect.backbones.base import Backbone
    from clipspect.methods.base import Method

BUILT_IN_METHODS: dict[str, tuple[str, str]] = {
    "anoclip": ("anoclip:AnoCLIP", "text only, one image at a time, no training (AnoCLIP)"),
    "anoclip+": (
        "anoclip_plus:AnoCLIPPlus",
        "anoclip, refined for a few steps on each image alone (AnoCLIP+)",
    ),
    "dual-image": (
        "dual_image:DualImage",
        "text, and another image of the set as reference (Dual-Image Enhanced CLIP)",
    ),
    "dual-image+": (
        "dual_image_plus:DualImagePlus",
        "dual-image, refined on each image and corrupted copies of it (Dual-Image+)",
    ),
    "mutual": ("mutual:Mutual", "text, and all other images of the set as references"),
    "musc": ("musc:MuSc", "all other images of the set as references, without text (MuSc)"),
    "clip": ("clip:CLIP", "the image embedding against two anchors: the baseline (CLIP-AC)"),
    "anomaly-clip": (
        "anomaly_clip:AnomalyCLIP",
        "learned prompts, one image at a time; needs their checkpoint (AnomalyCLIP)",
    ),
    "anomaly-dino": (
        "anomaly_dino:AnomalyDINO",
        "nearest patches of a few known-good images, without text (AnomalyDINO)",
    ),
    "subspace": (
        "subspace:SubspaceAD",
        "distance from the subspace of a few known-good images, without text (SubspaceAD)",
    ),
    "winclip": ("winclip:WinCLIP", "text only, windows at several scales; slow (WinCLIP)"),
    "winclip+": ("winclip:WinCLIPPlus", "the same with a few normal reference images (WinCLIP+)"),
}
"""name → (module:class below ``clipspect.methods``, one line for people); listing them imports no torch."""

BUILT_IN_BACKBONES: dict[str, str] = {"timm": "clipspect.backbones.timm.loader:load_timm"}
"""prefix → module:loader, beside open_clip's, which needs no prefix."""

DEFAULT_METHOD = "anoclip"
REFERENCES_SUFFIX = ".refs"
"""Of files of encoded references."""


class BackboneLoader(Protocol):
    """What a backbone plug-in provides."""

    def __call__(
        self, model: str, weights: str | None, *, image_size: int | None, device: str, seed: int
    ) -> Backbone:
        """Load a backbone in float32. ``model`` is what the user typed, prefix included.

        A loader may have a method ``check(model, request, *, needs_text)`` that raises UsageError for what a model
        cannot give, before its weights are downloaded.
        """
        ...


@cache
def _plugins(group: str) -> Mapping[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=group)}


def list_methods() -> dict[str, str]:
    """Every method's name with one line about it; a plug-in's class has it as ``about``."""
    listed = {name: about for name, (_, about) in BUILT_IN_METHODS.items()}
    for name, point in _plugins("clipspect.methods").items():
        listed.setdefault(name, str(getattr(point.load(), "about", f"plug-in ({point.value})")))
    return listed


def method_class(name: str) -> type[Method]:
    """Find a method's class by name. Raises UsageError with a suggestion for an unknown one."""
    found: type[Method]
    if name in BUILT_IN_METHODS:
        module, _, attribute = BUILT_IN_METHODS[name][0].partition(":")
        found = getattr(import_module(f"clipspect.methods.{module}"), attribute)
        return found
    plugins = _plugins("clipspect.methods")
    if name not in plugins:
        known = [*BUILT_IN_METHODS, *plugins]
        raise UsageError(f"unknown method {name!r}; {suggest(name, known)}there are: {', '.join(known)}")
    found = plugins[name].load()
    return found


def describe_settings(name: str) -> list[tuple[str, str, str]]:
    """Return (setting, default, help text) of a method's settings. Raises UsageError for an unknown method."""
    found = method_class(name)
    return [
        (f.name, str(f.default), f.metadata.get("help", ""))
        for f in fields(found)
        if f.name not in found.fixed
    ]


def make_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """Make a method with its settings.

    Args:
        name: one of :func:`list_methods`.
        settings: field → value; strings are read as the field's type, as from a command line.

    Raises:
        UsageError: an unknown method or setting, or a value that is not of its type.
    """
    found = method_class(name)
    known = {f.name: type(f.default) for f in fields(found) if f.name not in found.fixed}
    values: dict[str, Any] = {}
    for key, value in (settings or {}).items():
        if key not in known:
            raise UsageError(
                f"{name} has no setting {key!r}; {suggest(key, list(known))}it has: {', '.join(known) or 'none'}"
            )
        values[key] = _parse(f"{name}'s {key}", value, known[key]) if isinstance(value, str) else value
    return found(**values)


def backbone_loader(model: str) -> BackboneLoader:
    """Find what loads a model: timm or a plug-in for its ``prefix:``, timm for its folders, open_clip otherwise."""
    prefix, colon, _ = model.partition(":")
    plugins = _plugins("clipspect.backbones")
    loader: BackboneLoader
    folder = Path(model)
    if (folder / "config.json").is_file() and not (folder / "open_clip_config.json").is_file():
        prefix, colon = "timm", ":"  # a folder in timm's format
    if colon and prefix in BUILT_IN_BACKBONES:
        module, _, attribute = BUILT_IN_BACKBONES[prefix].partition(":")
        loader = getattr(import_module(module), attribute)
        return loader
    if colon and prefix in plugins:
        loader = plugins[prefix].load()
        return loader
    from clipspect.backbones.openclip.backbone import load_openclip

    return load_openclip


def _parse(what: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"{what} is true or false, not {text!r}")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError as error:
            raise UsageError(f"{what} is a {'whole ' if kind is int else ''}number, not {text!r}") from error
    return text

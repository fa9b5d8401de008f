"""The registry of methods. Names are data here, so that listing them loads nothing heavy."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from clipspect.errors import UsageError

if TYPE_CHECKING:
    from clipspect.methods.base import Method

METHODS: dict[str, tuple[str, str]] = {
    "anoclip": ("anoclip:AnoCLIP", "text only, one photo at a time, no training (AnoCLIP)"),
    "anoclip+": (
        "anoclip_plus:AnoCLIPPlus",
        "anoclip, refined for a few steps on each photo by itself (AnoCLIP+)",
    ),
    "dual-image": (
        "dual_image:DualImage",
        "text and another photo of the set as reference (Dual-Image Enhanced CLIP)",
    ),
    "dual-image+": (
        "dual_image_plus:DualImagePlus",
        "dual-image, refined on each photo and corrupted copies of it (Dual-Image+)",
    ),
    "mutual": ("mutual:Mutual", "text and all other photos of the set as references"),
    "clip": ("clip:CLIP", "the image embedding against two anchors: the baseline (CLIP-AC)"),
    "winclip": ("winclip:WinCLIP", "text only, windows at several scales; slow (WinCLIP)"),
    "winclip+": ("winclip:WinCLIPPlus", "the same with a few normal reference photos (WinCLIP+)"),
}
"""name → (module:class below ``clipspect.methods``, one line for people)."""

DEFAULT_METHOD = "anoclip"


def method_class(name: str) -> type[Method]:
    """The class of a method by its name; UsageError lists the names there are."""
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}; there are: {', '.join(METHODS)}")
    module, _, attribute = METHODS[name][0].partition(":")
    found: type[Method] = getattr(import_module(f"{__name__}.{module}"), attribute)
    return found


def make_method(name: str, settings: dict[str, Any] | None = None) -> Method:
    """A method with its settings.

    Args:
        name: one of :data:`METHODS`.
        settings: field → value; strings are read as the field's type, as from a command line.

    Raises:
        UsageError: an unknown method or setting, or a value that is not of its type.
    """
    found = method_class(name)
    known = {f.name: type(f.default) for f in fields(found)}
    values: dict[str, Any] = {}
    for key, value in (settings or {}).items():
        if key not in known:
            raise UsageError(f"{name} has no setting {key!r}; it has: {', '.join(known) or 'none'}")
        values[key] = _parse(f"{name}'s {key}", value, known[key]) if isinstance(value, str) else value
    return found(**values)


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

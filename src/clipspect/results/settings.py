"""Settings of a run in words, for reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from clipspect.backbones.presets import PRESETS

WORDS = {
    "object": "Object",
    "source": "Images",
    "model": "Model",
    "weights": "Weights",
    "visual_model": "Second model, for comparing images",
    "precision": "Precision of the encoder",
    "image_size": "Input side, pixels",
    "aspect": "Aspect ratio",
    "interpolation": "Interpolation when resizing",
    "tile": "Tile side, pixels",
    "max_pixels": "Largest image allowed, pixels",
    "bit_depth": "Bit depth of images",
    "window": "Values of black and white",
    "set_size": "Maximum number of images that serve as each other's references",
    "domain": "Prompt domain",
    "prompts": "Digest of the prompts",
    "references": "Digest of the references",
    "good": "Digest of the known-good images",
    "set": "Digest of the images of the set",
    "fingerprint": "Digest of the weights",
    "clipspect": "clipspect version",
}
"""Name of a setting of a run to its words, in the order of the report."""
_VALUES = {("aspect", "squash"): "squashed to a square", ("aspect", "pad"): "kept; padded to a square"}
_DIGEST = 12
"""Characters of a digest that are shown."""


def settings_in_words(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (words, value) of a run's settings that are set: those of the run, then those of each method."""
    named = sorted(
        (name for name in settings if name != "methods"),
        key=lambda name: (list(WORDS).index(name) if name in WORDS else len(WORDS), name),
    )
    pairs = [
        (WORDS.get(name, _plain(name)), _value(name, settings[name]))
        for name in named
        if settings[name] not in (None, [], {})
    ]
    methods = settings.get("methods", {})
    pairs.insert(1 if pairs and pairs[0][0] == WORDS["object"] else 0, ("Method", ", ".join(methods)))
    for method, own in methods.items():
        pairs += [(f"{method}: {words}", value) for words, value in _method_pairs(own)]
    return pairs


def model_notes(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (words, value) of what users should know about a run's model."""
    preset = PRESETS.get(str(settings.get("model")))
    return [] if preset is None or not preset.object_note else [("About the model", preset.object_note)]


def _method_pairs(own: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in (own or {}).items():
        if isinstance(value, Mapping):
            yield from _method_pairs(value, f"{prefix}{_plain(name).lower()}, ")
        elif value not in (None, "", [], {}):
            yield prefix + _plain(name).lower(), _value(name, value)


def _plain(name: str) -> str:
    text = name.replace("_", " ").replace(".", " ")
    return text[:1].upper() + text[1:]


def _value(name: str, value: Any) -> str:
    if (name, value) in _VALUES if isinstance(value, str) else False:
        return _VALUES[name, value]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, int) and value >= 10_000:
        return f"{value:,}"
    text = str(value)
    is_digest = len(text) >= 2 * _DIGEST and all(c in "0123456789abcdef" for c in text)
    return text[:_DIGEST] + "…" if is_digest else text

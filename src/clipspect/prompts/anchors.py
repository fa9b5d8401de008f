"""Text anchors: the two text embeddings that images are compared with, cached per (backbone, sentences)."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F

KEPT_FILES = 512
"""Maximum number of entries of the disk cache; the oldest are deleted."""


@dataclass(frozen=True)
class TextAnchors:
    """Text embeddings of one object. P normal and Q abnormal sentences."""

    pair: Tensor
    """(2, D) unit anchors, normal then abnormal: mean of raw embeddings, then normalized (docs/methods.md §2)."""
    bank_normal: Tensor
    """(P, D) unit embeddings of the single normal sentences."""
    bank_abnormal: Tensor
    """(Q, D) unit embeddings of the single abnormal sentences."""

    @property
    def bank(self) -> Tensor:
        """Return (P+Q, D) all sentence embeddings, normal first: the fixed bank of AnoCLIP+ (docs/methods.md §4)."""
        return torch.cat([self.bank_normal, self.bank_abnormal])


class TextEncoder(Protocol):
    """Backbone interface that text anchors need."""

    @property
    def fingerprint(self) -> str:
        """Return an identifier of weights and precision."""
        ...

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """Return (P, D) raw embeddings."""
        ...

    @property
    def device(self) -> torch.device:
        """Return the device of the anchors."""
        ...


def make_anchors(normal: Tensor, abnormal: Tensor) -> TextAnchors:
    """Return anchors from raw sentence embeddings (P, D) and (Q, D), in the official order: average, then normalize."""
    pair = torch.stack([normal.mean(0), abnormal.mean(0)])
    return TextAnchors(F.normalize(pair, dim=-1), F.normalize(normal, dim=-1), F.normalize(abnormal, dim=-1))


def encode_anchors(encoder: TextEncoder, normal: list[str], abnormal: list[str]) -> TextAnchors:
    """Return anchors for two lists of sentences, from the disk cache if present.

    The cache key is a hash of the backbone's fingerprint and of every sentence. A damaged entry is computed again.
    Cache writes are best-effort.
    """
    key = hashlib.sha256(json.dumps([1, encoder.fingerprint, normal, abnormal]).encode()).hexdigest()
    path = cache_folder() / "anchors" / f"{key}.safetensors"
    try:
        stored = load(path.read_bytes())
        return make_anchors(stored["normal"].to(encoder.device), stored["abnormal"].to(encoder.device))
    except (OSError, SafetensorError, KeyError):
        pass
    raw = encoder.encode_text([*normal, *abnormal])
    sides = {"normal": raw[: len(normal)].cpu(), "abnormal": raw[len(normal) :].cpu()}
    _write(path, save({name: side.contiguous() for name, side in sides.items()}))
    return make_anchors(raw[: len(normal)], raw[len(normal) :])


def cache_folder() -> Path:
    """Return the cache: ``$CLIPSPECT_CACHE``, else the user's cache folder of the system (``~/.cache/clipspect``)."""
    own = os.environ.get("CLIPSPECT_CACHE")
    return Path(own) if own else user_cache_path("clipspect", appauthor=False)


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as temporary:
            temporary.write(data)
        Path(temporary.name).replace(path)
        entries = sorted(path.parent.glob("*.safetensors"), key=lambda entry: entry.stat().st_mtime)
        for entry in entries[:-KEPT_FILES]:
            entry.unlink(missing_ok=True)
    except OSError:
        return

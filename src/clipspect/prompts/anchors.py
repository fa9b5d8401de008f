"""Text anchors: the two directions an image is compared with, made once per (backbone, sentences) and cached."""

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
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F

KEPT_FILES = 512
"""Most entries of the disk cache; beyond it the oldest go."""


@dataclass(frozen=True)
class TextAnchors:
    """What the sentences of one object become. P normal and Q abnormal sentences."""

    pair: Tensor
    """(2, D) unit anchors, normal then abnormal: mean of raw embeddings, then normalized (docs/methods.md §2)."""
    bank_normal: Tensor
    """(P, D) unit embeddings of the single normal sentences."""
    bank_abnormal: Tensor
    """(Q, D) unit embeddings of the single abnormal sentences."""

    @property
    def bank(self) -> Tensor:
        """(P+Q, D) all single sentences, normal first: the fixed bank of AnoCLIP+ (docs/methods.md §4)."""
        return torch.cat([self.bank_normal, self.bank_abnormal])


class TextEncoder(Protocol):
    """The part of a backbone the anchors need."""

    @property
    def fingerprint(self) -> str:
        """Tells weights and precision apart."""
        ...

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """(P, D) raw embeddings."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the anchors are wanted."""
        ...


def make_anchors(normal: Tensor, abnormal: Tensor) -> TextAnchors:
    """Anchors of raw sentence embeddings (P, D) and (Q, D), in the official order: average, then normalise."""
    pair = torch.stack([normal.mean(0), abnormal.mean(0)])
    return TextAnchors(F.normalize(pair, dim=-1), F.normalize(normal, dim=-1), F.normalize(abnormal, dim=-1))


def encode_anchors(encoder: TextEncoder, normal: list[str], abnormal: list[str]) -> TextAnchors:
    """Anchors for two lists of sentences, from the disk cache where they have been made before.

    The cache's key is a hash of the backbone's fingerprint and of every sentence; a damaged entry is made anew, and a
    cache that cannot be written costs time, never a run.
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
    """Where anchors are kept: ``$CLIPSPECT_CACHE``, else ``$XDG_CACHE_HOME/clipspect``, else ``~/.cache/clipspect``."""
    own = os.environ.get("CLIPSPECT_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "clipspect"


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

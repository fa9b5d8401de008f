"""Learned prompts: text anchors from published checkpoints instead of sentences.

This module reads the prompt checkpoints of AnomalyCLIP (Zhou et al., ICLR 2024, arXiv 2310.18961; official code
zqhang/AnomalyCLIP). Anchors of another kind are a further :class:`AnchorSource` class.
"""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from clipspect.errors import UsageError, WeightsError
from clipspect.prompts.anchors import TextAnchors, make_anchors


@dataclass(frozen=True)
class LearnedPrompts:
    """P prompts as inputs of a CLIP text tower, in place of token ids."""

    embeddings: Tensor
    """(P, L, C) token embeddings, before positions are added."""
    ends: Tensor
    """(P,) positions of the end-of-text token, whose output is the embedding."""
    deep: tuple[Tensor, ...]
    """Per block from the second on, (T, C) learned tokens that replace those after the start token."""


class PromptEncoder(Protocol):
    """Backbone interface that learned prompts need."""

    def encode_prompts(self, prompts: LearnedPrompts) -> Tensor:
        """Return (P, D) raw embeddings."""
        ...


class AnchorSource(Protocol):
    """Where a method's text anchors come from, if not from sentences."""

    @property
    def digest(self) -> str:
        """Return a hash of what the anchors are made of."""
        ...

    def anchors(self, encoder: PromptEncoder, object_name: str) -> TextAnchors:
        """Return the anchors of an object. Learned prompts that name no object ignore ``object_name``."""
        ...


@dataclass(frozen=True)
class AnomalyCLIPAnchors:
    """Anchors from a prompt checkpoint of AnomalyCLIP; the prompts name no object."""

    path: Path

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the file. Raises WeightsError if it cannot be read."""
        try:
            return hashlib.sha256(self.path.read_bytes()).hexdigest()
        except OSError as error:
            raise WeightsError(f"{self.path}: {error.strerror or error}") from error

    @cached_property
    def prompts(self) -> LearnedPrompts:
        """The prompts of the file: normal, then abnormal."""
        return read_anomalyclip(self.path)

    def anchors(self, encoder: PromptEncoder, object_name: str) -> TextAnchors:
        """Return the anchors, the same for every object."""
        raw = encoder.encode_prompts(self.prompts)
        half = len(raw) // 2
        return make_anchors(raw[:half], raw[half:])


def read_anomalyclip(path: Path) -> LearnedPrompts:
    """Read a prompt checkpoint of AnomalyCLIP, tensors only (``weights_only``).

    Args:
        path: of a ``.pth`` file with the official ``prompt_learner``: context vectors, the embeddings around them,
            token ids, and deep prompts.

    Raises:
        WeightsError: no such file, a damaged one, or another kind of checkpoint.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such prompt checkpoint")
    try:
        stored: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} cannot be read as a prompt checkpoint: {first}") from error
    state = stored.get("prompt_learner") if isinstance(stored, dict) else None
    if not isinstance(state, dict):
        raise WeightsError(f"{path} is not a prompt checkpoint of AnomalyCLIP: it has no 'prompt_learner'")
    try:
        sides = [_side(state, side) for side in ("pos", "neg")]
        deep: list[Tensor] = []
        while f"compound_prompts_text.{len(deep)}" in state:
            # The official code casts these to half precision, whatever the precision of the tower.
            deep.append(state[f"compound_prompts_text.{len(deep)}"].half().float())
        embeddings = torch.cat([embedded for embedded, _ in sides])
        width, length = embeddings.shape[2], embeddings.shape[1]
        if any(tokens.dim() != 2 or tokens.shape[1] != width or len(tokens) >= length for tokens in deep):
            raise ValueError("deep prompts of another width or length")
        return LearnedPrompts(embeddings, torch.cat([ends for _, ends in sides]), tuple(deep))
    except (KeyError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise WeightsError(f"{path} is not a whole prompt checkpoint of AnomalyCLIP: {error}") from error


def _side(state: dict[str, Tensor], side: str) -> tuple[Tensor, Tensor]:
    """(P, L, C) embeddings and (P,) ends of one side's prompts."""
    prefix, context, suffix = (state[f"{name}_{side}"] for name in ("token_prefix", "ctx", "token_suffix"))
    embeddings = torch.cat([prefix, context, suffix], dim=2).flatten(0, 1).float()
    tokens = state[f"tokenized_prompts_{side}"].flatten(0, 1)
    if tokens.shape != embeddings.shape[:2]:
        raise ValueError(f"{tuple(tokens.shape)} tokens for embeddings of {tuple(embeddings.shape)}")
    return embeddings, tokens.argmax(1)  # the end-of-text token has the highest id


def check_width(prompts: LearnedPrompts, width: int, context: int, blocks: int, name: str) -> None:
    """Raise UsageError for prompts that a text tower of this width, context and number of blocks cannot read."""
    length, own = prompts.embeddings.shape[1:]
    if (own, length) != (width, context) or len(prompts.deep) >= blocks:
        raise UsageError(
            f"the learned prompts are for a text tower of width {own} and {length} tokens, {name} has width {width} and"
            f" {context}; AnomalyCLIP's checkpoints are for ViT-L-14-336"
        )

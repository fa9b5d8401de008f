"""Backbone: what turns image tensors into Features and, where it has a text tower, sentences into embeddings."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from clipspect.backbones.cpu.batch_parallel import parallel_map
from clipspect.backbones.features import FeatureRequest, Features
from clipspect.backbones.hub import WeightsFile
from clipspect.backbones.levels import level_cache, read_levels
from clipspect.errors import UsageError
from clipspect.postprocess.calibration import Calibration
from clipspect.prompts.learned import LearnedPrompts
from clipspect.types import Precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Floating-point precision → dtype."""
RANDOM = "random"
"""How the label of random weights starts: a control, never a result."""


class Backbone(ABC):
    """A vision tower, perhaps with a text tower. Never trained or changed.

    A subclass sets the attributes below and implements :attr:`network` and :meth:`features`; one with a text tower
    also :meth:`encode_text`.
    """

    name: str
    """As users type it."""
    weights: str
    """Label of the weights, for people."""
    device: torch.device
    precision: Precision
    image_size: int
    """Input side in pixels, a multiple of :attr:`patch`."""
    patch: int
    """Side of a patch in input pixels."""
    depth: int
    """Number of blocks; blocks are numbered 1…depth."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Normalization of inputs in [0, 1], per channel."""
    has_text: bool = False
    """Whether :meth:`encode_text` works."""
    supports_int8: bool = False
    """Whether :meth:`with_precision` offers int8."""
    weights_file: WeightsFile | None = None
    """Source and SHA-256 of pretrained weights; None for random weights and for a user's own files."""
    level_file: Path | None = None
    """Levels that ship with the weights."""
    _fingerprint: str | None = None

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The module that holds all weights."""

    @abstractmethod
    def features(self, images: Tensor, request: FeatureRequest) -> Features:
        """Encode images as a plain function of tensors, which can be traced.

        Args:
            images: (B, 3, S, T) float32, normalized, on :attr:`device`; sides multiples of the patch.
            request: what methods need, resolved to block numbers (:meth:`FeatureRequest.resolved`).

        Raises:
            UsageError: something this backbone cannot give.
        """

    def resolve(self, request: FeatureRequest) -> FeatureRequest:
        """Return a request with this backbone's block numbers. Raises UsageError for a block it does not have."""
        return request.resolved(self.depth)

    def check(self, request: FeatureRequest) -> None:
        """Raise UsageError for a request that this backbone cannot serve, before anything is encoded."""
        return

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """Embed sentences.

        Args:
            sentences: P sentences.

        Returns:
            (P, D) float32, not normalized.

        Raises:
            UsageError: there is no text tower, or a sentence is too long for it.
        """
        raise UsageError(f"{self.name} has no text tower")

    def encode_prompts(self, prompts: LearnedPrompts) -> Tensor:
        """Embed learned prompts.

        Args:
            prompts: P prompts of token embeddings.

        Returns:
            (P, D) float32, not normalized.

        Raises:
            UsageError: the text tower is not CLIP's, or of another size.
        """
        raise UsageError(f"{self.name} takes no learned prompts; use ViT-L-14-336")

    def with_precision(self, precision: Precision) -> Self:
        """Return a copy whose matmuls run in another precision.

        Raises:
            UsageError: the backbone has float32 only, or its weights are not float32.
        """
        if precision == self.precision:
            return self
        raise UsageError(f"{self.name} runs in {self.precision} only")

    def to(self, device: str | torch.device) -> None:
        """Move to another device."""
        self.device = torch.device(device)
        self.network.to(self.device)

    def encode(self, images: Tensor, request: FeatureRequest) -> Features:
        """Encode a batch once, with everything that was asked for and nothing else.

        Args:
            images: (B, 3, S, T) float32, normalized with :attr:`mean` and :attr:`std`; sides multiples of the patch.
            request: what the methods need.

        Raises:
            UsageError: a block, window or view this backbone cannot give.
        """
        resolved = self.resolve(request)

        @torch.inference_mode()
        def encode(part: Tensor) -> Features:
            return self.features(part.to(self.device), resolved)

        return Features.concat(parallel_map(encode, images, self.device))

    @cached_property
    def levels(self) -> Mapping[str, Calibration]:
        """Method → level of one image alone: shipped with the model, or measured (``clipspect models calibrate``)."""
        if self.is_random:
            return {}
        shipped = {} if self.level_file is None else read_levels(self.level_file, self.image_size)
        return shipped or read_levels(level_cache(self.fingerprint, self.image_size), self.image_size)

    @property
    def is_random(self) -> bool:
        """Whether the weights are random: a control, never a result."""
        return self.weights.startswith(RANDOM)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over precision, names, shapes and every byte of the weights: the same on every machine."""
        if self._fingerprint is None:
            digest = hashlib.sha256(self.precision.encode())
            for name, tensor in sorted(self.network.state_dict().items()):
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def check_image_size(image_size: int, patch: int, name: str) -> int:
    """Return an input side that is a multiple of the patch; UsageError names the nearest one otherwise."""
    if image_size % patch or image_size < patch:
        near = max(round(image_size / patch), 1) * patch
        raise UsageError(
            f"image size {image_size} is not a multiple of {name}'s patch of {patch} pixels; try {near}"
        )
    return image_size


def check_device(device: str) -> str:
    """Resolve "auto" and raise UsageError for a device that is not usable here."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r} is not usable here: {str(error).splitlines()[0]}") from error
    return device

"""Backbone: a timm vision transformer without text, or inside an open_clip model with its text tower."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipspect.backbones.base import DTYPES, Backbone, check_image_size
from clipspect.backbones.features import FeatureRequest, Features, resolve_start
from clipspect.backbones.timm.tower import (
    TowerTokens,
    check_trunk,
    pool_image,
    read_patches,
    run_tower,
    value_path_problem,
)
from clipspect.backbones.views import official_views
from clipspect.errors import UsageError
from clipspect.types import Precision

_SENTENCES_PER_PASS = 128


def refuse_values(name: str, problem: str) -> UsageError:
    """Make the error for V-V tokens of a tower they are not defined for."""
    return UsageError(
        f"{name} has {problem}, for which the V-V path is not defined. Ordinary tokens are possible: use anomaly-dino,"
        " subspace or musc, or mutual and dual-image with --set path=ordinary"
    )


class TimmBackbone(Backbone):
    """A timm ``VisionTransformer`` or ``Eva`` without a text tower: DINOv2, DINOv3, plain ViT and others.

    Patch tokens are those after the trunk's final norm; the image embedding is pooled as timm does.
    """

    def __init__(
        self,
        trunk: nn.Module,
        *,
        name: str,
        weights: str,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int | None = None,
        device: str = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        """Wrap a trunk made with ``dynamic_img_size``; :func:`load_timm` is the usual way.

        Raises:
            UsageError: another kind of model, or a size its patches do not divide.
        """
        check_trunk(trunk, name)
        trunk_: Any = trunk
        self.name, self.weights = name, weights
        self.device, self.precision = torch.device(device), precision
        self.depth = len(trunk_.blocks)
        self.patch = int(trunk_.patch_embed.feat_ratio())
        side = int(image_size or trunk_.patch_embed.img_size[0])
        self.image_size = check_image_size(side, self.patch, name)
        self.mean, self.std = tuple(mean), tuple(std)
        self._problem = value_path_problem(trunk)
        self._dtype = DTYPES[precision]
        self._trunk: Any = trunk.eval().requires_grad_(False).to(self.device, self._dtype)

    @property
    def network(self) -> nn.Module:
        """The trunk."""
        trunk: nn.Module = self._trunk
        return trunk

    def with_precision(self, precision: Precision) -> TimmBackbone:
        """Return a copy in bf16 or fp16. Raises UsageError for int8, or where the weights are not float32."""
        if self.precision != "fp32" or precision == "int8":
            return super().with_precision(precision)
        return TimmBackbone(
            copy.deepcopy(self._trunk),
            name=self.name,
            weights=self.weights,
            mean=self.mean,
            std=self.std,
            image_size=self.image_size,
            device=str(self.device),
            precision=precision,
        )

    def check(self, request: FeatureRequest) -> None:
        """Raise UsageError for windows, and for V-V tokens where they are not defined."""
        request = request.merged()
        if (request.value_blocks or request.value_spans) and self._problem is not None:
            raise refuse_values(self.name, self._problem)
        if request.raw_class:
            raise UsageError(f"{self.name}: anomaly-clip needs one of open_clip's own vision transformers")
        if request.windows:
            raise UsageError(
                f"{self.name}: WinCLIP's windows need one of open_clip's own vision transformers"
            )

    def features(self, images: Tensor, request: FeatureRequest) -> Features:
        """Encode images as a plain function of tensors: images on the device, the request resolved."""
        self.check(request)
        ordinary = request.ordinary_blocks | ({self.depth} if request.unprojected else set())
        tokens, grid = run_tower(
            self._trunk,
            images.to(self._dtype),
            request.value_blocks,
            ordinary,
            request.hidden_blocks,
            start_block=resolve_start(request.start_block, self.depth),
        )
        views = None
        if request.views:
            others = official_views(images)
            flat, _ = run_tower(self._trunk, others.flatten(0, 1).to(self._dtype))
            views = F.normalize(self.embed(flat).float(), dim=-1).unflatten(0, others.shape[:2])

        def to_grid(patches: Tensor) -> Tensor:
            unflattened: Tensor = patches.float().unflatten(1, grid)
            return unflattened

        return Features(
            F.normalize(self.embed(tokens).float(), dim=-1),
            grid,
            self.depth,
            {block: to_grid(self.read(t)) for block, t in tokens.value.items()},
            {block: to_grid(self.read(tokens.ordinary[block])) for block in sorted(request.ordinary_blocks)},
            views,
            {},
            to_grid(tokens.ordinary[self.depth]) if request.unprojected else None,
            hidden_patches={block: to_grid(t) for block, t in tokens.hidden.items()},
        )

    def embed(self, tokens: TowerTokens) -> Tensor:
        """(B, D) image embeddings, not normalized."""
        return pool_image(self._trunk, tokens.last)

    def read(self, patches: Tensor) -> Tensor:
        """(B, N, C) patch tokens after the final norm → (B, N, D) tokens that methods compare: the same."""
        return patches


class TimmCLIPBackbone(TimmBackbone):
    """An open_clip model whose vision tower is a timm transformer: SigLIP, SigLIP2, EVA02, PE-Core, MobileCLIP.

    Patch tokens are read through the tower's own pooling head, one token at a time, into the space of the text
    embeddings.
    """

    has_text = True

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        name: str,
        weights: str,
        image_size: int | None = None,
        device: str = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        """Wrap a model; :func:`load_backbone` is the usual way.

        Raises:
            UsageError: another kind of vision tower, or a size its patches do not divide.
        """
        visual: Any = model.visual
        check_trunk(visual.trunk, name)
        if not getattr(visual.trunk, "dynamic_img_size", False):
            visual.trunk = any_size_copy(visual.trunk)
        preprocess = getattr(visual, "preprocess_cfg", {})
        mean = preprocess.get("mean") or visual.trunk.default_cfg["mean"]
        std = preprocess.get("std") or visual.trunk.default_cfg["std"]
        super().__init__(
            visual.trunk,
            name=name,
            weights=weights,
            mean=mean,
            std=std,
            image_size=image_size or int(visual.image_size[0]),
            device=device,
            precision=precision,
        )
        self._model: Any = model.eval().requires_grad_(False).to(self.device)
        visual.head.to(self._dtype)
        self._tokenizer = tokenizer

    @property
    def network(self) -> nn.Module:
        """The open_clip model."""
        model: nn.Module = self._model
        return model

    def with_precision(self, precision: Precision) -> TimmCLIPBackbone:
        """Return a copy whose vision tower runs in bf16 or fp16; UsageError for int8."""
        if self.precision != "fp32" or precision == "int8":
            Backbone.with_precision(self, precision)
        return TimmCLIPBackbone(
            copy.deepcopy(self._model),
            self._tokenizer,
            name=self.name,
            weights=self.weights,
            image_size=self.image_size,
            device=str(self.device),
            precision=precision,
        )

    def embed(self, tokens: TowerTokens) -> Tensor:
        """(B, D) image embeddings, not normalized: open_clip's ``encode_image``."""
        embedded: Tensor = self._model.visual.head(super().embed(tokens))
        return embedded

    def read(self, patches: Tensor) -> Tensor:
        """(B, N, C) patch tokens → (B, N, D) through the pooling head, one token at a time."""
        read: Tensor = self._model.visual.head(read_patches(self._trunk, patches))
        return read

    @torch.inference_mode()
    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """(P, D) float32 text embeddings of P sentences, not normalized."""
        tokens: Tensor = self._tokenizer(list(sentences)).to(self.device)
        parts = tokens.split(_SENTENCES_PER_PASS)
        return torch.cat([self._model.encode_text(part).float() for part in parts])


def any_size_copy(trunk: Any) -> nn.Module:
    """Make a copy of a trunk that takes any image size, as if timm had built it with ``dynamic_img_size``."""
    import timm
    from timm.layers.format import Format

    copied = copy.deepcopy(trunk)
    copied.dynamic_img_size = True
    copied.patch_embed.strict_img_size = False
    copied.patch_embed.flatten = False
    copied.patch_embed.output_fmt = Format.NHWC
    if getattr(copied, "rope", None) is not None:  # timm prepares rotary embeddings for one size or for any
        name, size = trunk.default_cfg["architecture"], trunk.patch_embed.img_size
        made: Any = timm.create_model(name, img_size=size, dynamic_img_size=True)
        made.rope.load_state_dict(copied.rope.state_dict())
        copied.rope = made.rope
    any_size: nn.Module = copied.eval()
    return any_size

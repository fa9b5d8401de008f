"""OpenClipBackbone: computes Features of images and text embeddings with an open_clip model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipspect.backbones.base import DTYPES, Backbone, check_image_size
from clipspect.backbones.cpu.int8 import add_int8
from clipspect.backbones.features import FeatureRequest, Features, resolve_start
from clipspect.backbones.levels import LEVEL_FILE
from clipspect.backbones.openclip.blocks import cast_products, fast_bf16
from clipspect.backbones.openclip.plain_clip import LazyTokenizer, PlainVision
from clipspect.backbones.openclip.text_tower import encode_learned, encode_sentences, is_standard_text
from clipspect.backbones.openclip.value_attention import (
    Tokens,
    check_vit,
    encode_resnet,
    encode_vit,
    encode_windows,
)
from clipspect.backbones.presets import PRESETS
from clipspect.backbones.views import official_views
from clipspect.errors import UsageError
from clipspect.prompts.learned import LearnedPrompts, check_width
from clipspect.types import Precision

_SENTENCES_PER_PASS = 512
_OPENAI_MEAN, _OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class OpenClipBackbone(Backbone):
    """open_clip vision transformer or ModifiedResNet with its text encoder."""

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
        """Wrap a model. Most users call :func:`load_backbone` instead.

        Raises:
            UsageError: a vision encoder without a V-V path, a size that its patches do not divide, or int8 on a machine
                without int8 matmul.
        """
        visual: Any = model.visual
        self.is_vit = _is_vit(visual, name)
        if self.is_vit:
            check_vit(visual)
        self.name, self.weights = name, weights
        self.device, self.precision = torch.device(device), precision
        self.depth = len(visual.transformer.resblocks) if self.is_vit else 1
        self.patch = int(visual.patch_size[0]) if self.is_vit else 32
        own = visual.image_size
        side = int(image_size or (own if isinstance(own, int) else own[0]))
        self.image_size = check_image_size(side, self.patch, name)
        self.supports_int8 = self.is_vit
        preprocess = getattr(visual, "preprocess_cfg", {})
        mean = preprocess.get("mean") or getattr(visual, "image_mean", None)
        std = preprocess.get("std") or getattr(visual, "image_std", None)
        self.mean: tuple[float, ...] = tuple(mean or _OPENAI_MEAN)
        self.std: tuple[float, ...] = tuple(std or _OPENAI_STD)
        # Precision of the other operations: the fastest one here without further loss.
        others: Precision = "bf16" if fast_bf16() else "fp32"
        self._dtype = DTYPES[others if precision == "int8" else precision]
        towers: Any = model.eval().requires_grad_(False).to(self.device)
        if precision == "int8":
            if not self.is_vit or self.device.type != "cpu":
                raise UsageError("int8 is for vision transformers on a processor; use fp32, bf16 or fp16")
            add_int8(visual.transformer)
        if self.is_vit:
            cast_products(visual, self._dtype)
        else:
            visual.to(self._dtype)
        self._own_text = is_standard_text(towers)
        if self._own_text:  # the text encoder of another library stays in float32
            cast_products(towers.transformer, self._dtype)
        self._model = towers
        self._tokenizer = tokenizer

    def with_precision(self, precision: Precision) -> OpenClipBackbone:
        """Return a copy whose matmuls use another precision. Raises UsageError unless weights are float32."""
        if self.precision != "fp32":
            raise UsageError(
                f"weights already rounded to {self.precision} cannot serve {precision}; load fp32"
            )
        return OpenClipBackbone(
            copy.deepcopy(self._model),
            self._tokenizer,
            name=self.name,
            weights=self.weights,
            image_size=self.image_size,
            device=str(self.device),
            precision=precision,
        )

    @property
    def network(self) -> nn.Module:
        """Return the open_clip model, or a compatible one."""
        model: nn.Module = self._model
        return model

    def features(self, images: Tensor, request: FeatureRequest) -> Features:
        """Compute :meth:`encode` as a pure function, for export: images on the device, the request resolved."""
        self.check(request)
        tokens, grid = self._forward(images, request)
        views = None
        if request.views:
            others = official_views(images)
            flat, _ = self._forward(others.flatten(0, 1), FeatureRequest())
            views = F.normalize(flat.pooled.float(), dim=-1).unflatten(0, others.shape[:2])
        windows = {}
        if request.windows:
            windows = {
                size: encode_windows(self._model.visual, images, size).float()
                for size in sorted(request.windows)
            }
        return Features(
            F.normalize(tokens.pooled.float(), dim=-1),
            grid,
            self.depth,
            {block: t.float().unflatten(1, grid) for block, t in tokens.value.items()},
            {block: t.float().unflatten(1, grid) for block, t in tokens.ordinary.items()},
            views,
            windows,
            None if tokens.unprojected is None else tokens.unprojected.float().unflatten(1, grid),
            None if tokens.trunk is None else tokens.trunk.float().unflatten(1, grid),
            hidden_patches={block: t.float().unflatten(1, grid) for block, t in tokens.hidden.items()},
            raw_class=(
                F.normalize(tokens.raw_class.float(), dim=-1)
                if request.raw_class and tokens.raw_class is not None
                else None
            ),
        )

    def _forward(self, images: Tensor, request: FeatureRequest) -> tuple[Tokens, tuple[int, int]]:
        visual = self._model.visual
        if self.is_vit:
            return encode_vit(
                visual,
                images,
                request.value_blocks,
                request.ordinary_blocks,
                hidden_blocks=request.hidden_blocks,
                start_block=resolve_start(request.start_block, self.depth),
                unprojected=request.unprojected,
                trunk=request.trunk,
                positions=request.positions,
            )
        whole = bool(request.ordinary_blocks or request.hidden_blocks or request.unprojected)
        tokens, grid = encode_resnet(
            visual, images.to(self._dtype), value=bool(request.value_blocks), ordinary=whole
        )
        if not request.hidden_blocks and not request.unprojected:
            return tokens, grid
        # Neither a norm nor a projection follows the pool: its tokens are the hidden states too.
        hidden = tokens.ordinary if request.hidden_blocks else {}
        return replace(tokens, hidden=hidden, unprojected=tokens.ordinary[1]), grid

    def check(self, request: FeatureRequest) -> None:
        """Raise UsageError for what a ResNet cannot give."""
        if not self.is_vit:
            _refuse_resnet(self.name, request.merged())

    def tokenize(self, sentences: Sequence[str]) -> Tensor:
        """Return (P, context) token ids. Raises UsageError for a sentence longer than the context."""
        import open_clip

        tokenizer = self._tokenizer.own if isinstance(self._tokenizer, LazyTokenizer) else self._tokenizer
        tokens: Tensor = tokenizer(list(sentences))
        last = tokens[:, -1]
        if isinstance(tokenizer, open_clip.SimpleTokenizer) and bool((last == tokenizer.eot_token_id).any()):
            longest = max(sentences, key=lambda s: len(tokenizer.encode(s)))
            if len(tokenizer.encode(longest)) + 2 > tokens.shape[1]:
                raise UsageError(
                    f"the sentence {longest!r} is longer than the {tokens.shape[1]} tokens {self.name} reads;"
                    f" use a shorter object name"
                )
        return tokens

    @torch.inference_mode()
    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """Return (P, D) float32 text embeddings of P sentences, not normalized; in batches, without gradients."""
        tokens = self.tokenize(sentences).to(self.device)
        encode = partial(encode_sentences, self._model) if self._own_text else self._model.encode_text
        return torch.cat([encode(part).float() for part in tokens.split(_SENTENCES_PER_PASS)])

    @torch.inference_mode()
    def encode_prompts(self, prompts: LearnedPrompts) -> Tensor:
        """Return (P, D) float32 embeddings of learned prompts, not normalized."""
        if not self._own_text:
            return super().encode_prompts(prompts)
        context, width = self._model.positional_embedding.shape
        check_width(prompts, width, context, len(self._model.transformer.resblocks), self.name)
        moved = LearnedPrompts(
            prompts.embeddings.to(self.device),
            prompts.ends.to(self.device),
            tuple(tokens.to(self.device) for tokens in prompts.deep),
        )
        return encode_learned(self._model, moved).float()


def _is_vit(visual: nn.Module, name: str) -> bool:
    """Return whether a vision encoder is a ViT, not a ModifiedResNet. Raises UsageError for other types."""
    if isinstance(visual, PlainVision):
        return True
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer

    if not isinstance(visual, VisionTransformer | ModifiedResNet):
        raise UsageError(f"{name}: a {type(visual).__name__} has no V-V path; use a ViT or a ModifiedResNet")
    return isinstance(visual, VisionTransformer)


def load_openclip(
    model: str, weights: str | None, *, image_size: int | None, device: str, seed: int
) -> Backbone:
    """Load a preset, an open_clip architecture, "hf-hub:org/name", a folder or a checkpoint file."""
    from clipspect.backbones.openclip.checkpoints import build_model

    loaded = build_model(model, weights, seed)
    built: Any = loaded.network
    tokenizer, label = loaded.tokenizer, loaded.label
    if type(built.visual).__name__ == "TimmModel":
        from clipspect.backbones.timm.backbone import TimmCLIPBackbone

        timm_backbone = TimmCLIPBackbone(
            built, tokenizer, name=model, weights=label, image_size=image_size, device=device
        )
        timm_backbone.weights_file = loaded.file
        return timm_backbone
    backbone = OpenClipBackbone(
        built, tokenizer, name=model, weights=label, image_size=image_size, device=device
    )
    backbone.weights_file = loaded.file
    folder = Path(PRESETS[model].architecture if model in PRESETS else model)
    if weights is None and folder.is_dir():
        backbone.level_file = folder / LEVEL_FILE
    return backbone


def _check(model: str, request: FeatureRequest, *, needs_text: bool) -> None:
    """Refuse, before weights are downloaded, a ResNet or timm tower of open_clip's that cannot serve a request."""
    name = PRESETS[model].architecture if model in PRESETS else model
    if name.startswith("hf-hub:") or Path(name).exists():
        return
    import open_clip

    vision = (open_clip.get_model_config(name.replace("/", "-")) or {}).get("vision_cfg", {})
    architecture = vision.get("timm_model_name")
    if isinstance(vision.get("layers"), list):
        _refuse_resnet(model, request)
    if architecture:
        from clipspect.backbones.timm.loader import check_architecture

        check_architecture(architecture, model, request)


def _refuse_resnet(name: str, request: FeatureRequest) -> None:
    """Raise UsageError for windows and learned prompts, which a ResNet cannot serve."""
    if request.windows:
        raise UsageError(f"WinCLIP's windows need a vision transformer; {name} is a ResNet")
    if request.raw_class or request.positions != "bicubic":
        raise UsageError(f"anomaly-clip needs a vision transformer; {name} is a ResNet")


load_openclip.check = _check  # type: ignore[attr-defined]

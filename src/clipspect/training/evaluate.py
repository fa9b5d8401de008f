"""Validation on rendered held-out kinds, the only data for model selection."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipspect.backbones.openclip.plain_clip import PlainCLIP
from clipspect.backbones.openclip.value_attention import encode_vit
from clipspect.benchmark.metrics import image_metrics, pixel_metrics
from clipspect.prompts import load_prompts
from clipspect.training.captions import CaptionSource
from clipspect.training.config import TrainingConfig
from clipspect.training.model import encode_captions, normalize
from clipspect.training.render import HELD_OUT, Canvas, Scenes, draw_in_batches

_SEED = 1_234_567
_MAP_SIDE = 64
_BATCH = 8


@cache
def held_out_scenes(size: int, count: int) -> Scenes:
    """Render fixed scenes of kinds that training never renders."""
    return draw_in_batches(Canvas(size, _SEED), count, HELD_OUT, 32)


@torch.inference_mode()
def text_maps(
    model: Any, pictures: Tensor, nouns: list[str], config: TrainingConfig
) -> tuple[Tensor, Tensor]:
    """Return AnoCLIP's text score, abnormal minus normal, unsmoothed: V-V maps (B, H, W) and image scores (B,)."""
    device = next(model.parameters()).device
    source = CaptionSource(config.model["text_cfg"]["context_length"])
    table = load_prompts()
    anchors: dict[str, Tensor] = {}
    for noun in dict.fromkeys(nouns):
        sides = table.prompt_set("anoclip").sentences(noun, table.domain("auto", noun))
        means = [encode_captions(model, source.tokenize(side).to(device)).float().mean(0) for side in sides]
        pair = F.normalize(torch.stack(means), dim=-1)
        anchors[noun] = pair[1] - pair[0]
    axis = torch.stack([anchors[noun] for noun in nouns])
    depth = len(model.visual.transformer.resblocks)
    maps, scores = [], []
    for start in range(0, len(pictures), _BATCH):
        rows = slice(start, start + _BATCH)
        tokens, grid = encode_vit(
            model.visual, normalize(pictures[rows].to(device), config), value_blocks=(depth,)
        )
        patches = F.normalize(tokens.value[depth].float(), dim=-1)
        maps.append((patches @ axis[rows, :, None])[..., 0].reshape(-1, *grid))
        scores.append((F.normalize(tokens.pooled.float(), dim=-1) * axis[rows]).sum(-1))
    return torch.cat(maps).cpu(), torch.cat(scores).cpu()


def validate(model: PlainCLIP, config: TrainingConfig, size: int = 256, count: int = 48) -> dict[str, float]:
    """Return metrics of the text score on held-out scenes with a visible defect and their clean twins."""
    scenes = held_out_scenes(size, count)
    seen = (scenes.mask.flatten(1).amax(1) > 0).nonzero().flatten()
    nouns = [scenes.nouns[row] for row in seen.tolist()]
    pictures = torch.cat([scenes.defective[seen], scenes.clean[seen]])
    model.eval()
    maps, scores = text_maps(model, pictures, nouns * 2, config)
    maps = F.interpolate(maps[:, None], (_MAP_SIDE, _MAP_SIDE), mode="bilinear")[:, 0]
    mask = F.adaptive_max_pool2d(scenes.mask[seen][:, None], _MAP_SIDE)[:, 0]
    masks = torch.cat([mask, torch.zeros_like(mask)]).bool().numpy()
    labels = torch.cat([torch.ones(len(seen)), torch.zeros(len(seen))]).bool().numpy()
    pixel = pixel_metrics(list(masks), list(maps.numpy()))
    image = image_metrics(labels, scores.numpy())
    top = image_metrics(labels, maps.flatten(1).amax(1).numpy())
    return {
        "pixel_auroc": pixel.auroc,
        "aupro": pixel.aupro,
        "image_auroc": image.auroc,
        "map_maximum_image_auroc": top.auroc,
        "twin_order": float((scores[: len(seen)] > scores[len(seen) :]).float().mean()),
    }

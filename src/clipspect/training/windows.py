"""Windows cut from stored scenes, and their augmentation: what one training step looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clipspect.training.render import DEFECTS
from clipspect.training.scene_store import Shard

_OVER_DEFECT = 0.8
"""Share of windows that hold some of the defect, where there is one."""
_HALVED = 0.25
"""Share of steps whose windows are cut twice as large and halved: finer pictures of larger things."""
_KINDS = list(DEFECTS)


@dataclass(frozen=True)
class WindowBatch:
    """B windows of defective pictures and their clean twins."""

    defective: Tensor
    """(B, 3, S, S) in [0, 1]."""
    clean: Tensor
    """(B, 3, S, S) in [0, 1]."""
    mask: Tensor
    """(B, S, S) in [0, 1]."""
    nouns: list[str]
    kinds: Tensor
    """(B,) index of the defect's kind in ``DEFECTS``."""


def draw_windows(shards: Sequence[Shard], count: int, side: int, generator: torch.Generator) -> WindowBatch:
    """Cut ``count`` windows of ``side`` pixels at random places of random scenes and augment them."""
    scene_side = shards[0].mask.shape[-1]
    halved = 2 * side <= scene_side and float(torch.rand(1, generator=generator)) < _HALVED
    cut = 2 * side if halved else side
    pictures, masks, nouns, kinds = [], [], [], []
    for _window in range(count):
        shard = shards[int(torch.randint(0, len(shards), (1,), generator=generator))]
        row = int(torch.randint(0, len(shard.mask), (1,), generator=generator))
        top, left = _corner(shard.mask[row], cut, generator)
        place = (row, ..., slice(top, top + cut), slice(left, left + cut))
        pictures.append(torch.stack([shard.defective[place], shard.clean[place]]))
        masks.append(shard.mask[place])
        nouns.append(shard.nouns[row])
        kinds.append(_KINDS.index(shard.defects[row]))
    picture = torch.stack(pictures).float() / 255  # (B, 2, 3, cut, cut)
    mask = torch.stack(masks).float()  # (B, cut, cut)
    if halved:
        picture = F.avg_pool2d(picture.flatten(0, 1), 2).view(count, 2, 3, side, side)
        mask = F.avg_pool2d(mask[:, None], 2)[:, 0]
    picture, mask = _augment(picture, mask, generator)
    return WindowBatch(picture[:, 0], picture[:, 1], mask, nouns, torch.tensor(kinds, device=picture.device))


def _corner(mask: Tensor, cut: int, generator: torch.Generator) -> tuple[int, int]:
    """Top and left of a window, mostly one that holds a pixel of the mask."""
    room = mask.shape[-1] - cut
    corner = torch.randint(0, room + 1, (2,), generator=generator)
    over = float(torch.rand(1, generator=generator)) < _OVER_DEFECT
    if over and room:
        points = mask.nonzero()
        if len(points):
            point = points[int(torch.randint(0, len(points), (1,), generator=generator))]
            offset = torch.randint(0, cut, (2,), generator=generator)
            corner = (point - offset).clamp(0, room)
    return int(corner[0]), int(corner[1])


def _augment(picture: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flips, quarter turns, channel order, grey, inversion, gamma: the same for both pictures of a window."""

    def chance(probability: float) -> Tensor:
        return torch.rand(len(picture), generator=generator) < probability

    for dimension in (-1, -2):
        rows = chance(0.5)
        picture[rows] = picture[rows].flip(dimension)
        mask[rows] = mask[rows].flip(dimension)
    rows = chance(0.5)
    picture[rows], mask[rows] = picture[rows].transpose(-1, -2), mask[rows].transpose(-1, -2)
    order = torch.rand(len(picture), 3, generator=generator).argsort(1).to(picture.device)
    picture = picture.gather(2, order[:, None, :, None, None].expand_as(picture))
    rows = chance(0.3)
    picture[rows] = picture[rows].mean(2, keepdim=True).expand(-1, -1, 3, -1, -1)
    rows = chance(0.2)
    picture[rows] = 1 - picture[rows]
    gamma = torch.exp(0.25 * torch.randn(len(picture), generator=generator)).view(-1, 1, 1, 1, 1)
    return picture.clamp_min(1e-4) ** gamma.to(picture.device), mask

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
_SHRUNK = (((2, 2), 0.2), ((2, 1), 0.08), ((1, 2), 0.08))
"""How many times larger (down, across) a step's windows are cut and then shrunk, on what share of the steps: finer
pictures of larger things, and pictures squashed to a square."""
_JITTER = 8
"""A clean twin is cut up to this many pixels beside its defective one: references are never aligned to the pixel."""
_EXPOSURE = 0.04
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
    shrink = _shrink(shards[0].mask.shape[-1] // side, generator)
    height, width = side * shrink[0], side * shrink[1]
    pictures, masks, nouns, kinds = [], [], [], []
    for _window in range(count):
        shard = shards[int(torch.randint(0, len(shards), (1,), generator=generator))]
        row = int(torch.randint(0, len(shard.mask), (1,), generator=generator))
        top, left = _corner(shard.mask[row], height, width, generator)
        room = torch.tensor(shard.mask.shape[-2:]) - torch.tensor((height, width))
        jitter = torch.randint(-_JITTER, _JITTER + 1, (2,), generator=generator)
        beside = (torch.tensor((top, left)) + jitter).clamp_min(0).minimum(room)
        own, twin = (
            (row, ..., slice(y, y + height), slice(x, x + width))
            for y, x in ((top, left), (int(beside[0]), int(beside[1])))
        )
        pictures.append(torch.stack([shard.defective[own], shard.clean[twin]]))
        masks.append(shard.mask[own])
        nouns.append(shard.nouns[row])
        kinds.append(_KINDS.index(shard.defects[row]))
    picture = torch.stack(pictures).float() / 255  # (B, 2, 3, height, width)
    mask = torch.stack(masks).float()  # (B, height, width)
    if shrink != (1, 1):
        picture = F.avg_pool2d(picture.flatten(0, 1), shrink).view(count, 2, 3, side, side)
        mask = F.avg_pool2d(mask[:, None], shrink)[:, 0]
    picture, mask = _augment(picture, mask, generator)
    return WindowBatch(picture[:, 0], picture[:, 1], mask, nouns, torch.tensor(kinds, device=picture.device))


def _shrink(room: int, generator: torch.Generator) -> tuple[int, int]:
    """How many times larger (down, across) to cut; ``room`` is how many windows fit side by side."""
    drawn = float(torch.rand(1, generator=generator))
    for shrink, share in _SHRUNK:
        if drawn < share:
            return shrink if room >= 2 else (1, 1)
        drawn -= share
    return 1, 1


def _corner(mask: Tensor, height: int, width: int, generator: torch.Generator) -> tuple[int, int]:
    """Top and left of a window, mostly one that holds a pixel of the mask."""
    drawn = torch.rand(5, generator=generator)
    room = torch.tensor(mask.shape[-2:]) - torch.tensor((height, width))
    corner = (drawn[:2] * (room + 1)).long()
    if float(drawn[2]) < _OVER_DEFECT and room.any():
        points = mask.nonzero()
        if len(points):
            point = points[int(torch.randint(0, len(points), (1,), generator=generator))].cpu()
            offset = (drawn[3:] * torch.tensor((height, width))).long()
            corner = (point - offset).clamp_min(0).minimum(room)
    return int(corner[0]), int(corner[1])


def _augment(picture: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flips, quarter turns, channel order, grey, inversion, gamma: the same for both pictures of a window, which
    differ in exposure alone, as two images do.
    """

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
    picture = picture.clamp_min(1e-4) ** gamma.to(picture.device)
    exposure = torch.exp(_EXPOSURE * torch.randn(len(picture), 2, 1, 1, 1, generator=generator))
    return (picture * exposure.to(picture.device)).clamp_max(1), mask

"""Scenes rendered once, kept as shards on disk, read as memory-mapped uint8 tensors."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipspect.errors import UsageError
from clipspect.training.config import SceneSet
from clipspect.training.render import TRAINING, Canvas, draw_scenes

_BATCH = 32


@dataclass(frozen=True)
class Shard:
    """Scenes of one size: uint8 pictures (N, 3, S, S), uint8 masks (N, S, S) of 0 and 1, nouns, kinds."""

    clean: Tensor
    defective: Tensor
    mask: Tensor
    nouns: Sequence[str]
    defects: Sequence[str]


def _path(folder: Path, size: int, number: int) -> Path:
    return folder / f"scenes-{size}-{number:04d}.pt"


def render_shard(size: int, scenes: int, seed: int) -> dict[str, Any]:
    """Draw one shard of training scenes: the same seed gives the same bytes."""
    canvas = Canvas(size, seed)
    batches = [draw_scenes(canvas, min(_BATCH, scenes - done), TRAINING) for done in range(0, scenes, _BATCH)]
    return {
        "clean": torch.cat([(b.clean * 255).round().byte() for b in batches]),
        "defective": torch.cat([(b.defective * 255).round().byte() for b in batches]),
        "mask": torch.cat([b.mask.byte() for b in batches]),
        "nouns": [noun for b in batches for noun in b.nouns],
        "defects": [kind for b in batches for kind in b.defects],
    }


def _write_shard(task: tuple[Path, int, int, int]) -> None:
    path, size, scenes, seed = task
    torch.set_num_threads(1)
    part = path.with_suffix(".part")
    torch.save(render_shard(size, scenes, seed), part)
    part.rename(path)


def render_store(folder: Path, sets: Sequence[SceneSet], seed: int, processes: int = 2) -> None:
    """Render whatever shards are still missing, one process a core."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [
        (_path(folder, s.size, number), s.size, s.scenes_per_shard, seed * 1_000_003 + s.size * 1009 + number)
        for s in sets
        for number in range(s.shards)
    ]
    missing = [task for task in tasks if not task[0].exists()]
    if not missing:
        return
    started, done = time.monotonic(), 0
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for _ in pool.imap_unordered(_write_shard, missing):
            done += 1
            print(
                f"rendered shard {done}/{len(missing)} after {time.monotonic() - started:.0f} s", flush=True
            )


def open_shards(folder: Path, scene_set: SceneSet) -> list[Shard]:
    """All shards of a set, memory-mapped.

    Raises:
        UsageError: a shard is missing.
    """
    shards = []
    for number in range(scene_set.shards):
        path = _path(folder, scene_set.size, number)
        if not path.exists():
            raise UsageError(f"{path} is missing: render the scenes first")
        shards.append(Shard(**torch.load(path, mmap=True, weights_only=True)))
    return shards

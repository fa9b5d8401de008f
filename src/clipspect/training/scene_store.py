"""Training scenes: shards rendered once to disk, or rendered and renewed on the training device."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipspect.errors import UsageError
from clipspect.training.config import SceneSet, TrainingConfig
from clipspect.training.render import TRAINING, Canvas, World, draw_scenes, training_world
from clipspect.training.render.materials import load_materials

_BATCH, _BATCH_ON_GPU = 32, 256


def world_of(config: TrainingConfig, device: torch.device | str = "cpu") -> World:
    """Return the world that a configuration's scenes are drawn from on a device."""
    world = training_world(config.leave_out)
    if config.materials:
        world = replace(world, materials=load_materials(Path(config.materials)).to(device))
    return world


@dataclass(frozen=True)
class Shard:
    """Scenes of one size: uint8 images (N, 3, S, S), uint8 masks (N, S, S) of 0 and 1, nouns, kinds."""

    clean: Tensor
    defective: Tensor
    mask: Tensor
    nouns: Sequence[str]
    defects: Sequence[str]


def _path(folder: Path, size: int, number: int) -> Path:
    return folder / f"scenes-{size}-{number:04d}.pt"


def render_shard(
    size: int, scenes: int, seed: int, device: torch.device | str = "cpu", world: World = TRAINING
) -> dict[str, Any]:
    """Render one shard of training scenes: the same seed gives the same bytes on one kind of device."""
    canvas = Canvas(size, seed, device)
    count = _BATCH if canvas.device.type == "cpu" else _BATCH_ON_GPU
    batches = [draw_scenes(canvas, min(count, scenes - done), world) for done in range(0, scenes, count)]
    return {
        "clean": torch.cat([(b.clean * 255).round().byte() for b in batches]),
        "defective": torch.cat([(b.defective * 255).round().byte() for b in batches]),
        "mask": torch.cat([b.mask.byte() for b in batches]),
        "nouns": [noun for b in batches for noun in b.nouns],
        "defects": [kind for b in batches for kind in b.defects],
    }


def _shard_seed(seed: int, size: int, number: int, generation: int = 0) -> int:
    return seed * 1_000_003 + size * 1009 + number + generation * 15_485_863


def _write_shard(task: tuple[Path, int, int, int, World]) -> None:
    path, size, scenes, seed, world = task
    torch.set_num_threads(1)
    part = path.with_suffix(".part")
    torch.save(render_shard(size, scenes, seed, world=world), part)
    part.rename(path)


def render_store(
    folder: Path, sets: Sequence[SceneSet], seed: int, processes: int | None = None, world: World = TRAINING
) -> None:
    """Render missing shards, with one process per available core."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [
        (
            _path(folder, s.size, number),
            s.size,
            s.scenes_per_shard,
            _shard_seed(seed, s.size, number),
            world,
        )
        for s in sets
        for number in range(s.shards)
    ]
    missing = [task for task in tasks if not task[0].exists()]
    if not missing:
        return
    started, done = time.monotonic(), 0
    with multiprocessing.get_context("spawn").Pool(processes or os.cpu_count() or 1) as pool:
        for _ in pool.imap_unordered(_write_shard, missing):
            done += 1
            print(
                f"rendered shard {done}/{len(missing)} after {time.monotonic() - started:.0f} s", flush=True
            )


def open_shards(folder: Path, scene_set: SceneSet) -> list[Shard]:
    """Return all shards of a set, memory-mapped.

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


class LiveShards:
    """Shards rendered and kept on a device; the oldest is rendered again every so many steps.

    The contents of a shard at a step depend only on the seed and the step, so resuming needs no state.
    """

    def __init__(
        self,
        sets: Sequence[SceneSet],
        seed: int,
        device: torch.device,
        refresh_steps: int,
        world: World = TRAINING,
    ) -> None:
        self._places = [(s, number) for s in sets for number in range(s.shards)]
        self._seed, self._device, self._refresh_steps = seed, device, refresh_steps
        self._world = world
        self._held: dict[int, tuple[int, Shard]] = {}
        """place → generation and shard."""

    def at(self, step: int) -> dict[int, list[Shard]]:
        """Return the shards of each size at a step; render those that are due."""
        turns = step // self._refresh_steps
        shards: dict[int, list[Shard]] = {}
        for place, (scenes, number) in enumerate(self._places):
            generation = (turns - place + len(self._places) - 1) // len(self._places)
            if self._held.get(place, (-1, None))[0] != generation:
                seed = _shard_seed(self._seed, scenes.size, number, generation)
                drawn = render_shard(scenes.size, scenes.scenes_per_shard, seed, self._device, self._world)
                self._held[place] = (generation, Shard(**drawn))
            shards.setdefault(scenes.size, []).append(self._held[place][1])
        return shards

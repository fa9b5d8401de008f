"""Procedural scenes of parts and surfaces, with and without defects: vectorized, seeded, on any device."""

from clipspect.training.render.fields import Canvas
from clipspect.training.render.large_defects import DEFECTS
from clipspect.training.render.scenes import (
    HELD_OUT,
    TRAINING,
    Scenes,
    World,
    draw_in_batches,
    draw_scenes,
    training_world,
)

__all__ = [
    "DEFECTS",
    "HELD_OUT",
    "TRAINING",
    "Canvas",
    "Scenes",
    "World",
    "draw_in_batches",
    "draw_scenes",
    "training_world",
]

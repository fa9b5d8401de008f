"""Settings of the tiny model's training, read from one TOML file."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from clipspect.errors import UsageError


@dataclass(frozen=True)
class SceneSet:
    """Rendered scenes of one size."""

    size: int
    """Side in pixels."""
    shards: int
    scenes_per_shard: int = 256


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one kind of batch."""

    until: float
    """Share of the whole training at which the phase ends; the last is 1."""
    window: int
    """Side of the windows cut from the scenes, in patches."""
    batch: int
    """Windows a step: half cut from defective pictures, half from their clean twins."""
    scene_sizes: tuple[int, ...]
    """Sizes of the scene sets the windows are cut from; each step takes one at random."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of ``losses.total_loss``, and what weighs within them."""

    dense: float = 1.0
    prototypes: float = 1.0
    beside: float = 0.25
    image: float = 0.5
    peak: float = 0.0
    pair: float = 0.5
    words: float = 0.1
    captions: float = 0.2
    comparison: float = 0.5
    largest_defect: float = math.inf
    """Patches above which the defect of a window weighs no more in the dense terms."""


@dataclass(frozen=True)
class Stage:
    """One schedule of the learning rates, from full to zero, on its own scenes; the next goes on from its weights."""

    seed: int
    steps: int
    scenes: tuple[SceneSet, ...]
    phases: tuple[Phase, ...]
    loss: LossWeights = field(default_factory=LossWeights)
    keep: float = 0.0
    """Share of the weights it began with in those it ends with: their mean with the averaged ones it trained. Halves of
    both keep what the stage would unlearn (weight-space ensembles, Wortsman et al., arXiv 2109.01903)."""

    def phase(self, progress: float) -> Phase:
        """The phase at a progress in [0, 1]."""
        return next((p for p in self.phases if progress < p.until), self.phases[-1])


@dataclass(frozen=True)
class TrainingConfig:
    """Everything the training depends on."""

    stages: tuple[Stage, ...]
    model: dict[str, Any]
    """open_clip's ``model_cfg``."""
    preprocess: dict[str, Any]
    """open_clip's ``preprocess_cfg``."""
    dense_on: str = "value"
    """Whose patch tokens the dense and the prototype terms train: "value" (V-V) or, for an ablation, "ordinary"; the
    term ``beside`` trains the others."""
    trunk_weights: str = "imagenet"
    """Weights of the trunk, where the model has one: "imagenet", "random" as a control, or "given" by the weights that
    training starts from."""
    materials: str = ""
    """Folder with images of materials that some surfaces are cut from; "" for drawn surfaces alone."""
    leave_out: str = ""
    """For ablations: a part of the renderer to do without, see ``render.training_world``."""
    learning_rate: float = 1e-3
    """AdamW's, for embeddings, norms, biases and the text tower."""
    matrix_learning_rate: float = 2e-3
    """Muon's, for the matrices of the vision blocks."""
    weight_decay: float = 0.02
    warmup_steps: int = 50
    ema_decay: float = 0.995
    checkpoint_every: int = 200
    validate_every: int = 400
    refresh_steps: int = 0
    """0: scenes are rendered once, to disk. Else they are drawn on the training device, one shard anew every so many
    steps: for devices that render faster than they would read."""

    @property
    def seed(self) -> int:
        """Of the untrained weights."""
        return self.stages[0].seed


def load_config(path: Path) -> TrainingConfig:
    """Read a training configuration.

    Raises:
        UsageError: a setting is unknown or missing.
    """
    table = tomllib.loads(path.read_text())
    known = {f.name for f in fields(TrainingConfig)}
    if unknown := sorted(set(table) - known):
        raise UsageError(f"{path}: unknown settings {unknown}; known are {sorted(known)}")
    try:
        table["stages"] = tuple(_stage(entry) for entry in table["stages"])
        return TrainingConfig(**table)
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path}: {error}") from None


def _stage(entry: dict[str, Any]) -> Stage:
    phases = tuple(Phase(**{**p, "scene_sizes": tuple(p["scene_sizes"])}) for p in entry["phases"])
    scenes, loss = tuple(SceneSet(**s) for s in entry["scenes"]), LossWeights(**entry.get("loss", {}))
    return Stage(**{**entry, "phases": phases, "scenes": scenes, "loss": loss})

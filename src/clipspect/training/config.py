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
    """Part of the training with one kind of batch."""

    until: float
    """Share of the whole training at which the phase ends; the last is 1."""
    window: int
    """Side of the windows cropped from the scenes, in patches."""
    batch: int
    """Windows per step: half cropped from defective images, half from their clean twins."""
    scene_sizes: tuple[int, ...]
    """Sizes of the scene sets for windows; each step uses a random one."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of ``losses.total_loss``, and settings within the terms."""

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
    """Number of patches that limits the weight of a window's defect in the dense terms."""


@dataclass(frozen=True)
class Stage:
    """Learning rate schedule, from full to zero, on its own scenes; the next stage starts from its weights."""

    seed: int
    steps: int
    scenes: tuple[SceneSet, ...]
    phases: tuple[Phase, ...]
    loss: LossWeights = field(default_factory=LossWeights)
    keep: float = 0.0
    """Share of the initial weights in the final ones: their mean with the averaged trained weights. A share of one half
    keeps what the stage would unlearn (weight-space ensembles, Wortsman et al., arXiv 2109.01903).
    """

    def phase(self, progress: float) -> Phase:
        """Return the phase at a progress in [0, 1]."""
        return next((p for p in self.phases if progress < p.until), self.phases[-1])


@dataclass(frozen=True)
class TrainingConfig:
    """All settings of the training."""

    stages: tuple[Stage, ...]
    model: dict[str, Any]
    """open_clip's ``model_cfg``."""
    preprocess: dict[str, Any]
    """open_clip's ``preprocess_cfg``."""
    dense_on: str = "value"
    """Patch tokens of the dense and the prototype terms: "value" (V-V) or, for an ablation, "ordinary".

    The term ``beside`` trains the others.
    """
    trunk_weights: str = "imagenet"
    """Weights of the trunk, if any: "imagenet", "random" as a control, or "given" by the initial weights."""
    materials: str = ""
    """Folder with images of materials for some surfaces; "" for rendered surfaces only."""
    leave_out: str = ""
    """For ablations: a part of the renderer to leave out, see ``render.training_world``."""
    learning_rate: float = 1e-3
    """AdamW's learning rate, for embeddings, norms, biases and the text encoder."""
    trunk_learning_rate: float = 0.0
    """AdamW's learning rate for the trunk; 0 keeps its weights."""
    matrix_learning_rate: float = 2e-3
    """Muon's learning rate, for the matrices of the vision blocks."""
    weight_decay: float = 0.02
    warmup_steps: int = 50
    ema_decay: float = 0.995
    checkpoint_every: int = 200
    validate_every: int = 400
    refresh_steps: int = 0
    """0: scenes are rendered once, to disk. Otherwise they are rendered on the training device, one new shard every so
    many steps: for devices that render faster than they read.
    """

    @property
    def seed(self) -> int:
        """Seed of the untrained weights."""
        return self.stages[0].seed


def load_config(path: Path) -> TrainingConfig:
    """Read a training configuration.

    Raises:
        UsageError: a setting is unknown or missing.
    """
    table = tomllib.loads(path.read_text(encoding="utf-8"))
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

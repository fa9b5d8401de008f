"""Train the tiny model: render missing scenes, then train on windows and captions; resumable, annealed."""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from clipspect.backbones.openclip.plain_clip import PlainCLIP
from clipspect.backbones.openclip.value_attention import encode_vit
from clipspect.training.attention import PlainAttention
from clipspect.training.captions import CaptionSource
from clipspect.training.config import TrainingConfig, load_config
from clipspect.training.evaluate import validate
from clipspect.training.losses import StepEmbeddings, patch_targets, total_loss
from clipspect.training.model import build_tiny, encode_captions, normalize, save_model
from clipspect.training.scene_store import LiveShards, Shard, open_shards, render_store, world_of
from clipspect.training.windows import WindowBatch, draw_windows

_GROUPS = 8
_CAPTIONS = 4
_LOG_EVERY = 20


@dataclass(frozen=True)
class Optimisers:
    """Muon for the matrices of the vision blocks, AdamW for the rest."""

    matrices: torch.optim.Optimizer
    rest: torch.optim.Optimizer

    def step(self, share: float) -> None:
        """Take one step at a share of the full learning rates, then clear the gradients."""
        for optimiser in (self.matrices, self.rest):
            for group in optimiser.param_groups:
                group["lr"] = share * group["full_lr"]
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)


class Trainer:
    """Trainer: the model, its average, the optimizers and the step count, all stored in checkpoints."""

    def __init__(self, config: TrainingConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        self.model = build_tiny(config).to(self.device)
        self.average = copy.deepcopy(self.model)
        generator = torch.Generator().manual_seed(config.seed)
        directions = torch.randn(2, config.model["embed_dim"], generator=generator)
        self.prototypes = nn.Parameter(F.normalize(directions, dim=-1).to(self.device))
        self.captions = CaptionSource(config.model["text_cfg"]["context_length"])
        self.optimisers = self._build_optimisers()
        self.step_number = 0
        self.stage, self.stage_steps, self.stage_seconds = 0, 0, 0.0
        self.began = self._weights()

    def start_from(self, weights: Path) -> None:
        """Load initial weights from a model folder's safetensors file."""
        state = {name: value.float() for name, value in load_file(weights).items()}
        self.model.load_state_dict(state)
        self.average.load_state_dict(state)
        self.began = self._weights()
        with torch.no_grad():  # initialize the free directions from the captions
            drawn = self.captions.draw(["part"], _GROUPS, _CAPTIONS, torch.Generator().manual_seed(0))
            sides = [encode_captions(self.model, ids.flatten(0, 1).to(self.device)).mean(0) for ids in
                     (drawn.normal, drawn.abnormal)]  # fmt: skip
            self.prototypes.copy_(F.normalize(torch.stack(sides), dim=-1))

    def _build_optimisers(self) -> Optimisers:
        config = self.config
        named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        matrices = [p for n, p in named.items() if n.startswith("visual.transformer") and p.ndim == 2]
        chosen = {id(p) for p in matrices}
        trunk = [p for n, p in named.items() if n.startswith("visual.trunk")]
        chosen |= {id(p) for p in trunk}
        rest = [p for p in named.values() if id(p) not in chosen]
        muon = torch.optim.Muon(
            matrices,
            lr=config.matrix_learning_rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        adamw = torch.optim.AdamW(
            [{"params": rest}, {"params": [self.prototypes]}],
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=0.0,
        )
        if trunk:
            adamw.add_param_group({"params": trunk, "lr": config.trunk_learning_rate})
        for optimiser in (muon, adamw):
            for group in optimiser.param_groups:
                group["full_lr"] = group["lr"]
        return Optimisers(muon, adamw)

    def train_step(
        self, windows: WindowBatch, progress: float, generator: torch.Generator
    ) -> dict[str, float]:
        """Train one step on a batch of windows at a progress in [0, 1]; return the loss terms."""
        self.model.train()
        terms = self._loss(windows, generator)
        terms["total"].backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        warm = min(1.0, (self.step_number + 1) / self.config.warmup_steps)
        self.optimisers.step(warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(50))
            keep = min(self.config.ema_decay, (1 + self.step_number) / (10 + self.step_number))
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - keep)
        self.step_number += 1
        self.stage_steps += 1
        return {name: float(term.detach()) for name, term in terms.items()}

    def _loss(self, windows: WindowBatch, generator: torch.Generator) -> dict[str, Tensor]:
        model, visual = self.model, self.model.visual
        depth, half = len(visual.transformer.resblocks), len(windows.mask)
        drawn = self.captions.draw(windows.nouns, _GROUPS, _CAPTIONS, generator)
        targets = patch_targets(windows.mask, visual.patch_size[0])
        targets = torch.cat([targets, torch.zeros_like(targets)])
        pictures = normalize(torch.cat([windows.defective, windows.clean]), self.config)
        features = self.trunk_features(pictures)
        attention = PlainAttention() if self.device.type == "cpu" else nullcontext()
        with torch.autocast(self.device.type, torch.bfloat16), attention:
            compared = range(max(depth - 1, 1), depth + 1)  # the last quarter, and at least two
            tokens, _ = encode_vit(
                visual, pictures, value_blocks=compared, ordinary_blocks=(depth,), features=features
            )
            ids = torch.cat([drawn.normal.flatten(0, 1), drawn.abnormal.flatten(0, 1), drawn.kinds])
            text = encode_captions(model, ids.to(self.device)).float()
        sides = text[: 2 * _GROUPS * _CAPTIONS].view(2, _GROUPS, _CAPTIONS, -1)
        anchors = F.normalize(sides.mean(2), dim=-1).transpose(0, 1)  # (groups, 2, D)
        pair = torch.arange(half) % _GROUPS  # twins share their anchors
        values = [F.normalize(tokens.value[block].float(), dim=-1) for block in compared]
        trained, beside = values[-1], F.normalize(tokens.ordinary[depth].float(), dim=-1)
        if self.config.dense_on == "ordinary":
            trained, beside = beside, trained
        embeddings = StepEmbeddings(
            dense=trained,
            beside=beside,
            compared=tuple(values),
            image=F.normalize(tokens.pooled.float(), dim=-1),
            anchors=anchors[torch.cat([pair, pair])],
            captions=F.normalize(sides.flatten(1, 2), dim=-1),
            kinds=F.normalize(text[2 * _GROUPS * _CAPTIONS :], dim=-1),
            prototypes=F.normalize(self.prototypes, dim=-1),
            scale=model.logit_scale.exp(),
        )
        return total_loss(embeddings, targets, windows.kinds, self.config.stages[self.stage].loss)

    def trunk_features(self, pictures: Tensor) -> Tensor | None:
        """Compute the (B, C, H, W) features of the trunk; None without one. A frozen trunk has no gradients."""
        trunk = self.model.visual.trunk
        if trunk is None:
            return None
        # CPUs have no fast depthwise convolutions in bfloat16.
        bfloat16 = torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type != "cpu")
        with torch.set_grad_enabled(self.config.trunk_learning_rate > 0), bfloat16:
            features: Tensor = trunk(pictures)
        return features

    def end_stage(self) -> None:
        """Average with the stage's initial weights as configured, and advance to the next stage."""
        keep = self.config.stages[self.stage].keep
        if keep:
            mixed = {name: value.lerp(self.began[name], keep) for name, value in self._weights().items()}
            self.model.load_state_dict(mixed)
            self.average.load_state_dict(mixed)
        self.began = self._weights()
        self.stage, self.stage_steps, self.stage_seconds = self.stage + 1, 0, 0.0

    def _weights(self) -> dict[str, Tensor]:
        """Return a copy of the averaged weights."""
        return {name: value.detach().clone() for name, value in self.average.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Return the contents of a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "began": self.began,
            "prototypes": self.prototypes.detach(),
            "matrices": self.optimisers.matrices.state_dict(),
            "rest": self.optimisers.rest.state_dict(),
            "step": self.step_number,
            "stage": self.stage,
            "stage_steps": self.stage_steps,
            "stage_seconds": self.stage_seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a checkpoint: training continues with the next step."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.began = state["began"]
        with torch.no_grad():
            self.prototypes.copy_(state["prototypes"])
        self.optimisers.matrices.load_state_dict(state["matrices"])
        self.optimisers.rest.load_state_dict(state["rest"])
        self.step_number, self.stage = state["step"], state["stage"]
        self.stage_steps, self.stage_seconds = state["stage_steps"], state["stage_seconds"]


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of one step, a function of the seed and the step only: resuming needs no generator state."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def draw_step(
    trainer: Trainer, shards: dict[int, list[Shard]], progress: float, chance: torch.Generator
) -> WindowBatch:
    """Draw the windows of the next step."""
    phase = trainer.config.stages[trainer.stage].phase(progress)
    size = phase.scene_sizes[int(torch.randint(0, len(phase.scene_sizes), (1,), generator=chance))]
    side = phase.window * trainer.model.visual.patch_size[0]
    return draw_windows(shards[size], phase.batch // 2, side, chance)


def train(trainer: Trainer, out: Path, minutes: float = math.inf) -> PlainCLIP:
    """Train through all stages and write the model folder ``out/model``; resumes from ``out/checkpoint.pt``.

    Both models, raw and averaged, are validated at the end; the better one is written.

    Args:
        trainer: a new one, or one with initial weights.
        out: folder for scenes, checkpoints, log and model.
        minutes: time limit for all stages, divided by their share of the steps; learning rates still reach zero.
    """
    checkpoint = out / "checkpoint.pt"
    out.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        trainer.restore(torch.load(checkpoint, map_location=trainer.device, weights_only=True))
        print(f"resumed at step {trainer.step_number}", flush=True)
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        while trainer.stage < len(trainer.config.stages):
            _train_stage(trainer, out, 60 * minutes, log)
            trainer.end_stage()
            _save_checkpoint(trainer, checkpoint)
    return _write_better(trainer, out)


def _train_stage(trainer: Trainer, out: Path, seconds: float, log: TextIO) -> None:
    """Train the rest of the trainer's stage. ``seconds`` are for all stages together."""
    config = trainer.config
    stage = config.stages[trainer.stage]
    seconds *= stage.steps / sum(s.steps for s in config.stages)
    shards_at = _supply(config, trainer, out)
    while True:
        progress = max(trainer.stage_steps / stage.steps, trainer.stage_seconds / seconds)
        if progress >= 1:
            return
        started = time.monotonic()
        chance = step_generator(stage.seed, trainer.step_number)
        windows = draw_step(trainer, shards_at(trainer.stage_steps), progress, chance)
        terms = trainer.train_step(windows, progress, chance)
        step = trainer.step_number
        entry: dict[str, Any] = {"step": step, "stage": trainer.stage + 1, "progress": progress, **terms}
        if step % _LOG_EVERY == 0:
            figures = " ".join(f"{k} {v:.3f}" for k, v in terms.items())
            print(f"{step:6d} {progress:6.1%} {figures}", flush=True)
        if step % config.validate_every == 0:
            entry["validation"] = validate(trainer.average, config)
            print(f"{step:6d} validation of the average: {entry['validation']}", flush=True)
            save_model(out / "steps" / f"{step:06d}", trainer.average, config)
        trainer.stage_seconds += time.monotonic() - started
        log.write(json.dumps({**entry, "seconds": trainer.stage_seconds}) + "\n")
        log.flush()
        if step % config.checkpoint_every == 0:
            _save_checkpoint(trainer, out / "checkpoint.pt")


def _supply(config: TrainingConfig, trainer: Trainer, out: Path) -> Callable[[int], dict[int, list[Shard]]]:
    """Return the function that gives the shards of a step of the trainer's stage."""
    stage = config.stages[trainer.stage]
    if config.refresh_steps:
        return LiveShards(
            stage.scenes, stage.seed, trainer.device, config.refresh_steps, world_of(config, trainer.device)
        ).at
    folder = out / f"scenes-{trainer.stage + 1}"
    render_store(folder, stage.scenes, stage.seed, world=world_of(config))
    shards = {s.size: open_shards(folder, s) for s in stage.scenes}
    return lambda step: shards


def _save_checkpoint(trainer: Trainer, path: Path) -> None:
    torch.save(trainer.state(), path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def _write_better(trainer: Trainer, out: Path) -> PlainCLIP:
    config = trainer.config
    results = {"raw": validate(trainer.model, config), "averaged": validate(trainer.average, config)}
    print(f"final validation: {results}", flush=True)
    better = max(results, key=lambda name: results[name]["pixel_auroc"] + results[name]["image_auroc"])
    model = trainer.model if better == "raw" else trainer.average
    (out / "validation.json").write_text(json.dumps({"shipped": better, **results}, indent=2))
    print(f"wrote {save_model(out / 'model', model, config)} ({better} weights)", flush=True)
    return model


def main() -> None:
    """Run the training from the command line."""
    parser = argparse.ArgumentParser(prog="python -m clipspect.training.train", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("tiny.toml"))
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for scenes, checkpoints, log and model"
    )
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="shorten the schedule, with annealing"
    )
    parser.add_argument("--start", type=Path, default=None, help="a model folder's weights to start from")
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=found, help="cpu or cuda; default: cuda if available")
    arguments = parser.parse_args()
    trainer = Trainer(load_config(arguments.config), arguments.device)
    if arguments.start is not None:
        trainer.start_from(arguments.start)
    train(trainer, arguments.out, arguments.minutes)


if __name__ == "__main__":
    main()

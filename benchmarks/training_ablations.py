"""Train variants of the tiny model side by side and compare them on rendered kinds that no training renders.

    python benchmarks/training_ablations.py --out runs/training --minutes 8 --json benchmarks/results/training.json \
        --page src/clipspect/backbones/tiny/MODEL_CARD.md

Every variant is one process on the same device and trains for the same time; learning rates reach zero at its end, so
a slower variant takes fewer steps (the table shows them). Variants that train on the same scenes share them: whichever
process needs a shard first renders it. ``--batch-share`` reduces the shipped batch sizes. The training needs the inputs
of ``make train-tiny``. On a CPU, use few variants (``--only``) and hours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file

import clipspect
import clipspect.training.evaluate as evaluation
import clipspect.training.scene_store as scene_store
import clipspect.training.train as loop
from clipspect.benchmark.provenance import provenance
from clipspect.training.config import Stage, TrainingConfig, load_config
from clipspect.training.evaluate import validate
from clipspect.training.model import build_tiny
from clipspect.training.render import HELD_OUT, Canvas, Scenes, draw_in_batches
from pages import replace_between

CONTROL, SHIPPED = "random weights, not trained", "the shipped weights"
SHIPPED_WEIGHTS = Path(clipspect.__file__).parent / "backbones" / "tiny" / "open_clip_model.safetensors"
START, END = "<!-- training ablations -->", "<!-- end of training ablations -->"
SCENES_SEED = 31
"""Seed of all variants' scenes. Weights, windows and captions depend on the variant's own seed."""
COUNT = 480
"""Held-out scenes, rendered on the device, each also without its defect."""


@dataclass(frozen=True)
class Variant:
    """Changes of the shipped training configuration."""

    seed: int = 31
    vision: Mapping[str, Any] = field(default_factory=dict)
    """Changes of ``vision_cfg``."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Changes of other settings."""

    def config(self, shipped: TrainingConfig, batch_share: float) -> TrainingConfig:
        """Return the changed configuration."""
        stages = tuple(self._stage(stage, batch_share) for stage in shipped.stages)
        model = {**shipped.model, "vision_cfg": {**shipped.model["vision_cfg"], **self.vision}}
        quiet = {"checkpoint_every": 10**9, "validate_every": 400, "stages": stages, "model": model}
        return replace(shipped, **{**quiet, **self.settings})

    def _stage(self, stage: Stage, batch_share: float) -> Stage:
        phases = tuple(replace(p, batch=max(int(p.batch * batch_share), 2)) for p in stage.phases)
        return replace(stage, seed=self.seed, phases=phases)


VARIANTS = {
    "as shipped": Variant(),
    "another seed": Variant(seed=32),
    "random trunk": Variant(settings={"trunk_weights": "random"}),
    "trunk fine-tuned": Variant(settings={"trunk_learning_rate": 5e-5}),
    "EfficientNet-Lite1": Variant(vision={"trunk": "efficientnet-lite1"}),
    "EfficientNet-Lite2": Variant(vision={"trunk": "efficientnet-lite2"}),
    "6 blocks": Variant(vision={"layers": 6}),
    "Lite2, 6 blocks, fine-tuned": Variant(
        vision={"trunk": "efficientnet-lite2", "layers": 6}, settings={"trunk_learning_rate": 5e-5}
    ),
    "no large defects": Variant(settings={"leave_out": "large defects"}),
    "no objects": Variant(settings={"leave_out": "objects"}),
}


def folder_name(name: str) -> str:
    """Return the folder of a variant."""
    return name.replace(",", "").replace(" ", "-")


def share_scenes(folder: Path, leave_out: str) -> None:
    """Let processes share rendered shards: a missing one is rendered by the first process that locks it."""
    folder.mkdir(parents=True, exist_ok=True)
    render = scene_store.render_shard

    def shared(size: int, scenes: int, seed: int, device: Any, world: Any) -> dict[str, Any]:
        path = folder / f"{leave_out.replace(' ', '-') or 'all'}-{size}-{seed}.pt"
        with FileLock(path.with_suffix(".lock")):  # released by the system if its owner dies
            if not path.exists():
                shard = render(size, scenes, seed, device, world)
                part = path.with_suffix(f".{os.getpid()}")
                torch.save({k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in shard.items()}, part)
                part.rename(path)
                return shard
        stored: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        return stored

    scene_store.render_shard = shared  # type: ignore[assignment]
    seed_of = scene_store._shard_seed
    scene_store._shard_seed = lambda _seed, *rest: seed_of(SCENES_SEED, *rest)


def held_out(device: torch.device, count: int) -> Scenes:
    """Render held-out scenes on the device."""
    return draw_in_batches(Canvas(256, 7_654_321, device), count, HELD_OUT, 64)


def train_one(name: str, out: Path, minutes: float, batch_share: float, scenes: Path) -> None:
    """Train and measure one variant; its figures go to ``out/NAME/figures.json``."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shipped = load_config(Path(loop.__file__).with_name("tiny.toml"))
    config = VARIANTS[name].config(shipped, batch_share) if name in VARIANTS else shipped
    folder = out / folder_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    if name == CONTROL:
        config, steps = replace(config, trunk_weights="random"), 0
        model = build_tiny(config).to(device)
    elif name == SHIPPED:
        steps, model = 0, build_tiny(replace(config, trunk_weights="given")).to(device)
        model.load_state_dict({k: v.float() for k, v in load_file(SHIPPED_WEIGHTS).items()})
    else:
        share_scenes(scenes, config.leave_out)
        trainer = loop.Trainer(config, device)
        model = loop.train(trainer, folder, minutes)
        steps = trainer.step_number
    pictures = held_out(device, COUNT)
    evaluation.held_out_scenes = lambda size, count: pictures  # type: ignore[assignment]
    parameters = sum(p.numel() for p in model.parameters())
    figures = {"steps": steps, "parameters": parameters, **validate(model, config, count=COUNT)}
    (folder / "figures.json").write_text(json.dumps(figures, indent=2))
    print(name, figures, flush=True)


def markdown(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return the table."""
    lines = [
        "| training | parameters | steps | pixel AUROC | AUPRO@0.3 | image AUROC, class token | map maximum |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        figures = ("pixel_auroc", "aupro", "image_auroc", "map_maximum_image_auroc")
        shown = " | ".join(f"{row[key]:.3f}" for key in figures)
        lines.append(f"| {name} | {row['parameters'] / 1e6:.1f} M | {row['steps']:,} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """Train all variants at once, measure them, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--batch-share", type=float, default=0.5)
    parser.add_argument(
        "--only", nargs="*", default=[CONTROL, SHIPPED, *VARIANTS], help="variants, default all"
    )
    parser.add_argument("--scenes", type=Path, help="folder for shared scenes, default OUT/scenes")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="page whose table between the markers is replaced")
    arguments = parser.parse_args()
    scenes = arguments.scenes or arguments.out / "scenes"
    if arguments.one:
        train_one(arguments.one, arguments.out, arguments.minutes, arguments.batch_share, scenes)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    shared = ["--out", str(arguments.out), "--minutes", str(arguments.minutes), "--scenes", str(scenes)]
    shared += ["--batch-share", str(arguments.batch_share)]
    running = {}
    for name in arguments.only:
        log = (arguments.out / f"{folder_name(name)}.log").open("w")
        command = [sys.executable, __file__, "--one", name, *shared]
        running[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    failed = [name for name, process in running.items() if process.wait() != 0]
    if failed:
        raise SystemExit(f"failed: {failed}; see their logs in {arguments.out}")
    rows = {
        name: json.loads((arguments.out / folder_name(name) / "figures.json").read_text(encoding="utf-8"))
        for name in arguments.only
    }
    about = {**provenance("python benchmarks/training_ablations.py"), "minutes": arguments.minutes}
    about |= {"batch share": arguments.batch_share, "held-out scenes": COUNT}
    if torch.cuda.is_available():
        about["device"] = torch.cuda.get_device_name()
    text = f"{markdown(rows)}\n\n{', '.join(f'{k}: {v}' for k, v in about.items())}\n"
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")
    if arguments.page:
        replace_between(arguments.page, START, END, text.rstrip("\n"))


if __name__ == "__main__":
    main()

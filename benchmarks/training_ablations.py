"""Measure the parts of the tiny model's training with short training runs that differ in one part each.

    python benchmarks/training_ablations.py --data data --out runs/training-ablations

Every model is trained from scratch for the same number of operations on the same kind of windows, much shorter than the
shipped one, and measured as in ``benchmarks/ablations.py``. The script writes the table and the metrics to
``training_ablations.md`` and ``.json``; with ``--page`` it also inserts the table between the markers of that page. A
stopped run resumes. ``--also NAME=FOLDER`` also measures finished model folders.

"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import clipspect.training.train as loop
from ablation_sets import PictureSet, deep_pcb, magnetic_tile, rendered
from ablations import Encoded, Row, Variant, encode, measure
from clipspect.backbones.loader import load_backbone
from clipspect.benchmark.provenance import provenance
from clipspect.data.prepare import ImageLoader
from clipspect.data.transforms import ResizeSpec
from clipspect.training.config import LossWeights, Phase, SceneSet, Stage, TrainingConfig, load_config
from pages import replace_between

START, END = "<!-- training ablations -->", "<!-- end of training ablations -->"
SIZE = 256
DATA = ("rendered", "magnetic tile", "PCB, mixed", "PCB, own template")
SCORES = (
    Variant("", "text, V-V", "dual-image", {"output": "text", "path": "value"}, DATA),
    Variant("", "text, Q-K", "dual-image", {"output": "text", "path": "ordinary"}, DATA),
    Variant("", "visual, V-V", "dual-image", {"output": "visual", "path": "value"}, DATA),
)


@dataclass(frozen=True)
class Training:
    """One short training."""

    label: str
    seed: int = 17
    scenes: int = 2048
    leave_out: str = ""
    dense_on: str = "value"
    loss: LossWeights = field(default_factory=LossWeights)
    trunk_weights: str = "imagenet"
    vision: Mapping[str, Any] = field(default_factory=dict)
    """Changes of open_clip's ``vision_cfg``."""

    def config(self, shipped: TrainingConfig, steps: int) -> TrainingConfig:
        """Return the shipped configuration, shortened and changed, with rendered surfaces only."""
        phases = (
            Phase(0.6, window=8, batch=64, scene_sizes=(128,)),
            Phase(1.0, window=16, batch=16, scene_sizes=(128,)),
        )
        per_shard = min(self.scenes, 256)
        stage = Stage(
            self.seed, steps, (SceneSet(128, self.scenes // per_shard, per_shard),), phases, self.loss
        )
        vision = {**shipped.model["vision_cfg"], **self.vision}
        return replace(
            shipped,
            stages=(stage,),
            model={**shipped.model, "vision_cfg": vision},
            dense_on=self.dense_on,
            leave_out=self.leave_out,
            trunk_weights=self.trunk_weights,
            materials="",
            refresh_steps=0,
            checkpoint_every=100,
            validate_every=10**9,
        )


TRAININGS = (
    Training("as shipped, short"),
    Training("the same, another seed", seed=18),
    Training("dense loss on Q-K tokens", dense_on="ordinary"),
    Training("no comparison with the twin", loss=LossWeights(comparison=0.0)),
    Training("no free prototypes", loss=LossWeights(prototypes=0.0)),
    Training("256 scenes", scenes=256),
    Training("7,168 scenes", scenes=7168),
    Training("random trunk", trunk_weights="random"),
    Training("width 128, 8 blocks", vision={"width": 128, "layers": 8}),
    Training("width 256, 2 blocks", vision={"width": 256, "layers": 2}),
    Training("no large defects", leave_out="large defects"),
    Training("no odd but normal structure", leave_out="structure"),
    Training("no objects", leave_out="objects"),
    Training("three textures", leave_out="textures"),
    Training("no camera", leave_out="camera"),
)


def trained(training: Training, shipped: TrainingConfig, steps: int, out: Path) -> Path:
    """Return the model folder of a training run; train it if it is missing."""
    name = training.label.replace(",", "").replace(" ", "-")
    folder = out / name / "model"
    if not (folder / "open_clip_model.safetensors").exists():
        config = training.config(shipped, steps)
        # Runs with the same world and seed share scenes: shards are identified by number, size and seed.
        scenes = out / f"scenes {training.leave_out or 'all'} {training.seed} {config.stages[0].scenes[0]}"
        scenes.mkdir(parents=True, exist_ok=True)
        (out / name).mkdir(exist_ok=True)
        link = out / name / "scenes-1"
        if not link.exists():
            link.symlink_to(scenes.resolve())
        loop.train(loop.Trainer(config), out / name)
    return folder


def figures(label: str, model: str, weights: str | None, sets: Sequence[PictureSet]) -> Iterator[Row]:
    """Yield every score of one model on every data set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backbone = load_backbone(model, weights, image_size=SIZE, device="cpu")
    known: list[Encoded] = [encode(pictures, backbone) for pictures in sets]
    for variant in SCORES:
        yield from measure(replace(variant, section=label), known, backbone, weights or "trained")


def markdown(rows: Sequence[Row]) -> str:
    """Return a line per training run and score: pixel AUROC / AUPRO of every data set."""
    data = list(dict.fromkeys(row.data for row in rows))
    lines = [f"| training | score | {' | '.join(data)} |", "|---|---|" + "---|" * len(data)]
    cells = {(row.section, row.variant, row.data): row for row in rows}
    for section, variant in dict.fromkeys((row.section, row.variant) for row in rows):
        found = [cells[section, variant, name] for name in data]
        shown = " | ".join(f"{row.pixel_auroc:.3f} / {row.aupro:.3f}" for row in found)
        lines.append(f"| {section} | {variant} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """Train, measure, print and write results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", type=Path, help="page whose table between the markers is replaced")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--also", nargs="*", default=[], help="NAME=FOLDER of finished models")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    shipped = load_config(Path(loop.__file__).with_name("tiny.toml"))
    reader = ImageLoader(ResizeSpec(SIZE))
    sets = list(rendered(SIZE))
    if (arguments.data / "magnetic_tile").is_dir():
        sets.append(magnetic_tile(arguments.data / "magnetic_tile", reader))
    if (arguments.data / "deep_pcb").is_dir():
        sets += deep_pcb(arguments.data / "deep_pcb", reader)
    models: list[tuple[str, str, str | None]] = [
        ("random weights", "tiny", "random"),
        ("shipped", "tiny", None),
    ]
    models += [(name, folder, None) for name, _, folder in (one.partition("=") for one in arguments.also)]
    rows = [row for model in models for row in figures(*model, sets)]
    for training in TRAININGS:
        folder = trained(training, shipped, arguments.steps, arguments.out)
        rows += figures(training.label, str(folder), None, sets)
        print(markdown(rows[-len(DATA) * len(SCORES) :]), flush=True)
    about = {**provenance("python benchmarks/training_ablations.py"), "steps": arguments.steps}
    text = f"{markdown(rows)}\n\n{', '.join(f'{k}: {v}' for k, v in about.items())}\n"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "training_ablations.md").write_text(text)
    stored = {"about": about, "rows": [asdict(row) for row in rows]}
    (arguments.out / "training_ablations.json").write_text(json.dumps(stored, indent=2) + "\n")
    if arguments.page:
        replace_between(arguments.page, START, END, text.rstrip("\n"))


if __name__ == "__main__":
    main()

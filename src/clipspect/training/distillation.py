"""A tiny model for one site: taught by a large CLIP on rendered scenes and on the site's own images.

``python -m clipspect.training.distillation --teacher ViT-L-14-336 --photos FOLDER --object NAME --out FOLDER`` starts
from the shipped weights and writes a model folder for ``--model``. No label is needed: the teacher's features and its
AnoCLIP map (arXiv 2308.15939) of the images are what the student learns, beside the rendered scenes' own losses.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipspect.backbones.base import Backbone
from clipspect.backbones.features import FeatureRequest
from clipspect.backbones.loader import load_backbone
from clipspect.backbones.openclip.value_attention import encode_vit
from clipspect.data.find import find_images
from clipspect.data.loader import load_images
from clipspect.data.prepare import ImageLoader
from clipspect.data.transforms import ResizeSpec
from clipspect.errors import UsageError
from clipspect.methods.scoring import abnormal_probability
from clipspect.prompts import PromptConfig, load_prompts
from clipspect.prompts.anchors import TextAnchors, encode_anchors
from clipspect.training.config import TrainingConfig, load_config
from clipspect.training.losses import abnormal_logit
from clipspect.training.model import normalize
from clipspect.training.train import Trainer, train
from clipspect.training.windows import WindowBatch

_SHIPPED = Path(__file__).parents[1] / "backbones" / "tiny" / "open_clip_model.safetensors"
_IMAGE_SIDE = 256
_MAX_IMAGES = 4096
_READ_AHEAD = 8
_TEMPERATURE = 0.01
"""CLIP's own: the teacher's map is used as probabilities, so it must not be flat."""


@dataclass(frozen=True)
class Lesson:
    """What a teacher says of B pictures, on a student's grid of N patches."""

    tokens: Tensor
    """(B, N, D) unit V-V tokens of the last block."""
    image: Tensor
    """(B, D) unit image embeddings."""
    abnormal: Tensor
    """(B, N) AnoCLIP's probability of damage."""


class Teacher:
    """A large backbone and the anchors of one object."""

    def __init__(self, backbone: Backbone, object: str) -> None:
        """Encode the anchors of the object that the images show."""
        self.backbone = backbone
        self.anchors: TextAnchors = encode_anchors(
            backbone, *PromptConfig(load_prompts()).sentences("anoclip", object)
        )

    @property
    def width(self) -> int:
        """Length of its embeddings."""
        return self.anchors.pair.shape[-1]

    def look(self, pictures: Tensor, grid: tuple[int, int]) -> Lesson:
        """Pictures (B, 3, S, S) in [0, 1], enlarged to the teacher's input, seen on the student's grid."""
        side, depth = self.backbone.image_size, self.backbone.depth
        device = self.backbone.device
        mean, std = (
            torch.tensor(values, device=device).view(3, 1, 1)
            for values in (self.backbone.mean, self.backbone.std)
        )
        large = F.interpolate(pictures.to(device), (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        features = self.backbone.encode((large - mean) / std, FeatureRequest(value_blocks=frozenset([depth])))
        tokens = features.values(depth)
        abnormal = abnormal_probability(tokens, self.anchors.pair, _TEMPERATURE)
        on_grid = F.interpolate(tokens.permute(0, 3, 1, 2), grid, mode="bilinear", antialias=True)
        maps = F.interpolate(abnormal[:, None], grid, mode="bilinear", antialias=True)
        return Lesson(
            F.normalize(on_grid.flatten(2).transpose(1, 2), dim=-1), features.image, maps.flatten(1)
        )


class Student(Trainer):
    """The tiny model's trainer with a teacher beside the scenes' own losses."""

    def __init__(
        self, config: TrainingConfig, teacher: Teacher, photos: Tensor, device: torch.device | str = "cpu"
    ) -> None:
        """Build the student.

        Args:
            config: as for :class:`Trainer`.
            teacher: what is learned from.
            photos: (P, 3, S, S) uint8, the site's images.
            device: of the training.
        """
        super().__init__(config, device)
        self.teacher, self.photos = teacher, photos
        width = config.model["embed_dim"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.heads = nn.ModuleDict({k: nn.Linear(width, teacher.width) for k in ("tokens", "image")})
        self.heads.to(self.device)
        rate = config.learning_rate
        self.optimisers.rest.add_param_group(
            {"params": list(self.heads.parameters()), "lr": rate, "full_lr": rate}
        )

    def _loss(self, windows: WindowBatch, generator: torch.Generator) -> dict[str, Tensor]:
        terms = super()._loss(windows, generator)
        side, half = windows.clean.shape[-1], len(windows.clean)
        own = crop_training_images(self.photos, half, side, generator).to(self.device)
        pictures = torch.cat([own, windows.defective])
        visual, depth = self.model.visual, len(self.model.visual.transformer.resblocks)
        pictures_in = normalize(pictures, self.config)
        features = self.trunk_features(pictures_in)
        with torch.autocast(self.device.type, torch.bfloat16):
            tokens, grid = encode_vit(visual, pictures_in, value_blocks=(depth,), features=features)
        patches = F.normalize(tokens.value[depth].float(), dim=-1)
        lesson = self.teacher.look(pictures, grid)
        prototypes = F.normalize(self.prototypes, dim=-1).expand(half, 2, -1)
        logits = abnormal_logit(patches[:half], prototypes, self.model.logit_scale.exp())
        taught = {
            "teacher_tokens": _distance(self.heads["tokens"](patches), lesson.tokens.clone()),
            "teacher_image": _distance(self.heads["image"](tokens.pooled.float()), lesson.image.clone()),
            "teacher_map": F.binary_cross_entropy_with_logits(logits, lesson.abnormal[:half].clone()),
        }
        return {**terms, **taught, "total": terms["total"] + sum(taught.values())}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {**super().state(), "heads": self.heads.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint."""
        super().restore(state)
        self.heads.load_state_dict(state["heads"])


def _distance(tokens: Tensor, wanted: Tensor) -> Tensor:
    """Mean of 1 − cosine; ``wanted`` has unit length and takes no gradient."""
    return 1 - (F.normalize(tokens, dim=-1) * wanted.to(tokens.device)).sum(-1).mean()


def crop_training_images(photos: Tensor, count: int, side: int, generator: torch.Generator) -> Tensor:
    """``count`` windows (count, 3, side, side) in [0, 1] at random places of random images, some mirrored."""
    windows = []
    for _window in range(count):
        photo = photos[int(torch.randint(0, len(photos), (1,), generator=generator))]
        top, left = (int(torch.randint(0, s - side + 1, (1,), generator=generator)) for s in photo.shape[-2:])
        window = photo[:, top : top + side, left : left + side]
        windows.append(window.flip(-1) if float(torch.rand(1, generator=generator)) < 0.5 else window)
    return torch.stack(windows).float() / 255


def read_training_images(folder: Path) -> Tensor:
    """(P, 3, 256, 256) uint8 of a folder's images, the first 4,096 by name; those that cannot be read are said.

    Raises:
        UsageError: none can be read.
    """
    reader = ImageLoader(ResizeSpec(_IMAGE_SIDE))
    pieces = []
    for entry in load_images(find_images(folder)[:_MAX_IMAGES], reader, ahead=_READ_AHEAD):
        if entry.image is None:
            print(f"left out: {entry.error}", flush=True)
        else:
            pieces.append(entry.image.pieces)
    if not pieces:
        raise UsageError(f"{folder}: none of its images can be read")
    return torch.from_numpy(np.concatenate(pieces)).permute(0, 3, 1, 2).contiguous()


def main() -> None:
    """Run the distillation from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m clipspect.training.distillation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--teacher", required=True, help="a model name, hub id, folder or checkpoint")
    parser.add_argument("--teacher-weights", default=None, help="as --weights of detect")
    parser.add_argument("--photos", type=Path, required=True, help="the site's images, unlabelled")
    parser.add_argument("--object", required=True, help="what they show")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("tiny.toml"))
    parser.add_argument("--start", type=Path, default=_SHIPPED, help="weights to start from")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    # The student starts from shipped weights, its trunk among them.
    config = replace(config, stages=config.stages[-1:], trunk_weights="given")
    backbone = load_backbone(arguments.teacher, arguments.teacher_weights, device=arguments.device)
    teacher = Teacher(backbone, arguments.object)
    student = Student(config, teacher, read_training_images(arguments.photos), arguments.device)
    student.start_from(arguments.start)
    train(student, arguments.out, arguments.minutes)


if __name__ == "__main__":
    main()

"""A small CLIP with random weights, some rendered images, and the context a detector makes of them."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch

from clipspect.backbones.openclip.backbone import OpenClipBackbone
from clipspect.backbones.sources import Sources
from clipspect.methods.base import MethodContext, Scores
from clipspect.prompts.anchors import make_anchors

SIZE = 64


def make_backbone(seed: int = 0) -> OpenClipBackbone:
    """A CLIP of four blocks whose text tower is never asked."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(
            embed_dim=32,
            vision_cfg={"image_size": SIZE, "patch_size": 8, "layers": 4, "width": 48, "head_width": 16},
            text_cfg={"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1},
        )
    return OpenClipBackbone(
        model, open_clip.SimpleTokenizer(context_length=8), name="small", weights="random (seed 0)"
    )


def make_images(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 3, S, S) striped plates that differ in phase and noise; every second one has a bright spot."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    photos = []
    for i in range(count):
        plate = np.sin(x / 5 + rng.uniform(0, 6)) + 0.1 * rng.standard_normal((3, SIZE, SIZE))
        if i % 2:
            plate[:, (x - rng.uniform(16, 48)) ** 2 + (y - rng.uniform(16, 48)) ** 2 < 36] += 3
        photos.append(plate)
    return torch.tensor(np.stack(photos), dtype=torch.float32)


def seeds_of(photos: torch.Tensor) -> list[int]:
    """As the detector does: a number made of each image's content."""
    return [int(hashlib.sha256(p.numpy().tobytes()).hexdigest()[:12], 16) for p in photos]


@pytest.fixture(scope="session")
def backbone() -> OpenClipBackbone:
    return make_backbone()


@pytest.fixture(scope="session")
def anchors():
    generator = torch.Generator().manual_seed(3)
    raw = torch.randn(2, 6, 32, generator=generator)
    return make_anchors(raw[0], raw[1])


@pytest.fixture(scope="session")
def photos() -> torch.Tensor:
    return make_images(6)


def run_set(
    backbone,
    anchors,
    method,
    photos,
    *,
    batch=4,
    order=None,
    pool=None,
    references=None,
    paired=None,
    identify=True,
):
    """One encoding, one preparation, scores in batches: what the detector does with a set.

    ``pool`` is how many of the images the others may be compared with; all of them by default. Without ``identify``
    equal images are not known to be copies of each other.
    """
    order = list(range(len(photos))) if order is None else order
    photos = photos[order]
    pool = len(photos) if pool is None else pool
    seeds = seeds_of(photos)
    with torch.inference_mode():
        features = backbone.encode(photos, method.request())
        if identify:
            features = replace(features, sources=Sources.of_tensors(photos))
        pairs = None if paired is None else backbone.encode(paired[order], method.request())

        def context(part: list[int], state: object) -> MethodContext:
            return MethodContext(
                anchors,
                (SIZE, SIZE),
                [seeds[i] for i in part],
                backbone=backbone,
                images=photos[part],
                references=references,
                paired_references=None if pairs is None else pairs[part],
                pool_index=[i if i < pool else -1 for i in part],
                state=state,
            )

        everything, known = list(range(len(photos))), list(range(pool))
        state = method.prepare(features[known], context(known, None)) if method.scope == "set" else None
        parts = [everything[i : i + batch] for i in range(0, len(photos), batch)]
        joined = Scores.concat([method.score(features[part], context(part, state)) for part in parts])
    back = torch.argsort(torch.tensor(order))
    return Scores(joined.image[back], joined.map[back], [joined.notes[i] for i in back.tolist()])


@pytest.fixture(scope="session")
def detect(backbone, anchors):
    """``detect(method, photos)`` with the small backbone; reference images are encoded first."""

    def run(method, photos, *, reference_images=None, references=None, **options):
        if reference_images is not None:
            references = replace(
                backbone.encode(reference_images, method.request()),
                sources=Sources.of_tensors(reference_images),
            )
        return run_set(backbone, anchors, method, photos, references=references, **options)

    return run

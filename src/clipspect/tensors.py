"""Loaded images to tensors for the model, and the model's scores back to Detections."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from clipspect.backbones.base import Backbone
from clipspect.backbones.features import Features
from clipspect.backbones.sources import Sources
from clipspect.data.loader import LoadedImage, batches
from clipspect.data.prepare import ImageLoader, PreparedImage
from clipspect.data.transforms import normalize
from clipspect.detection import Detection
from clipspect.methods.base import Method, Scores
from clipspect.methods.scoring import enlarge_layers
from clipspect.methods.visual import ONLY_ITSELF
from clipspect.model import AnomalyModel, Encoded
from clipspect.postprocess.calibration import CLASS_LIMIT, CLASS_WEIGHT, Calibration
from clipspect.stitching import RANDOM_WEIGHTS, TileScores, make_detection, strongest_patches

COPY_OF_GOOD = "a copy of one of the known-good images, saved again"


def image_tensor(images: Sequence[PreparedImage], backbone: Backbone) -> Tensor:
    """(N, 3, S, S) normalized tiles of some images, in order."""
    pieces = np.concatenate([image.pieces for image in images])
    return torch.from_numpy(normalize(pieces, backbone.mean, backbone.std))


def sources_of(images: Sequence[PreparedImage]) -> Sources:
    """Tell which image each of their N tiles comes from."""
    counts = [len(image.pieces) for image in images]
    signatures = np.stack([image.signature for image in images])
    offsets = tuple(chain.from_iterable(map(_offsets, images)))
    return Sources(
        tuple(chain.from_iterable([image.content_hash] * n for image, n in zip(images, counts, strict=True))),
        tuple(chain.from_iterable(range(n) for n in counts)),
        torch.from_numpy(signatures).repeat_interleave(torch.tensor(counts), 0),
        offsets,
    )


def _offsets(image: PreparedImage) -> list[tuple[int, int]]:
    """(top, left) of an image's tiles, in pixels of the input."""
    scale = image.pieces.shape[1] / max(max(t.height, t.width) for t in image.tiles)
    return [(round(t.top * scale), round(t.left * scale)) for t in image.tiles]


def to_tensors(loaded: Sequence[LoadedImage], backbone: Backbone) -> tuple[Tensor, Sources, Tensor | None]:
    """Tiles, their sources, and the tiles of their paired references, of images that could be read."""
    images = [one.image for one in loaded if one.image is not None]
    templates = [one.template for one in loaded if one.template is not None]
    paired = image_tensor(templates, backbone) if templates else None
    return image_tensor(images, backbone), sources_of(images), paired


def encode_pool(
    loaded: Iterable[LoadedImage], model: AnomalyModel, limit: int
) -> tuple[Encoded, Features | None] | None:
    """Encode images until their tiles exceed ``limit``; images that cannot be read are left out.

    Returns:
        The encoded images and the features of their paired references, or None where none can be read.
    """
    parts: list[Encoded] = []
    paired: list[Features] = []
    count = 0
    for batch in batches(loaded, model.batch_size):
        readable = [one for one in batch if one.image is not None]
        fitting = []
        for one in readable:
            assert one.image is not None
            if count and count + len(one.image.pieces) > limit:
                break
            count += len(one.image.pieces)
            fitting.append(one)
        if fitting:
            images, sources, templates = to_tensors(fitting, model.backbone)
            parts.append(model.encode(images, sources))
            if templates is not None:
                paired.append(model.encode(templates).features)
        if len(fitting) < len(readable):  # the limit
            if isinstance(loaded, Generator):
                loaded.close()  # reads no further image, and tells the progress so
            break
    if not parts:
        return None
    return Encoded.concat(parts), Features.concat(paired) if paired else None


def make_detections(
    batch: Sequence[LoadedImage],
    scores: Mapping[str, Scores],
    seconds: float,
    model: AnomalyModel,
    reader: ImageLoader,
    calibrations: Mapping[str, Calibration],
    tokens: Tensor | None = None,
) -> Iterator[Detection]:
    """Yield one Detection per image and method, in order.

    Args:
        batch: images, some of which may carry an error instead.
        scores: method → scores of the tiles of all readable images, in order.
        seconds: per image.
        model: that gave the scores.
        reader: stitches the maps of tiles.
        calibrations: method → calibration.
        tokens: (N, H, W, D) patch tokens of these tiles, each minus the mean of its tile, which describe regions;
            None = no embeddings.
    """
    copies = _copies_of_good(batch, model) if calibrations else set()
    start = 0
    for loaded in batch:
        stop = start + (len(loaded.image.pieces) if loaded.image else 0)
        for method in model.methods:
            own = scores[method.name][start:stop] if stop > start else None
            made = _make_detection(loaded, method, own, seconds, model, reader, calibrations.get(method.name))
            if tokens is not None and loaded.image is not None and made.error is None:
                embedding = _describe_region(made, loaded.image, tokens[start:stop], reader)
                made = replace(made, embedding=embedding)
            is_copy = loaded.position in copies
            yield replace(made, warnings=(*made.warnings, COPY_OF_GOOD)) if is_copy else made
        start = stop


def _copies_of_good(batch: Sequence[LoadedImage], model: AnomalyModel) -> set[int]:
    """Positions of images whose pixels, but not whose files, are those of a known-good image of the pool."""
    good = None if model.pool is None else model.pool.features.sources
    images = [(loaded.position, loaded.image) for loaded in batch if loaded.image is not None]
    if good is None or not images:
        return set()
    sources = sources_of([image for _, image in images])
    firsts = [row for row, tile in enumerate(sources.tiles) if tile == 0]
    same = sources[firsts].same_image(good).any(1).tolist()
    return {
        position
        for (position, image), is_same in zip(images, same, strict=True)
        if is_same and image.content_hash not in good.hashes
    }


def _make_detection(
    loaded: LoadedImage,
    method: Method,
    scores: Scores | None,
    seconds: float,
    model: AnomalyModel,
    reader: ImageLoader,
    calibration: Calibration | None,
) -> Detection:
    image = loaded.image
    warnings: tuple[str, ...] = (RANDOM_WEIGHTS,) * model.backbone.is_random
    warnings += image.notes if image else ()
    if method.accepts_references and image and loaded.template:
        warnings += tuple(f"Its reference: {note}" for note in loaded.template.notes)
        warnings += (ONLY_ITSELF,) if image.content_hash == loaded.template.content_hash else ()
    notes = () if scores is None else tuple(dict.fromkeys(chain.from_iterable(scores.notes)))
    return make_detection(
        loaded,
        None if scores is None else _to_numpy(scores),
        reader,
        seconds=seconds,
        warnings=(*warnings, *notes),
        common={
            "object": model.object_name,
            "method": method.name,
            "model": model.backbone.name,
            "weights": model.backbone.weights,
            "calibration": calibration or levels_of(model).get(method.name),
        },
    )


def _describe_region(
    detection: Detection, image: PreparedImage, tokens: Tensor, reader: ImageLoader
) -> NDArray[np.float16] | None:
    """Describe the strongest region by how its patches differ from the rest of its tile.

    Args:
        detection: of the image.
        image: of n tiles.
        tokens: (n, H, W, D) patch tokens of the tiles, each minus the mean of its tile.
        reader: knows how the tiles were cut.

    Returns:
        (D,) of unit length; None if nothing differs.
    """
    tile, patches = strongest_patches(detection, image, reader, (tokens.shape[1], tokens.shape[2]))
    chosen = tokens[tile].flatten(0, 1)[torch.from_numpy(patches).to(tokens.device)]
    difference = chosen.float().mean(0).cpu().numpy()
    length = np.linalg.norm(difference)
    return (difference / length).astype(np.float16) if length > 0 else None


def _to_numpy(scores: Scores) -> TileScores:
    """Copy the scores of one image's tiles to NumPy, with layers enlarged as they are stored."""
    layers = None if scores.layers is None else enlarge_layers(scores.layers.float()).cpu().numpy()
    logits = None if scores.class_logit is None else scores.class_logit.float().cpu().numpy()
    return TileScores(scores.image.float().cpu().numpy(), scores.map.float().cpu().numpy(), layers, logits)


def levels_of(model: AnomalyModel) -> dict[str, Calibration]:
    """Method → level that the model ships with for one image alone."""
    shipped = model.backbone.levels
    return {m.name: shipped[m.name] for m in model.methods if m.scope == "image" and m.name in shipped}


def calibrated(
    scores: Scores, calibration: Calibration, size: tuple[int, int], inside: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Apply a calibration to scores, as :class:`Calibration` does to stored layers.

    Args:
        scores: of N images, with layers.
        calibration: of the method.
        size: (S, T) of the maps.
        inside: (h, w) float, 1 in the cells of the enlarged layers that are inspected and 0 in others; None = all.

    Returns:
        (N,) scores and (N, S, T) maps in [0, 1] with the threshold 0.5.
    """
    assert scores.layers is not None
    layers = enlarge_layers(scores.layers)
    centers, spreads = (
        torch.tensor(values, device=layers.device).view(1, -1, 1, 1)
        for values in (calibration.centers, calibration.spreads)
    )
    joined = ((layers - centers) / spreads).amax(1)  # (N, h, w)
    if scores.class_logit is not None and calibration.class_spread is not None:
        z = (scores.class_logit - calibration.class_center) / calibration.class_spread
        joined = joined + CLASS_WEIGHT * z.clamp(-CLASS_LIMIT, CLASS_LIMIT)[:, None, None]
    below = (0.5 * (joined - calibration.base) / calibration.width).clamp(0.0, 0.5)
    above = 1 - 0.5 * torch.exp(-(joined - calibration.threshold).clamp_min(0.0) / calibration.width)
    maps = torch.where(joined < calibration.threshold, below, above)
    if inside is not None:
        maps = maps * inside
    image = maps.amax((1, 2))
    resized = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return image, resized if inside is None else resized * F.interpolate(inside[None, None], size)[:, 0]

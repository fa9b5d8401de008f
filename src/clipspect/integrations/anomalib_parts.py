"""Parts of the anomalib models: the network, and what prepares its images and scales its scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    from anomalib.data import InferenceBatch
    from anomalib.post_processing import PostProcessor
    from anomalib.pre_processing import PreProcessor
except ImportError as missing:
    from clipspect.errors import UsageError

    raise UsageError(f"{missing.name} is not installed; install clipspect[anomalib]") from missing

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import Compose, Normalize

from clipspect.backbones.loader import load_backbone
from clipspect.backbones.sources import Sources
from clipspect.data.decode import hash_file
from clipspect.errors import UsageError
from clipspect.integrations.anomalib_resize import ClipspectResize
from clipspect.methods.base import Method
from clipspect.methods.scoring import calibrated
from clipspect.model import AnomalyModel
from clipspect.prompts import PromptConfig, load_prompts
from clipspect.references import GoodImages


class ClipspectModel(nn.Module):
    """:class:`AnomalyModel` of one method behind anomalib's module interface."""

    def __init__(self, method: Method, backbone: str, weights: str | None, image_size: int | None) -> None:
        """Load the backbone. Most users create a :class:`ClipspectModule` instead."""
        super().__init__()
        loaded = load_backbone(backbone, weights, image_size=image_size, device="cpu")
        self.method, self.backbone = method, loaded
        self.good: GoodImages | None = None
        """References and calibration from known-good images."""
        self.model = AnomalyModel(loaded, (method,), PromptConfig(load_prompts()))

    def name_object(self, name: str, domain: str) -> None:
        """Encode the text embeddings of an object on the current device."""
        prompts = PromptConfig(load_prompts(), domain)
        self.model = AnomalyModel(self.backbone, (self.method,), prompts).set_object(name)

    def use_good(self) -> None:
        """Fit a method of scope "set" to the known-good images, which become its references."""
        assert self.good is not None
        if self.good.pool is not None:
            model = self.model.set_references(self.good.pool.features)
            self.model = model.fit_set(self.good.pool, self.good.paired)

    def look_at(self, images: Tensor, paths: Sequence[str]) -> None:
        """Fit a method of scope "set" to the images (M, 3, S, S) of its pool, normalized."""
        self.model = self.model.fit_set(self.model.encode(images, self._sources(images, paths)))

    @torch.inference_mode()
    def forward(self, images: Tensor, paths: Sequence[str] | None = None) -> InferenceBatch:
        """Return scores (B,) and maps (B, S, S) of normalized images (B, 3, S, S).

        Raises:
            UsageError: no object name is set, or a method that compares images has no set.
        """
        if self.method.scope == "set" and self.model.pool is None:
            raise UsageError(
                f"{self.method.name} compares images of a set with each other; run it through an Engine, or use"
                " AnoClip for single images"
            )
        if not self.model.object_name:
            raise UsageError("the object name is missing; pass class_name='metal nut'")
        scores = self.model(images, self._sources(images, paths))[self.method.name]
        if self.good is None:
            return InferenceBatch(pred_score=scores.image, anomaly_map=scores.map)
        calibration = self.good.calibrations[self.method.name]
        size = (int(images.shape[-2]), int(images.shape[-1]))
        image, maps = calibrated(scores, calibration, size)
        at = calibration.score_threshold
        return InferenceBatch(
            pred_score=image, anomaly_map=maps, pred_label=image >= at, pred_mask=maps >= at
        )

    def _sources(self, images: Tensor, paths: Sequence[str] | None) -> Sources:
        """Return the identity that ``clipspect detect`` gives the files; that of the pixels if there are no files."""
        sources = Sources.of_tensors(images)
        if paths is not None:
            hashes = [
                hash_file(Path(path)) if path else own
                for path, own in zip(paths, sources.hashes, strict=True)
            ]
            sources = Sources(tuple(hashes), sources.tiles)
        return sources.with_signatures(images, self.backbone.mean, self.backbone.std)


class ClipspectPreProcessor(PreProcessor):
    """Preprocessor that resizes and normalizes for a backbone. Checkpoints do not store it."""

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set up square inputs of ``size`` pixels."""
        super().__init__(Compose([ClipspectResize((size, size)), Normalize(mean, std)]))

    def checkpoint_config(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Nothing to restore."""


class MonotonePostProcessor(PostProcessor):
    """``PostProcessor`` with strictly monotone normalization, so that metrics equal those of the raw scores.

    The lowest value of the validation images maps to 0, the threshold to ½ and the highest to 1, linearly between.

    Anomalib's version shifts all scores by the threshold and clips them to [0, 1]. With a threshold far from the middle
    many scores become 1, which changes AUROC and AUPRO.
    """

    @staticmethod
    def _normalize(
        preds: Tensor | None, norm_min: Tensor, norm_max: Tensor, threshold: Tensor
    ) -> Tensor | None:
        if preds is None:
            return None
        middle = torch.where(threshold.isnan(), (norm_min + norm_max) / 2, threshold)
        below = (preds - norm_min) / (middle - norm_min).clamp_min(1e-12)
        above = 1 + (preds - middle) / (norm_max - middle).clamp_min(1e-12)
        normalised = (torch.where(preds <= middle, below, above) / 2).clamp(0, 1)
        return torch.where(norm_min.isnan() | norm_max.isnan(), preds, normalised)

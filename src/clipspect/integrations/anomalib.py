"""clipspect's methods as anomalib models: ``Engine().test(model=AnoClip(), datamodule=MVTecAD(...))``.

A model passes a batch to an :class:`~clipspect.model.AnomalyModel` and returns its scores and maps to anomalib.

The models are zero-shot: nothing is trained and no label is used. The methods that compare images with each other
(Dual-Image, mutual scoring) read the evaluated set once, before its first batch. They use at most ``set_size``
images of the running stage's dataloader, never their labels.

"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

try:
    from anomalib import LearningType
    from anomalib.data import Batch, ImageBatch, InferenceBatch
    from anomalib.metrics import AUPR, AUPRO, AUROC, Evaluator, F1Max
    from anomalib.models.components import AnomalibModule
    from anomalib.post_processing import PostProcessor
    from anomalib.pre_processing import PreProcessor
    from anomalib.visualization import Visualizer
except ImportError as missing:
    from clipspect.errors import UsageError

    raise UsageError(f"{missing.name} is not installed; install clipspect[anomalib]") from missing

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from clipspect.backbones.presets import DEFAULT_MODEL
from clipspect.config import DetectorConfig
from clipspect.data.pool import sample_pool
from clipspect.data.reading import is_read_alike, read_image
from clipspect.errors import UsageError
from clipspect.integrations.anomalib_parts import (
    ClipspectModel,
    ClipspectPreProcessor,
    MonotonePostProcessor,
)
from clipspect.product import load_product
from clipspect.references import GoodImages
from clipspect.registry import make_method, method_class

FROM_PROFILE = frozenset({"model", "weights", "image_size", "domain", "set_size", "seed"})
"""Options of a profile that an anomalib model has too."""


class ClipspectModule(AnomalibModule):
    """Base class of clipspect's anomalib models."""

    method_name: ClassVar[str]
    model: ClipspectModel
    pre_processor: PreProcessor | None

    def __init__(
        self,
        class_name: str | None = None,
        backbone: str = "tiny",
        weights: str | None = None,
        image_size: int | None = None,
        domain: str = "auto",
        settings: dict[str, Any] | None = None,
        set_size: int = 128,
        good: GoodImages | None = None,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        """Load the model.

        Args:
            class_name: name of the object, such as "metal nut"; default: the datamodule's category.
            backbone: a model name as ``clipspect models`` lists them, a folder, a checkpoint.
            weights: a pretrained tag, a file, or "random" for a control; None = the backbone's default.
            image_size: input side in pixels, a multiple of the patch size; None = the backbone's default.
            domain: "auto", "object", "texture", … (docs/prompts.md).
            settings: settings of the method, as ``clipspect methods NAME`` lists them.
            set_size: maximum number of images of a set that serve as each other's references.
            good: known-good images from :meth:`clipspect.Detector.calibrate` with the same model and method. Scores are
                then calibrated and labels are those of ``clipspect detect --good``; no validation data is needed.
            pre_processor: an anomalib preprocessor, or whether to use the default, which resizes like
                ``clipspect detect``.
            post_processor: an anomalib postprocessor, or whether to use :class:`MonotonePostProcessor`.
            evaluator: an anomalib evaluator, or whether to use the default: all metrics of ``clipspect benchmark``.
            visualizer: an anomalib visualizer, or whether to use the default.

        Raises:
            UsageError: an unknown backbone, setting or domain, or no ``good`` for a method that needs it.
            WeightsError: missing weights.
        """
        if method_class(self.method_name).needs_references and good is None:
            raise UsageError(
                f"{self.method_name} learns from known-good images; pass good=detector.calibrate(folder, object)"
            )
        model = ClipspectModel(make_method(self.method_name, settings), backbone, weights, image_size)
        own = model.backbone
        super().__init__(
            ClipspectPreProcessor(own.image_size, own.mean, own.std)
            if pre_processor is True
            else pre_processor,
            False if good is not None and post_processor is True else post_processor,
            evaluator,
            visualizer,
        )
        self.model = model
        model.good = good
        self.class_name, self.domain, self.set_size = class_name, domain, set_size

    @classmethod
    def from_profile(cls, profile: str | Path, **options: Any) -> ClipspectModule:
        """Load the model that a product profile describes; flags are those of ``clipspect detect --profile``.

        Args:
            profile: path of the file.
            options: pre_processor, post_processor, evaluator, visualizer.

        Raises:
            ProfileError: it cannot be read, or was made with other weights.
            UsageError: it is of another method, or cuts, pads or masks images, which anomalib's data do not.
        """
        product = load_product(profile, DetectorConfig(device="cpu"))
        found = product.profile
        if cls.method_name not in found.methods:
            raise UsageError(
                f"{found.name} is a profile of {', '.join(found.methods)}, not of {cls.method_name}"
            )
        other = sorted(set(found.options) - FROM_PROFILE) + ["roi"] * (found.roi is not None)
        if other or found.prompts is not None:
            names = ", ".join(other) or "prompts"
            raise UsageError(f"{found.name}: anomalib models have no {names}; use clipspect detect")
        return cls(
            class_name=found.object,
            backbone=found.options.get("model", DEFAULT_MODEL),
            weights=found.options.get("weights"),
            image_size=found.options.get("image_size"),
            domain=found.options.get("domain", "auto"),
            settings=dict(found.methods[cls.method_name]),
            good=product.good,
            **options,
        )

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Return no trainer arguments, because nothing is trained."""
        return {}

    @property
    def learning_type(self) -> LearningType:
        """Zero-shot."""
        return LearningType.ZERO_SHOT

    def configure_optimizers(self) -> None:
        """Return None, because nothing is trained."""

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Raise UsageError: the backbone determines size and normalization when the model is created."""
        raise UsageError("the input size is fixed when the model is created; use AnoClip(image_size=256)")

    def configure_post_processor(self) -> PostProcessor:
        """Return a postprocessor that scales scores by the validation images without clipping."""
        return MonotonePostProcessor()

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Return an evaluator with the metrics of ``clipspect benchmark``, all implemented by anomalib."""
        image, pixel = ["pred_score", "gt_label"], ["anomaly_map", "gt_mask"]
        return Evaluator(
            test_metrics=[
                *(metric(fields=image, prefix="image_") for metric in (AUROC, AUPR, F1Max)),
                *(
                    metric(fields=pixel, prefix="pixel_", strict=False)
                    for metric in (AUROC, AUPR, F1Max, AUPRO)
                ),
            ]
        )

    def val_dataloader(self) -> list[Any]:
        """Return no data, so that an Engine can predict a plain folder without validation data."""
        return []

    def setup(self, stage: str) -> None:
        """Set the object name from ``class_name``, or from the datamodule."""
        if self.class_name is None:
            datamodule = getattr(self.trainer, "datamodule", None)
            self.class_name = getattr(datamodule, "category", None) or getattr(datamodule, "name", None)
        if self.class_name is None:
            raise UsageError("set the object name: class_name='metal nut'")

    def on_validation_start(self) -> None:
        """Fit the method to the set before its first batch."""
        self._begin(self.trainer.val_dataloaders)

    def on_test_start(self) -> None:
        """Fit the method to the set before its first batch."""
        self._begin(self.trainer.test_dataloaders)

    def on_predict_start(self) -> None:
        """Fit the method to the set before its first batch."""
        self._begin(self.trainer.predict_dataloaders)

    def validation_step(self, batch: Batch[Any], batch_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Score a batch; anomalib derives its thresholds from it."""
        return self._score(batch)

    def test_step(self, batch: Batch[Any], batch_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Score a batch."""
        return self._score(batch)

    def predict_step(self, batch: Batch[Any], batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Score a batch."""
        return self._score(batch)

    def _score(self, batch: Any) -> Any:
        batch.image = self._read_again(batch.image, batch.image_path)
        predictions: InferenceBatch = self.model(batch.image, batch.image_path)
        return batch.update(**predictions._asdict())

    def _read_again(self, images: Tensor, paths: Sequence[str] | None) -> Tensor:
        """Replace images (B, 3, S, S) that anomalib reads differently from :func:`clipspect.read_image`.

        anomalib ignores EXIF orientation, clips 16-bit values and drops transparency. Images of a custom preprocessor
        stay unchanged.
        """
        if not isinstance(self.pre_processor, ClipspectPreProcessor) or self.pre_processor.transform is None:
            return images
        read = images
        for number, path in enumerate(paths or ()):
            if path and not is_read_alike(Path(path)):
                pixels = torch.from_numpy(read_image(path)).permute(2, 0, 1).float() / 255
                read = images.clone() if read is images else read
                read[number] = self.pre_processor.transform(pixels).to(images)
        return read

    def _begin(self, loaders: Any) -> None:
        """Move the text embeddings to the stage's device, and fit a method that compares images to its set."""
        self.model.backbone.to(self.device)
        self.model.name_object(str(self.class_name), self.domain)
        if self.model.good is not None:
            self.model.use_good()
            return
        if self.model.method.scope != "set":
            return
        datasets = [
            one.dataset for one in (loaders if isinstance(loaders, list) else [loaders]) if one is not None
        ]
        found = [self._pool(dataset) for dataset in datasets]
        if found:
            images, paths = zip(*found, strict=True)
            self.model.look_at(torch.cat(images).to(self.device), [path for own in paths for path in own])

    def _pool(self, dataset: Dataset[Any]) -> tuple[Tensor, list[str]]:
        """Return preprocessed images (M, 3, S, S) of a data set and their paths; the pool is chosen by file name."""
        paths = _paths(dataset)
        chosen = sorted(sample_pool([Path(path).name for path in paths], self.set_size))
        loader = DataLoader(Subset(dataset, chosen), collate_fn=ImageBatch.collate)
        images = [batch.image for batch in loader]
        transform = self.pre_processor.transform if self.pre_processor is not None else None
        transformed = torch.cat([transform(i) if transform else i for i in images])
        names = [paths[i] for i in chosen]
        return self._read_again(transformed, names), names


def _paths(dataset: Any) -> list[str]:
    if hasattr(dataset, "samples"):
        return [str(path) for path in dataset.samples["image_path"]]
    if hasattr(dataset, "image_filenames"):
        return [str(path) for path in dataset.image_filenames]
    raise UsageError(
        f"a {type(dataset).__name__} does not expose its images' paths; use one of anomalib's datasets or AnoClip"
    )


class AnoClip(ClipspectModule):
    """AnoCLIP: V-V patch tokens against domain-aware states, one image at a time (arXiv 2308.15939)."""

    method_name = "anoclip"


class AnoClipPlus(ClipspectModule):
    """AnoCLIP+: AnoCLIP with test-time adaptation to each image (arXiv 2308.15939)."""

    method_name = "anoclip+"


class DualImage(ClipspectModule):
    """Dual-Image Enhanced CLIP: other images of the set as references (arXiv 2405.04782)."""

    method_name = "dual-image"


class DualImagePlus(ClipspectModule):
    """Dual-Image Enhanced CLIP with test-time adaptation on corrupted copies of each image (arXiv 2405.04782)."""

    method_name = "dual-image+"


class Mutual(ClipspectModule):
    """Mutual scoring: all other images of the set as references (after MuSc, arXiv 2401.16753)."""

    method_name = "mutual"


class MuSc(ClipspectModule):
    """MuSc: all other images of the set as references, without text (arXiv 2401.16753)."""

    method_name = "musc"


class AnomalyDino(ClipspectModule):
    """AnomalyDINO: nearest patches of known-good images, without text (arXiv 2405.14529)."""

    method_name = "anomaly-dino"


class Subspace(ClipspectModule):
    """SubspaceAD: distance from the subspace of known-good patches, without text."""

    method_name = "subspace"


class AnomalyClip(ClipspectModule):
    """AnomalyCLIP: learned prompts; ``settings={"checkpoint": FILE}`` (arXiv 2310.18961)."""

    method_name = "anomaly-clip"


class Clip(ClipspectModule):
    """CLIP-AC: the image embedding against two anchors, the baseline."""

    method_name = "clip"


class WinClip(ClipspectModule):
    """WinCLIP: windows at several scales against sentences (arXiv 2303.14814)."""

    method_name = "winclip"


class WinClipPlus(ClipspectModule):
    """WinCLIP+: WinCLIP with a few known-good images (arXiv 2303.14814)."""

    method_name = "winclip+"

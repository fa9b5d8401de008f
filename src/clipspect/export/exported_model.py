"""Exported network: pixels in, score and map out, with the text embeddings of one object as constants."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from clipspect.backbones.pair import BackbonePair
from clipspect.data.roi import RegionOfInterest
from clipspect.detector import Detector
from clipspect.errors import UsageError
from clipspect.export.onnx_detector import CLASS_LOGIT, INPUT, KIND, LAYERS, MAP, RAW_MAP, RAW_SCORE, SCORE
from clipspect.methods.base import Scores
from clipspect.methods.scoring import calibrated, enlarge_layers
from clipspect.postprocess.calibration import Calibration
from clipspect.postprocess.verdict import describe
from clipspect.prompts import clean_object_name

EXPORTABLE = ("anoclip", "clip", "winclip")
"""Methods that score single images without training, which a static graph can represent."""


class ExportedDetector(nn.Module):
    """Detector of one object as a single network."""

    mean: Tensor
    std: Tensor
    layers_inside: Tensor
    map_inside: Tensor

    def __init__(self, detector: Detector, object: str, calibration: Calibration | None = None) -> None:
        """Store the text embeddings of an object in the network.

        Raises:
            UsageError: a method that trains, compares images, or averages views; several methods; weights
                that are not in fp32; a region of interest that is not the same part of every input.
        """
        super().__init__()
        if len(detector.methods) > 1 or detector.methods[0].name not in EXPORTABLE:
            names = ", ".join(m.name for m in detector.methods)
            raise UsageError(f"{names} cannot be exported; choose one of: {', '.join(EXPORTABLE)}")
        if detector.methods[0].request().views:
            raise UsageError(
                "views=official encodes every image 23 times and is not exported; use views=none"
            )
        if isinstance(detector.backbone, BackbonePair):
            raise UsageError("two backbones are not exported; load the detector without visual_model")
        if detector.backbone.precision != "fp32":
            raise UsageError("export needs fp32 weights; load the detector with precision fp32")
        self.model = detector.model.set_object(object)
        self.backbone, self.method = detector.backbone, detector.methods[0]
        self.request = self.backbone.resolve(self.model.request)
        self.network = self.backbone.network  # registered, so that its weights are the graph's
        self.calibration = calibration
        self.register_buffer("mean", 255 * torch.tensor(self.backbone.mean))
        self.register_buffer("std", 255 * torch.tensor(self.backbone.std))
        self.has_roi = detector.reader.roi is not None
        if detector.reader.roi is not None:
            self._fix_region(detector.reader.roi, detector.reader.fit.aspect)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Score images.

        Args:
            image: (B, S, S, 3) uint8 RGB.

        Returns:
            (B,) image scores and (B, S, S) anomaly maps in [0, 1]: calibrated, with the threshold 0.5, where a
            calibration was given, else the method's own. Then what :class:`clipspect.export.onnx_detector.OnnxDetector`
            reads beside them, named by :meth:`output_names`.
        """
        return tuple(self._outputs(image).values())

    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        size = self.backbone.image_size
        with torch.inference_mode():
            return list(self._outputs(torch.zeros(1, size, size, 3, dtype=torch.uint8)))

    def _fix_region(self, roi: RegionOfInterest, aspect: str) -> None:
        """Store which cells of the layers and pixels of the maps are inspected.

        Raises:
            UsageError: a region that is not the same part of every input.
        """
        if aspect != "squash":
            raise UsageError(
                "with --aspect pad the region of interest lies elsewhere in images of another shape;"
                " export with --aspect squash"
            )
        size = self.backbone.image_size
        with torch.inference_mode():
            scores = self._scores(torch.zeros(1, size, size, 3, dtype=torch.uint8))
        sizes = {"map_inside": (size, size)}
        if scores.layers is not None:
            rows, columns = enlarge_layers(scores.layers).shape[-2:]
            sizes["layers_inside"] = (rows, columns)
        for name, (rows, columns) in sizes.items():
            self.register_buffer(name, torch.from_numpy(roi.fixed_cells(rows, columns)).float())

    def _scores(self, image: Tensor) -> Scores:
        images = ((image.float() - self.mean) / self.std).permute(0, 3, 1, 2)
        features = self.backbone.features(images, self.request)
        size = self.backbone.image_size
        return self.model.score(features, size=(size, size))[self.method.name]

    def _outputs(self, image: Tensor) -> dict[str, Tensor]:
        scores = self._scores(image)
        raw = {RAW_SCORE: scores.image, RAW_MAP: scores.map}
        if self.calibration is not None:
            # the class token sees all of the image, so that it has no part in a region's score
            own = replace(scores, class_logit=None) if self.has_roi else scores
            inside = self.layers_inside if self.has_roi else None
            size = self.backbone.image_size
            score, map_ = calibrated(own, self.calibration, (size, size), inside)
            outputs = {SCORE: score, MAP: map_, **raw}
        elif self.has_roi:
            map_ = scores.map * self.map_inside
            outputs = {SCORE: map_.amax((1, 2)), MAP: map_, **raw}
        else:
            outputs = {SCORE: scores.image, MAP: scores.map}
        if scores.layers is not None:
            outputs[LAYERS] = enlarge_layers(scores.layers)
        if scores.class_logit is not None:
            outputs[CLASS_LOGIT] = scores.class_logit
        return outputs


def metadata(detector: Detector, object: str, calibration: Calibration | None) -> dict[str, str]:
    """What a reader of the file must know, as strings: settings, how to prepare images, calibration.

    Without a calibration the key ``threshold`` is missing, and scores are the method's own.
    """
    fit, settings = detector.reader.fit, detector.settings()
    kept = ("clipspect", "methods", "model", "weights", "fingerprint", "image_size", "domain", "prompts")
    described: dict[str, Any] = {
        "kind": KIND,
        "object": clean_object_name(object),
        **{key: settings[key] for key in kept},
        "input": f"{INPUT}: uint8 RGB, (batch, {fit.size}, {fit.size}, 3)",
        "outputs": f"{SCORE}: (batch,); {MAP}: (batch, {fit.size}, {fit.size}); both in [0, 1]",
        "resize": f"{fit.interpolation} (Pillow's), {fit.aspect}",
        "settings": settings,
    }
    level = detector.backbone.levels.get(detector.methods[0].name)
    if level is not None:
        described["level"] = level.to_dict()
    if detector.reader.roi is not None:
        described["roi"] = detector.reader.roi.to_dict()
    if calibration is not None:
        described |= {
            "threshold": calibration.score_threshold,
            "threshold_source": calibration.rule,
            "threshold_note": describe(calibration),
            "calibration": calibration.to_dict(),
        }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in described.items()}

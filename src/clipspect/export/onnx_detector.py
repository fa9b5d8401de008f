"""Detector of an exported file: images in, Detections out, through ONNX Runtime and without PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipspect.config import DetectorConfig, make_reader
from clipspect.data.loader import LoadedImage, batches, load_images
from clipspect.data.prepare import ImageLoader
from clipspect.data.roi import RegionOfInterest
from clipspect.detection import Detection
from clipspect.errors import UsageError, WeightsError
from clipspect.postprocess.calibration import Calibration
from clipspect.stitching import RANDOM_WEIGHTS, TileScores, make_detection
from clipspect.types import Step

INPUT, SCORE, MAP = "image", "score", "map"
RAW_SCORE, RAW_MAP, LAYERS, CLASS_LOGIT = "raw_score", "raw_map", "layers", "class_logit"
KIND = "clipspect.export.2"
OPTIONS = ("model", "batch_size", "tile", "max_pixels", "bit_depth", "window")
"""Options of a detector that an exported file leaves open; the others are in the file."""


@dataclass(frozen=True)
class OnnxDetector:
    """An exported file as a detector of one object."""

    config: DetectorConfig
    session: Any
    """onnxruntime.InferenceSession."""
    about: Mapping[str, str]
    """Metadata of the file."""
    reader: ImageLoader

    @classmethod
    def load(cls, config: DetectorConfig) -> OnnxDetector:
        """Open the file that ``config.model`` names.

        Raises:
            UsageError: ONNX Runtime is not installed, or an option that the file has decided.
            WeightsError: no file of ``clipspect export``, one of an earlier version, or one with damaged metadata.
        """
        _check_options(config)
        path = Path(config.model)
        if not path.is_file():
            raise WeightsError(
                f"{path}: no such file; write one with clipspect export --object NAME -o FILE.onnx"
            )
        try:
            onnxruntime = import_module("onnxruntime")
        except ImportError as error:
            raise UsageError("--runtime onnx needs onnxruntime: pip install 'clipspect[export]'") from error
        try:
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common class
            raise WeightsError(f"{path}: ONNX Runtime cannot read it ({error})") from error
        about = session.get_modelmeta().custom_metadata_map
        if about.get("kind") != KIND:
            raise WeightsError(
                f"{path}: not written by this version of clipspect export ({about.get('kind', 'no kind')});"
                " export again"
            )
        try:
            made, size = json.loads(about["settings"]), int(about["image_size"])
            roi = RegionOfInterest.from_dict(json.loads(about["roi"])) if "roi" in about else None
            config = config.replace(aspect=made["aspect"], interpolation=made["interpolation"], roi=roi)
        except (UsageError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise WeightsError(
                f"{path}: its metadata is damaged ({type(error).__name__}: {error}); export again"
            ) from error
        return cls(config, session, about, make_reader(config, size))

    @property
    def object(self) -> str:
        """What the file detects anomalies on."""
        return self.about["object"]

    @cached_property
    def method(self) -> str:
        """Name of the method."""
        (name,) = json.loads(self.about["methods"])
        return str(name)

    @property
    def uses_sets(self) -> bool:
        """Whether a score depends on other images; exported methods score single images."""
        return False

    @cached_property
    def calibrations(self) -> dict[str, Calibration]:
        """Method → calibration from known-good images, where the file has one."""
        if "calibration" not in self.about:
            return {}
        return {self.method: Calibration.from_dict(json.loads(self.about["calibration"]))}

    def settings(self) -> dict[str, Any]:
        """Return everything a result depends on beside the images, as JSON-able values."""
        made = json.loads(self.about["settings"])
        return {**made, **self.reader.settings(), "runtime": "onnx"}

    def set_identity(self, paths: Sequence[Path]) -> str | None:
        """Return None: no image is compared with others."""
        return None

    def stream(
        self,
        images: Iterable[Path],
        *,
        object: str,
        root: Path | None = None,
        should_score: Callable[[Path], bool] | None = None,
        references: Any = None,
        templates: Any = None,
        good: Any = None,
        on_step: Step | None = None,
    ) -> Iterator[Detection]:
        """Yield one Detection per image, in order; see :meth:`clipspect.detector.Detector.stream`.

        Raises:
            UsageError: another object than the file's.
        """
        if object != self.object:
            raise UsageError(
                f"the file detects anomalies on {self.object!r}, not on {object!r}; export another file"
            )
        loaded = load_images(
            images,
            self.reader,
            ahead=2 * self.config.batch_size,
            root=root,
            keep=lambda _, source: should_score is None or should_score(Path(source)),
        )
        for batch in batches(loaded, self.config.batch_size):
            yield from self._score(batch)

    def _score(self, batch: Sequence[LoadedImage]) -> Iterator[Detection]:
        pieces = [one.image.pieces for one in batch if one.image is not None]
        found: dict[str, NDArray[np.float32]] = {}
        seconds = 0.0
        if pieces:
            started = perf_counter()
            names = [output.name for output in self.session.get_outputs()]
            values = self.session.run(names, {INPUT: np.concatenate(pieces)})
            found = dict(zip(names, values, strict=True))
            seconds = (perf_counter() - started) / len(pieces)
        start = 0
        for one in batch:
            stop = start + (len(one.image.pieces) if one.image else 0)
            own = {name: value[start:stop] for name, value in found.items()}
            scores = (
                TileScores(
                    own.get(RAW_SCORE, own[SCORE]),
                    own.get(RAW_MAP, own[MAP]),
                    own.get(LAYERS),
                    own.get(CLASS_LOGIT),
                )
                if stop > start
                else None
            )
            yield make_detection(
                one, scores, self.reader, seconds=seconds, warnings=self._warnings(one), common=self._common
            )
            start = stop

    def _warnings(self, loaded: LoadedImage) -> tuple[str, ...]:
        notes = loaded.image.notes if loaded.image else ()
        return (RANDOM_WEIGHTS, *notes) if self.about["weights"].startswith("random") else notes

    @cached_property
    def levels(self) -> dict[str, Calibration]:
        """Method → level of one image alone, where the file has one."""
        if "level" not in self.about:
            return {}
        return {self.method: Calibration.from_dict(json.loads(self.about["level"]))}

    @cached_property
    def _common(self) -> dict[str, Any]:
        return {
            "object": self.object,
            "method": self.method,
            "model": self.about["model"],
            "weights": self.about["weights"],
            "calibration": self.calibrations.get(self.method, self.levels.get(self.method)),
        }


def _check_options(config: DetectorConfig) -> None:
    """Raise UsageError where an option is given that the file has decided."""
    if not config.model.endswith(".onnx"):
        raise UsageError(
            f"--runtime onnx runs a file of clipspect export: --model FILE.onnx, not {config.model}"
        )
    plain = DetectorConfig(model=config.model)
    given = [
        one.name
        for one in fields(config)
        if one.name not in OPTIONS and getattr(config, one.name) != getattr(plain, one.name)
    ]
    if given:
        raise UsageError(
            f"{', '.join(given)}: decided when {config.model} was exported; export again to change it"
        )

"""A detector without torch: the darkest pixels are the anomaly. Run as a script, it is a run to be killed."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipspect.config import DetectorConfig
from clipspect.data.decode import read_image
from clipspect.detection import Detection
from clipspect.errors import ImageError
from clipspect.postprocess.calibration import Calibration
from clipspect.references import GoodImages

KNOWN_GOOD = GoodImages(
    {"dark": Calibration("conformal", 0.0, -2.0, (0.0,), (1.0,), images=40, false_alarm_rate=0.05)}, None
)
"""A calibration by which a darkness of ½ is the threshold."""


class DarkSpotDetector:
    """Map = darkness, score = its highest value. Keeps count of what it scored."""

    def __init__(self, model: str = "fake", delay: float = 0.0, log: Path | None = None) -> None:
        """``delay`` seconds per image; scored names are appended to ``log``."""
        self.model, self.config = model, DetectorConfig(model=model)
        self.delay = delay
        self.log = log
        self.scored: list[str] = []

    def settings(self) -> dict[str, Any]:
        """Its settings."""
        return {"methods": {"dark": {}}, "model": self.model, "weights": "none"}

    def stream(
        self,
        images: Iterable[Path],
        *,
        object: str,
        root: Path | None,
        should_score=None,
        references=None,
        templates=None,
        good=None,
        on_step=None,
    ) -> Iterator[Detection]:
        """One detection per image that is wanted."""
        for path in images:
            if should_score is not None and not should_score(path):
                continue
            yield self.detect(path, object, path.relative_to(root).as_posix() if root else path.name)

    def set_identity(self, paths) -> str | None:
        """It needs no set."""
        return None

    def detect(self, path: Path, object: str, name: str) -> Detection:
        """The detection of one file."""
        time.sleep(self.delay)
        self.scored.append(name)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(name + "\n")
        common = {"path": name, "object": object, "method": "dark", "model": self.model, "weights": "none"}
        try:
            pixels, digest = read_image(path)
        except ImageError as error:
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
            return Detection(
                **common, content_hash=digest, width=0, height=0, raw_score=float("nan"), score_map=None,
                seconds=0.0, error=error.reason,
            )  # fmt: skip
        darkness = 1 - pixels.mean(axis=2, dtype=np.float32) / 255
        return Detection(
            **common, content_hash=digest, width=pixels.shape[1], height=pixels.shape[0],
            raw_score=float(darkness.max()), score_map=darkness, seconds=0.001, warnings=("no real model",),
            thumbnail=pixels, pixels=lambda: read_image(path)[0],
        )  # fmt: skip


def write_parts(folder: Path, good: int, dark: int, size: tuple[int, int] = (64, 48)) -> None:
    """Light grey pictures, the last ``dark`` of them with a dark spot at columns 10…19 and rows 20…29."""
    folder.mkdir(parents=True, exist_ok=True)
    width, height = size
    for number in range(good + dark):
        rng = np.random.default_rng(number)
        pixels = rng.integers(190, 215, (height, width, 1), dtype=np.uint8).repeat(3, axis=2)
        if number >= good:
            pixels[20:30, 10:20] = 15
        Image.fromarray(pixels).save(folder / f"part-{number:04d}.png", compress_level=0)


if __name__ == "__main__":
    from clipspect.results.run import run_folder

    photos, out, log = (Path(argument) for argument in sys.argv[1:4])
    run_folder(
        DarkSpotDetector(delay=float(os.environ.get("DELAY", "0")), log=log), photos, object="part", out=out,
        overlays="none",
    )  # fmt: skip

"""Engine of a run over a folder with several objects: one report, and references and thresholds per object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipspect.data.objects import ObjectTable
from clipspect.errors import ImageError
from clipspect.postprocess.calibration import Calibration
from clipspect.prompts import clean_object_name
from clipspect.results.rows import calibration_key
from clipspect.results.run import DetectorLike, LocalEngine
from clipspect.types import Step


@dataclass(frozen=True)
class MixedEngine:
    """Scores the images of each object on their own: a set holds images of one object alone."""

    parts: Mapping[str, LocalEngine]
    """Object → engine of its images."""
    digest: str
    """Of the table of objects."""

    @cached_property
    def _owner(self) -> Mapping[str, LocalEngine]:
        return {name: part for part in self.parts.values() for name in part.images()}

    @property
    def _first(self) -> LocalEngine:
        return next(iter(self.parts.values()))

    @property
    def levels(self) -> Mapping[str, Calibration]:
        """Return the level of one image alone by method, where the model has one."""
        return self._first.levels

    def settings(self) -> dict[str, Any]:
        """Return the settings of the detector and of this run."""
        own = [part.settings() for part in self.parts.values()]
        return {
            **own[0],
            "object": ", ".join(self.parts),
            "objects": self.digest,
            **{name: [one[name] for one in own] for name in ("good", "set")},
        }

    def config(self) -> Mapping[str, Any]:
        """Return the detector's options."""
        return self._first.config()

    def images(self) -> Sequence[str]:
        """Return all images, sorted by path."""
        return sorted(self._owner)

    def notes(self) -> Sequence[str]:
        """Return notes on other files in the folder."""
        return self._first.notes()

    def hashes(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return the SHA-256 of the files' bytes."""
        return {name: digest for part, own in self._split(names) for name, digest in part.hashes(own).items()}

    def score(self, names: Sequence[str], on_step: Step | None = None) -> Iterator[dict[str, Any]]:
        """Yield rows, object by object."""
        for part, own in self._split(names):
            if own:
                yield from part.score(own, on_step)

    def pixels(self, name: str) -> NDArray[np.uint8]:
        """Decode a file again."""
        if name not in self._owner:
            raise ImageError(name, "is no longer in the folder")
        return self._owner[name].pixels(name)

    def calibrations(self) -> dict[str, Calibration]:
        """Return the calibrations of objects that have known-good images, by method and object."""
        return {
            calibration_key(method, clean_object_name(object)): one
            for object, part in self.parts.items()
            if part.good is not None
            for method, one in part.good.calibrations.items()
        }

    def _split(self, names: Sequence[str]) -> list[tuple[LocalEngine, list[str]]]:
        wanted = set(names)
        return [(part, [name for name in part.images() if name in wanted]) for part in self.parts.values()]


def mixed_engine(
    detector: DetectorLike, source: Path, table: ObjectTable, place: Path, good: Mapping[str, Any]
) -> MixedEngine:
    """Return the engine of a folder.

    Args:
        detector: of every object.
        source: the folder.
        table: the object on each image.
        place: of the table, for messages.
        good: object → its known-good images.

    Raises:
        UsageError: the table and the folder hold different images.
    """
    table.check(LocalEngine(detector, source, "").images(), place)
    parts = {
        object: LocalEngine(
            detector, source, object, good=good.get(object),
            only=lambda name, object=object: table.object_of(name) == object,  # type: ignore[misc]
        )
        for object in table.objects
    }  # fmt: skip
    return MixedEngine(parts, table.digest)

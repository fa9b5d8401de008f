"""Sources of a watch: complete files of a folder, or frames of a camera, a stream or a video file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clipspect.data.find import OVERLAY_SUFFIX, is_results_folder, sort_out
from clipspect.errors import UsageError
from clipspect.results.rows import row_path
from clipspect.watch.journal import Stamp

TEMPORARY_SUFFIXES = (".tmp", ".part", ".partial", ".crdownload", ".swp")


@dataclass(frozen=True)
class Arrival:
    """An image that is complete."""

    name: str
    """As in rows: the path below the watched folder, or the frame's name."""
    image: Path | NDArray[np.uint8]
    stamp: Stamp | None = None


class ImageSource(Protocol):
    """Where images come from."""

    is_endless: bool
    """Whether more may come after it has nothing."""

    def take(self, limit: int, is_judged: Callable[[Stamp], bool]) -> list[Arrival]:
        """Return at most ``limit`` images that are complete and not judged; an empty list if there are none now."""

    def is_finished(self) -> bool:
        """Whether the source has ended, or no image waits to become complete."""

    def close(self) -> None:
        """Release the camera or file."""


@dataclass
class FolderSource:
    """Files of a folder, once they have not changed for a while.

    Files that are renamed into the folder, that grow, or that are written slowly are all taken when their size and
    time of change have stayed the same for ``settle`` seconds. The folder may disappear and return.
    """

    folder: Path
    settle: float = 1.0
    """Seconds without a change after which a file is complete."""
    skip: tuple[Path, ...] = ()
    """Folders that are not watched, such as those that images are moved to."""
    clock: Callable[[], float] = time.monotonic
    is_endless: bool = True
    missing: bool = False
    """Whether the folder could not be listed the last time."""
    _seen: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    """name → size, time of change, and when it was first seen so. Holds only files that wait."""
    _waiting: bool = False

    def take(self, limit: int, is_judged: Callable[[Stamp], bool]) -> list[Arrival]:
        """Return files that are complete and were not judged."""
        now = self.clock()
        seen: dict[str, tuple[int, int, float]] = {}
        ready: list[Arrival] = []
        for name, path in self._files().items():
            try:
                state = path.stat()
            except OSError:
                continue  # removed or renamed meanwhile
            stamp = Stamp(row_path(name), state.st_size, state.st_mtime_ns)
            if is_judged(stamp):
                continue
            before = self._seen.get(name)
            same = before is not None and before[:2] == (state.st_size, state.st_mtime_ns)
            since = before[2] if same and before is not None else now
            if now - since >= self.settle and state.st_size and len(ready) < limit:
                ready.append(Arrival(stamp.name, path, stamp))
            seen[name] = (state.st_size, state.st_mtime_ns, since)
        self._seen = seen
        self._waiting = len(seen) > len(ready)
        return ready

    def is_finished(self) -> bool:
        """Whether no file waits to become complete."""
        return not self._waiting

    def close(self) -> None:
        """Nothing is open."""

    def _files(self) -> Mapping[str, Path]:
        try:
            found = list(_walk(self.folder, self.folder, self.skip))
            self.missing = False
        except OSError:
            self.missing = True
            return {}
        images, _ = sort_out(found)
        return {path.as_posix(): self.folder / path for path in images}


def _walk(folder: Path, root: Path, skip: tuple[Path, ...]) -> Iterator[PurePath]:
    """Paths below the root of files that are not hidden, temporary or results."""
    if is_results_folder(folder) or folder.resolve() in skip:
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            if entry.name.startswith((".", "~")) or entry.name.lower().endswith(TEMPORARY_SUFFIXES):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), root, skip)
            elif not entry.name.endswith(OVERLAY_SUFFIX):
                yield Path(entry.path).relative_to(root)


class VideoSource:
    """Every n-th frame of a camera (its number), a stream (rtsp://…) or a video file, through OpenCV.

    Frames of a file are named by their number, those of a camera or stream by the time they were taken. A camera's
    frames that come while images are scored are left out; those of a file are not.
    """

    def __init__(self, source: str, step: int = 1) -> None:
        """Open it.

        Raises:
            UsageError: OpenCV is not installed, or the source cannot be opened.
        """
        try:
            import cv2
        except ImportError:
            raise UsageError(
                "cameras and videos need the extra [video]: pip install 'clipspect[video]'"
            ) from None
        self._cv2: Any = cv2
        self.is_file = Path(source).is_file()
        self.is_endless = not self.is_file
        self._source: Any = int(source) if source.isdigit() and not self.is_file else source
        self._label = (
            Path(source).name if self.is_file else f"camera {source}" if source.isdigit() else "stream"
        )
        self._step, self._number, self._ended = step, -1, False
        self._capture = cv2.VideoCapture(self._source)
        if not self._capture.isOpened():
            raise UsageError(f"{source}: cannot be opened as a video or camera; check the address")

    def take(self, limit: int, is_judged: Callable[[Stamp], bool]) -> list[Arrival]:
        """Return the next frames; frames that were judged are recognized by their names later."""
        found: list[Arrival] = []
        while len(found) < (limit if self.is_file else 1) and not self._ended:
            if not self._capture.grab():
                self._lost()
                break
            self._number += 1
            if self._number % self._step:
                continue
            is_read, frame = self._capture.retrieve()
            if is_read:
                found.append(Arrival(self._name(), self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB)))
        return found

    def is_finished(self) -> bool:
        """Whether the file has ended."""
        return self._ended

    def close(self) -> None:
        """Release the camera or file."""
        self._capture.release()

    def _name(self) -> str:
        if self.is_file:
            return f"{self._label}#{self._number:06d}"
        return f"{self._label} {datetime.now(UTC).strftime('%Y-%m-%d %H.%M.%S.%f')}"

    def _lost(self) -> None:
        """A file has ended; a camera or stream is opened again."""
        if self.is_file:
            self._ended = True
        else:
            self._capture.release()
            self._capture = self._cv2.VideoCapture(self._source)

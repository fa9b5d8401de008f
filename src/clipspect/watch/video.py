"""Video sources of a watch, through OpenCV: frames of a file, and of a camera or stream."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clipspect.errors import UsageError
from clipspect.watch.journal import Stamp
from clipspect.watch.sources import Arrival
from clipspect.watch.targets import shown_address

TIME_LIMIT_MS = 10_000
"""Longest wait for a stream to open, and for its next frame; then it counts as lost."""
REOPEN_SECONDS = 2.0
"""Wait before a lost camera or stream is opened again."""
FRAME_SECONDS = 0.5
"""Longest wait for a frame of a camera or stream, after which the watch looks whether it is to stop."""


def _opencv() -> Any:
    """Return OpenCV, without its messages and those of FFmpeg, which come at each attempt and may hold the address."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError:
        raise UsageError(
            "cameras and videos need the extra [video]: pip install 'clipspect[video]'"
        ) from None
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    return cv2


class VideoFile:
    """Every n-th frame of a video file, named by its number."""

    is_endless = False
    missing = ""

    def __init__(self, path: Path, step: int = 1) -> None:
        """Open it. Raises UsageError if OpenCV is not installed, or the file is no video."""
        self._cv2 = _opencv()
        self._name, self._step, self._number, self._ended = path.name, step, -1, False
        self._capture = self._cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise UsageError(f"{path}: cannot be opened as a video")

    def take(self, limit: int, is_judged: Callable[[Stamp], bool]) -> list[Arrival]:
        """Return the next frames; frames that were judged are recognized by their names later."""
        found: list[Arrival] = []
        while len(found) < limit and not self._ended:
            if not self._capture.grab():
                self._ended = True
                break
            self._number += 1
            if self._number % self._step:
                continue
            is_read, frame = self._capture.retrieve()
            if is_read:
                pixels = self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB)
                found.append(Arrival(f"{self._name}#{self._number:06d}", pixels))
        return found

    def is_finished(self) -> bool:
        """Whether the file has ended."""
        return self._ended

    def close(self) -> None:
        """Release the file."""
        self._capture.release()


class Camera:
    """Every n-th frame of a camera (its number) or a stream (``rtsp://…``), named by the time it came.

    A thread reads every frame and keeps the latest: frames that come while images are scored are left out. Otherwise
    they would wait in buffers, and get the time at which they left those. A source that is lost is opened again.
    """

    is_endless = True

    def __init__(self, source: str, step: int = 1) -> None:
        """Open it. Raises UsageError if OpenCV is not installed, or the source cannot be opened."""
        self._cv2 = _opencv()
        self._source, self._step = source, step
        self._label = f"camera {source}" if source.isdigit() else "stream"
        self.missing = ""
        self._capture = self._open()
        if not self._capture.isOpened():
            raise UsageError(
                f"{shown_address(source)}: cannot be opened as a camera or stream; check the address"
            )
        self._latest: Arrival | None = None
        self._arrived, self._closing = threading.Condition(), threading.Event()
        self._reader = threading.Thread(target=self._read, name="camera", daemon=True)
        self._reader.start()

    def take(self, limit: int, is_judged: Callable[[Stamp], bool]) -> list[Arrival]:
        """Return the latest frame, if one came that was not taken."""
        with self._arrived:
            if self._latest is None:
                self._arrived.wait(FRAME_SECONDS)
            found, self._latest = self._latest, None
        return [] if found is None else [found]

    def is_finished(self) -> bool:
        """A camera never ends."""
        return False

    def close(self) -> None:
        """Stop reading, and release the camera."""
        self._closing.set()
        self._reader.join()

    def _open(self) -> Any:
        cv2 = self._cv2
        if self._source.isdigit():
            return cv2.VideoCapture(int(self._source))
        # with FFmpeg alone: other backends would print the address, which may hold a password
        limits = [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
            TIME_LIMIT_MS,
            cv2.CAP_PROP_READ_TIMEOUT_MSEC,
            TIME_LIMIT_MS,
        ]
        return cv2.VideoCapture(self._source, cv2.CAP_FFMPEG, limits)

    def _read(self) -> None:
        number = -1
        while not self._closing.is_set():
            if not self._capture.grab():
                self.missing = f"{shown_address(self._source)} gives no frames"
                self._capture.release()
                if not self._closing.wait(REOPEN_SECONDS):
                    self._capture = self._open()
                continue
            number, self.missing = number + 1, ""
            if number % self._step:
                continue
            is_read, frame = self._capture.retrieve()
            if is_read:
                time = datetime.now(UTC).strftime("%Y-%m-%d %H.%M.%S.%f")
                pixels = self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB)
                with self._arrived:
                    self._latest = Arrival(f"{self._label} {time}", pixels)
                    self._arrived.notify()
        self._capture.release()

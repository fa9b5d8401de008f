"""Sources of a watch: the interface of all of them, and complete files of a folder."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clipspect.data.find import OVERLAY_SUFFIX, is_results_folder, sort_out
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


EMPTY_SETTLES = 10
"""How many times longer an empty file must stay the same: many writers create a file before they fill it."""


class ImageSource(Protocol):
    """Where images come from."""

    is_endless: bool
    """Whether more may come after it has nothing."""
    missing: str
    """Why the source cannot be read now; empty if it can."""

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
    time of change have stayed the same for ``settle`` seconds; empty files, to which a writer may still have to come,
    for ten times as long. The folder may disappear and return.
    """

    folder: Path
    settle: float = 1.0
    """Seconds without a change after which a file is complete."""
    skip: tuple[Path, ...] = ()
    """Folders that are not watched, such as those that images are moved to."""
    clock: Callable[[], float] = time.monotonic
    is_endless: bool = True
    missing: str = ""
    """Why the folder could not be listed the last time."""
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
            if not stat.S_ISREG(state.st_mode):
                continue  # a pipe, which is never complete
            stamp = Stamp(row_path(name), state.st_size, state.st_mtime_ns)
            if is_judged(stamp):
                continue
            before = self._seen.get(name)
            same = before is not None and before[:2] == (state.st_size, state.st_mtime_ns)
            since = before[2] if same and before is not None else now
            needed = self.settle if state.st_size else EMPTY_SETTLES * self.settle
            if now - since >= needed and len(ready) < limit:
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
            self.missing = ""
        except OSError as error:
            self.missing = f"{error.filename or self.folder}: {error.strerror or error}"
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

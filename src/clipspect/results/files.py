"""Writing files whole or not at all, with errors that say what to do, and one run at a time in a folder."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4

from clipspect.errors import ResultsError

STAGING = ".writing"
"""Folder beside the data, on the same disk, where files wait until they are whole."""
LOCK = ".lock"


@contextmanager
def results_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside into a ResultsError that names ``path`` and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = (
                "the disk is full; free some space and run the same command again, finished rows are kept"
            )
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "may not be written; choose another folder or give yourself permission"
        elif error.errno in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY):
            remedy = (
                "a file or folder of another kind has that name or one on the way to it; rename it (an image's folder"
                " may be named like the output of another image), or choose another folder"
            )
        else:
            remedy = f"cannot be written ({error.strerror or error}); choose another folder"
        raise ResultsError(f"{path}: {remedy}") from error


def write_whole(out: Path, target: Path, data: bytes) -> None:
    """Write ``target`` below ``out`` so that it appears complete or not at all, whenever the process is
    killed.

    Raises ResultsError.
    """
    with open_whole(out, target) as file:
        file.write(data)


@contextmanager
def open_whole(out: Path, target: Path) -> Iterator[IO[bytes]]:
    """A file to write to in pieces, which becomes ``target`` when the block ends without an error.

    Raises ResultsError.
    """
    with _staged(out / STAGING / f"{uuid4().hex}.tmp", target) as file:
        yield file


@contextmanager
def open_beside(target: Path) -> Iterator[IO[bytes]]:
    """The same for a file of its own, outside a results folder. Raises ResultsError."""
    with _staged(target.with_name(f".{uuid4().hex}.tmp"), target) as file:
        yield file


@contextmanager
def _staged(staged: Path, target: Path) -> Iterator[IO[bytes]]:
    with results_errors(target):
        staged.parent.mkdir(parents=True, exist_ok=True)
        try:
            with staged.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(target)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise


class FolderLock:
    """Keeps a second run out of a results folder. The system lets go of it whenever the process ends."""

    def __init__(self, out: Path) -> None:
        """Take the lock. Raises ResultsError where another run holds it."""
        with results_errors(out):
            self._file = (out / LOCK).open("a")
        try:
            _lock(self._file)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                return  # some network disks have no locks; running there must stay possible
            self._file.close()
            raise ResultsError(
                f"{out}: another run is writing there; wait for it or choose another folder"
            ) from error

    def release(self) -> None:
        """Let another run in."""
        self._file.close()


def _lock(file: IO[str]) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

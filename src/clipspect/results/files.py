"""Atomic file writes with errors that state the remedy, and a lock for one run per folder."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING
from uuid import uuid4

from clipspect.errors import ResultsError

if TYPE_CHECKING:
    from PIL import Image

STAGING = ".writing"
"""Folder on the same disk for files until they are complete."""
LOCK = ".lock"


@contextmanager
def results_errors(path: Path) -> Iterator[None]:
    """Convert an OSError inside the block into a ResultsError that names ``path`` and the remedy."""
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
    """Write ``target`` below ``out`` atomically, even if the process is killed.

    Raises ResultsError.
    """
    with open_whole(out, target) as file:
        file.write(data)


def write_picture(out: Path, target: Path, picture: Image.Image) -> None:
    """Write a picture as PNG like :func:`write_whole`. Raises ResultsError."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)
    write_whole(out, target, buffer.getvalue())


@contextmanager
def open_whole(out: Path, target: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that becomes ``target`` when the block ends without an error.

    Raises ResultsError.
    """
    with _staged(out / STAGING / f"{uuid4().hex}.tmp", target) as file:
        yield file


@contextmanager
def open_beside(target: Path) -> Iterator[IO[bytes]]:
    """Open a file outside a results folder for an atomic write. Raises ResultsError."""
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


class RunLock:
    """Lock that prevents a second run in a results folder. The system releases it when the process ends."""

    def __init__(self, out: Path) -> None:
        """Acquire the lock. Raises ResultsError if another run holds it, or the folder cannot be written."""
        from filelock import FileLock, Timeout

        self._lock = FileLock(out / LOCK)
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise ResultsError(
                f"{out}: another run is writing there; wait for it or choose another folder"
            ) from error
        except NotImplementedError:
            return  # some network disks have no locks; run without one there
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
                return
            with results_errors(out):
                raise

    def release(self) -> None:
        """Let another run in."""
        self._lock.release()

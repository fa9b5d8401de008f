"""Image sources: a folder on a disk, or a prefix in object storage (S3, GCS, any fsspec scheme)."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Protocol, TypeVar

from clipspect.data.find import (
    MANIFEST,
    OVERLAY_SUFFIX,
    RESULTS_MARKER,
    find_images,
    scan_folder,
    sort_out,
    summarize_left_out,
)
from clipspect.errors import ImageError, UsageError
from clipspect.results.rows import row_path

ATTEMPTS = 6
"""Read attempts, in addition to the retries of the storage client."""
FIRST_WAIT = 0.5
"""Seconds before the second attempt; doubled each time, with jitter so that workers do not retry together."""

T = TypeVar("T")


class ImageSource(Protocol):
    """Source of images by name. Picklable, because workers on other machines open it too."""

    @property
    def location(self) -> str:
        """Return a location that identifies this source, without credentials."""

    def names(self) -> Sequence[str]:
        """Return the names of all images, sorted, with forward slashes. Raises UsageError if there are none."""

    def left_out(self) -> str | None:
        """Return one sentence on other files in this place; None if there are none."""

    def read(self, name: str) -> bytes:
        """Return the bytes of an image file. Raises ImageError."""


def open_source(place: str) -> ImageSource:
    """Return the source at a path or a URI such as ``s3://bucket/prefix``. Raises UsageError for an invalid one."""
    return ObjectStorage(place) if "://" in place else LocalFolder(Path(place))


@dataclass(frozen=True)
class LocalFolder:
    """Folder or single file. On a cluster, all machines must see it under the same path."""

    folder: Path

    @property
    def location(self) -> str:
        """The absolute path."""
        return row_path(str(self.folder.resolve()))

    @property
    def root(self) -> Path:
        """Return the folder that names are relative to."""
        return self.folder if self.folder.is_dir() else self.folder.parent

    def names(self) -> Sequence[str]:
        """Return the names that :func:`find_images` lists."""
        found = find_images(self.folder)
        return [row_path(path.relative_to(self.root).as_posix()) for path in found]

    def left_out(self) -> str | None:
        """Return the note that :func:`scan_folder` gives."""
        return scan_folder(self.folder).summary()

    def read(self, name: str) -> bytes:
        """The file's bytes."""
        from clipspect.data.decode import read_file

        return read_file(self.root / name, name)


@dataclass(frozen=True)
class ObjectStorage:
    """Prefix in object storage, through pyarrow (S3, GCS, HDFS) or, for other schemes, fsspec.

    Credentials come from the environment, in the form that the storage's own tools use.
    """

    uri: str

    @property
    def location(self) -> str:
        """Return scheme, bucket and prefix."""
        return f"{self.uri.partition('://')[0]}://{self._opened[1]}"

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """Return the file system and the prefix in it; opened once per process."""
        import pyarrow as pa
        from pyarrow import fs

        scheme = self.uri.partition("://")[0]
        try:
            system, path = fs.FileSystem.from_uri(self.uri.replace(" ", "%20"))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            if scheme in ("s3", "gs", "gcs", "hdfs", "file"):
                raise UsageError(f"{scheme}://…: cannot be opened ({error})") from error
            system, path = _through_fsspec(self.uri, scheme)
        return system, path.rstrip("/")

    def __getstate__(self) -> dict[str, str]:
        """Return the URI only: each process opens its own connections."""
        return {"uri": self.uri}

    def names(self) -> Sequence[str]:
        """Return the names below the prefix, without hidden files, clipspect results and files that are no images."""
        found = self._sorted_out[0]
        if not found:
            raise UsageError(f"{self.location}: no images in it or below it")
        return sorted(map(str, found))

    def left_out(self) -> str | None:
        """Return one sentence on other files in this place; None if there are none."""
        return summarize_left_out(self._sorted_out[1])

    @cached_property
    def _sorted_out(self) -> tuple[Sequence[PurePath], Mapping[str, int]]:
        from pyarrow import fs

        system, prefix = self._opened
        try:
            listed = _retry(lambda: system.get_file_info(fs.FileSelector(prefix, recursive=True)))
        except OSError as error:
            raise UsageError(
                f"{self.location}: cannot be listed ({error}); check its name and your rights"
            ) from error
        files = {info.path.removeprefix(prefix).lstrip("/") for info in listed if info.is_file}
        results = {
            str(PurePosixPath(name).parent) for name in files if _is_manifest(name) and self._is_ours(name)
        }
        return sort_out([path for path in map(PurePosixPath, files) if not _is_ours(path, results)])

    def read(self, name: str) -> bytes:
        """Return the object's bytes. Storage errors are retried for half a minute in total."""
        from clipspect.data.decode import MAX_FILE_BYTES

        system, prefix = self._opened

        def fetch() -> bytes:
            with system.open_input_file(f"{prefix}/{name}") as file:
                if file.size() > MAX_FILE_BYTES:
                    raise ImageError(
                        name, f"larger than {MAX_FILE_BYTES // 1024**3} GiB, the limit; export it smaller"
                    )
                data: bytes = file.read()
                return data

        try:
            return _retry(fetch)
        except FileNotFoundError as error:
            raise ImageError(
                name, f"no such object in {self.location}; it was removed during the run"
            ) from error
        except OSError as error:
            raise ImageError(name, f"cannot be read from {self.location} ({error})") from error

    def _is_ours(self, manifest: str) -> bool:
        try:
            content = json.loads(self.read(manifest))
        except (ImageError, ValueError):
            return False
        return isinstance(content, dict) and content.get("kind") == RESULTS_MARKER


def _through_fsspec(uri: str, scheme: str) -> tuple[Any, str]:
    from pyarrow import fs

    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:  # fsspec or the package for this scheme is missing
        raise UsageError(
            f"{scheme}://…: no reader of this scheme here ({error}); install fsspec and its package for it"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(system)), str(path)


def _retry(read: Callable[[], T]) -> T:
    """Retry after transient errors; FileNotFoundError and PermissionError are not retried."""
    for attempt in range(1, ATTEMPTS):
        try:
            return read()
        except (FileNotFoundError, PermissionError):
            raise
        except OSError:
            time.sleep(FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
    return read()


def _is_manifest(name: str) -> bool:
    return PurePosixPath(name).name == MANIFEST


def _is_ours(path: PurePosixPath, results: set[str]) -> bool:
    """Return whether a name is hidden, or made by clipspect."""
    hidden = any(part.startswith(".") for part in path.parts)
    return (
        hidden or path.name.endswith(OVERLAY_SUFFIX) or any(str(above) in results for above in path.parents)
    )

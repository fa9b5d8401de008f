"""Stored references: one .refs file each, named by a hash of its inputs; the oldest are deleted first."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipspect.server.errors import ServiceError

ID_PATTERN = r"^[0-9a-f]{32}$"
KEPT = 64


class ReferenceStore:
    """Folder of reference files. On a cluster all nodes must share it."""

    def __init__(self, folder: Path, kept: int = KEPT) -> None:
        """Open a folder. ``kept`` is the maximum number of reference files."""
        self.folder, self.kept = folder, kept

    def place(self, settings: dict[str, Any], object: str, images: Sequence[bytes]) -> tuple[str, Path]:
        """Return id and path for references. Equal images, object and detector settings give the same id."""
        contents = sorted(hashlib.sha256(data).hexdigest() for data in images)
        said = json.dumps([settings, object, contents], sort_keys=True).encode()
        name = hashlib.sha256(said).hexdigest()[:32]
        return name, self._path(name)

    def find(self, name: str) -> Path:
        """Return the file of an id. Only valid ids are resolved to paths. Raises ServiceError (404)."""
        path = self._path(name) if re.fullmatch(ID_PATTERN, name) else None
        if path is None or not path.is_file():
            raise ServiceError(
                404, "unknown_references", "unknown reference id; send the references to POST /v1/references"
            )
        return path

    def tidy(self) -> None:
        """Delete the oldest files beyond the limit."""
        files = sorted(self.folder.glob(self._path("*").name), key=lambda path: path.stat().st_mtime)
        for path in files[: -self.kept]:
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        from clipspect.registry import REFERENCES_SUFFIX  # imports torch, which a gateway does not need

        return self.folder / f"{name}{REFERENCES_SUFFIX}"

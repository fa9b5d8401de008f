"""References kept for later requests: one .refs file each, named by what it was made of, the oldest given up first."""

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
    """A folder of references. On a cluster it must be one that all nodes see."""

    def __init__(self, folder: Path, kept: int = KEPT) -> None:
        """``kept`` is the most sets of references that stay."""
        self.folder, self.kept = folder, kept

    def place(self, settings: dict[str, Any], object: str, images: Sequence[bytes]) -> tuple[str, Path]:
        """Id and path for references: equal images, object and detector settings give the same ones."""
        contents = sorted(hashlib.sha256(data).hexdigest() for data in images)
        said = json.dumps([settings, object, contents], sort_keys=True).encode()
        name = hashlib.sha256(said).hexdigest()[:32]
        return name, self._path(name)

    def find(self, name: str) -> Path:
        """The file of an id, which nothing but an id can lead to. Raises ServiceError (404)."""
        path = self._path(name) if re.fullmatch(ID_PATTERN, name) else None
        if path is None or not path.is_file():
            raise ServiceError(
                404, "unknown_references", "no references of that id; send them to POST /v1/references"
            )
        return path

    def tidy(self) -> None:
        """Give up the oldest beyond the limit."""
        files = sorted(self.folder.glob(self._path("*").name), key=lambda path: path.stat().st_mtime)
        for path in files[: -self.kept]:
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        from clipspect.registry import REFERENCES_SUFFIX  # brings torch, which a gateway never needs

        return self.folder / f"{name}{REFERENCES_SUFFIX}"

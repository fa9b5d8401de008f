"""Each image's own reference, told by its file name (a board beside its template, as in DeepPCB)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipspect.data.find import find_images
from clipspect.errors import ImageError, UsageError


@dataclass(frozen=True)
class FolderTemplates:
    """References by file name: the same relative path or, failing that, the same stem."""

    folder: Path
    root: Path
    """The images' folder."""
    by_path: Mapping[str, Path]
    by_stem: Mapping[str, Sequence[Path]]

    def __call__(self, image: Path) -> Path:
        """The reference of an image. Raises ImageError where it has none or several."""
        known = image.is_relative_to(self.root)
        relative = image.relative_to(self.root).as_posix() if known else ""
        if relative in self.by_path:
            return self.by_path[relative]
        found = self.by_stem.get(image.stem, ())
        if len(found) != 1:
            number = "no reference" if not found else f"{len(found)} references"
            raise ImageError(image.name, f"{number} named {image.stem!r} in {self.folder}")
        return found[0]

    @property
    def digest(self) -> str:
        """Tells one folder of references from another: their names, sizes and times of change."""
        states = [(name, p.stat().st_size, p.stat().st_mtime_ns) for name, p in sorted(self.by_path.items())]
        return hashlib.sha256(repr(states).encode()).hexdigest()


def match_templates(folder: Path, source: Path) -> FolderTemplates:
    """References for the images in ``source``, a folder or one file.

    Raises:
        UsageError: no images in the folder, or it is the images' own.
    """
    root = source if source.is_dir() else source.parent
    if folder.resolve() == root.resolve():
        raise UsageError(f"{folder} holds the images themselves; references must be other pictures")
    by_path: dict[str, Path] = {}
    by_stem: dict[str, list[Path]] = {}
    for path in find_images(folder):
        by_path[path.relative_to(folder).as_posix()] = path
        by_stem.setdefault(path.stem, []).append(path)
    return FolderTemplates(folder, root, by_path, by_stem)

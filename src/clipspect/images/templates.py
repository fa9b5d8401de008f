"""Each photograph's own reference, told by its file name (a board beside its template, as in DeepPCB)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipspect.errors import ImageError, UsageError
from clipspect.images.find import find_photographs


@dataclass(frozen=True)
class FolderTemplates:
    """References by file name: the same relative path or, failing that, the same stem."""

    folder: Path
    root: Path
    """The photographs' folder."""
    by_path: Mapping[str, Path]
    by_stem: Mapping[str, Sequence[Path]]

    def __call__(self, photograph: Path) -> Path:
        """The reference of a photograph. Raises ImageError where it has none or several."""
        known = photograph.is_relative_to(self.root)
        relative = photograph.relative_to(self.root).as_posix() if known else ""
        if relative in self.by_path:
            return self.by_path[relative]
        found = self.by_stem.get(photograph.stem, ())
        if len(found) != 1:
            number = "no reference" if not found else f"{len(found)} references"
            raise ImageError(photograph.name, f"{number} named {photograph.stem!r} in {self.folder}")
        return found[0]

    @property
    def digest(self) -> str:
        """Tells one folder of references from another: their names, sizes and times of change."""
        states = [(name, p.stat().st_size, p.stat().st_mtime_ns) for name, p in sorted(self.by_path.items())]
        return hashlib.sha256(repr(states).encode()).hexdigest()


def match_templates(folder: Path, source: Path) -> FolderTemplates:
    """References for the photographs in ``source``, a folder or one file.

    Raises:
        UsageError: no photographs in the folder, or it is the photographs' own.
    """
    root = source if source.is_dir() else source.parent
    if folder.resolve() == root.resolve():
        raise UsageError(f"{folder} holds the photographs themselves; references must be other pictures")
    by_path: dict[str, Path] = {}
    by_stem: dict[str, list[Path]] = {}
    for path in find_photographs(folder):
        by_path[path.relative_to(folder).as_posix()] = path
        by_stem.setdefault(path.stem, []).append(path)
    return FolderTemplates(folder, root, by_path, by_stem)

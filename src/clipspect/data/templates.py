"""Per-image references, found by path (a board and its template, as in DeepPCB)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipspect.data.decode import split_page
from clipspect.data.find import find_images
from clipspect.errors import ImageError, UsageError


@dataclass(frozen=True)
class FolderTemplates:
    """References by relative path; by file name if it is unambiguous among images and references."""

    folder: Path
    root: Path
    """The images' folder."""
    by_path: Mapping[str, Path]
    by_stem: Mapping[str, Sequence[Path]]
    repeated: frozenset[str] = frozenset()
    """Stems shared by several images of the run."""
    twins: frozenset[str] = frozenset()
    """Paths without suffix shared by several images of the run: part.jpg and part.png."""

    def __call__(self, image: Path) -> Path:
        """Return the reference of an image.

        It has the same path below its folder, with another suffix if no other image shares the path without suffix;
        otherwise the same name, if it is unique among images and among references.

        Raises:
            ImageError: there is none, or the match is ambiguous.
        """
        file, _ = split_page(image)
        below = file.relative_to(self.root) if file.is_relative_to(self.root) else Path(file.name)
        if (same := self.by_path.get(below.as_posix())) is not None:
            return same
        named = self.by_stem.get(file.stem, ())
        beside = [path for path in named if path.relative_to(self.folder).parent == below.parent]
        if len(beside) == 1 and below.with_suffix("").as_posix() not in self.twins:
            return beside[0]
        if len(named) == 1 and file.stem not in self.repeated:
            return named[0]
        if not named:
            reason = f"no reference named {file.stem!r} in {self.folder}"
        elif len(named) > 1:
            reason = (
                f"no reference: {len(named)} files in {self.folder} are named {file.stem!r}, none at {below}"
            )
        else:
            reason = f"no reference at {below} in {self.folder}, and {file.stem!r} there may belong to another image"
        raise ImageError(image.name, reason)

    @property
    def digest(self) -> str:
        """Return a hash of the references' names, sizes and modification times."""
        states = [(name, p.stat().st_size, p.stat().st_mtime_ns) for name, p in sorted(self.by_path.items())]
        return hashlib.sha256(repr(states).encode()).hexdigest()


def match_templates(folder: Path, source: Path) -> FolderTemplates:
    """Return references for the images in ``source``, a folder or one file.

    Raises:
        UsageError: no images in the folder, or it is the images' own folder.
    """
    root = source if source.is_dir() else source.parent
    if folder.resolve() == root.resolve():
        raise UsageError(f"{folder} holds the images themselves; references must be other pictures")
    by_path: dict[str, Path] = {}
    by_stem: dict[str, list[Path]] = {}
    for path in find_images(folder):
        by_path[path.relative_to(folder).as_posix()] = path
        by_stem.setdefault(path.stem, []).append(path)
    images = [path.relative_to(root) for path in find_images(source)] if source.exists() else []
    return FolderTemplates(
        folder,
        root,
        by_path,
        by_stem,
        _repeated(path.stem for path in images),
        _repeated(path.with_suffix("").as_posix() for path in images),
    )


def _repeated(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name, count in Counter(names).items() if count > 1)

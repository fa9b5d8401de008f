"""Each photograph's own reference, told by its file name (a board beside its template, as in DeepPCB)."""

from __future__ import annotations

from pathlib import Path

from clipspect.errors import ImageError, UsageError
from clipspect.images.find import find_photographs
from clipspect.images.intake import Templates


def match_templates(folder: Path, root: Path) -> Templates:
    """Find references for photographs below ``root``: the same relative path or, failing that, the same stem.

    Args:
        folder: where the references lie.
        root: the photographs' folder, or one photograph.

    Raises:
        UsageError: no photographs in the folder, or it is the photographs' own.
        ImageError: from the returned function, where a photograph has no reference or several.
    """
    if folder.resolve() == (root if root.is_dir() else root.parent).resolve():
        raise UsageError(f"{folder} holds the photographs themselves; references must be other pictures")
    by_path: dict[str, Path] = {}
    by_stem: dict[str, list[Path]] = {}
    for path in find_photographs(folder):
        by_path[path.relative_to(folder).as_posix()] = path
        by_stem.setdefault(path.stem, []).append(path)
    base = root if root.is_dir() else root.parent

    def template(photograph: Path) -> Path:
        relative = photograph.relative_to(base).as_posix() if photograph.is_relative_to(base) else ""
        if relative in by_path:
            return by_path[relative]
        found = by_stem.get(photograph.stem, [])
        if not found:
            raise ImageError(photograph.name, f"no reference named {photograph.stem!r} in {folder}")
        if len(found) > 1:
            raise ImageError(photograph.name, f"{len(found)} references named {photograph.stem!r} in {folder}")
        return found[0]

    return template

"""Which files of a folder are images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from clipspect.errors import UsageError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".tif", ".tiff", ".bmp", ".dib", ".webp"}
)
"""Suffixes of images, in any case. What a file really is, is told by its content when it is decoded."""
OVERLAY_SUFFIX = ".clipspect.png"
"""Ends the names of overlays that lie beside single images; they are never taken for images."""
MANIFEST = "manifest.json"
RESULTS_MARKER = "clipspect results"
"""Value of ``"kind"`` in the manifest of a results folder."""


def find_images(folder: Path) -> list[Path]:
    """Images in a folder and the folders below it, sorted by path; a single file is its own list.

    Hidden files and folders are left out, and so are results folders of clipspect. Linked folders are
    followed once.

    Raises UsageError: nothing at that path, a folder that cannot be listed, no image in it.
    """
    if folder.is_file():
        return [folder]
    if not folder.exists():
        raise UsageError(f"{folder}: no such file or folder; give an image or a folder of images")
    found = sorted(_walk(folder, set()), key=lambda path: path.relative_to(folder).parts)
    if not found:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise UsageError(f"{folder}: no images in it or below it; looked for files ending in {kinds}")
    return found


def is_results_folder(folder: Path) -> bool:
    """Whether a folder holds a manifest of clipspect."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("kind") == RESULTS_MARKER


def _walk(folder: Path, visited: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in visited or is_results_folder(folder):
        return
    visited.add(real)
    try:
        entries = sorted(folder.iterdir())
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry, visited)
            elif entry.suffix.lower() in SUFFIXES and not entry.name.endswith(OVERLAY_SUFFIX):
                yield entry  # broken links too: they become error rows, not silence
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot be listed ({error.strerror or error}); check its permissions"
        ) from error

"""Listing of the images in a folder, and of the files that are left out."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from clipspect.data.formats import PLAIN_SUFFIXES, is_image_name, unsupported_kind
from clipspect.errors import ImageError, UsageError

SUFFIXES = PLAIN_SUFFIXES
"""Suffixes of images that are always supported. Decoding detects the actual type from the content."""
OVERLAY_SUFFIX = ".clipspect.png"
"""Suffix of overlays written next to single images; they are never listed as images."""
MANIFEST = "manifest.json"
RESULTS_MARKER = "clipspect results"
"""Value of ``"kind"`` in the manifest of a results folder."""
MASK_FOLDERS = ("ground_truth", "ground-truth", "ground truth", "groundtruth", "gt", "masks", "mask")
"""Names of mask folders, in any case."""
MASK_ENDINGS = ("_mask", "-mask", ".mask", "_gt", "_ground_truth", "_label")
"""Suffix of the stem of a mask next to its image: part_mask.png for part.jpg."""
MASKS = "masks"
_PAGED_SUFFIXES = (".tif", ".tiff", ".gif", ".webp", ".png", ".apng", ".dcm", ".dicom")


@dataclass(frozen=True)
class Scan:
    """Contents of a folder."""

    images: Sequence[Path]
    """Sorted by path."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Kind of skipped file → count: "HEIC (needs clipspect[heif])", "masks", "other files"."""

    def summary(self) -> str | None:
        """Return one sentence on skipped files; None if there are none."""
        return summarize_left_out(self.left_out)


def check_source(source: object) -> None:
    """Raise UsageError for an empty path, which would mean the current folder."""
    if isinstance(source, str) and not source.strip():
        raise UsageError("the path is empty; give an image or a folder of images, '.' for the current folder")


def find_images(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, as :func:`scan_folder` finds them."""
    return list(scan_folder(folder).images)


def scan_folder(folder: Path, *, all_pages: bool = False) -> Scan:
    """List the images in a folder and its subfolders; a single file gives a list of one.

    Hidden files and folders are skipped, and so are results folders of clipspect. Masks are skipped too: images named
    like another with ``_mask`` added, and folders called ``masks`` or ``ground_truth`` next to other images. Linked
    folders are followed once.

    Args:
        folder: a folder, or one file.
        all_pages: list each page of a multi-page file, named by :func:`~clipspect.data.decode.page_path`.

    Returns:
        Images sorted by path, and the number of other files by kind.

    Raises:
        UsageError: nothing at that path, a folder that cannot be listed, no image in it.
    """
    if folder.is_file():
        return Scan(list(_pages([folder])) if all_pages else [folder])
    if not folder.exists():
        raise UsageError(f"{folder}: no such file or folder; give an image or a folder of images")
    if not folder.is_dir():
        raise UsageError(f"{folder}: not a regular file; give an image or a folder of images")
    files = [path for path in _walk(folder, set()) if not path.name.endswith(OVERLAY_SUFFIX)]
    images, left_out = sort_out([path.relative_to(folder) for path in files])
    if not images:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        there = summarize_left_out(left_out)
        raise UsageError(
            f"{folder}: no images in it or below it; looked for files ending in {kinds}"
            + (f". {there}" if there else "")
        )
    found = [folder / path for path in images]
    return Scan(list(_pages(found)) if all_pages else found, left_out)


def sort_out(files: Collection[PurePath]) -> tuple[list[PurePath], dict[str, int]]:
    """Separate images from masks and other files by their paths below a folder.

    Returns:
        Images sorted by path, and the number of other files by kind.
    """
    named = [path for path in files if is_image_name(path)]
    stems = {(path.parent, path.stem.lower()) for path in named}
    below = [path for path in named if any(part.lower() in MASK_FOLDERS for part in path.parts[:-1])]
    masks = (
        set(below) if len(below) < len(named) else set()
    )  # otherwise the folder contains only masks, which are then the images
    masks |= {path for path in named if _image_of_mask(path, stems)}
    left_out = Counter(unsupported_kind(path) for path in files if not is_image_name(path))
    other = left_out.pop("", 0)
    counted = {kind: left_out[kind] for kind in sorted(left_out)}
    counted |= {MASKS: len(masks)} if masks else {}
    counted |= {"other files": other} if other else {}
    return sorted((path for path in named if path not in masks), key=lambda path: path.parts), counted


def summarize_left_out(left_out: Mapping[str, int]) -> str | None:
    """Return one sentence on skipped files; None if there are none."""
    if not left_out:
        return None
    unsupported = [f"{n} {kind}" for kind, n in left_out.items() if kind not in (MASKS, "other files")]
    parts = [f"{', '.join(unsupported)} not supported"] if unsupported else []
    if count := left_out.get(MASKS):
        parts.append(f"{count} {MASKS if count > 1 else 'mask'}")
    if count := left_out.get("other files"):
        parts.append(f"{count} other {'files' if count > 1 else 'file'}")
    return f"Left out: {'; '.join(parts)}."


def _image_of_mask(path: PurePath, stems: Collection[tuple[PurePath, str]]) -> bool:
    """Return whether the image of a mask is next to it."""
    stem = path.stem.lower()
    return any(
        stem.endswith(ending) and (path.parent, stem.removesuffix(ending)) in stems for ending in MASK_ENDINGS
    )


def _pages(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the paths, with each page's path in place of a multi-page file."""
    from clipspect.data.decode import count_pages, page_path, read_file

    for path in paths:
        count = 1
        if path.suffix.lower() in _PAGED_SUFFIXES:
            try:
                count = count_pages(read_file(path, str(path)))
            except ImageError:
                count = 1  # its row reports the error
        yield from [page_path(path, page) for page in range(count)] if count > 1 else [path]


def is_results_folder(folder: Path) -> bool:
    """Return whether a folder contains a manifest of clipspect."""
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
            else:
                yield entry  # include broken links: they become error rows
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot be listed ({error.strerror or error}); check its permissions"
        ) from error

"""A folder of one's own: which subfolder holds what, and which mask belongs to which image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipspect.benchmark.samples import Sample
from clipspect.data.find import SUFFIXES, find_images
from clipspect.errors import UsageError

NORMAL_NAMES = ("good", "ok", "normal")
MASK_NAMES = ("ground_truth", "ground-truth", "gt", "masks", "mask")
REFERENCE_NAMES = ("train", "reference", "references")
_MASK_ENDINGS = ("", "_mask", "_gt", "_label", "_ground_truth")


@dataclass(frozen=True)
class Layout:
    """Where the parts of a product lie."""

    normal: Path | None
    """Good images to test."""
    abnormal: Sequence[Path]
    """Folders of defective images, each a kind of defect."""
    masks: Path | None = None
    references: Path | None = None
    """Good images that are not tested."""


def has_layout(folder: Path) -> bool:
    """Whether a folder shows a product in a way :func:`find_layout` understands."""
    base = _named(folder, ("test",)) or folder
    marks = (*NORMAL_NAMES, *MASK_NAMES)
    return folder.is_dir() and (base != folder or _named(folder, marks) is not None)


def find_layout(folder: Path) -> Layout:
    """The layout of a folder by the names of its subfolders, in any case.

    Good images lie in ``good``, ``ok`` or ``normal``, masks in ``ground_truth``, ``gt`` or ``masks``, further good
    ones for reference in ``train`` or ``reference``; every other subfolder is a kind of defect. Where there is a folder
    ``test``, the images to test lie in it.
    """
    base = _named(folder, ("test",)) or folder
    others = {*NORMAL_NAMES, *MASK_NAMES, *REFERENCE_NAMES, "test"}
    kinds = [p for p in sorted(base.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    return Layout(
        _named(base, NORMAL_NAMES),
        [kind for kind in kinds if kind.name.lower() not in others],
        _named(folder, MASK_NAMES) or _named(base, MASK_NAMES),
        _named(folder, REFERENCE_NAMES),
    )


def list_folder(layout: Layout) -> tuple[list[Sample], list[Path]]:
    """Samples of a layout, and its reference images, sorted by path; suffixes in any case.

    Raises:
        UsageError: a folder of the layout is missing or holds no images.
    """
    masks = _Masks(layout.masks)
    samples = [] if layout.normal is None else [Sample(p, "good", False) for p in find_images(layout.normal)]
    for folder in layout.abnormal:
        for path in find_images(folder):
            samples.append(Sample(path, folder.name, True, masks.of(path, folder)))
    references = [] if layout.references is None else find_images(layout.references)
    return sorted(samples, key=lambda s: s.path), references


def image_suffixes(folder: Path) -> tuple[str, ...]:
    """The suffixes of images below a folder as they are spelt there, for loaders that take them literally."""
    return tuple(sorted({p.suffix for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES}))


class _Masks:
    """Masks by their image: same subfolder, and the same stem or the stem with ``_mask`` or the like."""

    def __init__(self, folder: Path | None) -> None:
        self._by_name: dict[tuple[str, str], Path] = {}
        if folder is None:
            return
        for path in find_images(folder):
            self._by_name[self._key(path.relative_to(folder).parent, path.stem)] = path

    def of(self, image: Path, folder: Path) -> Path | None:
        below = image.relative_to(folder).parent
        for place in (Path(folder.name) / below, below, Path()):
            for ending in _MASK_ENDINGS:
                found = self._by_name.get(self._key(place, image.stem + ending))
                if found is not None:
                    return found
        return None

    @staticmethod
    def _key(place: Path, stem: str) -> tuple[str, str]:
        return place.as_posix().lower(), stem.lower()


def given_layout(
    root: Path, normal: str | None, abnormal: Sequence[str], masks: str | None, references: str | None
) -> Layout | None:
    """The layout a user names, folders relative to the root; None where none is named.

    Raises:
        UsageError: a folder is not there, or neither good nor defective images are named.
    """
    if not any((normal, abnormal, masks, references)):
        return None
    if not normal and not abnormal:
        raise UsageError("name the images to test with --normal and --abnormal")

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            raise UsageError(f"{root / name}: no such folder; folders are named relative to --root")
        return root / name

    return Layout(
        folder(normal) if normal else None,
        [folder(name) for name in abnormal],
        folder(masks) if masks else None,
        folder(references) if references else None,
    )


def _named(folder: Path, names: Sequence[str]) -> Path | None:
    """The subfolder with one of the names, in the order of the names."""
    if not folder.is_dir():
        return None
    there = {p.name.lower(): p for p in sorted(folder.iterdir()) if p.is_dir()}
    return next((there[name] for name in names if name in there), None)

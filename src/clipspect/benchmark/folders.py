"""Custom folders: the role of each subfolder, and the mask of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clipspect.benchmark.samples import Sample
from clipspect.data.find import MASK_ENDINGS, MASK_FOLDERS, SUFFIXES, find_images
from clipspect.data.formats import is_image_name
from clipspect.errors import UsageError

NORMAL_NAMES = ("good", "ok", "normal")
MASK_NAMES = MASK_FOLDERS
REFERENCE_NAMES = ("train", "reference", "references")
_MASK_ENDINGS = ("", *MASK_ENDINGS)


@dataclass(frozen=True)
class Layout:
    """Folders of a product."""

    normal: Path | None
    """Folders of good test images."""
    abnormal: Sequence[Path]
    """Folders of defective images, one per kind of defect."""
    masks: Path | None = None
    references: Path | None = None
    """Folders of good images that are not tested."""


def has_layout(folder: Path) -> bool:
    """Return whether :func:`find_layout` recognizes a product in the folder."""
    base = _named(folder, ("test",)) or folder
    marks = (*NORMAL_NAMES, *MASK_NAMES)
    return folder.is_dir() and (base != folder or _named(folder, marks) is not None)


def find_layout(folder: Path) -> Layout:
    """Return the layout of a folder from the names of its subfolders, ignoring case.

    Good images are in ``good``, ``ok`` or ``normal``, and masks in ``ground_truth``, ``gt`` or ``masks``. Good
    reference images are in ``train`` or ``reference``. Every other subfolder is a kind of defect. If there is a folder
    ``test``, it contains the test images.
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


def list_folder(layout: Layout) -> tuple[list[Sample], list[Path], list[str]]:
    """List the samples of a layout, its reference images, and warnings.

    Samples are sorted by path; suffixes match in any case. A mask that fits several images is used for none of them,
    unless one of them has the mask in a folder of the same kind of defect.

    Raises:
        UsageError: a folder of the layout is missing or holds no images.
    """
    masks = _Masks(layout.masks)
    warnings: list[str] = []
    samples = [] if layout.normal is None else [Sample(p, "good", False) for p in find_images(layout.normal)]
    found: dict[Path, list[tuple[Path, bool]]] = {}
    for folder in layout.abnormal:
        for path in find_images(folder):
            mask, own = masks.of(path, folder)
            samples.append(Sample(path, folder.name, True, mask))
            if mask is not None:
                found.setdefault(mask, []).append((path, own))
    for mask, claims in found.items():
        owners = [path for path, own in claims if own] or [path for path, _ in claims]
        losers = {path for path, _ in claims if len(owners) > 1 or path not in owners}
        samples = [replace(s, mask=None) if s.path in losers else s for s in samples] if losers else samples
        if losers and len(owners) > 1:
            names = ", ".join("/".join(path.parts[-2:]) for path in sorted(losers)[:3])
            warnings.append(
                f"the mask {mask.name} fits {len(losers)} images ({names}) and was used for none; put masks into a"
                " subfolder per kind of defect"
            )
    references = [] if layout.references is None else find_images(layout.references)
    return sorted(samples, key=lambda s: s.path), references, warnings


def image_suffixes(folder: Path) -> tuple[str, ...]:
    """Return the suffixes of images below a folder in their original case, for case-sensitive loaders."""
    return tuple(sorted({p.suffix for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES}))


class _Masks:
    """Lookup of masks by image: same subfolder, and the same stem or the stem with ``_mask`` or similar."""

    def __init__(self, folder: Path | None) -> None:
        self._by_name: dict[tuple[str, str], Path] = {}
        if folder is None:
            return
        for path in _files(folder):
            self._by_name[self._key(path.relative_to(folder).parent, path.stem)] = path

    def of(self, image: Path, folder: Path) -> tuple[Path | None, bool]:
        """Return the mask of an image, and whether it is in a folder of the image's kind of defect."""
        below = image.relative_to(folder).parent
        for place in dict.fromkeys((Path(folder.name) / below, below, Path())):
            for ending in _MASK_ENDINGS:
                found = self._by_name.get(self._key(place, image.stem + ending))
                if found is not None:
                    return found, place == Path(folder.name) / below
        return None, False

    @staticmethod
    def _key(place: Path, stem: str) -> tuple[str, str]:
        return place.as_posix().lower(), stem.lower()


def _files(folder: Path) -> list[Path]:
    """Return the images in a folder of masks, where a name such as part_mask.png does not exclude a file."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and is_image_name(path)
        and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )


def given_layout(
    root: Path, normal: str | None, abnormal: Sequence[str], masks: str | None, references: str | None
) -> Layout | None:
    """Return the layout given by the user, with folders relative to the root; None if no folder is given.

    Raises:
        UsageError: a folder is missing, or neither good nor defective images are given.
    """
    if not any((normal, abnormal, masks, references)):
        return None
    if not normal and not abnormal:
        raise UsageError("name the images to test with --normal and --abnormal")

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            raise UsageError(f"{root / name}: no such folder; give folders relative to --root")
        return root / name

    return Layout(
        folder(normal) if normal else None,
        [folder(name) for name in abnormal],
        folder(masks) if masks else None,
        folder(references) if references else None,
    )


def _named(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first subfolder that has one of the names, in the order of the names."""
    if not folder.is_dir():
        return None
    there = {p.name.lower(): p for p in sorted(folder.iterdir()) if p.is_dir()}
    return next((there[name] for name in names if name in there), None)

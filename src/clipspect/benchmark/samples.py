"""Samples: images with their ground truth, and warnings about a category before measuring."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clipspect.data.decode import hash_file
from clipspect.errors import ImageError, UsageError
from clipspect.types import plural


@dataclass(frozen=True)
class Sample:
    """One image of a test split."""

    path: Path
    kind: str
    """The kind of defect, or "good"."""
    defective: bool
    mask: Path | None = None
    """Mask file; None for a good image, and for a defective one without a mask."""


@dataclass(frozen=True)
class Category:
    """Images of one product."""

    name: str
    object: str
    """Object name for the prompts."""
    samples: Sequence[Sample]
    train: Sequence[Path] = ()
    """Normal images outside the test split, from which references are drawn."""
    warnings: Sequence[str] = ()
    """Warnings about its metrics."""


def check_category(category: Category) -> Category:
    """Return the category with warnings on problems that are visible without decoding an image.

    Raises:
        UsageError: it has no images to test.
    """
    if not category.samples:
        raise UsageError(f"{category.name}: no images to test were found")
    warnings = list(category.warnings)
    bare = [s.path.name for s in category.samples if s.defective and s.mask is None]
    if bare:
        warnings.append(
            f"defective images without a mask, which count in the image metrics only: {len(bare)}, the first"
            f" is {bare[0]}"
        )
    masks = Counter(s.mask for s in category.samples if s.mask is not None)
    for mask, uses in masks.items():
        if uses > 1:
            warnings.append(
                f"{uses} images have the same mask, {mask}: it can be correct for one of them only"
            )
    twins = shared_images([s.path for s in category.samples], category.train)
    if twins:
        test, train = twins[0]
        warnings.append(
            f"{len(twins)} test images are also training images, byte for byte, the first is"
            f" {test.name} (= {train.name}): methods with references have seen them"
        )
    good, bad = ([s.path for s in category.samples if s.defective is wanted] for wanted in (False, True))
    if both := shared_images(bad, good):
        warnings.append(
            f"{len(both)} image{'s are' if len(both) > 1 else ' is'} labeled both defective and good,"
            f" byte for byte, the first is {both[0][0].name} (= {both[0][1].name})"
        )
    return replace(category, warnings=tuple(warnings))


def thinned(category: Category, limit: int) -> Category:
    """Return the category with about ``limit`` images, evenly spaced so that every kind keeps its share."""
    step = max(len(category.samples) / limit, 1)
    places = sorted({int(step * i) for i in range(limit) if int(step * i) < len(category.samples)})
    warning = f"--limit: measured on {len(places)} of {plural(len(category.samples), 'image')}"
    if len(places) == len(category.samples):
        return category
    return replace(
        category,
        samples=tuple(category.samples[i] for i in places),
        warnings=(*category.warnings, warning),
    )


def shared_images(test: Sequence[Path], train: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Return pairs of files with equal bytes, one of each list. Only files of equal size are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in train:
        if path.is_file():
            by_size[path.stat().st_size].append(path)
    twins = []
    for path in test:
        alike = by_size.get(path.stat().st_size, []) if path.is_file() else []
        twins += [(path, other) for other in alike if _content(path) == _content(other)][:1]
    return twins


def _content(path: Path) -> str:
    try:
        return hash_file(path)
    except ImageError:
        return str(path)  # unreadable: matches no other file; its row reports the error

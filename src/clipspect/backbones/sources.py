"""Which image each row of a batch comes from: tiles share a source, and copies of a file are the same source."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspect.types import SIGNATURE_SIDE

MAX_MEAN_DIFFERENCE = 2.0
"""Gray levels. A file saved again as JPEG of quality 30 differs by up to 1.2 (tests/backbones/test_sources.py)."""
MAX_DIFFERENCE = 6.0
"""Gray levels of any one cell; the re-saved files reach 5, other images of the same part 10 and more."""


@dataclass(frozen=True)
class Sources:
    """The origin of N rows."""

    hashes: tuple[str, ...]
    """Content hash (hex) of the image each row comes from. All tiles of an image have the same one."""
    tiles: tuple[int, ...]
    """Number of each row's tile within its image, from 0."""
    signatures: Tensor | None = None
    """(N, F) float32 area means of the whole image in grey levels, or None where pixels are not compared."""
    offsets: tuple[tuple[int, int], ...] | None = None
    """(top, left) of each row's tile on the whole image, in pixels of the input; None where no image has tiles."""

    def __len__(self) -> int:
        """Number of rows N."""
        return len(self.hashes)

    @staticmethod
    def of_tensors(images: Tensor) -> Sources:
        """Give N images without files the hashes of their values; only equal tensors are the same image."""
        digests = (hashlib.sha256(image.detach().cpu().numpy().tobytes()).hexdigest() for image in images)
        return Sources(tuple(digests), (0,) * len(images))

    def with_signatures(self, images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Sources:
        """Add signatures of (N, 3, S, T) normalized whole images."""
        shape = (1, 3, 1, 1)
        pixels = 255 * (images.cpu() * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape))
        means = F.adaptive_avg_pool2d(pixels, SIGNATURE_SIDE)
        return replace(self, signatures=means.permute(0, 2, 3, 1).flatten(1))

    @property
    def seeds(self) -> list[int]:
        """One seed per row, from the content alone: results depend on neither batch nor order."""
        return [int(digest[:14], 16) + tile for digest, tile in zip(self.hashes, self.tiles, strict=True)]

    @property
    def keys(self) -> list[tuple[str, int]]:
        """What identifies each row: hash and tile."""
        return list(zip(self.hashes, self.tiles, strict=True))

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> Sources:
        """The sources of some of the rows."""
        chosen = torch.arange(len(self.hashes))[index].tolist()
        signatures = None if self.signatures is None else self.signatures[chosen]
        offsets = None if self.offsets is None else tuple(self.offsets[i] for i in chosen)
        return Sources(
            tuple(self.hashes[i] for i in chosen), tuple(self.tiles[i] for i in chosen), signatures, offsets
        )

    @staticmethod
    def concat(parts: Sequence[Sources]) -> Sources:
        """Join sources in order; signatures and offsets are dropped where one part has none."""
        signatures = [p.signatures for p in parts if p.signatures is not None]
        joined = torch.cat(signatures) if len(signatures) == len(parts) else None
        offsets = [p.offsets for p in parts if p.offsets is not None]
        return Sources(
            tuple(h for p in parts for h in p.hashes),
            tuple(t for p in parts for t in p.tiles),
            joined,
            tuple(o for part in offsets for o in part) if len(offsets) == len(parts) else None,
        )

    def images(self) -> list[slice]:
        """Return the rows of each image, in order: its tiles lie together."""
        firsts = [row for row in range(len(self)) if row == 0 or self.hashes[row] != self.hashes[row - 1]]
        return [slice(a, b) for a, b in zip(firsts, [*firsts[1:], len(self)], strict=True)]

    def same_image(self, others: Sources) -> Tensor:
        """Find which of M other rows come from the same image, a copy of it, or a re-saved copy.

        Where more than half of the other images look like copies, the images of the set are alike by nature (a fixed
        camera, identical parts) and only equal hashes count.

        Args:
            others: M sources.

        Returns:
            (N, M) bool on the CPU.
        """
        equal = torch.tensor([[a == b for b in others.hashes] for a in self.hashes]).reshape(
            len(self), len(others)
        )
        if self.signatures is None or others.signatures is None:
            return equal
        near = self._near(others.signatures) & ~equal
        remaining = (~equal).sum(1, keepdim=True)
        return equal | (near & (2 * near.sum(1, keepdim=True) <= remaining))

    def distinct(self) -> list[int]:
        """Rows without copies: of several files of one image, the first."""
        tiles = torch.tensor(self.tiles)
        same = (self.same_image(self) & (tiles[:, None] == tiles)).numpy()
        kept: list[int] = []
        for row in range(len(self)):
            if not same[row, kept].any():
                kept.append(row)
        return kept

    def alike(self) -> list[int]:
        """Rows that look like another row's image: copies, or images that are alike by nature."""
        if self.signatures is None:
            return []
        near = self._near(self.signatures).fill_diagonal_(False)
        return torch.nonzero(near.any(1)).flatten().tolist()

    def rotated_rows(self, count: int) -> list[list[int]]:
        """Choose the rows of which each rotated copy is made: all of whole images, some of the tiles of tiled ones.

        Each tile of an image of ``count - 1`` tiles or more is copied once, with turns that alternate from tile to
        tile, so that a tiled image costs at most two encodings a tile.

        Args:
            count: rotations evenly spaced over 360°, the row itself among them.

        Returns:
            Rows for each of the ``count - 1`` turns.
        """
        tiles: dict[str, int] = {}
        for digest, tile in self.keys:
            tiles[digest] = max(tiles.get(digest, 0), tile + 1)
        every = [min(tiles[digest], count - 1) for digest in self.hashes]
        return [
            [
                row
                for row, (tile, n) in enumerate(zip(self.tiles, every, strict=True))
                if (tile + turn) % n == 0
            ]
            for turn in range(1, count)
        ]

    def _near(self, others: Tensor) -> Tensor:
        assert self.signatures is not None
        mean = torch.cdist(self.signatures, others, p=1) / others.shape[1]
        largest = torch.cdist(self.signatures, others, p=float("inf"))
        return (mean <= MAX_MEAN_DIFFERENCE) & (largest <= MAX_DIFFERENCE)

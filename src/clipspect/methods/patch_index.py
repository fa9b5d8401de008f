"""Approximate index of the patches of many images, for sets too large for exact comparison.

FAISS (extra ``clipspect[mutual]``): an inverted file over the patches of all pool images; a query visits the nearest
few lists. ``benchmarks/ablations.py`` measures the loss in accuracy.

"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipspect.errors import UsageError

_LISTS_VISITED = 16
_MOST_PATCHES = 1 << 20  # 1 GiB of float32 at 256 dimensions
_NEIGHBOURS_PER_IMAGE = 4


class PatchIndex:
    """Index of the patches of M images that returns the nearest patch in each image."""

    def __init__(self, tokens: Tensor) -> None:
        """Build the index.

        Args:
            tokens: (M, N, D) unit tokens; above a million patches, every image is subsampled.

        Raises:
            UsageError: FAISS is not installed.
        """
        faiss = _faiss()
        step = math.ceil(tokens.shape[0] * tokens.shape[1] / _MOST_PATCHES)
        kept = tokens[:, ::step].float().cpu()
        self.images, self.patches = kept.shape[:2]
        flat = np.ascontiguousarray(kept.flatten(0, 1).numpy())
        lists = max(int(2 * math.sqrt(len(flat))), 1)
        lists = min(lists, max(len(flat) // 40, 1))  # FAISS needs about 40 points to train a list
        quantiser = faiss.IndexFlatIP(flat.shape[1])
        self._index = faiss.IndexIVFFlat(quantiser, flat.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        self._index.train(flat)
        self._index.add(flat)

    def lowest_mean(
        self, tokens: Tensor, own: Sequence[int], lowest: int, *, euclidean: bool = False
    ) -> Tensor:
        """Return the mean distance of each patch to its nearest images.

        Args:
            tokens: (N, D) unit tokens of one image.
            own: the image's positions in the index, usually one or none; its own patches are excluded.
            lowest: number of nearest images that are averaged per patch.
            euclidean: average half the Euclidean distances, the square roots of ½ (1 − cos).

        Returns:
            (N,) in [0, 1]: the mean over the ``lowest`` smallest nearest distances, over fewer if the visited lists
                contain patches of fewer images.
        """
        faiss = _faiss()
        options: dict[str, Any] = {"nprobe": _LISTS_VISITED}
        if own:
            numbers = np.asarray(own)[:, None] * self.patches + np.arange(self.patches)
            mine = (
                faiss.IDSelectorRange(int(numbers[0, 0]), int(numbers[0, -1]) + 1)  # the faster of the two
                if len(own) == 1
                else faiss.IDSelectorBatch(numbers.ravel())
            )
            options["sel"] = faiss.IDSelectorNot(mine)
        count = min(_NEIGHBOURS_PER_IMAGE * lowest + 8, self.images * self.patches)
        cosines, found = self._index.search(
            np.ascontiguousarray(tokens.float().cpu().numpy()),
            count,
            params=faiss.SearchParametersIVF(**options),
        )
        owners = np.where(found < 0, -1, found // self.patches)  # (N, count), nearest first
        order = np.argsort(owners, axis=1, kind="stable")
        by_owner = np.take_along_axis(owners, order, 1)
        first = np.ones_like(by_owner, dtype=bool)
        first[:, 1:] = by_owner[:, 1:] != by_owner[:, :-1]
        nearest = np.zeros_like(first)
        np.put_along_axis(nearest, order, first, 1)
        nearest &= owners >= 0
        nearest &= nearest.cumsum(1) <= lowest
        distances = np.clip((1 - cosines) / 2, 0, 1)
        distances = np.sqrt(distances) if euclidean else distances
        mean = (distances * nearest).sum(1) / np.maximum(nearest.sum(1), 1)
        mean[~nearest.any(1)] = 1.0  # no similar patch found
        return torch.from_numpy(mean.astype(np.float32)).to(tokens.device)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UsageError(
            "comparing this many images needs FAISS: pip install 'clipspect[mutual]', or compare fewer at once"
            " with a smaller set size, or all of them exactly with a larger exact_limit"
        ) from error
    return faiss

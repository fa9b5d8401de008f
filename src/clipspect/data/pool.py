"""Sampling of the images of a set that serve as each other's references."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def sample_pool(names: Sequence[str], limit: int) -> list[int]:
    """Choose positions of a set's pool: all of a small set, else a repeatable choice by name.

    Encode them in this order: if the tiles of the first ones reach the limit, these are a repeatable choice too.
    """
    order = sorted(range(len(names)), key=lambda i: hashlib.sha256(names[i].encode()).digest())
    return order[:limit]

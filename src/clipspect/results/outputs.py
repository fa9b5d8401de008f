"""Paths of the files generated for an image: overlays, maps."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath
from typing import Literal

MapFormat = Literal["none", "png16", "npy"]
OverlayChoice = Literal["all", "flagged", "none"]
LONGEST_NAME = 255
"""Maximum bytes of a file name in common file systems."""


def output_path(folder: Path, path: str, suffix: str) -> Path:
    """Return the path of a file generated from the image ``path``: the same tree below ``folder``, with ``suffix``.

    ``path`` cannot lead out of ``folder``.
    """
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    return folder.joinpath(*parts[:-1], short_name(parts[-1], suffix))


def short_name(name: str, suffix: str) -> str:
    """Return a file name with ``suffix`` added; a long name is truncated and made unique by its hash."""
    if len(os.fsencode(name + suffix)) <= LONGEST_NAME:
        return name + suffix
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
    room = LONGEST_NAME - len(os.fsencode(suffix)) - len(digest) - 1
    kept = os.fsencode(name)[:room].decode("utf-8", "ignore")
    return f"{kept}-{digest}{suffix}"


def method_suffix(method: str, *, several: bool) -> str:
    """Return the part of a file name that distinguishes methods: empty if there is only one."""
    return f".{method}" if several else ""

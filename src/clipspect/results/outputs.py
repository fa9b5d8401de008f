"""Where the files made of an image go: overlays, maps."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath
from typing import Literal

MapFormat = Literal["none", "png16", "npy"]
OverlayChoice = Literal["all", "flagged", "none"]
LONGEST_NAME = 255
"""Bytes of a file's name that file systems allow."""


def output_path(folder: Path, path: str, suffix: str) -> Path:
    """Where a file made from the image ``path`` goes: the same tree below ``folder``, ``suffix`` added.

    ``path`` cannot lead out of ``folder``.
    """
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    return folder.joinpath(*parts[:-1], short_name(parts[-1], suffix))


def short_name(name: str, suffix: str) -> str:
    """A file's name with ``suffix`` added; a long one is cut and told from others by its hash."""
    if len(os.fsencode(name + suffix)) <= LONGEST_NAME:
        return name + suffix
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
    room = LONGEST_NAME - len(os.fsencode(suffix)) - len(digest) - 1
    kept = os.fsencode(name)[:room].decode("utf-8", "ignore")
    return f"{kept}-{digest}{suffix}"


def method_suffix(method: str, *, several: bool) -> str:
    """What the name of a picture carries to tell methods apart: nothing where there is one."""
    return f".{method}" if several else ""

"""Symbolic links, which Windows lets only some users make."""

from __future__ import annotations

from pathlib import Path

import pytest


def link(path: Path, target: Path) -> None:
    """Make ``path`` a link to ``target``; skip the test where the system refuses links."""
    try:
        path.symlink_to(target)
    except (NotImplementedError, PermissionError) as error:
        pytest.skip(f"no symbolic links here: {error}")
    except OSError as error:
        if getattr(error, "winerror", None) != 1314:  # a privilege is missing
            raise
        pytest.skip(f"no symbolic links here: {error}")

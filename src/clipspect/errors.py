"""One family of errors, each written for the person who reads it: what was wrong, with what, what to do.

Surfaces map them to exit codes and HTTP statuses in one place each; nothing else catches them by type.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class ClipspectError(Exception):
    """Base of every error clipspect raises on purpose."""


class UsageError(ClipspectError):
    """A setting, name or argument that cannot be right; the message lists what can."""


class ImageError(ClipspectError):
    """One image that cannot be read or scored. A folder run records it and continues."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class WeightsError(ClipspectError):
    """Weights that are missing, damaged or of another architecture."""


class ReferencesError(ClipspectError):
    """References that are missing, damaged, or made with another backbone or other settings."""


class ProfileError(ClipspectError):
    """A product profile that is missing, damaged, or made with other weights or another version."""


class ResultsError(ClipspectError):
    """A results folder that cannot be written, or that holds a run with other settings."""


def suggest(name: str, known: Sequence[str]) -> str:
    """Return "did you mean 'x'? " where something known is close to a name, else nothing."""
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def refuse_unknown(
    names: Iterable[str], known: Sequence[str], what: str = "option", prefix: str = ""
) -> None:
    """Raise UsageError for a name that is not known, with the nearest one.

    Args:
        names: that were given.
        known: names that exist.
        what: what the names stand for, for the message.
        prefix: put before the name in the message.
    """
    for name in names:
        if name not in known:
            hint = suggest(name, known).rstrip() or f"there are: {', '.join(known)}"
            raise UsageError(f"unknown {what} {prefix + name!r}; {hint}")

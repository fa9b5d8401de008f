"""Commands that refuse what Click would silently accept, and Ctrl-C that always ends with exit code 130."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import FrameType
from typing import Any

from typer.core import TyperCommand, TyperGroup

from clipspect.errors import UsageError

EXIT_INTERRUPTED = 130


@cache
def removed_options() -> dict[str, str]:
    """Option of an earlier version → what to do instead."""
    from clipspect.server import settings as server_settings

    return {
        **{f"--{name.replace('_', '-')}": words for name, words in server_settings.REMOVED.items()},
        "--compare": "give --method several times: -m anoclip -m dual-image",
        "--bar": "it is an option of export alone; elsewhere a precision that does not agree with fp32 is refused",
        "--pixel-threshold": "--threshold is one score from 0 to 1 for image and regions (docs/calibration.md)",
    }


def _without_flag_types(params: list[Any]) -> list[Any]:
    """The parameters, with no type beside a flag in the help."""
    for one in params:
        if getattr(one, "is_flag", False):
            vars(one).update(make_metavar=lambda *_, **__: "", display_type_rich=lambda *_, **__: None)
    return params


class PlainGroup(TyperGroup):
    """A group of commands whose help shows no type beside a flag."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters as the help shows them."""
        return _without_flag_types(super().get_params(ctx))


class StrictCommand(TyperCommand):
    """A command whose options are given at most once and whose values are not empty."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters as the help shows them."""
        return _without_flag_types(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, after looking for options given twice.

        Raises:
            UsageError: an option given twice, an empty value, or an option of an earlier version.
        """
        known = {name for param in self.params for name in param.opts}
        for name in (arg.partition("=")[0] for arg in args):
            if name.startswith("--") and name not in known and name in removed_options():
                raise UsageError(f"{name} was removed: {removed_options()[name]}")
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        seen: set[str] = set()
        for param in order:
            if param.param_type_name != "option" or param.multiple or param.is_eager:
                continue
            if param.name in seen:
                raise UsageError(f"{max(param.opts, key=len)} is given twice; give it once")
            seen.add(str(param.name))
        for param in self.params:
            given = values.get(param.name)
            if any(one == "" for one in (given if isinstance(given, list | tuple) else [given])):
                name = (
                    max(param.opts, key=len) if param.param_type_name == "option" else str(param.name).upper()
                )
                raise UsageError(f"{name} is empty; give it a value")
        return super().parse_args(ctx, args)


@contextmanager
def interrupts() -> Iterator[None]:
    """Let the first Ctrl-C end the command in order, and the second one end it at once; both with exit code 130."""
    interrupted = False

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(EXIT_INTERRUPTED)

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, leave)
        with suppress(OSError, RuntimeError):  # the stream may be in use, or closed
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _STOPPING)
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGINT, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        if not interrupted:  # else threads are still ending, and Ctrl-C must not raise among them
            signal.signal(signal.SIGINT, before)


_STOPPING = b"\nstopping; run the same command again to resume (Ctrl-C once more stops at once)\n"

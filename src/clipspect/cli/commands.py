"""The commands by name, each imported when it is used: parsing one command does not wait for all others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Any

import typer

from clipspect.cli.strict import PlainGroup, StrictCommand

COMMANDS = {
    "detect": "detect:detect",
    "watch": "watch:watch",
    "demo": "demo:demo",
    "methods": "catalog:methods",
    "benchmark": "benchmark:benchmark",
    "figure": "benchmark:figure",
    "ui": "serve:ui",
    "serve": "serve:serve",
    "export": "export:export",
    "models": "catalog:models_app",
    "profile": "profile:profile_app",
    "references": "references:references_app",
    "results": "results:results_app",
    "review": "review:review_app",
}
"""Command → module below ``clipspect.cli`` and the function or group in it, imported when the command is used."""


class CommandTable(MutableMapping[str, Any]):
    """Name → command, of which each is imported and built when it is first asked for."""

    def __init__(self, targets: Mapping[str, str], built: Mapping[str, Any]) -> None:
        """Take name → "module:attribute" below ``clipspect.cli``, and commands that are built already.

        An attribute is a function, or a Typer app of several commands.
        """
        self._targets = {**targets, **dict.fromkeys(built, "")}
        self._built = dict(built)

    def __getitem__(self, name: str) -> Any:
        """The command; KeyError for an unknown name."""
        if name not in self._built:
            module, _, attribute = self._targets[name].partition(":")
            found = getattr(import_module(f"clipspect.cli.{module}"), attribute)
            if isinstance(found, typer.Typer):
                self._built[name] = typer.main.get_group(found)
            else:
                single = typer.Typer(add_completion=False, rich_markup_mode="rich")
                single.command(name, cls=StrictCommand)(found)
                self._built[name] = typer.main.get_command(single)
            self._built[name].name = name
        return self._built[name]

    def __setitem__(self, name: str, command: Any) -> None:
        """Add a command that is built already."""
        self._targets[name], self._built[name] = "", command

    def __delitem__(self, name: str) -> None:
        """Remove a command."""
        del self._targets[name]
        self._built.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        """The names, in order; nothing is imported."""
        return iter(self._targets)

    def __len__(self) -> int:
        """Number of commands."""
        return len(self._targets)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a command; nothing is imported."""
        return name in self._targets


class Commands(PlainGroup):
    """The commands, of which only the used one is imported."""

    def __init__(self, **settings: Any) -> None:
        """Take the settings of the root group, and commands that were added to the app."""
        super().__init__(**settings)
        self.commands = CommandTable(COMMANDS, self.commands)

"""Prompt sentences of an object name: states × templates × domain phrases (docs/methods.md §2)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from clipspect.errors import UsageError

OFFICIAL_NAMES = {"macaroni1": "macaroni", "macaroni2": "macaroni"}
"""Data set names that the official AnoCLIP code changes; it takes all others as they are."""


@dataclass(frozen=True)
class PromptSet:
    """States and templates of one method, and the domain phrases that qualify its templates."""

    normal: tuple[str, ...]
    """State phrases with ``{}`` for the object's name: ``"{} without flaw"``."""
    abnormal: tuple[str, ...]
    templates: tuple[str, ...]
    """Sentences with ``{}`` for the state phrase, with the word *photo* where a domain may qualify it."""
    domain_aware: bool = False
    """Whether each template is used once per domain phrase, which replaces the word *photo*."""
    states_outer: bool = False
    """Order of the sentences: states as the outer loop (WinCLIP), else templates (AnoCLIP)."""

    def sentences(self, object_name: str, domain: tuple[str, ...]) -> tuple[list[str], list[str]]:
        """Return normal and abnormal sentences for an object name, used unchanged.

        Args:
            object_name: the object's name, see :func:`clean_object_name`.
            domain: phrases such as "industrial image"; unused if the set is not domain-aware.
        """
        templates = [_qualify(t, phrase) for phrase in domain for t in self.templates]
        if not self.domain_aware:
            templates = list(self.templates)

        def compose(states: tuple[str, ...]) -> list[str]:
            phrases = [state.format(object_name) for state in states]
            if self.states_outer:
                return [t.format(p) for p in phrases for t in templates]
            return [t.format(p) for t in templates for p in phrases]

        return compose(self.normal), compose(self.abnormal)

    def with_states(self, normal: tuple[str, ...] = (), abnormal: tuple[str, ...] = ()) -> PromptSet:
        """Return the set with a user's state phrases added.

        Raises:
            UsageError: a phrase without exactly one ``{}``.
        """
        _check_phrases((*normal, *abnormal))
        return replace(self, normal=self.normal + normal, abnormal=self.abnormal + abnormal)


PARTS: dict[str, Callable[[PromptSet], PromptSet]] = {
    "one-state": lambda s: replace(s, normal=s.normal[:1], abnormal=s.abnormal[:1]),
    "no-domain": lambda s: replace(s, domain_aware=False),
    "one-template": lambda s: replace(s, templates=(min(s.templates, key=len),)),
}
"""Reductions of a prompt set for ablations: the first state a side, no domain phrases, the shortest template."""


@dataclass(frozen=True)
class PromptTable:
    """All prompt sets and domains: the shipped ones, merged with a user's file."""

    sets: Mapping[str, PromptSet]
    domains: Mapping[str, tuple[str, ...]]
    textures: frozenset[str]

    def prompt_set(self, name: str) -> PromptSet:
        """Return the prompt set of that name, without the parts that follow a slash: ``anoclip/no-domain+one-state``.

        Raises:
            UsageError: an unknown set or part; the message lists the available names.
        """
        base, _, parts = name.partition("/")
        if base not in self.sets:
            raise UsageError(f"unknown prompt set {base!r}; there are: {', '.join(sorted(self.sets))}")
        chosen = self.sets[base]
        for part in parts.split("+") if parts else ():
            if part not in PARTS:
                raise UsageError(f"prompt set {name!r}: unknown part {part!r}; there are: {', '.join(PARTS)}")
            chosen = PARTS[part](chosen)
        return chosen

    def domain(self, name: str, object_name: str) -> tuple[str, ...]:
        """Return the phrases of a domain; ``auto`` is "texture" for known texture names, else "object"."""
        if name == "auto":
            last = object_name.lower().split()[-1]
            name = "texture" if {last, last.removesuffix("s")} & self.textures else "object"
        if name not in self.domains:
            raise UsageError(f"unknown domain {name!r}; there are: auto, {', '.join(sorted(self.domains))}")
        return self.domains[name]


@dataclass(frozen=True)
class PromptConfig:
    """Prompt settings of a run."""

    table: PromptTable
    domain: str = "auto"
    """"auto" (object or texture by the object name), or a domain of the table."""
    normal: tuple[str, ...] = ()
    """Additional normal states, such as "{} fresh from the mould"."""
    abnormal: tuple[str, ...] = ()
    """Additional abnormal states, such as "{} with a scratch"."""
    object_as_is: bool = False
    """Whether an object's name is used as the official AnoCLIP code does: unchanged, ``metal_nut``, but for
    ``macaroni1`` and ``macaroni2``, which are ``macaroni``."""

    def object_name(self, name: str) -> str:
        """Return an object's name as used in sentences. Raises UsageError for a name without text."""
        return object_words(name, as_is=self.object_as_is)

    def sentences(self, prompt_set: str, object_name: str, domain: str = "") -> tuple[list[str], list[str]]:
        """Return normal and abnormal sentences of a prompt set for an object name, in a domain or the run's."""
        states = self.table.prompt_set(prompt_set).with_states(self.normal, self.abnormal)
        return states.sentences(object_name, self.table.domain(domain or self.domain, object_name))


def clean_object_name(name: str) -> str:
    """Return an object's name as used in sentences: ``metal_nut`` → ``metal nut``, ``macaroni2`` → ``macaroni``.

    Raises:
        UsageError: no text, an empty result, or a name longer than a sentence can contain.
    """
    if not isinstance(name, str):
        raise UsageError(
            f"the object's name is {name!r}; name what is on the images in words, e.g. 'metal nut'"
        )
    words = re.sub(r"[\s_]+", " ", "".join(c if c.isprintable() else " " for c in name)).strip()
    words = re.sub(r"(?<=[a-z]{3})\d+$", "", words)
    words = words.replace("{", "").replace("}", "").strip()
    if not words:
        raise UsageError(f"the object's name {name!r} is empty; name what is on the images, e.g. 'metal nut'")
    if len(words) > 80:
        raise UsageError(
            f"the object's name is {len(words)} characters long; use a short object name of up to 80"
        )
    return words


def object_words(name: str, *, as_is: bool = False) -> str:
    """Return an object's name as used in sentences: cleaned, or unchanged as in the official AnoCLIP code.

    Args:
        name: such as ``metal_nut``.
        as_is: whether only ``macaroni1`` and ``macaroni2`` change, to ``macaroni``.

    Raises:
        UsageError: no text, an empty result, or a name longer than a sentence can contain.
    """
    cleaned = clean_object_name(name)
    return OFFICIAL_NAMES.get(name, name.replace("{", "").replace("}", "")) if as_is else cleaned


def load_prompts(source: Path | bytes | None = None) -> PromptTable:
    """Return the shipped table, merged with a user's TOML file of the same format, or with its contents.

    Raises:
        UsageError: the file is missing, not TOML, or has a malformed phrase.
    """
    shipped = _shipped()
    if source is None:
        return shipped
    name = "prompts" if isinstance(source, bytes) else f"prompt file {source}"
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        own = _table(tomllib.loads(data.decode()))
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{name}: {error}; see docs/prompts.md for its form") from error
    return PromptTable(
        {**shipped.sets, **own.sets}, {**shipped.domains, **own.domains}, shipped.textures | own.textures
    )


@cache
def _shipped() -> PromptTable:
    return _table(tomllib.loads(resources.files(__package__).joinpath("prompts.toml").read_text("utf-8")))


def _table(data: Mapping[str, Any]) -> PromptTable:
    sets = {}
    for name, entry in data.get("sets", {}).items():
        phrases = [_strings(f"{name}.{key}", entry[key]) for key in ("normal", "abnormal", "templates")]
        for part in phrases:
            _check_phrases(part)
        flags = [bool(entry.get(key, False)) for key in ("domain_aware", "states_outer")]
        sets[name] = PromptSet(phrases[0], phrases[1], phrases[2], flags[0], flags[1])
    domains = {name: _strings(f"domain {name}", said) for name, said in data.get("domains", {}).items()}
    for phrase in (phrase for phrases in domains.values() for phrase in phrases):
        if "{" in phrase or "}" in phrase:
            raise UsageError(
                f"the domain phrase {phrase!r} takes the place of the word photo; leave braces out"
            )
    textures = data.get("auto", {}).get("textures")
    words = () if textures is None else _strings("auto.textures", textures)
    return PromptTable(sets, domains, frozenset(word.lower() for word in words))


def _strings(name: str, values: Any) -> tuple[str, ...]:
    """Return a list of phrases as a tuple. Raises TypeError for anything else, including a string or an empty list."""
    if (
        not isinstance(values, list)
        or not values
        or not all(isinstance(v, str) and v.strip() for v in values)
    ):
        raise TypeError(f"{name} must be a list of phrases, not {values!r}")
    return tuple(values)


def _check_phrases(phrases: tuple[str, ...]) -> None:
    for phrase in phrases:
        if [phrase.count(part) for part in ("{}", "{", "}")] != [1, 1, 1]:
            raise UsageError(f"the phrase {phrase!r} must hold {{}} once, where the object's name goes")


def _qualify(template: str, phrase: str) -> str:
    """Replace the word *photo* by a domain phrase, and correct the article before it."""
    article = "an" if phrase.lower().startswith((*"aeiou", "x-")) else "a"
    template = re.sub(r"\ba photo\b", f"{article} {phrase}", template)
    return template if phrase in template else re.sub(r"\bphoto\b", phrase, template)

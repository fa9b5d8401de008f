"""Entrants: the methods of a benchmark, each with its settings, its references and its stopwatch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from clipspect.backbones.features import Features
from clipspect.errors import UsageError
from clipspect.methods.base import Method, MethodContext, Scores
from clipspect.registry import list_methods, make_method

DEFAULT_SHOTS = 4
"""References of a method that cannot run without any, as WinCLIP+ is usually reported."""


@dataclass(frozen=True)
class Candidate:
    """A method as it takes part."""

    method: Method
    shots: int
    """Normal images it is given as references; 0 = none, the zero-shot setting."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """The settings that differ from the method's own."""

    @property
    def label(self) -> str:
        """Tells it from the others: "dual-image references=1", "winclip+ 4-shot"."""
        words = [self.method.name, *(f"{key}={value}" for key, value in self.chosen.items())]
        return " ".join([*words, f"{self.shots}-shot"] if self.shots else words)

    def settings(self) -> dict[str, Any]:
        """Everything its figures depend on."""
        return {"method": self.method.name, "shots": self.shots, **self.method.settings()}


def make_candidates(
    names: Sequence[str],
    settings: Mapping[str, Any],
    sweep: Mapping[str, Sequence[Any]],
    shots: int | None,
) -> list[Candidate]:
    """The candidates of a run.

    Args:
        names: method names; "all" stands for every one of the registry.
        settings: settings; each goes to the methods that have it.
        sweep: setting → values; a method that has it takes part once with each value.
        shots: references for every method that accepts some; None = only for those that cannot do without.

    Raises:
        UsageError: an unknown method, a setting no method has, a name given twice.
    """
    wanted = list(list_methods()) if list(names) == ["all"] else list(names)
    if len(set(wanted)) < len(wanted):
        raise UsageError("name each method only once")
    known = {name: make_method(name).settings() for name in wanted}
    for key in (*settings, *sweep):
        if not any(key in own for own in known.values()):
            raise UsageError(
                f"none of {', '.join(wanted)} has a setting {key!r}; see: clipspect methods NAME"
            )
    candidates = []
    for name in wanted:
        own = {key: value for key, value in settings.items() if key in known[name]}
        for values in _combinations({key: v for key, v in sweep.items() if key in known[name]}):
            method = make_method(name, {**own, **values})
            changed = {key: getattr(method, key) for key in {**own, **values}}
            count = shots if shots is not None else DEFAULT_SHOTS * method.needs_references
            if method.needs_references and count == 0:
                raise UsageError(f"{name} needs references; leave --shots out, or give a number from 1")
            candidates.append(Candidate(method, count * method.accepts_references, changed))
    return candidates


def _combinations(sweep: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    if not sweep:
        yield {}
        return
    (key, values), *rest = sweep.items()
    for value in values:
        for others in _combinations(dict(rest)):
            yield {key: value, **others}


class Measured:
    """A candidate in the place of its method inside a Detector: with references of its own, and timed.

    So methods with and without references share one encoding of each image, and each knows its own seconds.
    """

    needs_references = False
    accepts_references = False

    def __init__(self, candidate: Candidate) -> None:
        """``references`` are set once they are encoded; ``seconds`` grows with every call."""
        self.candidate = candidate
        self.name = candidate.label
        self.references: Features | None = None
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.candidate.method, name)

    def prepare(self, pool: Features, context: MethodContext) -> Any:
        """The method's own, with this candidate's references."""
        with self._watch():
            return self.candidate.method.prepare(pool, replace(context, references=self.references))

    def score(self, features: Features, context: MethodContext) -> Scores:
        """The method's own, with this candidate's references."""
        with self._watch():
            return self.candidate.method.score(features, replace(context, references=self.references))

    @contextmanager
    def _watch(self) -> Iterator[None]:
        started = perf_counter()
        try:
            yield
        finally:
            self.seconds += perf_counter() - started

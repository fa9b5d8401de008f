"""Candidates: the methods of a benchmark, each with its settings, references and timing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from types import MappingProxyType
from typing import Any

from clipspect.backbones.features import Features
from clipspect.errors import UsageError
from clipspect.methods.base import Method, MethodContext, Scores
from clipspect.registry import list_methods, make_method, method_class

DEFAULT_SHOTS = 4
"""Number of references for methods that require some, as WinCLIP+ is usually reported."""


@dataclass(frozen=True)
class Candidate:
    """Method under test."""

    method: Method
    shots: int
    """Number of normal images used as references; 0 = none, the zero-shot setting."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ from the method's defaults."""

    @property
    def label(self) -> str:
        """Label that is unique among the candidates: "dual-image references=1", "winclip+ 4-shot"."""
        words = [self.method.name, *(f"{key}={value}" for key, value in self.chosen.items())]
        return " ".join([*words, f"{self.shots}-shot"] if self.shots else words)

    def settings(self) -> dict[str, Any]:
        """Everything the metrics depend on."""
        return {"method": self.method.name, "shots": self.shots, **self.method.settings()}


def make_candidates(
    names: Sequence[str],
    settings: Mapping[str, Any],
    sweep: Mapping[str, Sequence[Any]],
    shots: int | None,
    preset: Mapping[str, Any] = MappingProxyType({}),
) -> list[Candidate]:
    """Return the candidates of a run.

    Args:
        names: method names; "all" stands for every method of the registry; one that needs a checkpoint only if
            that is among the settings.
        settings: settings; each is passed to the methods that have it.
        sweep: setting → values; a method that has the setting becomes one candidate per value.
        preset: settings that go to the methods that have them, and are in no label; ``settings`` replace them.
        shots: references for every method that accepts some; None = only for those that require them.

    Raises:
        UsageError: an unknown method, a setting no method has, a name given twice.
    """
    wanted = list(names)
    if wanted == ["all"]:
        without = {name for name in list_methods() if method_class(name).needs_file}
        wanted = [name for name in list_methods() if name not in without or "checkpoint" in settings]
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
            basic = {key: value for key, value in preset.items() if key in known[name]}
            method = make_method(name, {**basic, **own, **values})
            changed = {key: getattr(method, key) for key in {**own, **values}}
            count = shots if shots is not None else DEFAULT_SHOTS * method.needs_references
            if method.needs_references and count == 0:
                raise UsageError(f"{name} needs references; omit --shots, or use a value of at least 1")
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
    """Wrapper that replaces the method in a Detector, adds the candidate's references and measures time.

    Methods with and without references share one encoding of each image, and each has its own timing.
    """

    needs_references = False
    accepts_references = False

    def __init__(self, candidate: Candidate) -> None:
        """Wrap a candidate. ``references`` are set once encoded; ``seconds`` grows with every call."""
        self.candidate = candidate
        self.name = candidate.label
        self.references: Features | None = None
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.candidate.method, name)

    def prepare(self, pool: Features, context: MethodContext) -> Any:
        """Call the method with this candidate's references."""
        with self._watch():
            return self.candidate.method.prepare(pool, replace(context, references=self.references))

    def score(self, features: Features, context: MethodContext) -> Scores:
        """Call the method with this candidate's references."""
        with self._watch():
            return self.candidate.method.score(features, replace(context, references=self.references))

    @contextmanager
    def _watch(self) -> Iterator[None]:
        started = perf_counter()
        try:
            yield
        finally:
            self.seconds += perf_counter() - started

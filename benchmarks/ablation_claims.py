"""Print the values behind each sentence of docs/ablations.md, from its tables. Read them before editing its prose.

    python benchmarks/ablation_claims.py runs/ablations/ablations.json

``benchmarks/ablations.py`` writes the same as ``claims.md`` next to its tables. Values are AUPRO unless noted.

"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = Mapping[str, Any]
PAIRS = "text, visual and joint, Q-K against V-V tokens"


class Tables:
    """The rows of a run by section, variant, data and weights."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """Index ``rows`` as stored in ``ablations.json``."""
        self.cells = {(r["section"], r["variant"], r["data"], r["weights"]): r for r in rows}
        self.data = list(dict.fromkeys(r["data"] for r in rows))

    def variants(self, section: str, weights: str = "trained") -> list[str]:
        """Return the variants of a section, in order."""
        return list(dict.fromkeys(v for s, v, _, w in self.cells if (s, w) == (section, weights)))

    def of(
        self, section: str, variant: str, metric: str = "aupro", weights: str = "trained"
    ) -> dict[str, float]:
        """Return values by data set, if measured."""
        known = {d: self.cells.get((section, variant, d, weights)) for d in self.data}
        return {d: row[metric] for d, row in known.items() if row is not None and not np.isnan(row[metric])}


def claims(rows: Sequence[Row]) -> str:
    """Return a Markdown list: one heading per sentence of the page with its values; unmeasured sections are skipped."""
    tables, out = Tables(rows), []
    for title, lines in (
        ("Text and a reference together beat either alone", _joint(tables)),
        ("V-V tokens localise better than Q-K tokens: V-V minus Q-K", _paths(tables)),
        ("Fusion: means over the data sets", _fusion(tables)),
        ("References", _list(tables, "references")),
        ("Blocks of the visual score", _list(tables, "blocks of the visual score")),
        ("Mutual scoring", _list(tables, "mutual")),
        ("An index instead of exact comparison: index minus exact", _index(tables)),
        ("Adaptation: gain over the method without it, pixel AUROC and AUPRO", _adaptation(tables)),
        ("Where random weights are better than trained ones: trained minus random", _random(tables)),
    ):
        found = list(lines)
        if found:
            out += [f"## {title}", "", *(f"- {line}" for line in found), ""]
    return "\n".join(out)


def _shown(figures: Mapping[str, float], *, sign: bool = False) -> str:
    return ", ".join(
        f"{data} {value:+.3f}" if sign else f"{data} {value:.3f}" for data, value in figures.items()
    )


def _minus(left: Mapping[str, float], right: Mapping[str, float]) -> dict[str, float]:
    return {data: value - right[data] for data, value in left.items() if data in right}


def _list(tables: Tables, section: str) -> Iterator[str]:
    for variant in tables.variants(section):
        yield f"{variant}: {_shown(tables.of(section, variant))}"


def _joint(tables: Tables) -> Iterator[str]:
    text, visual, joint = (tables.of(PAIRS, f"{output}, V-V") for output in ("text", "visual", "joint"))
    for data, value in joint.items():
        best = max(text[data], visual[data])
        gain = f"{value - best:+.3f} over the better half"
        yield f"{data}: joint {value:.3f}, visual {visual[data]:.3f}, text {text[data]:.3f}: {gain}"


def _paths(tables: Tables) -> Iterator[str]:
    for output in ("text", "visual", "joint"):
        gains = _minus(tables.of(PAIRS, f"{output}, V-V"), tables.of(PAIRS, f"{output}, Q-K"))
        if gains:
            yield f"{output}: {_shown(gains, sign=True)}"


def _fusion(tables: Tables) -> Iterator[str]:
    def mean(rule: str, metric: str) -> float:
        return float(np.mean(list(tables.of("fusion", rule, metric).values())))

    for rule in sorted(tables.variants("fusion"), key=lambda rule: -mean(rule, "aupro")):
        yield f"{rule}: pixel AUROC {mean(rule, 'pixel_auroc'):.3f}, AUPRO {mean(rule, 'aupro'):.3f}"


def _index(tables: Tables) -> Iterator[str]:
    for output in ("visual", "joint"):
        exact, index = (tables.of("mutual", f"{output}, {how}") for how in ("exact", "index"))
        if exact:
            yield f"{output}: {_shown(_minus(index, exact), sign=True)}"


def _adaptation(tables: Tables) -> Iterator[str]:
    for variant in tables.variants("adaptation"):
        plain, plus, _ = variant.partition("+")
        if plus:
            gains = [
                _shown(_minus(*(tables.of("adaptation", v, metric) for v in (variant, plain))), sign=True)
                for metric in ("pixel_auroc", "aupro")
            ]
            yield f"{variant}: {gains[0]}; {gains[1]}"


def _random(tables: Tables) -> Iterator[str]:
    for section in dict.fromkeys(section for section, *_ in tables.cells):
        for variant in tables.variants(section, "random"):
            trained, control = (tables.of(section, variant, weights=w) for w in ("trained", "random"))
            worse = {data: gain for data, gain in _minus(trained, control).items() if gain < 0}
            if worse:
                yield f"{section}: {variant}: {_shown(worse, sign=True)}"


if __name__ == "__main__":
    print(claims(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["rows"]))

"""Tables of benchmark rows: for the terminal, and as Markdown, CSV, JSON and LaTeX."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipspect.benchmark.accumulator import METRICS
from clipspect.benchmark.rows import Row, json_row, mean_rows, published_rows
from clipspect.errors import ResultsError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

HEADS = ("AUROC", "AP", "F1-max", "AUROC", "AP", "F1-max", "AUPRO")
"""Column headers of the metrics; the first three are image metrics, the others pixel metrics."""
UNDEFINED = "–"


def check_suffix(path: Path) -> None:
    """Raise UsageError for a file name with an unsupported suffix."""
    if path.suffix.lower() not in WRITERS:
        raise UsageError(f"{path}: unsupported suffix; use {', '.join(WRITERS)}")


def write_table(path: Path, rows: Sequence[Row], about: Mapping[str, str]) -> None:
    """Write the document in the format of the suffix.

    Raises:
        UsageError: unsupported suffix.
        ResultsError: the file cannot be written.
    """
    check_suffix(path)
    text = WRITERS[path.suffix.lower()](rows, about)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written ({error.strerror or error})") from error


def summary_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the main table as in the papers: one row per method with means over categories, then published results."""
    return [*mean_rows(rows), *_published(rows)]


def _published(rows: Sequence[Row]) -> list[Row]:
    categories = {row.category for row in rows if "/" not in row.category}
    return published_rows(rows[0].data, len(categories)) if rows else []


CELL = "image AUROC / pixel AUROC / AUPRO"
"""Content of a cell in the table by category."""


def by_category(rows: Sequence[Row], *, scale: int = 1, digits: int = 3) -> tuple[list[str], list[list[str]]]:
    """Return the table by category as in the papers: header, and a line per category with a column per method."""
    names = ("image_auroc", "pixel_auroc", "aupro")
    columns = list(dict.fromkeys((row.label, row.model, row.weights) for row in rows))
    cells = {(row.category, row.label, row.model, row.weights): row for row in [*rows, *mean_rows(rows)]}
    several = len({(row.model, row.weights) for row in rows}) > 1
    lines = []
    for category in dict.fromkeys(key[0] for key in cells):
        line = [category]
        for column in columns:
            row = cells.get((category, *column))
            shown = (
                [_figure(row, name, scale=scale, digits=digits, spread=False) for name in names]
                if row
                else ["–"]
            )
            line.append(" / ".join(shown))
        lines.append(line)
    return ["category", *(" ".join(column if several else column[:1]) for column in columns)], lines


def notes(rows: Sequence[Row]) -> list[str]:
    """Return the notes under a table: undefined metrics, failed images, warnings, sources."""
    found: list[str] = []
    for row in rows:
        by_reason: dict[str, list[str]] = {}
        for name, reason in row.undefined.items() if not row.source else ():
            by_reason.setdefault(reason, []).append(name)
        found += [f"{row.category}: {', '.join(names)} undefined: {why}" for why, names in by_reason.items()]
        found += [
            f"{row.category}: {name} failed and is excluded from all metrics: {why}"
            for name, why in row.failed.items()
        ]
        found += [f"{row.category}: {warning}" for warning in row.warnings]
        if row.pixel_error > 5e-5:
            found.append(
                f"{row.category}, {row.label}: pixel AUROC and AUPRO are exact to {row.pixel_error:.1e}"
            )
    found += [f"{row.label}: published, not measured here: {row.source}" for row in rows if row.source]
    return list(dict.fromkeys(found))


def terminal_tables(rows: Sequence[Row]) -> Iterator[Table]:
    """Yield Rich tables of 80 columns: one per category, model and weights; the means over categories come last."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    means = mean_rows(rows)
    width = max((len(row.label) for row in rows), default=0)
    groups: dict[str, list[Row]] = {}
    for row in [*rows, *(row for row in means if row not in rows)]:
        groups.setdefault(f"{row.category}, {row.model} {row.weights}", []).append(row)
    published = [replace(row, label=f"{row.label} {row.model}") for row in _published(rows)]
    for title, group in {
        **groups,
        **({"published, not measured here": published} if published else {}),
    }.items():
        table = Table(
            title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
        )
        table.add_column("method", min_width=width, max_width=24, overflow="fold")
        for number, head in enumerate(HEADS):
            name = head.replace("F1-max", "F1")
            table.add_column(f"{'image' if number < 3 else 'pixel'}\n{name}", justify="right", no_wrap=True)
        table.add_column("s per\nimage", justify="right", no_wrap=True)
        best = _best(group)
        for row in group:
            figures = [_figure(row, n, minus="\n±").replace("0.", ".") for n in METRICS]
            bold = [
                f"[bold]{f}[/]" if row.values[n] == best[n] else f
                for n, f in zip(METRICS, figures, strict=True)
            ]
            table.add_row(row.label, *bold, _seconds(row))
        yield table


def _markdown(rows: Sequence[Row], about: Mapping[str, str]) -> str:
    summary = summary_rows(rows)
    heads = ["method", "model", "weights", "category", *_long_heads(), "s per image"]
    lines = [
        [row.label, row.model, row.weights, row.category, *(_figure(row, n) for n in METRICS), _seconds(row)]
        for row in summary
    ]
    parts = [_pipe_table(heads, lines, figures=len(METRICS) + 1)]
    if len(rows) > len(mean_rows(rows)):
        parts += [f"By category: {CELL}.", _pipe_table(*by_category(rows))]
    said = [f"- {note}" for note in notes([*rows, *summary])]
    return "\n\n".join([*parts, *(["\n".join(said)] if said else []), about_line(rows, about)]) + "\n"


def _pipe_table(heads: Sequence[str], lines: Sequence[Sequence[str]], figures: int = 0) -> str:
    """Return a Markdown table whose last ``figures`` columns are aligned to the right."""
    rule = "|" + "---|" * (len(heads) - figures) + "---:|" * figures
    head, *body = (f"| {' | '.join(cells)} |" for cells in (heads, *lines))
    return "\n".join([head, rule, *body])


def _latex(rows: Sequence[Row], about: Mapping[str, str]) -> str:
    """Return the main table and the table by category in LaTeX, for the package booktabs."""
    parts = [_latex_table(summary_rows(rows))]
    if len(rows) > len(mean_rows(rows)):
        heads, lines = by_category(rows, scale=100, digits=1)
        body = [" & ".join(_escape(cell) for cell in cells) + r" \\" for cells in lines]
        head = " & ".join(_escape(cell) for cell in heads) + r" \\"
        table = [
            rf"\begin{{tabular}}{{{'l' * len(heads)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
        ]
        parts.append("\n".join([f"% {CELL}", *table, r"\end{tabular}"]))
    said = [f"% {line}" for line in [*notes([*rows, *summary_rows(rows)]), about_line(rows, about)]]
    return "\n\n".join([*parts, "\n".join(said)]) + "\n"


def _latex_table(rows: Sequence[Row]) -> str:
    best = _best(rows)
    lines = [
        r"\begin{tabular}{lll" + "r" * (len(METRICS) + 1) + "}",
        r"\toprule",
        r" & & & \multicolumn{3}{c}{image} & \multicolumn{4}{c}{pixel} & s per \\",
        r"\cmidrule(lr){4-6}\cmidrule(lr){7-10}",
        f"method & weights & category & {' & '.join(HEADS)} & image \\\\",
        r"\midrule",
    ]
    for number, row in enumerate(rows):
        if row.source and not rows[number - 1].source:
            lines.append(r"\midrule")
        cells = [_escape(row.label) + (r"$^\dagger$" if row.source else "")]
        cells += [_escape(f"{row.model} {row.weights}"), _escape(row.category)]
        for name in METRICS:
            figure = _figure(row, name, scale=100, digits=1, minus=r"$\pm$").replace(UNDEFINED, "--")
            cells.append(rf"\textbf{{{figure}}}" if row.values[name] == best[name] else figure)
        lines.append(" & ".join([*cells, _seconds(row).replace(UNDEFINED, "--")]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _csv(rows: Sequence[Row], about: Mapping[str, str]) -> str:
    out = io.StringIO()
    plain = [{k: _cell(v) for k, v in json_row(row).items()} for row in rows]
    writer = csv.DictWriter(out, list(plain[0]) if plain else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    return out.getvalue()


def _cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, dict | list) else value


def _json(rows: Sequence[Row], about: Mapping[str, str]) -> str:
    return json.dumps([json_row(row) for row in rows], indent=1, ensure_ascii=False) + "\n"


WRITERS = {".md": _markdown, ".csv": _csv, ".json": _json, ".tex": _latex}
"""suffix → writer of the document."""


def _figure(
    row: Row, name: str, *, scale: int = 1, digits: int = 3, minus: str = "±", spread: bool = True
) -> str:
    value, deviation = row.values[name], row.deviations[name] if spread else None
    if value is None:
        return UNDEFINED
    shown = f"{scale * value:.{digits}f}"
    return shown if deviation is None else f"{shown}{minus}{scale * deviation:.{digits}f}"


def _seconds(row: Row) -> str:
    return UNDEFINED if row.seconds_per_image is None else f"{row.seconds_per_image:.3f}"


def _best(rows: Sequence[Row]) -> dict[str, float]:
    """Return the best measured value in each column, without controls.

    It is -1 where there is nothing to compare, or where several rows show the best value to three digits.
    """
    own = [row for row in rows if not row.source and not row.weights.startswith("random")]
    if len(own) < 2 or len({row.category for row in own}) > 1:
        return dict.fromkeys(METRICS, -1.0)
    best = {}
    for name in METRICS:
        values = [value for row in own if (value := row.values[name]) is not None]
        highest = max(values, default=-1.0)
        tied = sum(f"{value:.3f}" == f"{highest:.3f}" for value in values) > 1
        best[name] = -1.0 if tied else highest
    return best


def _long_heads() -> list[str]:
    return [f"{'image' if i < 3 else 'pixel'} {head}" for i, head in enumerate(HEADS[:-1])] + [HEADS[-1]]


def about_line(rows: Sequence[Row], about: Mapping[str, str]) -> str:
    """Return the provenance of the metrics in one line."""
    first = next((row for row in mean_rows(rows)), None)
    seeds = sorted({seed for row in rows for seed in row.seeds})
    memory = [row.peak_memory_mb for row in rows if row.peak_memory_mb is not None]
    facts = {"images": str(first.images)} if first else {}
    facts |= {"seeds": " ".join(map(str, seeds))} if seeds else {}
    facts |= {"peak memory": f"{max(memory):.0f} MB"} if memory else {}
    prints = dict.fromkeys((row.model, row.weights, row.fingerprint) for row in rows if row.fingerprint)
    facts |= {f"fingerprint of {model} {weights}": digest[:16] for model, weights, digest in prints}
    return ", ".join(f"{key}: {value}" for key, value in {**facts, **about}.items())


def _escape(text: str) -> str:
    for sign in "\\&%$#_{}":
        text = text.replace(sign, rf"\{sign}" if sign != "\\" else r"\textbackslash ")
    return text

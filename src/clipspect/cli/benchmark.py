"""`clipspect benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipspect.cli import options as opt
from clipspect.cli.output import console
from clipspect.config import DetectorConfig
from clipspect.errors import UsageError
from clipspect.registry import DEFAULT_METHOD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipspect.benchmark.jobs import Result
    from clipspect.benchmark.rows import Row
    from clipspect.benchmark.samples import Category

DATA, RUN, TABLES = "Data", "What is compared", "Tables and figures"
EXIT_SOME_FAILED = 3


@opt.detector_options(
    "settings", "preset", "object_as_is",
    "image_size", "device", "precision", "batch_size", "set_size", "aspect", "interpolation", "tile",
    "max_pixels", "bit_depth", "window", "roi", "ignore_border", "domain", "prompts",
)  # fmt: skip
def benchmark(
    config: DetectorConfig,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="folder, mvtecad, visa, btech, mpdd, kolektor, realiad, mvtecad2.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ],
    root: Annotated[
        Path,
        typer.Option(
            "--root", help="Where it lies; nothing is downloaded.", rich_help_panel=DATA, show_default=False
        ),
    ],
    categories: Annotated[
        str | None,
        typer.Option("--categories", help="Some of them: bottle,cable (default: all).", rich_help_panel=DATA),
    ] = None,
    object: Annotated[
        str | None,
        typer.Option(
            "--object",
            help="What is on the images (default: the category's name).",
            rich_help_panel=DATA,
        ),
    ] = None,
    normal: Annotated[
        str | None,
        typer.Option("--normal", help="Subfolder of good images, for --data folder.", rich_help_panel=DATA),
    ] = None,
    abnormal: Annotated[
        str | None,
        typer.Option("--abnormal", help="Subfolders of defective ones: scratch,dent.", rich_help_panel=DATA),
    ] = None,
    masks: Annotated[
        str | None, typer.Option("--masks", help="Subfolder of masks.", rich_help_panel=DATA)
    ] = None,
    references: Annotated[
        str | None,
        typer.Option(
            "--references", help="Subfolder of good images that are not tested.", rich_help_panel=DATA
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=2,
            help="About this many images a category, to try things out.",
            rich_help_panel=DATA,
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            "-m",
            help="anoclip,dual-image … or all (default: anoclip, or those of --preset).",
            rich_help_panel=RUN,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="One or several: tiny,ViT-B-16-plus-240 (default: tiny, or that of --preset).",
            rich_help_panel=RUN,
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            help="trained,random: the model's own beside a control; a tag, a file.",
            rich_help_panel=RUN,
        ),
    ] = "trained",
    seeds: Annotated[
        str,
        typer.Option("--seeds", help="0,1,2: of random weights and drawn references.", rich_help_panel=RUN),
    ] = "0",
    shots: Annotated[
        int | None,
        typer.Option(
            "--shots",
            min=0,
            help="Normal references for every method that takes some (default: 4 for those that need them).",
            rich_help_panel=RUN,
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep", help="Each value in turn: references=1,2,4,8. Repeatable.", rich_help_panel=RUN
        ),
    ] = None,
    pro: Annotated[
        opt.ProRule,
        typer.Option(
            "--pro",
            help="AUPRO over all scores, or over 200 thresholds as in the official AnoCLIP code.",
            rich_help_panel=RUN,
        ),
    ] = opt.ProRule.exact,
    full_size: Annotated[
        bool,
        typer.Option(
            "--full-size",
            help="Pixel metrics at the images' size, not at the map's.",
            rich_help_panel=RUN,
        ),
    ] = False,
    by_defect: Annotated[
        bool, typer.Option("--by-defect", help="Also each kind of defect separately.", rich_help_panel=RUN)
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Results folder; a stopped run resumes there (default: DATA-benchmark).",
            rich_help_panel=TABLES,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Measure again what has other settings.", rich_help_panel=TABLES),
    ] = False,
    json: Annotated[
        Path | None, typer.Option("--json", help="File of rows for machines.", rich_help_panel=TABLES)
    ] = None,
    table: Annotated[
        list[Path] | None,
        typer.Option(
            "--table", help="File ending in .md, .csv, .tex or .json. Repeatable.", rich_help_panel=TABLES
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            "--figures",
            help="Folder for maps with true contours, and plots of sweeps.",
            rich_help_panel=TABLES,
        ),
    ] = None,
) -> None:
    """Measure methods on a data set: image and pixel AUROC, AP and F1-max, AUPRO, seconds, memory.

    Every image is encoded once per model. Run the same command again and it resumes.

    Exit codes: 0 done, 2 wrong usage, 3 some images failed (the table says which).
    """
    from clipspect.benchmark.candidates import make_candidates
    from clipspect.benchmark.datasets import load_categories
    from clipspect.benchmark.folders import given_layout
    from clipspect.benchmark.jobs import Settings
    from clipspect.benchmark.rows import make_rows
    from clipspect.benchmark.samples import thinned
    from clipspect.benchmark.tables import check_suffix, write_table
    from clipspect.methods.paper_settings import paper_settings

    documents = [*(table or ()), *([json] if json else ())]
    for document in documents:
        check_suffix(document)
    swept = {name: values.split(",") for name, values in map(_pair, sweep or ())}
    names = _words(methods) or (
        list(paper_settings(config.preset).methods) if config.preset else [DEFAULT_METHOD]
    )
    candidates = make_candidates(names, dict(config.settings), swept, shots, preset=config.preset_settings)
    layout = given_layout(root, normal, _words(abnormal), masks, references)
    chosen = load_categories(
        data, root, _words(categories), object=object, layout=layout, as_is=config.object_as_is
    )
    if limit is not None:
        chosen = [thinned(category, limit) for category in chosen]
    settings = Settings(config, "photo" if full_size else "map", by_defect, pro.value)
    target = out or Path(f"{data}-benchmark")
    results = _run_with_progress(
        data, chosen, candidates, target,
        models=_words(model or config.model), weights=_words(weights), seeds=_numbers(seeds),
        settings=settings, overwrite=overwrite,
    )  # fmt: skip
    rows = make_rows(results)
    about = _print(rows)
    for document in documents:
        write_table(document, rows, about)
        console(stderr=True).print(f"wrote {document}", highlight=False, markup=False)
    if figures is not None:
        _draw(figures, target, chosen, results, rows, list(swept))
    if any(row.failed for row in rows):
        raise typer.Exit(EXIT_SOME_FAILED)


def figure(
    rows: Annotated[
        list[Path], typer.Argument(help="Files written by benchmark --json.", show_default=False)
    ],
    setting: Annotated[str, typer.Option("--setting", help="The swept setting: epochs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write, .png or .pdf.")],
) -> None:
    """Plot metrics against a swept setting, for several data sets or runs in one picture.

    Points are means over categories, bars are standard deviations over seeds.
    """
    from clipspect.benchmark.sweep_figure import draw_sweep, read_points

    name = setting.replace("-", "_")
    draw_sweep(out, [point for path in rows for point in read_points(path, name)], name)
    console(stderr=True).print(f"wrote {out}", highlight=False, markup=False, soft_wrap=True)


def _run_with_progress(*arguments: Any, **options: Any) -> list[Result]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from clipspect.benchmark.runner import run_benchmark

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console(stderr=True),
    )  # fmt: skip
    tasks: dict[str, Any] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done)

    with bar:
        return run_benchmark(*arguments, progress=show, **options)


def _print(rows: Sequence[Row]) -> dict[str, str]:
    """The tables on the terminal; where the figures come from."""
    from clipspect.benchmark.provenance import provenance
    from clipspect.benchmark.tables import about_line, notes, summary_rows, terminal_tables

    about = provenance("clipspect")
    out = console()
    for table in terminal_tables(rows):
        out.print(table)
    for note in notes([*rows, *summary_rows(rows)]):
        out.print(f"· {note}", highlight=False, markup=False, style="dim")
    out.print(about_line(rows, about), highlight=False, markup=False, style="dim")
    return about


def _draw(
    folder: Path,
    out: Path,
    categories: Sequence[Category],
    results: Sequence[Result],
    rows: Sequence[Row],
    swept: Sequence[str],
) -> None:
    from clipspect.benchmark.figures import draw_maps, draw_masks
    from clipspect.benchmark.jobs import examples, read_examples
    from clipspect.benchmark.sweep_figure import draw_sweep, points_of

    units: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:  # of several seeds the first one is drawn
        own = units.setdefault((result.model, result.weights, result.category), [])
        if not own or own[0].unit == result.unit:
            own.append(result)
    by_name = {category.name: category for category in categories}
    for (model, weights, name), own in units.items():
        for kind, draw in (("maps", draw_maps), ("masks", draw_masks)):
            draw(
                folder / f"{kind}-{own[0].unit.replace('/', '-')}.png",
                examples(by_name[name]),
                read_examples(out, own[0].unit),
                [result.label for result in own],
                f"{name}, {model} {weights}",
            )
    for setting in swept:
        try:
            draw_sweep(folder / f"sweep-{setting}.png", points_of(rows, setting), setting)
        except UsageError as error:  # what was measured is kept
            console(stderr=True).print(f"no plot of {setting}: {error}", highlight=False, markup=False)
    console(stderr=True).print(f"wrote figures to {folder}", highlight=False, markup=False, soft_wrap=True)


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    words = _words(text)
    if not words or not all(word.isdigit() for word in words):
        raise UsageError(f"--seeds {text}: give whole numbers, such as 0,1,2")
    return [int(word) for word in words]


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text}: write it as name=value, such as references=4")
    return key.strip().replace("-", "_"), value.strip()

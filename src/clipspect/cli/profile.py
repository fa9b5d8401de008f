"""`clipspect profile`: make, show, check and update product profiles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipspect.cli import options as opt
from clipspect.cli.output import console
from clipspect.cli.run import StageBars, load_detector, warn_left_out
from clipspect.cli.strict import PlainGroup, StrictCommand
from clipspect.config import DetectorConfig
from clipspect.errors import UsageError
from clipspect.postprocess.calibration import DEFAULT_FALSE_ALARM_RATE
from clipspect.types import plural

if TYPE_CHECKING:
    from clipspect.product import Product
    from clipspect.profile import Profile

EXIT_WORSE = 1

profile_app = typer.Typer(
    cls=PlainGroup,
    help="Product profiles: object, method, references, calibration and region in one file.",
    no_args_is_help=True,
)
ProfileArgument = Annotated[
    Path, typer.Argument(help="A profile, such as bracket.clipspect.", show_default=False)
]


@profile_app.callback()
def _profile() -> None:
    """Product profiles: object, method, references, calibration and region in one file."""


@profile_app.command(cls=StrictCommand)
@opt.detector_options(
    "method", "settings", "model", "visual_model", "weights", "preset", "object_as_is",
    "image_size", "device", "precision", "batch_size", "aspect",
    "tile", "max_pixels", "bit_depth", "window", "roi", "ignore_border",
    "domain", "prompts", "normal", "abnormal", "set_size", method="dual-image",
)  # fmt: skip
def create(
    good: Annotated[
        Path, typer.Argument(help="Known-good images; 10 or more are advised.", show_default=False)
    ],
    object: opt.ObjectOption,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="File to write, such as bracket.clipspect.", show_default=False),
    ],
    config: DetectorConfig,
    false_alarm_rate: opt.FalseAlarmOption = None,
    threshold: opt.ThresholdOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a profile of that name.")] = False,
) -> None:
    """Make a profile: clipspect profile create good/ --object 'metal bracket' -o bracket.clipspect."""
    from clipspect.profile import SUFFIX

    if out.suffix != SUFFIX:
        raise UsageError(f"{out}: a profile's name ends in {SUFFIX}, such as {out.stem}{SUFFIX}")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} is there; change it with clipspect profile update, or pass --overwrite")
    detector = load_detector(config)
    from clipspect.product import create_profile

    with StageBars() as bars:
        made, calibrated = create_profile(
            detector,
            good,
            object,
            out.stem,
            false_alarm_rate=DEFAULT_FALSE_ALARM_RATE if false_alarm_rate is None else false_alarm_rate,
            threshold=threshold,
            on_step=bars.show,
        )
    warn_left_out(calibrated)
    made.write(out)
    _print_profile(made)


@profile_app.command(cls=StrictCommand)
def show(profile: ProfileArgument, as_json: opt.JsonOption = False) -> None:
    """Say what a profile holds; nothing is loaded."""
    from clipspect.profile import read_profile

    found = read_profile(profile)
    if as_json:
        print(json.dumps({"name": found.name, "version": found.version, **found.to_table()}))
    else:
        _print_profile(found)


@profile_app.command(cls=StrictCommand)
@opt.detector_options("model", "weights", "device", "batch_size")
def check(
    profile: ProfileArgument,
    config: DetectorConfig,
    good: Annotated[
        Path | None, typer.Option("--good", help="Other known-good images, to see how many would be flagged.")
    ] = None,
) -> None:
    """Load a profile with its weights, and say whether everything fits; with --good also how many it flags."""
    product = open_product(profile, config)
    _print_profile(product.profile)
    console().print("the weights, the settings and the thresholds belong together", highlight=False)
    if good is not None:
        _print_false_alarms(product, good)


@profile_app.command(cls=StrictCommand)
@opt.detector_options("model", "weights", "device", "batch_size", "roi", "ignore_border")
def update(
    profile: ProfileArgument,
    config: DetectorConfig,
    good: Annotated[
        list[Path] | None,
        typer.Option("--good", help="Known-good images that replace the present ones. Repeatable."),
    ] = None,
    from_review: Annotated[
        Path | None,
        typer.Option("--from-review", help="Reviewed results folder: accepted images are added to --good."),
    ] = None,
    false_alarm_rate: opt.FalseAlarmOption = None,
    threshold: opt.ThresholdOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Another file \\[default: the same].", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Replace without asking.")] = False,
) -> None:
    """Change a profile's threshold, region or good images; what changes is shown before anything is replaced."""
    from clipspect.product import create_profile
    from clipspect.profile import SUFFIX, read_profile
    from clipspect.results.review import reviewed_images

    before = read_profile(profile)
    target = out or profile
    reviewed = {} if from_review is None else reviewed_images(from_review)
    confirmed = [path for path, verdict in reviewed.items() if verdict == "accept"]
    again = (
        good or from_review is not None or false_alarm_rate is not None or config.roi or config.ignore_border
    )
    if not again and threshold is None:
        raise UsageError(
            "nothing to change; give --good, --from-review, --threshold, --false-alarm-rate, --roi or"
            " --ignore-border"
        )
    after = before.with_threshold(threshold)
    if again:
        region = {"roi": config.roi, "ignore_border": config.ignore_border} if _has_region(config) else {}
        places = config.replace(roi=None, ignore_border="")
        detector = load_detector(before.config(places).replace(**region))
        wanted = [*_good_images(before, good), *confirmed]
        images = list({image.resolve(): image for image in wanted}.values())
        known = {
            "replaces": before.label, "reviewed_good": len(confirmed), "good": list(map(str, images))
        }  # fmt: skip
        with StageBars() as bars:
            made, calibrated = create_profile(
                detector,
                images,
                before.object,
                target.name.removesuffix(SUFFIX),
                false_alarm_rate=before.provenance.get("false_alarm_rate", DEFAULT_FALSE_ALARM_RATE)
                if false_alarm_rate is None
                else false_alarm_rate,
                threshold=threshold if threshold is not None else before.threshold,
                provenance=known,
                on_step=bars.show,
            )
        warn_left_out(calibrated)
        after = made
    _print_profile(after)
    if reviewed:
        products = {"before": open_product(before, config), "after": open_product(after, config)}
        _print_reviewed(products, reviewed)
    if after.version == before.version and target == profile:
        console().print("nothing changes", highlight=False)
        return
    if target.exists() and not yes and not typer.confirm(f"replace {target} ({before.version})?"):
        raise typer.Abort
    after.write(target)
    console().print(f"written: {target}", highlight=False, markup=False, soft_wrap=True)


def open_product(profile: Path | Profile, config: DetectorConfig) -> Product:
    """Load a profile with a notice on stderr while the model loads."""
    from clipspect.product import load_product

    with console(stderr=True).status("loading the profile"):
        return load_product(profile, config)


def _has_region(config: DetectorConfig) -> bool:
    return config.roi is not None or bool(config.ignore_border)


def _good_images(profile: Profile, given: list[Path] | None) -> list[Path]:
    """The good images given now, or those that the profile was made of."""
    from clipspect.data.find import find_images

    if given:
        return [image for folder in given for image in find_images(folder)]
    source = profile.provenance.get("good")
    places = [source] if isinstance(source, str) else list(source or ())
    if not places or not all(Path(place).exists() for place in places):
        raise UsageError(
            f"the good images of {profile.name} ({', '.join(map(str, places[:3]))} …) are not here; give them with"
            " --good"
        )
    return [image for place in places for image in find_images(Path(place))]


def _print_profile(profile: Profile) -> None:
    from clipspect.postprocess.verdict import describe

    out = console()
    lines = [
        f"profile   {profile.label}",
        f"object    {profile.object}",
        f"model     {profile.backbone.model} ({profile.backbone.weights}), {profile.backbone.image_size} pixels,"
        f" {profile.backbone.precision}",
        f"made      {profile.provenance.get('created', '?')}, clipspect {profile.provenance.get('clipspect', '?')}",
    ]
    if replaced := profile.provenance.get("replaces"):
        lines.append(f"replaces  {replaced}")
    if profile.options:
        lines.append(f"options   {_words(profile.options)}")
    if profile.roi is not None:
        lines.append(f"region    {_region_words(profile)}")
    for method, one in profile.used_calibrations.items():
        lines.append(f"method    {method}: {describe(one)}")
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def _words(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in options.items())


def _region_words(profile: Profile) -> str:
    roi = profile.roi
    assert roi is not None
    parts = ["a mask"] if roi.mask is not None else []
    parts += [plural(len(roi.inspect), "polygon") + " inspected"] if roi.inspect else []
    parts += [plural(len(roi.ignore), "polygon") + " left out"] if roi.ignore else []
    parts += [f"without a border of {roi.border}"] if roi.border else []
    return ", ".join(parts)


def _print_false_alarms(product: Product, good: Path) -> None:
    found = [one for one in product.detect(good) if one.error is None]
    flagged = sum(bool(one.flag) for one in found)
    text = f"now: {flagged} of {plural(len(found), 'good image')} flagged"
    console().print(text, highlight=False, markup=False, soft_wrap=True)
    promised = product.profile.provenance.get("false_alarm_rate", DEFAULT_FALSE_ALARM_RATE)
    if flagged > len(found) * 2 * promised + 1:
        raise typer.Exit(EXIT_WORSE)


def _print_reviewed(products: Mapping[str, Product], reviewed: Mapping[Path, str]) -> None:
    """A line per profile: how its verdicts agree with the reviewed ones."""
    for name, product in products.items():
        found = list(
            product.detector.stream(list(reviewed), object=product.profile.object, good=product.good)
        )
        each = len(product.detector.methods)
        flags = {
            path: any(one.flag for one in found[number * each : (number + 1) * each])
            for number, path in enumerate(reviewed)
        }
        good = [path for path, verdict in reviewed.items() if verdict == "accept"]
        bad = [path for path, verdict in reviewed.items() if verdict == "reject"]
        text = (
            f"{name}: flags {sum(flags[p] for p in bad)} of {len(bad)} rejected,"
            f" {sum(flags[p] for p in good)} of {len(good)} accepted"
        )
        console().print(text, highlight=False, markup=False, soft_wrap=True)

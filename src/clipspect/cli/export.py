"""`clipspect export`: a network that scores images of one object without clipspect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from clipspect.cli import options as opt
from clipspect.cli.output import console
from clipspect.cli.profile import open_product
from clipspect.cli.run import load_detector
from clipspect.config import MODEL, DetectorConfig
from clipspect.data.find import find_images
from clipspect.errors import UsageError
from clipspect.types import plural


@opt.detector_options(
    "method", "settings", "model", "weights", "image_size", "interpolation", "domain", "prompts", "normal", "abnormal",
    "roi", "ignore_border", device="cpu",
)  # fmt: skip
def export(
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="bottle.onnx, or bottle.xml for OpenVINO.", show_default=False),
    ],
    config: DetectorConfig,
    object: opt.OptionalObjectOption = None,
    profile: opt.ProfileOption = None,
    precision: Annotated[
        str,
        typer.Option("--precision", help="fp32; with .xml also bf16 and int8.", rich_help_panel=MODEL),
    ] = "fp32",
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", help="Images to calibrate int8 on.", rich_help_panel=MODEL),
    ] = None,
    bar: Annotated[
        float, typer.Option("--bar", help="Lowest rank correlation with fp32's maps.", hidden=True)
    ] = 0.999,
    good: opt.GoodOption = None,
    false_alarm_rate: opt.FalseAlarmOption = None,
    threshold: opt.ThresholdOption = None,
) -> None:
    """Write one ONNX file (or an OpenVINO model) with the object's text anchors baked in: image in, score and map out.

    The file is run and compared with torch before it is kept. With --good the calibration is baked
    in, and the threshold is 0.5.
    """
    if precision not in ("fp32", "bf16", "int8"):
        raise UsageError(f"unknown precision {precision!r}; there are: fp32, bf16, int8")
    calibration = None
    if profile is not None:
        if object is not None or good is not None or false_alarm_rate is not None:
            raise UsageError(
                "object and calibration are the profile's; leave --object, --good and their options out"
            )
        product = open_product(profile, config)
        detector, object = product.detector, product.profile.object
        if len(product.good.calibrations) == 1:  # several methods are refused below
            (calibration,) = product.good.calibrations.values()
        if threshold is not None and calibration is not None:
            calibration = replace(calibration, score_threshold=threshold)
    else:
        assert object is not None  # the option's callback saw to it
        detector = load_detector(config)
    if good is not None:
        from clipspect.postprocess.calibration import DEFAULT_FALSE_ALARM_RATE

        rate = DEFAULT_FALSE_ALARM_RATE if false_alarm_rate is None else false_alarm_rate
        (calibration,) = detector.calibrate(good, object, false_alarm_rate=rate).calibrations.values()
        if threshold is not None:
            calibration = replace(calibration, score_threshold=threshold)
    elif calibration is None and (threshold is not None or false_alarm_rate is not None):
        raise UsageError("--threshold and --false-alarm-rate are about a calibration; add --good FOLDER")
    with console(stderr=True).status(f"writing {out} and running it"):
        from clipspect.export.exporter import export_detector

        exported = export_detector(
            detector,
            object,
            out,
            calibration=calibration,
            precision=precision,  # type: ignore[arg-type]
            calibrate=find_images(calibrate) if calibrate else (),
            bar=bar,
        )
    console().print(
        f"{exported.path}: {precision}, on {plural(exported.compared, 'image')} {exported.agreement}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )

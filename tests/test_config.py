"""DetectorConfig is the one declaration of a detector's options."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from typer.main import get_command

import clipspect
from clipspect.cli import app
from clipspect.config import DetectorConfig, parse_settings, parse_tile, parse_window, spec_of
from clipspect.errors import UsageError
from clipspect.methods.anoclip import AnoCLIP

PYTHON_ONLY = {"seed"}


def test_load_has_the_signature_and_the_help_of_the_config():
    assert list(inspect.signature(clipspect.load).parameters) == [one.name for one in fields(DetectorConfig)]
    for one in fields(DetectorConfig):
        assert f"{one.name}: {spec_of(one).help}" in (clipspect.load.__doc__ or "")


def test_detect_offers_every_option_of_the_config():
    detect = get_command(app).commands["detect"]  # type: ignore[attr-defined]
    flags = {flag for param in detect.params for flag in param.opts}
    for one in fields(DetectorConfig):
        assert (spec_of(one).flags[0] in flags) == (one.name not in PYTHON_ONLY), one.name


def test_the_command_line_builds_the_config_that_python_builds(monkeypatch, run, small_model, tmp_path):
    built: list[DetectorConfig] = []

    def stop(config: DetectorConfig) -> None:
        built.append(config)
        raise UsageError("stop here")

    monkeypatch.setattr(sys.modules["clipspect.cli.judge"], "load_detector", stop)
    (tmp_path / "part.png").write_bytes(b"")
    code, _, _ = run(
        "detect", str(tmp_path / "part.png"), "--object", "nut", "-m", "anoclip", "-m", "clip", "-s", "views=official",
        "--tile", "256", "--window", "0,4095", "--normal-state", "{} as machined", "--precision", "bf16",
    )  # fmt: skip
    assert code == 2
    assert built == [
        DetectorConfig(
            ["anoclip", "clip"], str(small_model), settings={"views": "official"}, tile=256, window=(0, 4095),
            normal=["{} as machined"], precision="bf16",
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "unknown precision 'int4'; there are: auto, fp32, bf16, fp16, int8"),
        ({"aspect": "crop"}, "unknown aspect 'crop'"),
        ({"batch_size": 0}, "batch_size=0: give a whole number of at least 1"),
        ({"set_size": 1}, "set_size=1: give a whole number of at least 2"),
        ({"tiles": 256}, "unknown option 'tiles'; did you mean 'tile'?"),
    ],
)
def test_impossible_options_are_usage_errors_before_weights_are_loaded(options, message):
    with pytest.raises(UsageError) as caught:
        clipspect.load("anoclip", "no/such/model", **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(("parse", "text"), [(parse_tile, "big"), (parse_window, "1"), (parse_window, "a,b")])
def test_text_that_is_no_value_is_a_usage_error(parse, text):
    with pytest.raises(UsageError, match=text):
        parse(text)


def test_settings_need_an_equals_sign():
    assert parse_settings(["start-block=3", "views = official"]) == {"start_block": "3", "views": "official"}
    with pytest.raises(UsageError, match="name=value"):
        parse_settings(["views"])


def test_the_config_is_json_with_the_settings_of_method_objects():
    config = DetectorConfig([AnoCLIP(views="official"), "clip"], prompts=Path("words.toml"), window=(0, 4095))
    values = json.loads(json.dumps(config.to_dict()))
    assert values["method"][0]["name"] == "anoclip"
    assert values["method"][0]["views"] == "official"
    assert (values["method"][1], values["prompts"], values["window"]) == ("clip", "words.toml", [0, 4095])


def test_the_manifest_keeps_every_option(run, plates, tmp_path):
    code, _, _ = run(
        "detect",
        str(plates),
        "--object",
        "plate",
        "-m",
        "anoclip",
        "--batch-size",
        "4",
        "-o",
        str(tmp_path / "r"),
    )
    assert code == 0
    config = json.loads((tmp_path / "r" / "manifest.json").read_text(encoding="utf-8"))["config"]
    assert set(config) == {one.name for one in fields(DetectorConfig)}
    assert (config["batch_size"], config["method"]) == (4, ["anoclip"])


def test_an_option_of_an_earlier_version_is_refused_with_a_hint(run, plates):
    code, _, errors = run("detect", str(plates), "--object", "plate", "--compare", "anoclip,clip")
    assert code == 2
    assert "-m anoclip -m dual-image" in errors

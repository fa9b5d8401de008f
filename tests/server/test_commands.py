"""`clipspect serve` and `clipspect ui`: what their flags become, and where they listen unless told."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("fastapi", reason="the service's extra is not installed")

from clipspect.cli import app
from clipspect.errors import UsageError
from clipspect.server.settings import read_settings


@pytest.fixture
def served(monkeypatch) -> dict[str, Any]:
    """What would have been served, and where."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        "clipspect.server.service.run_service", lambda s, **more: seen.update(more, settings=s)
    )
    monkeypatch.setattr(
        "clipspect.ui.host.serve_page",
        lambda m, s, c, **more: seen.update(more, settings=m, limits=s, config=c),
    )
    return seen


def run(*words: str) -> None:
    CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.mark.parametrize("command", ["serve", "ui"])
def test_it_listens_on_this_machine_alone_unless_told(served, command):
    run(command)
    assert served["host"] == "127.0.0.1"
    run(command, "--host", "0.0.0.0", "--port", "9000")
    assert (served["host"], served["port"]) == ("0.0.0.0", 9000)


def test_flags_of_the_service_are_its_settings(served):
    run("serve", "--replicas", "3", "--batch", "4", "--queue", "5", "--cpus", "0.5",
        "--time-limit", "7", "--max-pixels", "100", "--max-images", "2", "--max-body-mb", "3")  # fmt: skip
    settings = served["settings"]
    assert (settings.replicas, settings.batch, settings.queue, settings.cpus) == (3, 4, 5, 0.5)
    assert settings.time_limit == 7
    assert (settings.limits.pixels, settings.limits.images, settings.limits.body_mb) == (100, 2, 3)
    assert settings.admitted == 3 * 2 * 4 + 5


@pytest.mark.parametrize(
    ("flags", "needs"),
    [((), False), (("--gpus", "1"), False), (("--replicas", "2"), True), (("--gpus", "0.5"), True),
     (("--cpus", "2"), True)],
)  # fmt: skip
def test_ray_is_needed_for_several_replicas_or_shares_alone(served, flags, needs):
    pytest.importorskip("ray", reason="the service's extra is not installed")
    run("serve", *flags)
    assert served["settings"].needs_ray is needs


def test_an_impossible_setting_is_named(served):
    with pytest.raises(UsageError, match="time_limit"):
        run("serve", "--time-limit", "0")
    assert not served


def test_the_removed_wait_for_a_batch_is_refused_with_a_hint(served):
    with pytest.raises(UsageError, match="--batch-wait-ms was removed: a request is sent at once") as flag:
        run("serve", "--batch-wait-ms", "2")
    assert not served
    with pytest.raises(UsageError) as setting:
        read_settings({"batch_wait_ms": 2})
    assert str(flag.value).partition(":")[2] == str(setting.value).partition(":")[2]


def test_settings_of_a_cluster_are_read_as_flags_are(served):
    run("serve", "--model", "a", "--model", "b", "--replicas", "2", "--tile", "300", "--max-mb", "3",
        "--references", "/r", "--products", "/p")  # fmt: skip
    values = {"models": ["a", "b"], "replicas": 2, "tile": 300, "limits": {"image_mb": 3}}
    assert read_settings({**values, "references": "/r", "products": "/p"}) == served["settings"]
    assert served["settings"].detector.tile == 300
    assert (served["settings"].detector.batch_size, served["settings"].models) == (16, ("a", "b"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replica": 2}, "unknown setting 'replica'; did you mean 'replicas'"),
        ({"replicas": "two"}, "replicas='two': "),
        ({"replicas": 0}, "replicas=0: give a whole number of at least 1"),
        ({"limits": {"images": 0}}, "images=0: give a whole number of at least 1"),
        ({"limits": {"image": 1}}, "unknown setting 'limits.image'; did you mean"),
        ({"gpus": -1}, "gpus=-1"),
        ({"precision": "auto"}, "precision=auto: name one"),
        ({"batch_wait_ms": 2}, "batch_wait_ms was removed: a request is sent at once"),
    ],
)
def test_an_impossible_setting_of_a_cluster_is_named(values, said):
    with pytest.raises(UsageError, match=said):
        read_settings(values)

"""The command line as a user types it: output, files and exit codes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
from typer.main import get_command

from clipspect import __version__
from clipspect.cli import app
from helpers.rows import rows_of


def test_a_folder_gives_rows_overlays_and_a_report(run, plates, tmp_path):
    out = tmp_path / "results"
    code, text, _ = run(
        "detect", str(plates), "--object", "plate", "--out", str(out), "--csv", "--maps", "png16"
    )
    assert code == 0
    assert "10 images" in text
    rows = rows_of(out)
    assert sorted(r["path"] for r in rows) == sorted(
        p.relative_to(plates).as_posix() for p in plates.rglob("*.png")
    )
    assert all(0 <= r["score"] <= 1 and r["flag"] is not None and r["method"] == "dual-image" for r in rows)
    assert (out / "report.html").stat().st_size > 10_000
    assert len(list((out / "overlays").rglob("*.png"))) == 10
    assert len(list((out / "maps").rglob("*.png"))) == 10
    assert len((out / "detections.csv").read_text(encoding="utf-8").splitlines()) == 11


def test_running_again_keeps_what_is_done_and_other_settings_are_refused(run, plates, tmp_path):
    out = tmp_path / "results"
    words = (
        "detect",
        str(plates),
        "--object",
        "plate",
        "--out",
        str(out),
        "--no-report",
        "--overlays",
        "none",
    )
    assert run(*words)[0] == 0
    before = {r["path"]: r["finished_at"] for r in rows_of(out)}
    code, text, _ = run(*words)
    assert (code, "10 from an earlier run" in text) == (0, True)
    assert {r["path"]: r["finished_at"] for r in rows_of(out)} == before
    code, _, error = run(*words, "--set", "temperature=0.5")
    assert code == 2
    assert "--overwrite" in error
    assert {r["path"]: r["finished_at"] for r in rows_of(out)} == before
    assert run(*words, "--set", "temperature=0.5", "--overwrite")[0] == 0


def test_json_rows_are_one_object_per_line(run, plates, tmp_path):
    code, text, _ = run("detect", str(plates), "--object", "plate", "--out", str(tmp_path / "r"), "--json")
    rows = [json.loads(line) for line in text.splitlines()]
    assert code == 0
    assert len(rows) == 10
    assert {"path", "content_hash", "score", "flag", "regions", "error", "seconds"} <= set(rows[0])


def test_exit_codes_for_anomalies_and_for_failures(run, plates, tmp_path):
    words = (
        "detect",
        str(plates),
        "--object",
        "plate",
        "--no-report",
        "--overlays",
        "none",
        "--threshold",
        "0.01",
    )
    assert run(*words, "--out", str(tmp_path / "a"))[0] == 0
    assert run(*words, "--out", str(tmp_path / "b"), "--fail-on-anomaly")[0] == 1
    (plates / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    code, text, _ = run(*words, "--out", str(tmp_path / "c"), "--fail-on-anomaly")
    assert code == 3
    assert "broken.jpg" in text
    assert sum(r["error"] is not None for r in rows_of(tmp_path / "c")) == 1


def test_known_good_images_set_the_threshold(run, plates, tmp_path):
    code, _text, _ = run(
        *("detect", str(plates), "--object", "plate", "--out", str(tmp_path / "r")),
        *("--good", str(plates / "a"), "--false-alarm-rate", "0.2", "--no-report", "--overlays", "none"),
    )
    assert code == 0
    assert rows_of(tmp_path / "r")[0]["threshold_source"] == "conformal"


def test_good_images_join_the_set_of_a_set_method_and_belong_to_its_settings(run, plates, tmp_path):
    good = tmp_path / "good"
    shutil.copytree(plates / "a", good)
    words = (
        *("detect", str(plates / "b"), "--object", "plate", "--method", "dual-image", "--good", str(good)),
        *("--out", str(tmp_path / "r"), "--no-report", "--overlays", "none"),
    )
    assert run(*words)[0] == 0
    assert len(rows_of(tmp_path / "r")) == len(list((plates / "b").iterdir()))
    assert run(*words)[0] == 0
    next(good.iterdir()).unlink()
    code, _text, error = run(*words)
    assert (code, "good was" in error) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("detect", "nowhere", "--object", "x"), "no such file or folder"),
        (("detect", ".", "--object", " "), "object's name"),
        (("detect", ".", "--object", "x", "--method", "y"), "unknown method"),
        (("detect", ".", "--object", "x", "--set", "views"), "name=value"),
        (("detect", ".", "--object", "x", "--tile", "big"), "number of pixels"),
        (("detect", ".", "--object", "x", "--false-alarm-rate", "0.1"), "add --good"),
        (("detect", ".", "--object", "x", "--threshold", "1.5"), "between 0 and 1"),
        (("detect", ".", "--object", "x", "--good", ".", "--false-alarm-rate", "0"), "between 0 and 1"),
        (
            ("profile", "create", ".", "--object", "x", "-o", "p.clipspect", "--false-alarm-rate", "0"),
            "between 0 and 1",
        ),
    ],
)
def test_wrong_usage_is_code_2_and_one_line_that_helps(run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(*words)
    assert code == 2
    assert message in error
    assert "Traceback" not in error


def test_an_unknown_model_and_an_empty_folder(run, tmp_path):
    assert "no images" in run("detect", str(tmp_path), "--object", "x")[2]
    code, _, error = run("detect", str(tmp_path), "--object", "x", "--model", "ViT-Z", model=False)
    assert (code, "unknown model" in error) == (2, True)
    _, _, error = run("detect", ".", "--object", "x", "--model", "tinny", model=False)
    assert "did you mean 'tiny'?" in error


def test_random_weights_are_said_aloud(run, plates, tmp_path):
    code, _, error = run(
        *("detect", str(plates), "--object", "plate", "--out", str(tmp_path / "r"), "--weights", "random"),
        *("--overlays", "none"),
    )
    assert code == 0
    assert "random weights" in error
    assert "random" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert rows_of(tmp_path / "r")[0]["weights"] == "random (seed 0)"


def test_lists(run):
    assert "ViT-B-16-plus-240" in run("models", model=False)[1]
    assert "anoclip" in run("methods", model=False)[1]
    assert "temperature" in run("methods", "anoclip", model=False)[1]


def commands(group, path=()):
    """(words, command) of a group and of everything below it."""
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


@pytest.mark.parametrize("words", [path for path, _ in commands(get_command(app))], ids=" ".join)
def test_help_shows_no_type_beside_a_flag(run, words):
    code, text, _ = run(*words, "--help", model=False)
    assert (code, "--help" in text, "<bool>" in text) == (0, True, False)


def test_help_and_import_load_no_torch():
    for command in (
        "import clipspect",
        "import sys; sys.argv=['clipspect','--help']; from clipspect.cli import app\n",
    ):
        check = f"{command}\nimport sys\nassert 'torch' not in sys.modules and 'open_clip' not in sys.modules"
        subprocess.run([sys.executable, "-c", check], check=True)


def test_a_command_imports_no_other_command():
    script = """
import sys
from clipspect.cli import main
sys.argv = ["clipspect", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
print(*(name for name in sys.modules if name.startswith("clipspect.cli.") or name == "numpy"), sep="\\n")
"""
    loaded = {}
    for words in (["--version"], ["review", "--help"], ["detct"]):
        ended = subprocess.run(
            [sys.executable, "-c", script, *words], capture_output=True, text=True, check=True
        )
        loaded[words[0]] = set(ended.stdout.splitlines())
    root = {"clipspect.cli.commands", "clipspect.cli.output", "clipspect.cli.strict"}
    assert loaded["--version"] - {f"clipspect {__version__}"} == root
    assert loaded["detct"] == root
    assert "clipspect.cli.review" in loaded["review"]
    assert not {"clipspect.cli.benchmark", "clipspect.cli.detect"} & loaded["review"]


def test_methods_are_compared_over_one_encoding_side_by_side(run, plates, tmp_path):
    out = tmp_path / "r"
    code, text, _ = run(
        "detect",
        str(plates),
        "--object",
        "plate",
        "-m",
        "anoclip",
        "-m",
        "dual-image",
        "-m",
        "mutual",
        "--out",
        str(out),
    )
    assert code == 0
    assert "dual-image: " in text
    rows = rows_of(out)
    assert len(rows) == 30
    assert {r["method"] for r in rows} == {"anoclip", "dual-image", "mutual"}
    assert (out / "overlays" / "b" / "plate 0.png.dual-image.png").is_file()
    assert '{"name": "dual-image", "threshold"' in (out / "report.html").read_text(encoding="utf-8")
    code, text, _ = run(
        "detect",
        str(plates),
        "--object",
        "plate",
        "-m",
        "anoclip",
        "-m",
        "dual-image",
        "-m",
        "mutual",
        "--out",
        str(out),
    )
    assert "10 from an earlier run" in text


def test_a_set_is_scored_the_same_after_an_interruption(run, plates, tmp_path):
    words = (
        "detect",
        str(plates),
        "--object",
        "plate",
        "--method",
        "dual-image",
        "--no-report",
        "--overlays",
        "none",
    )
    run(*words, "--out", str(tmp_path / "whole"))
    run(*words, "--out", str(tmp_path / "again"))
    broken = sorted(plates.rglob("*.png"))[3]
    kept = broken.read_bytes()
    broken.write_bytes(b"")
    assert run(*words, "--out", str(tmp_path / "again"), "--overwrite")[0] == 3
    broken.write_bytes(kept)
    code, _, error = run(*words, "--out", str(tmp_path / "again"))
    assert (code, "the images of the set have changed" in error) == (2, True)
    assert run(*words, "--out", str(tmp_path / "again"), "--overwrite")[0] == 0
    whole = {r["path"]: r["score"] for r in rows_of(tmp_path / "whole")}
    again = {r["path"]: r["score"] for r in rows_of(tmp_path / "again")}
    restored = broken.relative_to(plates).as_posix()
    assert again[restored] == pytest.approx(whole[restored], abs=1e-6)


def test_references_go_by_file_by_folder_and_by_asset(run, plates, tmp_path):
    good = tmp_path / "good"
    good.mkdir()
    for number, path in enumerate(sorted(plates.rglob("*.png"))):
        (good / path.name).write_bytes(sorted(plates.rglob("*.png"))[number - 1].read_bytes())
    asset = tmp_path / "plate.refs"
    code, text, _ = run("references", "build", str(good), "--object", "plate", "-o", str(asset))
    assert (code, "10 references" in text) == (0, True)
    words = (
        "detect",
        str(plates),
        "--object",
        "plate",
        "--method",
        "dual-image",
        "--no-report",
        "--overlays",
        "none",
    )
    scores = []
    for number, option in enumerate((("--reference", asset), ("--reference", good), ("--templates", good))):
        out = tmp_path / f"r{number}"
        assert run(*words, "--out", str(out), option[0], str(option[1]))[0] == 0
        scores.append({r["path"]: r["raw_score"] for r in rows_of(out)})
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert scores[2] != pytest.approx(scores[1], abs=1e-6)
    code, _, error = run(*words, "--out", str(tmp_path / "r0"), "--reference", str(good / "plate 0.png"))
    assert (code, "references was" in error) == (2, True)
    (good / "plate 3.png").unlink()
    assert run(*words, "--out", str(tmp_path / "r3"), "--templates", str(good))[0] == 3
    asset.write_bytes(asset.read_bytes()[:2000])
    code, _, error = run(*words, "--out", str(tmp_path / "r4"), "--reference", str(asset))
    assert (code, "damaged" in error) == (2, True)


def test_an_option_given_twice_and_empty_values_are_refused(run, plates, tmp_path):
    code, _, error = run("detect", str(plates), "--object", "plate", "--object", "results")
    assert (code, error.strip()) == (2, "error --object is given twice; give it once")
    assert (
        "--report is given twice" in run("detect", str(plates), "--object", "x", "--report", "--no-report")[2]
    )
    code, _, error = run("detect", "", "--object", "plate")
    assert (code, error.strip()) == (2, "error SOURCE is empty; give it a value")
    assert "--good is empty" in run("detect", str(plates), "--object", "plate", "--good", "")[2]
    repeated = ("-s", "temperature=1", "-s", "views=none")
    assert (
        run("detect", str(plates), "--object", "x", *repeated, "-o", str(tmp_path / "r"), "--no-report")[0]
        == 0
    )


def test_o_is_out_in_every_command(run, plates, tmp_path):
    out = tmp_path / "results"
    code, _, _ = run(
        "detect", str(plates), "--object", "plate", "-o", str(out), "--no-report", "--overlays", "none"
    )
    assert (code, {row["object"] for row in rows_of(out)}) == (0, {"plate"})
    assert run("results", "export", str(out), "-o", str(tmp_path / "rows.csv"), model=False)[0] == 0
    assert run("results", "filter", str(out), "-o", str(tmp_path / "some"), model=False)[0] == 0
    assert len(rows_of(tmp_path / "some")) == 10


def test_good_images_without_a_template_say_so(run, plates, tmp_path):
    templates, good = tmp_path / "templates", tmp_path / "good"
    shutil.copytree(plates, templates)
    good.mkdir()
    shutil.copy(plates / "b" / "plate 0.png", good / "other.png")
    code, _, error = run(
        *(
            "detect",
            str(plates),
            "--object",
            "plate",
            "--method",
            "dual-image",
            "--templates",
            str(templates),
        ),
        *("--good", str(good), "--out", str(tmp_path / "r")),
    )
    assert code == 2
    assert "no known-good image could be scored; the first, other.png: no reference named 'other'" in error


SLOW = """
import sys, time
from clipspect.cli import app, main
from clipspect.cli.strict import StrictCommand

@app.command(cls=StrictCommand)
def slow():
    try:
        print("begun", flush=True)
        time.sleep(30)
    finally:
        print("ending", flush=True)
        time.sleep({ending})
sys.argv = ["clipspect", "slow"]
main()
"""


@pytest.mark.integration
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to a child")
@pytest.mark.parametrize(("ending", "signals"), [(0, 1), (30, 2)])
def test_one_and_two_interrupts_end_with_130(ending, signals):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(ending=ending)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    started = time.monotonic()
    for word in ("begun", "ending")[:signals]:
        assert process.stdout.readline().strip() == word
        process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - started < 20
    assert "Traceback" not in error
    assert "run the same command again" in error

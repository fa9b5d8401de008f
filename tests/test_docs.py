"""Every command of README and docs: run as printed, or parsed by the real parser where it cannot run here."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from clipspect.cli import app, main
from clipspect.demo import DEMO_IMAGES

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PRINTED = [*PAGES, *sorted((ROOT / "src").rglob("*.md"))]
NEEDS_MORE = re.compile(r"<!-- not run: (.+) -->\s*$")
"""A comment before a block that needs weights or data no test has, with the reason."""
NEEDS_PACKAGE = re.compile(r"<!-- needs: (\w+) -->")
"""A comment on a page whose blocks need a package of one of the extras."""
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(clipspect [^`]+)`")
COMMAND = re.compile(
    r"(?:^|\s)(clipspect|python -m clipspect\S*|python benchmarks/\S+|make|pip install)(?=\s)"
)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        if not NEEDS_MORE.search(text[: found.start()]):
            yield found.group(1), found.group(2)


def printed_commands() -> Iterator[tuple[str, str]]:
    """(page, command line) of every fenced block, whether it runs here or not."""
    for page in PRINTED:
        for language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
            if language not in ("bash", "text", "console", "sh", ""):
                continue
            for line in code.replace("\\\n", " ").splitlines():
                if found := COMMAND.search(line):
                    yield page.name, line[found.start() :].strip()


def inline_commands() -> Iterator[tuple[str, str]]:
    """(page, command) of code spans in running text, which may leave required options out."""
    for page in PRINTED:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for command in INLINE.findall(text):
            yield page.name, " ".join(command.split())


def words_of(line: str) -> list[str]:
    """The words of a shell line up to a comment or the next command."""
    words = shlex.split(line, comments=True)
    ends = [place for place, word in enumerate(words) if word in ("|", ";", "&&", "&", "done")]
    return [word.rstrip(";") for word in words[: ends[0] if ends else None]]


def leaf_of(words: list[str]) -> tuple[Any, Any, list[str]]:
    """The command that words name, its context, and what is left for it."""
    command: Any = get_command(app)
    context = command.make_context("clipspect", list(words), resilient_parsing=True)
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"no command {rest[0]!r}"
        name, command = rest[0], command.commands[rest[0]]
        rest = rest[1:]
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
    return command, context, rest


def parse(words: list[str]) -> None:
    """Parse a whole command without running it. Raises what the parser raises."""
    command, context, rest = leaf_of(words)
    if not hasattr(command, "commands") and not {"--help", "--version"} & set(rest):
        command.make_context(context.info_name, rest, parent=context.parent)


class ParsedError(Exception):
    """Stands for a program that would now begin."""


def parse_arguments(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """Run a Python program up to the point where its arguments are parsed."""
    original = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *given: Any, **options: Any) -> None:
        original(parser, *given, **options)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    module = words[1] == "-m"
    monkeypatch.setattr(sys, "argv", words[2:] if module else words[1:])
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    begin = (
        partial(runpy.run_module, words[2], alter_sys=True)
        if module
        else partial(runpy.run_path, str(ROOT / words[1]))
    )
    monkeypatch.chdir(ROOT)
    with pytest.raises(ParsedError):
        begin(run_name="__main__")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder as the pages assume it: photos/, good/, part.png, own.toml."""
    shutil.copytree(DEMO_IMAGES, tmp_path / "photos")
    (tmp_path / "good").mkdir()
    for photo in sorted(DEMO_IMAGES.glob("*good*"))[:4]:
        shutil.copy(photo, tmp_path / "good")
    from PIL import Image

    Image.open(sorted(DEMO_IMAGES.glob("*crack*"))[0]).save(tmp_path / "part.png")
    (tmp_path / "mixed").mkdir()
    names = [path.name for path in sorted(DEMO_IMAGES.glob("*.jpg"))[:4]]
    for name in names:
        shutil.copy(DEMO_IMAGES / name, tmp_path / "mixed")
    table = [f"{name},{'left' if number % 2 else 'right'} bracket" for number, name in enumerate(names)]
    (tmp_path / "objects.csv").write_text("\n".join(["image,object", *table]))
    (tmp_path / "own.toml").write_text('[domains]\nweld = ["weld photo"]\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_in_order(page, workplace, monkeypatch):
    for package in NEEDS_PACKAGE.findall(page.read_text(encoding="utf-8")):
        pytest.importorskip(package, reason=f"{package} is not installed")
    for language, code in blocks(page):
        if language == "python":
            exec(compile(code, page.name, "exec"), {"__name__": "__main__"})
        for line in code.replace("\\\n", " ").splitlines() if language == "bash" else ():
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "-m"]:
                monkeypatch.setattr(sys, "argv", words[2:])
                runpy.run_module(words[2], run_name="__main__", alter_sys=True)
            if not words or words[0] != "clipspect":
                continue
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as stopped:
                main()
            assert (stopped.value.code or 0) == 0, line


@pytest.mark.parametrize(("page", "line"), sorted(set(printed_commands())))
def test_every_printed_command_is_parsed_by_its_program(page, line, monkeypatch):
    words = words_of(line)
    if words[0] == "clipspect":
        parse(words[1:])
    elif words[0] == "python":
        parse_arguments(monkeypatch, words)
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    else:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        for wanted in re.findall(r"clipspect\[([\w,]+)\]", line):
            assert set(wanted.split(",")) <= set(extras)


@pytest.mark.parametrize(("page", "line"), sorted(set(inline_commands())))
def test_commands_in_running_text_have_known_options_and_no_stray_words(page, line):
    command, context, rest = leaf_of(words_of(line)[1:])
    if hasattr(command, "commands"):
        return
    _, left, _ = command.make_parser(context).parse_args(args=rest)
    assert [word for word in left if word != "…"] == [], line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_that_does_not_run_here_compiles(page):
    for language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            compile(code, page.name, "exec")


@pytest.mark.parametrize(
    "words",
    [
        ["benchmark", "--data", "folder", "--root", ".", "--weights", "trained", "random"],
        ["detect", "photos", "--objekt", "x"],
        ["detect", "photos"],
        ["detect", "photos", "--object", "x", "--object", "y"],
    ],
)
def test_the_parser_of_this_test_refuses_what_the_command_line_refuses(words):
    with pytest.raises(Exception, match=r"extra argument|No such option|Missing|twice"):
        parse(words)

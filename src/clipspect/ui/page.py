"""What the page does when something is pressed, dropped or moved: the browser's events in front of the engine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipspect.errors import ClipspectError, UsageError
from clipspect.registry import DEFAULT_METHOD, list_methods, method_class
from clipspect.server.engine import Engine, InspectRequest, Progress
from clipspect.server.limits import Limits, sniff
from clipspect.ui import view
from clipspect.ui.untracked import gr
from clipspect.ui.view import Found

NOTHING_YET = "Nothing inspected yet. Drop an image and name the object, or press an example."
AUTO = "automatic"
AUTO_ABOUT = "one image: anoclip; several images or references: dual-image"
"""The method follows what is given, as on the command line."""
REFERENCE_METHOD = "dual-image"
"""Chosen where references are given to a method that looks at none."""


@dataclass(frozen=True)
class Asked:
    """The left side of the page, as the browser sends it."""

    files: list[str] | None
    folder: list[str] | None
    object_name: str
    model: str
    references: list[str] | None

    @property
    def paths(self) -> list[Path]:
        """The images chosen one by one, and those of the folder; other files of a folder are passed over."""
        paths = [Path(path) for path in self.files or ()]
        for path in sorted(map(Path, self.folder or ())):
            with path.open("rb") as file:
                if sniff(file.read(16)) is not None:
                    paths.append(path)
        return paths


class Page:
    """What the browser's events call. Holds no images: those belong to each visitor's own state."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        """Nothing is loaded before the first image comes."""
        self.engine, self.limits = engine, limits
        self._downloads = Path(tempfile.mkdtemp(prefix="clipspect-page-"))

    def inspect(
        self,
        files: list[str] | None,
        folder: list[str] | None,
        object_name: str,
        method: str,
        model: str,
        references: list[str] | None,
    ) -> Iterator[tuple[Any, ...]]:
        """Score the images; the status as it changes, and at the end what was found."""
        nothing_yet = [gr.skip()] * 5
        if method == AUTO:
            paths = Asked(files, folder, object_name, model, references).paths
            method = REFERENCE_METHOD if references or len(paths) > 1 else DEFAULT_METHOD
        for progress, names in self._steps(Asked(files, folder, object_name, model, references), [method]):
            if not progress.done:
                yield progress.message, *nothing_yet
                continue
            judged = Found.of(view.named(progress.detections, names))
            found = Found(tuple(view.ranked(judged.detections)))
            thumbnails = [(d.thumbnail, view.caption(d)) for d in found.detections if d.thumbnail is not None]
            yield (
                progress.message + view.failures(found.detections),
                found,
                0,
                gr.update(visible=True),
                gr.update(value=thumbnails, visible=len(found.detections) > 1, selected_index=0),
                gr.update(value=0.5, info=view.note(found)),
            )

    def show(self, found: Found | None, index: int, threshold: float, opacity: float) -> tuple[Any, ...]:
        """Overlay, verdict and regions of the image that is looked at. Nothing is encoded."""
        if found is None:
            return gr.skip(), gr.skip(), gr.skip()
        detection = found.judged(index, threshold)
        return (
            found.picture(index, threshold, opacity),
            view.verdict(detection),
            view.region_table(detection),
        )

    def compare(
        self,
        files: list[str] | None,
        folder: list[str] | None,
        object_name: str,
        methods: list[str],
        model: str,
        references: list[str] | None,
    ) -> Iterator[tuple[Any, ...]]:
        """Score the images with several methods over one encoding of each; those that cannot are left out."""
        asked = Asked(files, folder, object_name, model, references)
        possible = [name for name in methods if _possible(name, len(asked.paths), bool(references))]
        if not possible:
            possible = methods  # the engine says what is wrong
        for progress, names in self._steps(asked, possible):
            if not progress.done:
                yield progress.message, gr.skip(), gr.skip()
                continue
            each = len(possible)
            compared = {
                method: Found.of(view.named(progress.detections[place::each], names))
                for place, method in enumerate(possible)
            }
            choices = [(name, place) for place, name in enumerate(names)]
            said = progress.message + view.left_out([name for name in methods if name not in possible])
            first = compared[possible[0]].most_suspicious
            yield said, compared, gr.update(choices=choices, value=first, visible=len(names) > 1)

    def show_compared(self, compared: dict[str, Found] | None, index: int, opacity: float) -> list[Any]:
        """One image under each method, at each method's own thresholds: a table, then as many pictures."""
        pictures: list[Any] = []
        judged = []
        for method, found in (compared or {}).items():
            judged.append((method, found.judged(index, 0.5)))
            picture = found.picture(index, 0.5, opacity)
            pictures.append(gr.update(value=picture, label=method, visible=True))
        hidden = len(list_methods()) - len(pictures)
        return [view.comparison_table(judged), *pictures, *[gr.update(value=None, visible=False)] * hidden]

    def take_references(self, references: list[str] | None, method: str) -> tuple[Any, Any, Any]:
        """References beside the result, in an open box; the method becomes one that looks at them, if it is not."""
        given = references or []
        shown = gr.update(value=given, visible=bool(given), columns=1 if len(given) < 2 else 2)
        if not given or method == AUTO or method_class(method).accepts_references:
            return shown, gr.update(open=True) if given else gr.skip(), gr.skip()
        gr.Info(f"{method} looks at no references; the method is now {REFERENCE_METHOD}.")
        return shown, gr.update(open=True), REFERENCE_METHOD

    def download(self, what: str, found: Found | None, index: int, *sliders: float) -> str:
        """Write a file for download; its path."""
        if found is None:
            raise gr.Error("There is nothing to download yet; inspect an image first.", print_exception=False)
        folder = Path(tempfile.mkdtemp(dir=self._downloads))
        threshold, opacity = sliders
        try:
            if what == "overlay":
                return str(view.write_overlay(found, index, threshold, opacity, folder))
            if what == "map":
                return str(view.write_map(found, index, folder))
            return str(view.write_table(found, threshold, folder))
        except ClipspectError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def _steps(self, asked: Asked, methods: Sequence[str]) -> Iterator[tuple[Progress, list[str]]]:
        """The engine's progress, beside the images' names. What it refuses is said in the page's own way."""
        try:
            paths = asked.paths
            if not paths:
                raise UsageError("Drop an image first, or press one of the examples.")
            if not methods:
                raise UsageError("Choose at least one method.")
            images = tuple(path.read_bytes() for path in paths)
            given = tuple(Path(path).read_bytes() for path in asked.references or ())
            self.limits.check(images)
            self.limits.check(given, "reference")
            inquiry = InspectRequest(images, asked.object_name or "", tuple(methods), asked.model, given)
            for progress in self.engine.inspect(inquiry):
                yield progress, [path.name for path in paths]
        except ClipspectError as error:
            yield Progress(f"⚠ {error}"), []
            raise gr.Error(str(error), print_exception=False) from error


def _possible(method: str, images: int, references: bool) -> bool:
    """Whether a method has what it needs: some look at other images of the set, some at references."""
    kind = method_class(method)
    return references or not (kind.needs_references or (kind.scope == "set" and images < 2))

"""Event handlers of the page: they call the engine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
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
"""Method selected when references are given to a method that uses none."""


@dataclass(frozen=True)
class Asked:
    """Inputs of the page, as the browser sends them."""

    files: list[str] | None
    folder: list[str] | None
    object_name: str
    model: str
    references: list[str] | None

    @cached_property
    def paths(self) -> list[Path]:
        """Return the selected images and those of the folder; other files of the folder are ignored."""
        paths = [Path(path) for path in self.files or ()]
        for path in sorted(map(Path, self.folder or ())):
            with path.open("rb") as file:
                if sniff(file.read(16)) is not None:
                    paths.append(path)
        return paths


class Page:
    """Event handlers of the page. Images are held in each visitor's own state."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        """Set up the handlers. Models are loaded with the first image."""
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
        """Score the images. Yield the status as it changes, and finally the results."""
        nothing_yet = [gr.skip()] * 5
        asked = Asked(files, folder, object_name, model, references)
        if method == AUTO:
            method = REFERENCE_METHOD if references or len(asked.paths) > 1 else DEFAULT_METHOD
        for progress, names in self._steps(asked, [method]):
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
        """Return overlay, verdict and regions of the selected image. Nothing is encoded."""
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
        """Score the images with several methods over one encoding; methods that cannot run are left out."""
        asked = Asked(files, folder, object_name, model, references)
        possible = [name for name in methods if _possible(name, len(asked.paths), bool(references))]
        if not possible:
            possible = methods  # the engine reports the error
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
        """Return one image under each method, at each method's own thresholds: a table, then the overlays."""
        pictures: list[Any] = []
        judged = []
        for method, found in (compared or {}).items():
            judged.append((method, found.judged(index, 0.5)))
            picture = found.picture(index, 0.5, opacity)
            pictures.append(gr.update(value=picture, label=method, visible=True))
        hidden = len(list_methods()) - len(pictures)
        return [view.comparison_table(judged), *pictures, *[gr.update(value=None, visible=False)] * hidden]

    def take_references(self, references: list[str] | None, method: str) -> tuple[Any, Any, Any]:
        """Show the references next to the result, and select a method that uses references if needed."""
        given = references or []
        shown = gr.update(value=given, visible=bool(given), columns=1 if len(given) < 2 else 2)
        if not given or method == AUTO or method_class(method).accepts_references:
            return shown, gr.update(open=True) if given else gr.skip(), gr.skip()
        gr.Info(f"{method} uses no references; the method is now {REFERENCE_METHOD}.")
        return shown, gr.update(open=True), REFERENCE_METHOD

    def download(self, what: str, found: Found | None, index: int, *sliders: float) -> str:
        """Write a file for download and return its path."""
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
        """Yield the engine's progress with the images' names. Errors of the engine become page messages."""
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
            inquiry = InspectRequest(
                images, asked.object_name or "", tuple(methods), asked.model, given, calibrate=True
            )
            for progress in self.engine.inspect(inquiry):
                yield progress, [path.name for path in paths]
        except ClipspectError as error:
            yield Progress(f"⚠ {error}"), []
            raise gr.Error(str(error), print_exception=False) from error


def _possible(method: str, images: int, references: bool) -> bool:
    """Return whether a method has its inputs: some need other images of the set, some need references."""
    kind = method_class(method)
    return references or not (kind.needs_references or (kind.scope == "set" and images < 2))

"""The page people use: Gradio in front of the engine. Nothing leaves the machine or is loaded from elsewhere."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported, which asks at once

import gradio as gr
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipspect.demo import DEMO_METHOD, DEMO_OBJECT, DEMO_PHOTOS
from clipspect.errors import ClipspectError, UsageError
from clipspect.methods import DEFAULT_METHOD, METHODS
from clipspect.serving import view
from clipspect.serving.engine import Engine, Inquiry, Progress
from clipspect.serving.limits import Limits, sniff
from clipspect.serving.view import Found

FORGET_S = 3600
"""Uploads and results of a page that was left are deleted after this time."""
COMPARED = ["anoclip", "dual-image", "mutual"]
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)
"""Content-Security-Policy: the browser fetches nothing from anywhere else, whatever Gradio's page asks for."""
FONT = ["system-ui", "sans-serif"]
CSS = """
.gradio-container { max-width: min(1240px, 100vw) !important; margin: 0 auto !important; }
#status { min-height: 1.5em; }
#overlay img { max-height: 68vh; object-fit: contain; }
#regions { max-height: 20em; overflow: auto; }
#regions table { width: 100%; }
#regions th, #regions td { white-space: nowrap; padding: 4px 6px; font-size: 0.85em; }
#side-by-side { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); }
footer { display: none !important; }
#gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)) !important; }
@media (max-width: 480px) {
  #gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(90px, 1fr)) !important; }
}
"""


class Page:
    """What the browser's events call. Holds no photographs: those belong to each visitor's own state."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        """Nothing is loaded before the first photograph comes."""
        self.engine, self.limits = engine, limits
        self._downloads = Path(tempfile.mkdtemp(prefix="clipspect-page-"))

    def inspect(
        self,
        files: list[str] | None,
        folder: list[str] | None,
        noun: str,
        method: str,
        model: str,
        references: list[str] | None,
    ) -> Iterator[tuple[Any, ...]]:
        """Score the photographs; the status as it changes, and at the end what was found."""
        nothing_yet = [gr.skip()] * 5
        for progress, names in self._steps(files, folder, noun, [method], model, references):
            if not progress.done:
                yield progress.message, *nothing_yet
                continue
            found = Found.of(view.ranked(view.named(progress.detections, names)))
            failed = sum(d.error is not None for d in found.detections)
            yield (
                progress.message + (f"; {failed} could not be scored" if failed else ""),
                found,
                0,
                gr.update(
                    value=[
                        (d.thumbnail, view.caption(d)) for d in found.detections if d.thumbnail is not None
                    ],
                    visible=len(found.detections) > 1,
                    selected_index=0,
                ),
                _slider(found),
                round(found.thresholds.image, 3),
            )

    def show(
        self, found: Found | None, index: int, pixel: float, image: float, opacity: float
    ) -> tuple[Any, ...]:
        """Overlay, verdict and regions of the photograph that is looked at. Nothing is encoded."""
        if found is None:
            return gr.skip(), gr.skip(), gr.skip()
        detection = found.judged(index, image, pixel)
        return (
            found.picture(index, image, pixel, opacity),
            view.verdict(detection),
            view.region_table(detection),
        )

    def compare(
        self,
        files: list[str] | None,
        folder: list[str] | None,
        noun: str,
        methods: list[str],
        model: str,
        references: list[str] | None,
    ) -> Iterator[tuple[Any, ...]]:
        """Score the photographs with several methods over one encoding of each."""
        for progress, names in self._steps(files, folder, noun, methods, model, references):
            if not progress.done:
                yield progress.message, gr.skip(), gr.skip()
                continue
            each = len(methods)
            compared = {
                method: Found.of(view.named(progress.detections[place::each], names))
                for place, method in enumerate(methods)
            }
            choices = [(name, place) for place, name in enumerate(names)]
            yield progress.message, compared, gr.update(choices=choices, value=0, visible=len(names) > 1)

    def show_compared(self, compared: dict[str, Found] | None, index: int, opacity: float) -> list[Any]:
        """One photograph under each method, at each method's own thresholds; as many pictures as there are methods."""
        pictures: list[Any] = []
        for method, found in (compared or {}).items():
            used = found.thresholds
            detection = found.judged(index, used.image, used.pixel)
            label = f"{method} · {detection.score:.3f} · {view.count_regions(detection)}"
            picture = found.picture(index, used.image, used.pixel, opacity)
            pictures.append(gr.update(value=picture, label=label, visible=True))
        hidden = len(METHODS) - len(pictures)
        return [*pictures, *[gr.update(value=None, visible=False)] * hidden]

    def download(self, what: str, found: Found | None, index: int, *sliders: float) -> str:
        """Write a file for download; its path."""
        if found is None:
            raise gr.Error(
                "There is nothing to download yet; inspect a photograph first.", print_exception=False
            )
        folder = Path(tempfile.mkdtemp(dir=self._downloads))
        pixel, image, opacity = sliders
        try:
            if what == "overlay":
                return str(view.write_overlay(found, index, image, pixel, opacity, folder))
            if what == "map":
                return str(view.write_map(found, index, folder))
            return str(view.write_table(found, image, pixel, folder))
        except ClipspectError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def _steps(
        self,
        files: list[str] | None,
        folder: list[str] | None,
        noun: str,
        methods: Sequence[str],
        model: str,
        references: list[str] | None,
    ) -> Iterator[tuple[Progress, list[str]]]:
        """The engine's progress, beside the photographs' names. What it refuses is said in the page's own way."""
        try:
            paths = _chosen(files, folder)
            if not paths:
                raise UsageError("Drop a photograph first, or press one of the examples.")
            if not methods:
                raise UsageError("Choose at least one method.")
            photographs = tuple(path.read_bytes() for path in paths)
            given = tuple(Path(path).read_bytes() for path in references or ())
            self.limits.check(photographs)
            self.limits.check(given, "reference")
            inquiry = Inquiry(photographs, noun or "", tuple(methods), model, given)
            for progress in self.engine.inspect(inquiry):
                yield progress, [path.name for path in paths]
        except ClipspectError as error:
            yield Progress(f"⚠ {error}"), []
            raise gr.Error(str(error), print_exception=False) from error


def build_page(engine: Engine, limits: Limits) -> gr.Blocks:
    """The page over an engine. Gradio's own routes come with it; no API is documented beside the page."""
    page = Page(engine, limits)
    blocks: gr.Blocks
    with gr.Blocks(title="clipspect", analytics_enabled=False, delete_cache=(FORGET_S, FORGET_S)) as blocks:
        found = gr.State(None, time_to_live=FORGET_S)
        compared = gr.State(None, time_to_live=FORGET_S)
        index = gr.State(0)
        gr.Markdown("# clipspect\nDrop photographs, name the object, see what is wrong with them.")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                with gr.Tabs():
                    with gr.Tab("Photographs"):
                        files = gr.File(
                            file_count="multiple", show_label=False, height=160, elem_id="photographs"
                        )
                    with gr.Tab("Folder"):
                        folder = gr.File(
                            file_count="directory", show_label=False, height=160, elem_id="folder"
                        )
                noun = gr.Textbox(
                    label="Object", placeholder="metal nut", info="What is on them, in plain words.",
                    max_length=80, elem_id="object",
                )  # fmt: skip
                method = gr.Dropdown(
                    list(METHODS), value=DEFAULT_METHOD, label="Method", info=METHODS[DEFAULT_METHOD][1],
                    elem_id="method",
                )  # fmt: skip
                model = gr.Dropdown(
                    list(engine.models), value=engine.models[0], label="Model",
                    interactive=len(engine.models) > 1,
                )  # fmt: skip
                with gr.Accordion("Reference photographs (optional)", open=False, elem_id="references-box"):
                    gr.Markdown(
                        "Of the same object, for methods such as dual-image; shown beside the result."
                    )
                    references = gr.File(
                        file_count="multiple", show_label=False, height=140, elem_id="references"
                    )
                go = gr.Button("Inspect", variant="primary", elem_id="inspect")
                with gr.Row():
                    one = gr.Button("Example: one part", size="sm", min_width=120, elem_id="example-one")
                    pair = gr.Button("A pair", size="sm", min_width=80, elem_id="example-pair")
                    many = gr.Button("A set", size="sm", min_width=80, elem_id="example-set")
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                with gr.Tab("Result"):
                    status = gr.Markdown("Nothing inspected yet.", elem_id="status")
                    gallery = gr.Gallery(
                        columns=4, height=220, allow_preview=False, show_label=False, visible=False,
                        interactive=False, elem_id="gallery",
                    )  # fmt: skip
                    with gr.Row():
                        overlay = gr.Image(
                            label="Heat and regions", type="pil", format="jpeg", interactive=False,
                            elem_id="overlay", scale=3, min_width=300, buttons=["fullscreen"],
                        )  # fmt: skip
                        beside = gr.Gallery(
                            label="References", columns=1, visible=False, interactive=False, scale=2,
                            min_width=200, height="auto", object_fit="contain", elem_id="beside",
                        )  # fmt: skip
                    verdict = gr.Markdown(elem_id="verdict")
                    pixel = gr.Slider(
                        0, 1, 0.5, step=0.0001, label="Region threshold",
                        info="Map values from here on are boxed.", elem_id="pixel",
                    )  # fmt: skip
                    with gr.Row():
                        image = gr.Slider(
                            0, 1, 0.5, step=0.001, label="Flag from score", min_width=140, elem_id="image"
                        )
                        opacity = gr.Slider(
                            0, 1, 0.5, step=0.05, label="Heat opacity", min_width=140, elem_id="opacity"
                        )
                    table = gr.Markdown(elem_id="regions")
                    with gr.Row():
                        for what, label in (("overlay", "Overlay"), ("map", "Map"), ("csv", "CSV of all")):
                            _download(page, what, label, [found, index, pixel, image, opacity])
                with gr.Tab("Compare methods"):
                    chosen = gr.CheckboxGroup(
                        list(METHODS), value=COMPARED, label="Methods", elem_id="compared"
                    )
                    compare = gr.Button("Compare", variant="primary", elem_id="compare")
                    compare_status = gr.Markdown(elem_id="compare-status")
                    which = gr.Dropdown([], label="Photograph", visible=False, elem_id="which")
                    with gr.Row(elem_id="side-by-side"):
                        side_by_side = [
                            gr.Image(type="pil", format="jpeg", interactive=False, visible=False,
                                     min_width=180, buttons=["fullscreen"])
                            for _ in METHODS
                        ]  # fmt: skip
                    compare_opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Heat opacity")

        asked = [files, folder, noun, method, model, references]
        shown = [found, index, pixel, image, opacity]
        answered = [status, found, index, gallery, pixel, image]
        drawn = [overlay, verdict, table]
        pressed = [go.click]
        for button, example in zip((one, pair, many), _examples(), strict=True):
            filled = button.click(
                lambda e=example: e, None, [files, folder, noun, method, references], **_QUIET
            )
            pressed.append(filled.success)
        for press in pressed:
            run = press(page.inspect, asked, answered, show_progress_on=[status], **_PRIVATE)
            run.success(page.show, shown, drawn, **_QUIET)
        for slider in (pixel, image, opacity):
            slider.input(page.show, shown, drawn, trigger_mode="always_last", **_QUIET)
        gallery.select(_selected, None, index, **_QUIET).then(page.show, shown, drawn, **_QUIET)
        method.change(lambda name: gr.update(info=METHODS[name][1]), method, method, **_QUIET)
        references.change(_beside, references, beside, **_QUIET)
        again = [files, folder, noun, chosen, model, references]
        comparing = compare.click(
            page.compare, again, [compare_status, compared, which],
            show_progress_on=[compare_status], **_PRIVATE,
        )  # fmt: skip
        redraw = [compared, which, compare_opacity]
        comparing.success(page.show_compared, redraw, side_by_side, **_QUIET)
        which.input(page.show_compared, redraw, side_by_side, **_QUIET)
        compare_opacity.input(page.show_compared, redraw, side_by_side, trigger_mode="always_last", **_QUIET)
    return blocks


def serve_page(models: tuple[str, ...], limits: Limits, *, host: str, port: int, **load_options: Any) -> None:
    """Serve the page until it is interrupted. Raises UsageError where the port is taken."""
    with tempfile.TemporaryDirectory(prefix="clipspect-references-") as folder:
        engine = Engine(models, references=Path(folder), max_pixels=limits.pixels, **load_options)
        launch(build_page(engine, limits), limits, host=host, port=port)


def launch(
    blocks: gr.Blocks, limits: Limits, *, host: str, port: int, prevent_thread_lock: bool = False
) -> None:
    """Start Gradio's server with the page. Raises UsageError where the port is taken."""
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            quiet=True,
            share=False,
            ssr_mode=False,
            enable_monitoring=False,
            max_file_size=f"{limits.photograph_mb:g}mb",
            allowed_paths=[str(DEMO_PHOTOS)],
            footer_links=[],
            theme=gr.themes.Default(primary_hue="blue", font=FONT, font_mono=["ui-monospace", "monospace"]),
            css=CSS,
            app_kwargs={"middleware": [Middleware(ContentPolicy)]},
            prevent_thread_lock=prevent_thread_lock,
        )
    except OSError as error:
        raise UsageError(f"cannot listen on {host}, port {port}: {error}") from error


class ContentPolicy:
    """ASGI middleware that sends :data:`POLICY` with every answer."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, with one header more."""

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", POLICY.encode())
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        await self.app(scope, receive, with_policy)


_PRIVATE: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 4, "show_progress": "minimal"}
_QUIET: dict[str, Any] = {**_PRIVATE, "show_progress": "hidden"}


def _download(page: Page, what: str, label: str, inputs: Sequence[gr.components.Component]) -> None:
    """A button that writes a file when it is pressed, and then presses a hidden one that hands it over."""
    button = gr.Button(label, size="sm", min_width=90, elem_id=f"make-{what}")
    hidden = gr.DownloadButton(visible="hidden", elem_id=f"download-{what}")

    def write(*values: Any) -> str:
        return page.download(what, *values)

    button.click(write, list(inputs), hidden, **_QUIET).success(
        None, js=f"() => setTimeout(() => document.querySelector('#download-{what}').click(), 100)"
    )


def _slider(found: Found) -> Any:
    """The region threshold's slider over the values that occur; maps of a set method differ in the third digit."""
    low, high = found.map_range
    return gr.update(
        minimum=max(0, round(low - 0.001, 4)),
        maximum=min(1, round(high + 0.001, 4)),
        value=round(found.thresholds.pixel, 4),
    )


def _selected(event: gr.SelectData) -> int:
    return int(event.index)


def _beside(references: list[str] | None) -> Any:
    return gr.update(value=references or [], visible=bool(references))


def _chosen(files: list[str] | None, folder: list[str] | None) -> list[Path]:
    """The photographs chosen one by one, and those of the folder; other files of a folder are passed over."""
    paths = [Path(path) for path in files or ()]
    for path in sorted(map(Path, folder or ())):
        with path.open("rb") as file:
            if sniff(file.read(16)) is not None:
                paths.append(path)
    return paths


def _examples() -> list[tuple[list[str], None, str, str, list[str] | None]]:
    """One part, a pair, a set: photographs, no folder, object, method, references."""
    photographs = sorted(map(str, DEMO_PHOTOS.glob("*.jpg")))
    good = [path for path in photographs if "good" in path]
    defective = [path for path in photographs if path not in good]
    return [
        (defective[:1], None, DEMO_OBJECT, DEFAULT_METHOD, None),
        (defective[:1], None, DEMO_OBJECT, DEMO_METHOD, good[:1]),
        (photographs, None, DEMO_OBJECT, DEMO_METHOD, None),
    ]

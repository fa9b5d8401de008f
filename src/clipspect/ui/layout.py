"""Page layout: inputs on the left and results on the right; stacked on a phone."""

from __future__ import annotations

from functools import partial
from typing import Any

from clipspect.demo import DEMO_IMAGES, DEMO_OBJECT
from clipspect.registry import list_methods
from clipspect.server.engine import Engine
from clipspect.server.limits import Limits
from clipspect.ui.page import AUTO, AUTO_ABOUT, NOTHING_YET, Page
from clipspect.ui.untracked import gr

FORGET_S = 3600
"""Lifetime of uploads and results after the visitor leaves the page."""
DOWNLOADS = {"overlay": "overlay", "map": "map", "csv": "table of all"}
COMPARED = ["anoclip", "dual-image", "mutual"]
SHOW_STATUS = """() => {
  const status = document.querySelector("#status");
  if (status && status.getBoundingClientRect().top > window.innerHeight / 2)
    status.scrollIntoView({behavior: "smooth", block: "start"});
}"""
"""Script that scrolls to the status, which on a phone is below the pressed button and out of view."""
_PRIVATE: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 4, "show_progress": "minimal"}
_QUIET: dict[str, Any] = {**_PRIVATE, "show_progress": "hidden"}


def build_page(engine: Engine, limits: Limits) -> gr.Blocks:
    """Return the page over an engine. Gradio adds its own routes; no API is documented."""
    page = Page(engine, limits)
    blocks: gr.Blocks
    with gr.Blocks(title="clipspect", analytics_enabled=False, delete_cache=(FORGET_S, FORGET_S)) as blocks:
        found = gr.State(None, time_to_live=FORGET_S)
        compared = gr.State(None, time_to_live=FORGET_S)
        index = gr.State(0)
        gr.Markdown("# clipspect\nDrop images, name the object, see what is wrong with them.")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                with gr.Tabs():
                    with gr.Tab("Images"):
                        files = gr.File(file_count="multiple", show_label=False, height=160, elem_id="images")
                    with gr.Tab("Folder"):
                        folder = gr.File(
                            file_count="directory", show_label=False, height=160, elem_id="folder"
                        )
                object_name = gr.Textbox(
                    label="Object", placeholder="metal nut", info="Name of the object in the images.",
                    max_length=80, elem_id="object",
                )  # fmt: skip
                method = gr.Dropdown(
                    [AUTO, *list_methods()], value=AUTO, label="Method", info=AUTO_ABOUT,
                    elem_id="method",
                )  # fmt: skip
                model = gr.Dropdown(
                    list(engine.models), value=engine.models[0], label="Model",
                    interactive=len(engine.models) > 1,
                )  # fmt: skip
                with gr.Accordion(
                    "Known-good images (recommended)", open=False, elem_id="references-box"
                ) as box:
                    gr.Markdown(
                        "Of the same object, without defects. One or two are references for methods such as "
                        "dual-image. From three on they also give a threshold, so that images are flagged or "
                        "clean; ten or more are advised."
                    )
                    references = gr.File(
                        file_count="multiple", show_label=False, height=140, elem_id="references"
                    )
                go = gr.Button("Inspect", variant="primary", elem_id="inspect")
                gr.Markdown("Or press an example of rendered metal brackets:")
                with gr.Row():
                    one = gr.Button("One part", size="sm", min_width=80, elem_id="example-one")
                    pair = gr.Button("A pair", size="sm", min_width=80, elem_id="example-pair")
                    many = gr.Button("A set", size="sm", min_width=80, elem_id="example-set")
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                with gr.Tab("Result"):
                    status = gr.Markdown(NOTHING_YET, elem_id="status")
                    with gr.Column(visible=False) as results:
                        gallery = gr.Gallery(
                            columns=4, height=220, allow_preview=False, show_label=False, visible=False,
                            interactive=False, elem_id="gallery", buttons=[],
                        )  # fmt: skip
                        with gr.Row():
                            overlay = gr.Image(
                                label="Heat and regions", type="pil", format="jpeg", interactive=False,
                                elem_id="overlay", min_width=280, buttons=["fullscreen"],
                            )  # fmt: skip
                            beside = gr.Gallery(
                                label="References", columns=1, visible=False, interactive=False,
                                min_width=280, height="auto", object_fit="contain", elem_id="beside",
                                buttons=["fullscreen"],
                            )  # fmt: skip
                        verdict = gr.Markdown(elem_id="verdict")
                        with gr.Row():
                            threshold = gr.Slider(
                                0.01, 0.99, 0.5, step=0.01, label="Threshold", scale=3, min_width=280,
                                info=" ", elem_id="threshold",
                            )  # fmt: skip
                            opacity = gr.Slider(
                                0, 1, 0.5, step=0.05, label="Heat opacity", scale=2, min_width=200,
                                info="Of the map's colours.", elem_id="opacity",
                            )  # fmt: skip
                        table = gr.Markdown(elem_id="regions")
                        with gr.Row():
                            makers = {
                                what: gr.Button(
                                    f"Download {label}", size="sm", min_width=100, elem_id=f"make-{what}"
                                )
                                for what, label in DOWNLOADS.items()
                            }
                with gr.Tab("Compare methods"):
                    chosen = gr.CheckboxGroup(
                        list(list_methods()), value=COMPARED, label="Methods", elem_id="compared"
                    )
                    compare = gr.Button("Compare", variant="primary", elem_id="compare")
                    compare_status = gr.Markdown(elem_id="compare-status")
                    with gr.Column(visible=False) as comparison:
                        which = gr.Dropdown([], label="Image", visible=False, elem_id="which")
                        compare_table = gr.Markdown(elem_id="compare-table")
                        with gr.Row(elem_id="side-by-side"):
                            side_by_side = [
                                gr.Image(type="pil", format="jpeg", interactive=False, visible=False,
                                         min_width=180, buttons=["fullscreen"])
                                for _ in list_methods()
                            ]  # fmt: skip
                        compare_opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Heat opacity")

        # outside the initially hidden group: Gradio would show them with it
        takers = {what: gr.DownloadButton(visible="hidden", elem_id=f"take-{what}") for what in DOWNLOADS}
        asked = [files, folder, object_name, method, model, references]
        shown = [found, index, threshold, opacity]
        answered = [status, found, index, results, gallery, threshold]
        drawn = [overlay, verdict, table]
        pressed = [go.click]
        for button, example in zip((one, pair, many), _examples(), strict=True):
            filled = button.click(
                lambda e=example: e, None, [files, folder, object_name, method, references], **_QUIET
            )
            pressed.append(filled.success)
        for button in (go, one, pair, many):
            button.click(None, js=SHOW_STATUS)
        for press in pressed:
            run = press(page.inspect, asked, answered, show_progress_on=[status], **_PRIVATE)
            run.success(page.show, shown, drawn, **_QUIET).success(None, js=SHOW_STATUS)
        for slider in (threshold, opacity):
            slider.input(page.show, shown, drawn, trigger_mode="always_last", **_QUIET)
        gallery.select(_selected, None, index, **_QUIET).then(page.show, shown, drawn, **_QUIET)
        method.change(
            lambda name: gr.update(info=list_methods().get(name, AUTO_ABOUT)), method, method, **_QUIET
        )
        references.change(page.take_references, [references, method], [beside, box, method], **_QUIET)
        for what, maker in makers.items():
            # writes the file, then clicks the hidden download button
            maker.click(partial(page.download, what), shown, takers[what], **_QUIET).success(
                None, js=f"() => setTimeout(() => document.querySelector('#take-{what}').click(), 100)"
            )
        again = [files, folder, object_name, chosen, model, references]
        comparing = compare.click(
            page.compare, again, [compare_status, compared, which],
            show_progress_on=[compare_status], **_PRIVATE,
        )  # fmt: skip
        redraw = [compared, which, compare_opacity]
        redrawn = [compare_table, *side_by_side]
        comparing.success(page.show_compared, redraw, redrawn, **_QUIET).success(
            lambda: gr.update(visible=True), None, comparison, **_QUIET
        )
        which.input(page.show_compared, redraw, redrawn, **_QUIET)
        compare_opacity.input(page.show_compared, redraw, redrawn, trigger_mode="always_last", **_QUIET)
    return blocks


def _selected(event: gr.SelectData) -> int:
    return int(event.index)


def _examples() -> list[tuple[list[str], None, str, str, list[str] | None]]:
    """Return the examples (single image, pair, set) as images, folder (None), object, method and references."""
    images = sorted(map(str, DEMO_IMAGES.glob("*.jpg")))
    good = [path for path in images if "good" in path]
    defective = [path for path in images if path not in good]
    return [
        (defective[:1], None, DEMO_OBJECT, AUTO, None),
        (defective[:1], None, DEMO_OBJECT, AUTO, good[:1]),
        (images, None, DEMO_OBJECT, AUTO, None),
    ]

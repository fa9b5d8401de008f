"""A demo to host: `pip install gradio clipspect`, then `python examples/gradio/demo.py`."""

import gradio as gr

import clipspect

detector = clipspect.load("anoclip")


def inspect(image, name):
    """Return the overlay, and verdict and score in words."""
    found = detector.detect(image, object=name or "object")
    return found.overlay(), f"{found.verdict}, score {found.score:.3f}"


if __name__ == "__main__":
    inputs = [gr.Image(type="pil"), gr.Textbox(label="Object")]
    gr.Interface(inspect, inputs, [gr.Image(), gr.Textbox(label="Verdict")]).launch()

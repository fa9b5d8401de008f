"""Gradio with its telemetry off, which must be said before it is imported: the page gets it from here alone."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

__all__ = ["gr"]

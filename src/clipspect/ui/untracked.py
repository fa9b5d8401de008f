"""Gradio with telemetry disabled, which must happen before the import. Import Gradio only from here."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

__all__ = ["gr"]

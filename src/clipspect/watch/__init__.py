"""Watching a folder or a camera: images are judged as they arrive, each once, and acted on."""

"""Backbones from open_clip models and the built-in plain CLIP."""

"""open_clip models and our own plain CLIP as backbones."""

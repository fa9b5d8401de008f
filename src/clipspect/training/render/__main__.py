"""Write a contact sheet of rendered scenes: clean, defective, mask, side by side."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clipspect.training.render import HELD_OUT, TRAINING, Canvas, Scenes, draw_scenes
from clipspect.types import plural

_COLUMNS = 5


def contact_sheet(scenes: Scenes) -> Image.Image:
    """Arrange scenes as triples, five per row; an incomplete row is omitted."""
    mask = scenes.mask[:, None].expand(-1, 3, -1, -1)
    triples = torch.cat([scenes.clean, scenes.defective, mask], -1)  # (N, 3, S, 3S)
    triples = torch.nn.functional.pad(triples, (0, 4, 0, 4), value=1.0)
    whole = len(triples) - len(triples) % _COLUMNS
    rows = [torch.cat(list(triples[i : i + _COLUMNS]), -1) for i in range(0, whole, _COLUMNS)]
    pixels = (torch.cat(rows, -2).permute(1, 2, 0) * 255).byte().cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(pixels))


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(prog="python -m clipspect.training.render", description=__doc__)
    parser.add_argument("--sheet", type=Path, required=True, help="PNG to write")
    parser.add_argument("--size", type=int, default=128, help="side of an image in pixels")
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--held-out", action="store_true", help="render the kinds that training never renders"
    )
    arguments = parser.parse_args()
    world = HELD_OUT if arguments.held_out else TRAINING
    started = time.perf_counter()
    scenes = draw_scenes(Canvas(arguments.size, arguments.seed), arguments.scenes, world)
    seconds = time.perf_counter() - started
    contact_sheet(scenes).save(arguments.sheet)
    for start in range(0, arguments.scenes, _COLUMNS):
        pairs = zip(scenes.nouns, scenes.defects, strict=True)
        print(" | ".join(f"{noun}: {defect}" for noun, defect in list(pairs)[start : start + _COLUMNS]))
    print(
        f"{plural(arguments.scenes, 'scene')} in {seconds:.1f} s, {arguments.scenes / seconds:.1f} a second"
    )


if __name__ == "__main__":
    main()

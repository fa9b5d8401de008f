"""Time clipspect beside other packages in one run, on the same image files and with the same random weights.

    git clone https://github.com/xrli-U/MuSc
    python benchmarks/rivals.py --musc MuSc --out benchmarks/results/rivals.json --page docs/speed.md

anomalib's WinCLIP (in a separate environment, see ``benchmarks/baselines``) beside clipspect's methods on
ViT-B-16-plus-240, MuSc's official modules beside ``musc`` there (``--musc``, a clone; no package index has them), and
anomalib's AnomalyDINO beside clipspect's on DINOv2-S at 252 pixels with four known-good images. The other packages are
first checked to give the same numbers. A pipeline reads JPEGs of 1000×1000 and gives maps and
scores. Figures are processor seconds of all threads of a process, so that other load on the machine counts little;
subjects take turns.

"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

import clipspect
from baselines.musc import OfficialMuSc
from baselines.process import Rival
from clipspect.backbones.features import FeatureRequest
from clipspect.benchmark.provenance import provenance
from clipspect.detector import Detector
from pages import replace_between
from speed_subjects import OBJECT, WINCLIP, folder_of_images, load

BATCH = 8
START, END = "<!-- rivals -->", "<!-- end of rivals -->"
CLIP, DINO, DINO_SIZE, SHOTS = "ViT-B-16-plus-240", "vit_small_patch14_dinov2", 252, 4
MUSC = "official MuSc"
METHODS = ("anoclip", "anoclip+", "dual-image", "dual-image+", "mutual", "winclip", "musc")
SLOW = {WINCLIP: 2, "winclip": 4}
"""Subject → number of images per turn, where all of them would take minutes."""


def pipeline(detector: Detector, images: Sequence[Path], references: Any = None) -> float:
    """Return processor seconds per image, from files to maps and scores."""
    started = time.process_time()
    for found in detector.stream(list(images), object=OBJECT, references=references):
        assert found.error is None, found.error
        assert found.anomaly_map is not None
    return (time.process_time() - started) / len(images)


class AnomalibDINO:
    """anomalib's AnomalyDINO with random weights and a bank of a few images."""

    def __init__(self, good: Sequence[Path]) -> None:
        """Build it without pretrained weights, and fill its bank."""
        from anomalib.models.image.anomaly_dino import AnomalyDINO, torch_model

        extractor = torch_model.TimmFeatureExtractor
        torch_model.TimmFeatureExtractor = lambda **options: extractor(**{**options, "pre_trained": False})
        torch.manual_seed(0)
        self.model = torch_model.AnomalyDINOModel(encoder_name=DINO)
        self.transform = AnomalyDINO.configure_pre_processor().transform
        self.model.train()
        self.model(self.read(good))
        self.model.fit()
        self.model.eval()

    def read(self, images: Sequence[Path]) -> torch.Tensor:
        """(N, 3, 252, 252) as anomalib prepares it."""
        from torchvision.transforms.v2.functional import to_dtype, to_image

        opened = [to_dtype(to_image(Image.open(path)), torch.float32, scale=True) for path in images]
        return torch.stack([self.transform(image) for image in opened])

    def save(self, path: Path) -> None:
        """Write the encoder's weights in timm's names."""
        encoder = self.model.feature_encoder.feature_extractor
        save_file({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, path)

    @torch.inference_mode()
    def run(self, images: Sequence[Path]) -> float:
        """Return processor seconds per image, one image at a time as in its engine's prediction."""
        started = time.process_time()
        for path in images:
            found = self.model(self.read([path]))
            assert found.anomaly_map.numpy().size
        return (time.process_time() - started) / len(images)


@torch.inference_mode()
def token_difference(rival: AnomalibDINO, detector: Detector, image: Path) -> float:
    """Return the largest difference of the two encoders' unit patch tokens on one tensor."""
    images = rival.read([image])
    ours = detector.backbone.encode(images, FeatureRequest(ordinary_blocks=frozenset([-1]))).ordinary(-1)
    theirs = rival.model.extract_features(images)
    unit = partial(torch.nn.functional.normalize, dim=-1)
    return float((unit(ours.flatten(1, 2)) - unit(theirs)).abs().max())


def official_musc(clone: Path, images: Sequence[Path]) -> tuple[tuple[str, int, Callable[[], float]], float]:
    """Return MuSc's official modules as a subject, and the largest difference of its image scores from ours."""
    detector = load("musc", CLIP, "fp32", BATCH, "cpu")
    official = OfficialMuSc(clone, CLIP, detector.backbone.network.state_dict(), BATCH)
    ours = [one.raw_score for one in detector.stream(list(images), object=OBJECT)]
    difference = float(abs(official.scores(images) - ours).max())
    return (f"{CLIP}, 240 px", len(images), partial(official.run, images)), difference


def subjects(
    images: Sequence[Path], scratch: Path, parity: Path, musc: Path | None
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return subject → (model, number of images, function), and what the checks of the other packages found.

    Raises:
        RuntimeError: another package's numbers are not ours.
    """
    winclip = Rival(CLIP, OBJECT, threads=1, device="cpu", parity=parity)

    def ask() -> float:
        return median(
            winclip.ask("image", photo=str(images[0]), batch=1)["cpu"] for _ in range(SLOW[WINCLIP])
        )

    found: dict[str, tuple[str, int, Callable[[], float]]] = {
        WINCLIP: (f"{CLIP}, 240 px", SLOW[WINCLIP], ask)
    }
    checks: dict[str, float] = {}
    for method in METHODS:
        if method == "musc" and musc is not None:
            found[MUSC], checks[MUSC] = official_musc(musc, images)
        some = images[: SLOW.get(method, len(images))]
        detector = load(method, CLIP, "fp32", BATCH, "cpu")
        found[f"clipspect {method}"] = (f"{CLIP}, 240 px", len(some), partial(pipeline, detector, some))
    good, rest = images[:SHOTS], images[SHOTS:]
    dino = AnomalibDINO(good)
    dino.save(scratch / "dino.safetensors")
    own = clipspect.load(
        "anomaly-dino", f"timm:{DINO}", str(scratch / "dino.safetensors"), image_size=DINO_SIZE
    )
    checks["AnomalyDINO tokens"] = token_difference(dino, own, images[0])
    if max(checks.values()) > 1e-4:
        raise RuntimeError(f"another package gives other numbers: {checks}")
    checks |= winclip.difference
    size = f"DINOv2-S, {DINO_SIZE} px"
    found["anomalib AnomalyDINO 4-shot"] = (size, len(rest), partial(dino.run, rest))
    references = own.encode_references(good)
    found["clipspect anomaly-dino 4-shot"] = (size, len(rest), partial(pipeline, own, rest, references))
    return found, checks


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--page", type=Path, help="documentation page whose table is replaced")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--musc", type=Path, help="a clone of github.com/xrli-U/MuSc; without it, MuSc is left out"
    )
    parser.add_argument("--parity", type=Path, default=Path("tests/fixtures/parity"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with folder_of_images(arguments.images) as folder, tempfile.TemporaryDirectory() as scratch:
        found, checks = subjects(
            sorted(folder.glob("*.jpg")), Path(scratch), arguments.parity, arguments.musc
        )
        taken: dict[str, list[float]] = {name: [] for name in found}
        for number in range(arguments.rounds + 1):  # the first round is not counted
            for name, (_, _, run) in found.items():
                seconds = run()
                print(f"{number} {name}: {seconds:.3f} s", flush=True)
                taken[name] += [seconds] if number else []
    rows = [
        {"name": name, "model": model, "images": count, "seconds": median(taken[name])}
        for name, (model, count, _) in found.items()
    ]
    about = {**provenance("python benchmarks/rivals.py"), "threads": "1", "checks": str(checks)}
    arguments.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    if arguments.page:
        replace_between(arguments.page, START, END, table(rows, about))


def table(rows: Sequence[dict[str, Any]], about: dict[str, str]) -> str:
    """Return the Markdown table: seconds per image, and how many times faster than the package's method."""
    lines = ["| subject | model | images | processor s an image | times faster |", "|---|---|---:|---:|---:|"]
    slowest = 1.0
    for row in rows:
        if not row["name"].startswith("clipspect"):
            slowest = row["seconds"]
        ratio = slowest / row["seconds"]
        lines.append(
            f"| {row['name']} | {row['model']} | {row['images']} | {row['seconds']:.3f} | {ratio:.2f} |"
        )
    return "\n".join([*lines, "", ", ".join(f"{key}: {value}" for key, value in about.items())])


if __name__ == "__main__":
    main()

"""clipspect's models inside anomalib: Engine, command line, a folder of one's own, and the benchmark's own figures."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("anomalib", reason="anomalib is not installed: clipspect[anomalib]")
from anomalib.data import Folder, MVTecAD
from anomalib.engine import Engine
from PIL import Image
from torchvision import tv_tensors

import clipspect
from clipspect.benchmark.candidates import make_candidates
from clipspect.benchmark.datasets import load_categories
from clipspect.benchmark.jobs import Settings
from clipspect.benchmark.runner import run_benchmark
from clipspect.config import DetectorConfig
from clipspect.data.prepare import ImageLoader
from clipspect.data.transforms import ResizeSpec
from clipspect.errors import UsageError
from clipspect.integrations.anomalib import (
    AnoClip,
    AnoClipPlus,
    AnomalyDino,
    ClipspectModule,
    DualImage,
    DualImagePlus,
    MuSc,
    Mutual,
    Subspace,
)
from clipspect.integrations.anomalib_resize import ClipspectResize
from clipspect.registry import list_methods
from clipspect.training.layouts import render_pictures, write_layout
from helpers.cases import CASES

pytestmark = pytest.mark.integration

MODELS = (AnoClip, AnoClipPlus, DualImage, DualImagePlus, Mutual)
NAMES = {
    "image_auroc": "image_AUROC",
    "image_ap": "image_AUPR",
    "image_f1max": "image_F1Max",
    "pixel_auroc": "pixel_AUROC",
    "pixel_ap": "pixel_AUPR",
    "pixel_f1max": "pixel_F1Max",
    "aupro": "pixel_AUPRO",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """MVTec AD's layout under mvtec/bottle and a folder of one's own under own/plate."""
    folder = tmp_path_factory.mktemp("sets")
    pictures = render_pictures(side=96, good=5, defective=5)
    write_layout("mvtecad", folder / "mvtec", "bottle", pictures)
    write_layout("folder", folder / "own", "plate", pictures)
    return folder


@pytest.fixture
def engine(tmp_path) -> Engine:
    return Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)


def model(kind: type[ClipspectModule], small_model: Path, **options) -> ClipspectModule:
    return kind(backbone=str(small_model), image_size=64, **options)


def own_folder(root: Path, batch_size: int = 4) -> Folder:
    """All ten images tested: by itself anomalib's Folder keeps a random half back for validation."""
    return Folder(
        name="plate", root=root / "own" / "plate", normal_dir="reference", normal_test_dir="good",
        abnormal_dir="dent", mask_dir="masks", val_split_mode="same_as_test", eval_batch_size=batch_size,
        num_workers=0,
    )  # fmt: skip


def test_every_model_gives_the_figures_of_the_benchmark(root, engine, tmp_path):
    candidates = make_candidates([kind.method_name for kind in MODELS], {}, {}, None)
    own = run_benchmark(
        "mvtecad", load_categories("mvtecad", root / "mvtec"), candidates, tmp_path / "own",
        settings=Settings(DetectorConfig(image_size=64)),
    )  # fmt: skip
    for kind, result in zip(MODELS, own, strict=True):
        datamodule = MVTecAD(root=root / "mvtec", category="bottle", eval_batch_size=4, num_workers=0)
        theirs = engine.test(model=kind(image_size=64), datamodule=datamodule, verbose=False)[0]
        for ours, name in NAMES.items():
            assert theirs[name] == pytest.approx(result.figures.values[ours], abs=1e-3), (kind.__name__, name)


def test_a_bare_folder_is_predicted_without_a_datamodule(root, engine, small_model):
    """anomalib's issues 2444 and 2701: zero-shot on one's own images, nothing else given."""
    predictions = engine.predict(
        model=model(AnoClip, small_model, class_name="plate"), data_path=root / "own" / "plate" / "dent"
    )
    assert [Path(p.image_path[0]).name for p in predictions] == [f"{i:03d}.jpg" for i in range(5)]
    assert all(0 <= float(p.pred_score) <= 1 and p.anomaly_map.shape[-2:] == (64, 64) for p in predictions)
    assert len({round(float(p.pred_score), 6) for p in predictions}) == 5


def test_ones_own_folder_is_tested_with_anomalibs_folder(root, engine, small_model):
    datamodule = own_folder(root)
    kind = model(DualImage, small_model)
    figures = engine.test(model=kind, datamodule=datamodule, verbose=False)[0]
    assert kind.class_name == "plate"
    assert set(figures) == set(NAMES.values())
    assert all(0 <= value <= 1 for value in figures.values())
    drawn = list(Path(engine.trainer.default_root_dir).rglob("*.jpg"))
    assert len(drawn) == 10  # the visualizer's pictures


def test_batches_do_not_change_a_set_methods_scores(root, engine, small_model):
    def scores(size: int) -> np.ndarray:
        datamodule = own_folder(root, size)
        found = engine.predict(model=model(Mutual, small_model, post_processor=False), datamodule=datamodule)
        return torch.cat([batch.pred_score for batch in found]).numpy()

    np.testing.assert_allclose(scores(1), scores(10), atol=1e-5)


def test_a_checkpoint_brings_back_the_model_with_its_input_size(root, engine, small_model):
    datamodule = MVTecAD(root=root / "mvtec", category="bottle", num_workers=0)
    first = model(AnoClip, small_model)
    engine.fit(model=first, datamodule=datamodule)
    path = next(Path(engine.trainer.default_root_dir).rglob("*.ckpt"))
    again = AnoClip.load_from_checkpoint(path)
    assert again.input_size == (64, 64)
    image = torch.rand(2, 3, 64, 64)
    again.model.name_object("bottle", "auto")
    torch.testing.assert_close(again.model(image).anomaly_map, first.model(image).anomaly_map)


def test_the_resize_is_the_one_of_detect(root):
    path = root / "own" / "plate" / "dent" / "000.jpg"
    from anomalib.data.utils import read_image

    pieces = ImageLoader(ResizeSpec(48)).read(path).pieces
    resized = ClipspectResize((48, 48))(read_image(path, as_tensor=True))
    np.testing.assert_array_equal((resized.permute(1, 2, 0) * 255).round().byte().numpy(), pieces[0])
    batch = torch.stack([read_image(path, as_tensor=True)] * 2)
    torch.testing.assert_close(ClipspectResize((48, 48))(tv_tensors.Image(batch))[1], resized)


def test_one_picture_alone_is_refused_by_methods_that_compare(small_model):
    alone = model(DualImage, small_model, class_name="plate").model
    with pytest.raises(UsageError, match="compares images of a set"):
        alone(torch.rand(1, 3, 64, 64))


def test_a_model_that_knows_no_object_says_so(root, engine, small_model):
    with pytest.raises(UsageError, match="class_name='metal nut'"):
        engine.predict(model=model(AnoClip, small_model), data_path=root / "own" / "plate" / "dent")


def test_every_method_has_a_model(small_model):
    kinds = {kind.method_name: kind for kind in ClipspectModule.__subclasses__()}
    assert set(kinds) == set(list_methods())
    for kind in (AnomalyDino, Subspace):
        with pytest.raises(UsageError, match=r"good=detector\.calibrate"):
            model(kind, small_model)


@pytest.mark.slow
def test_anomalibs_command_line_runs_it(root, tmp_path):
    command = [
        sys.executable, "-m", "anomalib.cli.cli", "test", "--model", "clipspect.integrations.anomalib.AnoClip",
        "--data", "anomalib.data.MVTecAD", "--data.root", str(root / "mvtec"), "--data.category", "bottle",
        "--data.num_workers", "0", "--default_root_dir", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "pixel_AUPRO" in done.stdout


def test_files_that_anomalib_reads_differently_score_as_in_detect(engine, small_model, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(CASES / "exif6.png", folder / "a.png")
    Image.fromarray(np.arange(64 * 80, dtype=np.uint16).reshape(64, 80) * 12).save(folder / "b.png")
    colour = np.random.default_rng(2).integers(0, 256, (64, 80, 4), dtype=np.uint8)
    Image.fromarray(colour).save(folder / "c.png")
    kind = model(AnoClip, small_model, class_name="plate", post_processor=False)
    found = engine.predict(model=kind, data_path=folder)
    ours = clipspect.load("anoclip", model=str(small_model), image_size=64).detect(folder, object="plate")
    for theirs, one in zip(found, ours, strict=True):
        assert float(theirs.pred_score) == pytest.approx(one.raw_score, abs=1e-5)
        np.testing.assert_allclose(theirs.anomaly_map.squeeze().numpy(), one.score_map, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (AnoClip, "anoclip"),
        (DualImage, "dual-image"),
        (MuSc, "musc"),
        (AnomalyDino, "anomaly-dino"),
        (Subspace, "subspace"),
    ],
)
def test_with_known_good_images_labels_are_those_of_detect(engine, root, small_model, kind, method):
    folder = root / "own" / "plate" / "dent"
    detector = clipspect.load(method, str(small_model), image_size=64, device="cpu")
    good = detector.calibrate(root / "own" / "plate" / "good", "plate", false_alarm_rate=0.1)
    found = engine.predict(model=model(kind, small_model, class_name="plate", good=good), data_path=folder)
    expected = {Path(d.path).name: d for d in detector.detect(folder, object="plate", good=good)}
    for theirs in found:
        one = expected[Path(theirs.image_path[0]).name]
        # Stored layers are float16; anomalib's tensors are float32.
        assert float(theirs.pred_score) == pytest.approx(one.score, abs=6e-3)
        if abs(one.score - 0.5) > 6e-3:
            assert bool(theirs.pred_label) == one.flag


def test_labels_are_those_of_detect_at_the_very_threshold_and_a_flagged_image_has_a_mask(small_model, root):
    folder = root / "own" / "plate" / "dent"
    detector = clipspect.load("anoclip", str(small_model), image_size=64, device="cpu")
    good = detector.calibrate(root / "own" / "plate" / "good", "plate")
    made = model(AnoClip, small_model, class_name="plate", good=good)
    made.model.name_object("plate", "auto")
    path = sorted(folder.iterdir())[0]
    images = made.pre_processor.transform(to_tensor(path))[None]
    score = float(made.model(images).pred_score)
    for offset, flagged in ((1e-6, True), (-1e-6, False)):
        moved = replace(good.calibrations["anoclip"], score_threshold=score - offset)
        made.model.good = replace(good, calibrations={"anoclip": moved})
        found = made.model(images)
        assert bool(found.pred_label) == bool(found.pred_mask.any()) == flagged


def test_two_good_images_flag_nothing(small_model, root):
    good = sorted((root / "own" / "plate" / "good").iterdir())[:2]
    detector = clipspect.load("anoclip", str(small_model), image_size=64, device="cpu")
    made = model(AnoClip, small_model, class_name="plate", good=detector.calibrate(good, "plate"))
    made.model.name_object("plate", "auto")
    defective = to_tensor(sorted((root / "own" / "plate" / "dent").iterdir())[0])
    found = made.model(torch.stack([made.pre_processor.transform(one) for one in (defective, 1 - defective)]))
    assert not found.pred_label.any()
    assert not found.pred_mask.any()


def to_tensor(path):
    return torch.from_numpy(clipspect.read_image(path).copy()).permute(2, 0, 1).float() / 255


def test_a_profile_gives_the_flags_of_detect(engine, root, small_model, tmp_path):
    detector = clipspect.load(["anoclip", "dual-image"], str(small_model), image_size=64, device="cpu")
    made, _ = clipspect.create_profile(
        detector, root / "own" / "plate" / "good", "plate", "plate", threshold=0.4
    )
    path = tmp_path / "plate.clipspect"
    made.write(path)
    folder = root / "own" / "plate" / "dent"
    found = engine.predict(model=DualImage.from_profile(path, visualizer=False), data_path=folder)
    product = clipspect.load_product(path)
    expected = {Path(d.path).name: d for d in product.detect(folder) if d.method == "dual-image"}
    for theirs in found:
        one = expected[Path(theirs.image_path[0]).name]
        assert float(theirs.pred_score) == pytest.approx(one.score, abs=6e-3)
        if abs(one.score - 0.4) > 6e-3:
            assert bool(theirs.pred_label) == one.flag
    with pytest.raises(UsageError, match="not of mutual"):
        Mutual.from_profile(path)
    bordered = clipspect.load("anoclip", str(small_model), device="cpu", ignore_border="5%")
    made, _ = clipspect.create_profile(bordered, root / "own" / "plate" / "good", "plate", "plate")
    made.write(path)
    with pytest.raises(UsageError, match="have no roi"):
        AnoClip.from_profile(path)

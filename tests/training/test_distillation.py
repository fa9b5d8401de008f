"""A small random teacher: what it says is learned, on its own images too, and the result is a model folder."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import clipspect
from clipspect.backbones.loader import load_backbone
from clipspect.errors import UsageError
from clipspect.training import distillation
from clipspect.training.config import Phase, SceneSet, Stage, load_config
from clipspect.training.distillation import Student, Teacher, crop_training_images, read_training_images
from clipspect.training.train import step_generator
from clipspect.training.windows import draw_windows
from helpers.images import plate
from training.test_train import TINY


@pytest.fixture(scope="module")
def config():
    whole = load_config(TINY)
    stage = Stage(
        seed=3,
        steps=2,
        scenes=(SceneSet(64, shards=1, scenes_per_shard=8),),
        phases=(Phase(1.0, window=4, batch=8, scene_sizes=(64,)),),
    )
    return replace(
        whole, stages=(stage,), refresh_steps=1000, warmup_steps=1, trunk_weights="given", materials=""
    )


@pytest.fixture(scope="module")
def teacher(small_model) -> Teacher:
    return Teacher(load_backbone(str(small_model)), "plate")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "site").mkdir()
    for number in range(3):
        Image.fromarray(plate(number)).save(tmp_path / "site" / f"{number}.png")
    return tmp_path / "site"


def test_the_teacher_looks_on_the_students_grid(teacher):
    lesson = teacher.look(torch.rand(2, 3, 32, 32), (4, 4))
    assert lesson.tokens.shape == (2, 16, teacher.width)
    assert torch.allclose(lesson.tokens.norm(dim=-1), torch.ones(2, 16), atol=1e-5)
    assert ((lesson.abnormal >= 0) & (lesson.abnormal <= 1)).all()


def test_what_the_teacher_says_is_learned(config, teacher, folder):
    student = Student(config, teacher, read_training_images(folder))
    student.start_from(distillation._SHIPPED)
    from clipspect.training.scene_store import LiveShards

    shards = LiveShards(config.stages[0].scenes, 3, torch.device("cpu"), 1000).at(0)
    windows = draw_windows(shards[64], 4, 32, torch.Generator().manual_seed(0))
    seen = [student.train_step(windows, 0.0, step_generator(3, 0)) for _step in range(12)]
    for term in ("teacher_tokens", "teacher_image", "teacher_map"):
        assert seen[-1][term] < seen[0][term], term
    resumed = Student(config, teacher, student.photos)
    resumed.restore(copy.deepcopy(student.state()))
    first, second = (s.train_step(windows, 0.0, step_generator(3, 0))["total"] for s in (student, resumed))
    assert first == second


def test_the_command_writes_a_model_folder_that_detects(config, folder, small_model, tmp_path, monkeypatch):
    small = replace(config, stages=(replace(config.stages[0], steps=1),))
    monkeypatch.setattr(distillation, "load_config", lambda path: small)
    figures = {"pixel_auroc": 0.5, "image_auroc": 0.5}
    monkeypatch.setattr("clipspect.training.train.validate", lambda model, config: figures)
    (folder / "broken.png").write_bytes(b"x")
    words = ["--teacher", str(small_model), "--photos", str(folder), "--object", "plate"]
    monkeypatch.setattr(sys, "argv", ["distillation", *words, "--out", str(tmp_path / "own")])
    distillation.main()
    detector = clipspect.load("anoclip", model=str(tmp_path / "own" / "model"), image_size=64)
    assert 0 <= detector.detect(plate(1), object="plate").score <= 1


def test_windows_come_from_the_images():
    photos = torch.from_numpy(np.stack([np.full((3, 40, 40), v, np.uint8) for v in (51, 102)]))
    windows = crop_training_images(photos, 20, 16, torch.Generator().manual_seed(0))
    assert windows.shape == (20, 3, 16, 16)
    assert {round(float(w.mean()), 3) for w in windows} == {0.2, 0.4}


def test_a_folder_without_a_readable_image_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UsageError, match="none of its images"):
        read_training_images(tmp_path)

"""The training loop: it learns, it resumes where it stopped, it ends annealed."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clipspect.errors import UsageError
from clipspect.prompts import load_prompts
from clipspect.training import model as model_module
from clipspect.training import train as loop
from clipspect.training import windows as windows_module
from clipspect.training.captions import CaptionSource
from clipspect.training.config import LossWeights, Phase, SceneSet, Stage, TrainingConfig, load_config
from clipspect.training.losses import abnormal_logit, comparison_loss, dense_loss, patch_targets
from clipspect.training.model import save_model
from clipspect.training.scene_store import LiveShards, open_shards, render_shard, render_store
from clipspect.training.windows import compress, draw_windows

TINY = Path(loop.__file__).with_name("tiny.toml")


@pytest.fixture(scope="module")
def small() -> TrainingConfig:
    config = load_config(TINY)
    model = copy.deepcopy(config.model)
    model["embed_dim"] = 32
    model["vision_cfg"] |= {"width": 64, "layers": 2, "head_width": 32, "image_size": 64}
    del model["vision_cfg"]["trunk"]
    model["text_cfg"] |= {"width": 16, "layers": 1, "heads": 1}
    stage = Stage(
        seed=7,
        steps=4,
        scenes=(SceneSet(64, shards=1, scenes_per_shard=24),),
        phases=(Phase(1.0, window=4, batch=16, scene_sizes=(64,)),),
    )
    return replace(
        config,
        model=model,
        stages=(stage,),
        warmup_steps=2,
        checkpoint_every=2,
        validate_every=1000,
        refresh_steps=0,
        materials="",
    )


@pytest.fixture(scope="module")
def shards(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    scenes = small.stages[0].scenes
    render_store(folder, scenes, small.seed, processes=1)
    return {64: open_shards(folder, scenes[0])}


def run_steps(trainer: loop.Trainer, shards, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        chance = loop.step_generator(trainer.config.seed, step)
        windows = loop.draw_step(trainer, shards, 0.1, chance)
        losses.append(trainer.train_step(windows, 0.1, chance)["total"])
    return losses


def test_steps_on_one_batch_lower_its_loss(small, shards):
    trainer = loop.Trainer(small)
    windows = draw_windows(shards[64], 16, 32, torch.Generator().manual_seed(0))
    losses = [
        trainer.train_step(windows, 0.0, torch.Generator().manual_seed(1))["total"] for _step in range(12)
    ]
    assert losses[-1] < 0.9 * losses[0]


def test_resuming_continues_exactly(small, shards):
    unbroken = loop.Trainer(small)
    run_steps(unbroken, shards, 0, 4)
    first = loop.Trainer(small)
    run_steps(first, shards, 0, 2)
    second = loop.Trainer(small)
    second.restore(copy.deepcopy(first.state()))
    run_steps(second, shards, 2, 4)
    assert second.step_number == 4
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    for name, value in unbroken.average.state_dict().items():
        assert torch.equal(value, second.average.state_dict()[name]), name


def test_the_command_renders_trains_and_writes_a_model_folder(small, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "validate", lambda model, config: {"pixel_auroc": 0.5, "image_auroc": 0.5})
    loop.train(loop.Trainer(small), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(math.isfinite(line["total"]) for line in lines)
    description = json.loads((tmp_path / "model" / "open_clip_config.json").read_text(encoding="utf-8"))
    assert description["model_cfg"] == small.model
    assert (tmp_path / "model" / "open_clip_model.safetensors").stat().st_size > 0


def test_stages_follow_each_other_and_a_killed_one_goes_on(small, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "validate", lambda model, config: {"pixel_auroc": 0.5, "image_auroc": 0.5})
    first = small.stages[0]
    staged = replace(small, stages=(first, replace(first, seed=8, steps=2)), refresh_steps=2)
    whole = loop.train(loop.Trainer(staged), tmp_path / "whole")
    log = [
        json.loads(line)
        for line in (tmp_path / "whole" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [(line["stage"], line["progress"]) for line in log][3:] == [(1, 0.75), (2, 0.0), (2, 0.5)]

    steps = iter(range(5))
    step = loop.Trainer.train_step

    def dies(trainer, *arguments):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step(trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            loop.train(loop.Trainer(staged), tmp_path / "killed")
    again = loop.train(loop.Trainer(staged), tmp_path / "killed")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_live_shards_are_renewed_one_by_one_and_depend_on_the_step_alone(small):
    sets = (SceneSet(32, shards=2, scenes_per_shard=2),)

    def look(shards):
        return [int(shard.clean.long().sum()) for shard in shards[32]]

    live = LiveShards(sets, 3, torch.device("cpu"), refresh_steps=10)
    pictures = {step: look(live.at(step)) for step in (0, 9, 10, 20, 30)}
    assert pictures[0] == pictures[9]
    assert [a != b for a, b in zip(pictures[9], pictures[10], strict=True)] == [True, False]
    assert [a != b for a, b in zip(pictures[10], pictures[20], strict=True)] == [False, True]
    resumed = LiveShards(sets, 3, torch.device("cpu"), refresh_steps=10)
    assert look(resumed.at(30)) == pictures[30]


def test_a_shard_is_drawn_from_its_seed(small):
    first, second = render_shard(48, 4, seed=9), render_shard(48, 4, seed=9)
    assert torch.equal(first["defective"], second["defective"])


def test_a_missing_shard_is_named(small, tmp_path):
    with pytest.raises(UsageError, match=r"scenes-64-0000\.pt is missing"):
        open_shards(tmp_path, small.stages[0].scenes[0])


def test_windows_of_twins_are_cut_and_turned_alike(shards, monkeypatch):
    monkeypatch.setattr(windows_module, "_JITTER", 0)
    windows = draw_windows(shards[64], 24, 32, torch.Generator().manual_seed(2))
    assert windows.defective.shape == windows.clean.shape == (24, 3, 32, 32)
    change = (windows.defective - windows.clean).abs().amax(1)
    assert change[windows.mask > 0.9].mean() > 2 * change[windows.mask == 0].mean()


def test_patch_targets_grow_four_times_as_fast_as_coverage():
    mask = torch.zeros(1, 16, 16)
    mask[0, :2, :4] = 1  # an eighth of the first 8×8 patch
    mask[0, 8:, 8:] = 1
    assert patch_targets(mask, 8).tolist() == [[0.5, 0.0, 0.0, 1.0]]


def test_the_dense_loss_wants_defective_patches_at_the_abnormal_anchor():
    anchors = torch.eye(2)[None]  # normal (1, 0), abnormal (0, 1)
    right = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    targets, scale = torch.tensor([[0.0, 1.0]]), torch.tensor(10.0)
    good = dense_loss(abnormal_logit(right, anchors, scale), targets)
    bad = dense_loss(abnormal_logit(right.flip(1), anchors, scale), targets)
    assert good < 0.01
    assert bad > 9


def test_a_large_defect_weighs_no_more_than_a_small_one_where_the_stage_says_so():
    small, large = torch.zeros(1, 64), torch.zeros(1, 64)
    small[0, :4], large[0, :32] = 1, 1
    missed = torch.full((1, 64), -9.0)

    def loss_of_defect(targets: torch.Tensor, largest: float) -> torch.Tensor:
        """What missing it costs, in units of all weights of the clean patches."""
        share = dense_loss(missed, targets, largest) / 9
        return share / (1 - share) * (1 - targets).sum()

    assert loss_of_defect(small, 4) == pytest.approx(16, rel=1e-2)
    assert loss_of_defect(large, 4) == pytest.approx(16, rel=1e-2)
    assert loss_of_defect(large, torch.inf) == pytest.approx(128, rel=1e-2)
    assert dense_loss(missed, torch.zeros(1, 64), 4) == dense_loss(missed, torch.zeros(1, 64))


def test_the_comparison_wants_defective_patches_far_from_every_patch_of_the_twin():
    normal, other, odd = torch.eye(3)
    clean = torch.stack([normal, other])
    targets = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    found = comparison_loss(torch.stack([torch.stack([other, odd]), clean]), targets)
    missed = comparison_loss(torch.stack([torch.stack([odd, other]), clean]), targets)
    assert found < 0.06, "a normal patch may match any place of the twin"
    assert missed > 3


def test_a_frozen_trunk_is_standardized_and_stays_as_it_is(small, shards, monkeypatch):
    monkeypatch.setattr(model_module, "_STATISTICS_SCENES", 4)
    settings = copy.deepcopy(small.model)
    settings["vision_cfg"]["trunk"] = "efficientnet-lite0"
    trainer = loop.Trainer(replace(small, model=settings, trunk_weights="random"))
    trunk = trainer.model.visual.trunk
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    assert (before["scale"] != 1).all()
    losses = run_steps(trainer, shards, 0, 2)
    assert all(math.isfinite(loss) for loss in losses)
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())
    assert trainer.model.visual.conv1.weight.shape == (64, sum(trunk.channels), 1, 1)


def test_the_peak_term_lowers_the_highest_patches_of_clean_windows(small, shards):
    weighted = replace(small.stages[0], loss=LossWeights(peak=1.0))
    trainer = loop.Trainer(replace(small, stages=(weighted,)))
    windows = draw_windows(shards[64], 16, 32, torch.Generator().manual_seed(0))
    first, *_, last = [
        trainer.train_step(windows, 0.0, torch.Generator().manual_seed(1))["peak"] for _step in range(12)
    ]
    assert last < first


def test_jpeg_compression_keeps_smooth_images_and_loses_noise():
    ramp = torch.linspace(0, 1, 32).expand(2, 2, 3, 32, 32)
    noise = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    quality = torch.tensor([30.0, 95.0])
    assert (compress(ramp, quality) - ramp).abs().mean() < 0.02
    lost = (compress(noise, quality) - noise).abs().mean((1, 2, 3, 4))
    assert lost[0] > 5 * lost[1]


def test_training_starts_from_given_weights_with_the_captions_directions(small, tmp_path):
    donor = loop.Trainer(replace(small, stages=(replace(small.stages[0], seed=99),)))
    save_model(tmp_path, donor.model, small)
    trainer = loop.Trainer(small)
    trainer.start_from(tmp_path / "open_clip_model.safetensors")
    for name, value in donor.model.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], value.half().float()), name
    assert trainer.prototypes.norm(dim=-1).tolist() == pytest.approx([1.0, 1.0])


def test_captions_are_tokenised_as_open_clip_does_and_fit_the_context():
    import open_clip

    context = load_config(TINY).model["text_cfg"]["context_length"]
    source, tokenizer = CaptionSource(context), open_clip.SimpleTokenizer(context_length=context)
    table = load_prompts()
    for name in ("anoclip", "winclip"):
        for side in table.prompt_set(name).sentences("printed circuit board", table.domain("object", "")):
            assert torch.equal(source.tokenize(side), tokenizer(side))
            assert (source.tokenize(side) > 0).sum(1).max() <= context - 15


def test_unknown_settings_are_refused(tmp_path):
    path = tmp_path / "odd.toml"
    path.write_text(TINY.read_text(encoding="utf-8").replace("steps =", "stepps ="))
    with pytest.raises(UsageError, match="stepps"):
        load_config(path)


def test_a_stage_can_keep_a_share_of_the_weights_it_began_with(small, tmp_path):
    def ends(keep):
        stage = replace(small.stages[0], keep=keep)
        trainer = loop.Trainer(replace(small, stages=(stage,)))
        began = {name: value.clone() for name, value in trainer.average.state_dict().items()}
        loop.train(trainer, tmp_path / f"{keep}")
        return began, trainer.average.state_dict()

    (began, trained), (_, mixed) = ends(0.0), ends(0.5)
    for name, value in mixed.items():
        torch.testing.assert_close(value, (began[name] + trained[name]) / 2, atol=1e-6, rtol=0)
    assert any((began[name] - trained[name]).abs().max() > 1e-3 for name in began)


def test_what_a_stage_began_with_outlives_a_killed_run(small, tmp_path):
    stage = replace(small.stages[0], keep=0.5)
    trainer = loop.Trainer(replace(small, stages=(stage,)))
    began = trainer.state()["began"]
    other = loop.Trainer(replace(small, stages=(replace(stage, seed=8),)))
    other.restore(copy.deepcopy(trainer.state()))
    assert all(torch.equal(other.began[name], value) for name, value in began.items())


def test_a_trunk_with_a_learning_rate_is_trained(small, shards, monkeypatch):
    monkeypatch.setattr(model_module, "_STATISTICS_SCENES", 4)
    settings = {**small.model, "vision_cfg": {**small.model["vision_cfg"], "trunk": "efficientnet-lite0"}}
    trainer = loop.Trainer(replace(small, model=settings, trunk_weights="random", trunk_learning_rate=1e-3))
    before = [value.clone() for value in trainer.model.visual.trunk.parameters()]
    run_steps(trainer, shards, 0, 2)
    changed = [
        not torch.equal(a, b) for a, b in zip(trainer.model.visual.trunk.parameters(), before, strict=True)
    ]
    assert sum(changed) > 0.9 * len(changed)

"""The facade: every kind of input, order, errors, tiles, and one encoding per image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import clipspect
from clipspect import Detections
from clipspect.backbones.features import Features
from clipspect.detector import Detector
from clipspect.errors import ImageError, UsageError
from clipspect.methods.anoclip import AnoCLIP
from clipspect.registry import list_methods, method_class
from helpers.images import plate

WITHOUT_FILE = sorted(name for name in list_methods() if not method_class(name).needs_file)


@pytest.fixture(scope="module")
def detector(tmp_path_factory, small_model) -> Detector:
    return clipspect.load("anoclip", model=str(small_model), batch_size=4)


def test_a_path_an_image_an_array_and_a_tensor_are_the_same_image(detector, tmp_path):
    pixels = plate(1)
    Image.fromarray(pixels).save(tmp_path / "plate.png")
    path = detector.detect(tmp_path / "plate.png", object="plate")
    others = [
        detector.detect(str(tmp_path / "plate.png"), object="plate"),
        detector.detect(Image.fromarray(pixels), object="plate"),
        detector.detect(pixels, object="plate"),
        detector.detect(pixels.astype(np.uint16) * 257, object="plate"),
        detector.detect(pixels.astype(np.float32) / 255, object="plate"),
        detector.detect(torch.from_numpy(pixels).permute(2, 0, 1), object="plate"),
    ]
    for found in others:
        assert found.score == pytest.approx(path.score, abs=1e-6)
        assert np.abs(found.anomaly_map - path.anomaly_map).max() < 1e-6
    assert path.path == "plate.png"
    assert path.anomaly_map.shape == (60, 80)
    assert path.anomaly_map.dtype == np.float32
    assert 0 <= path.anomaly_map.min() <= path.anomaly_map.max() <= 1
    assert path.pred_score == path.score


def test_a_folder_and_a_list_give_detections_and_an_iterator_is_lazy(detector, plates):
    folder = detector.detect(plates, object="plate")
    assert [d.path for d in folder] == sorted(d.path for d in folder)
    assert len(folder) == 10
    assert folder[0].path == "a/plate 1.png"
    arrays = detector.detect([plate(1), plate(2)], object="plate")
    assert isinstance(arrays, Detections)
    pulled = []

    def endless():
        for number in range(10**9):
            pulled.append(number)
            yield plate(number % 7)

    lazy = detector.detect(endless(), object="plate")
    assert next(lazy).path == "image 1"
    lazy.close()
    assert len(pulled) < 50


def test_results_do_not_depend_on_the_batch(small_model, plates):
    alone = clipspect.load(model=str(small_model), batch_size=1).detect(plates, object="plate")
    together = clipspect.load(model=str(small_model), batch_size=7).detect(plates, object="plate")
    for one, other in zip(alone, together, strict=True):
        assert one.path == other.path
        assert one.score == pytest.approx(other.score, abs=1e-6)
        assert np.abs(one.score_map - other.score_map).max() < 1e-5


def test_bad_images_among_good_ones_carry_their_error_in_place(detector, plates):
    (plates / "a" / "empty.png").write_bytes(b"")
    (plates / "b" / "cut.png").write_bytes((plates / "b" / "plate 0.png").read_bytes()[:300])
    (plates / "b" / "words.jpg").write_text("not an image")
    found = {d.path: d for d in detector.detect(plates, object="plate")}
    assert list(found) == sorted(found)
    failed = {path: d.error for path, d in found.items() if d.error}
    assert set(failed) == {"a/empty.png", "b/cut.png", "b/words.jpg"}
    assert "empty" in failed["a/empty.png"]
    assert all(np.isnan(found[path].score) and found[path].score_map is None for path in failed)
    assert all(len(found[path].content_hash) == 64 for path in failed)
    assert sum(d.error is None for d in found.values()) == 10


@pytest.mark.parametrize(
    "bad",
    [
        np.full((8, 8), np.nan),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.full((8, 8), 3.5),
    ],
)
def test_an_array_that_is_no_image_is_refused(detector, bad):
    with pytest.raises(ImageError):
        detector.detect(bad, object="plate")


def test_one_pixel_is_an_image(detector):
    found = detector.detect(np.full((1, 1, 3), 90, np.uint8), object="plate")
    assert found.anomaly_map.shape == (1, 1)
    assert np.isfinite(found.score)


def test_padding_keeps_proportions_and_the_map_lies_over_the_image_alone(small_model):
    padded = clipspect.load(model=str(small_model), aspect="pad")
    found = padded.detect(plate(3, height=20, width=80), object="plate")
    assert found.score_map.shape == (8, 32)
    assert found.anomaly_map.shape == (20, 80)


def test_tiles_cover_a_large_image_and_find_more_detail(small_model):
    tiled = clipspect.load(model=str(small_model), tile=32, batch_size=3)
    pixels = plate(5, blot=True, height=90, width=130)
    found = tiled.detect(pixels, object="plate")
    assert found.score_map.shape == (90, 130)
    whole = clipspect.load(model=str(small_model)).detect(pixels, object="plate")
    assert np.abs(found.anomaly_map - whole.anomaly_map).max() > 1e-4
    corner = clipspect.load(model=str(small_model)).detect(
        np.ascontiguousarray(pixels[:32, :32]), object="plate"
    )
    # Tiles start in the corner, and the tent weight of the first one alone reaches it.
    assert found.score_map[0, 0] == pytest.approx(corner.score_map[0, 0], abs=1e-5)


def test_the_vision_tower_runs_once_per_image_and_the_text_tower_once_per_object(
    detector, plates, monkeypatch
):
    images, texts = [], []
    encode, encode_text = detector.backbone.encode, detector.backbone.encode_text
    monkeypatch.setattr(
        detector.backbone, "encode", lambda x, request: images.append(len(x)) or encode(x, request)
    )
    monkeypatch.setattr(detector.backbone, "encode_text", lambda s: texts.append(len(s)) or encode_text(s))
    detector.detect(plates, object="once upon a plate")
    detector.detect(plates, object="once upon a plate")
    assert sum(images) == 20
    assert texts == [924]


def test_anchors_of_the_official_views_are_averaged(small_model):
    views = clipspect.load(AnoCLIP(views="official"), model=str(small_model))
    pixels = plate(4, height=64, width=64)
    assert (
        views.detect(pixels, object="plate").raw_score
        != clipspect.load(model=str(small_model)).detect(pixels, object="plate").raw_score
    )


def test_random_weights_are_marked_on_every_detection(small_model):
    with pytest.warns(UserWarning, match="random weights"):
        control = clipspect.load(model=str(small_model), weights="random")
    found = control.detect(plate(1), object="plate")
    assert found.weights.startswith("random")
    assert any("random weights" in warning for warning in found.warnings)


def test_own_words_change_the_anchors(small_model):
    plain = clipspect.load(model=str(small_model))
    own = clipspect.load(model=str(small_model), abnormal=["{} with a scratch"], domain="medical")
    assert own.settings()["prompts"] != plain.settings()["prompts"]
    assert not torch.equal(
        own.model.set_object("plate").anchors["anoclip"].pair,
        plain.model.set_object("plate").anchors["anoclip"].pair,
    )


@pytest.mark.parametrize("method", ["anoclip", "dual-image", "mutual", "winclip+"])
def test_known_good_images_are_references_and_calibration_in_one(small_model, plates, method):
    detector = clipspect.load(method, model=str(small_model))
    files = sorted((plates / "a").glob("*.png"))
    good = detector.calibrate(files, "plate", false_alarm_rate=0.2)
    calibration = good.calibrations[method]
    assert (calibration.is_good, calibration.images) == (True, len(files))
    found = detector.detect(plates / "a", object="plate", good=good)
    # Each good image is scored without itself, in the run as in the calibration.
    peaks = [found[0].calibration_used.peak(d.summary) for d in found]
    assert peaks == pytest.approx(list(calibration.peaks), abs=1e-4)
    assert {d.verdict for d in found} <= {"clean", "flagged"}
    others = detector.detect(plates / "b", object="plate", good=good)
    alone = [
        detector.detect(path, object="plate", good=good) for path in sorted((plates / "b").glob("*.png"))
    ]
    assert [d.score for d in alone] == pytest.approx([d.score for d in others], abs=1e-5)
    assert [d.verdict for d in alone] == [d.verdict for d in others]


def test_a_known_good_image_saved_again_is_told_in_its_row(small_model, plates, tmp_path):
    detector = clipspect.load("dual-image", model=str(small_model))
    files = sorted((plates / "a").glob("*.png"))
    good = detector.calibrate(files, "plate")
    with Image.open(files[0]) as image:
        image.convert("RGB").save(tmp_path / "again.jpg", quality=90)
    again = detector.detect(tmp_path / "again.jpg", object="plate", good=good)
    assert "a copy of one of the known-good images, saved again" in again.warnings
    for path in (files[0], next((plates / "b").glob("*.png"))):
        assert not any("saved again" in w for w in detector.detect(path, object="plate", good=good).warnings)


def test_a_calibration_of_other_settings_is_refused(small_model, plates):
    good = clipspect.load(model=str(small_model)).calibrate(plates / "a", "plate")
    other = clipspect.load(model=str(small_model), settings={"smoothing": 1})
    with pytest.raises(UsageError, match="calibrate again"):
        other.detect(plates / "b", object="plate", good=good)


def test_explicit_references_are_what_good_images_are_compared_with(small_model, plates):
    detector = clipspect.load("dual-image", model=str(small_model), settings={"output": "visual"})
    references = detector.encode_references(sorted((plates / "b").glob("*.png"))[:1])
    good = detector.calibrate(plates / "a", "plate", references=references)
    found = detector.detect(plates / "a", object="plate", references=references, good=good)
    peaks = [d.calibration_used.peak(d.summary) for d in found]
    assert peaks == pytest.approx(list(good.calibrations["dual-image"].peaks), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "nothing"}, "unknown method 'nothing'.*anoclip"),
        ({"settings": {"views": "some"}}, "views='some'.*'official'"),
        ({"settings": {"colour": "1"}}, "no setting 'colour'.*temperature"),
        ({"settings": {"temperature": "warm"}}, "is a number"),
        ({"settings": {"block": 9}}, "blocks 1…3"),
        ({"domain": "nowhere"}, "unknown domain"),
        ({"aspect": "stretch"}, "squash, pad"),
        ({"tile": 3}, "at least 16"),
        ({"batch_size": 0}, "batch_size"),
        ({"abnormal": ["scratched"]}, "must hold"),
    ],
)
def test_impossible_settings_are_refused_with_what_is_possible(small_model, options, message):
    with pytest.raises(UsageError, match=message):
        clipspect.load(**{"model": str(small_model), **options})


def test_an_image_method_takes_no_references(detector):
    references = detector.encode_references([plate(1)])
    assert len(references) == 1
    with pytest.raises(UsageError, match="uses no references"):
        detector.detect(plate(2), object="plate", references=references)


def test_damaged_weights_give_an_error_not_a_score(small_model, plates):
    broken = clipspect.load(model=str(small_model))
    broken.backbone._model.visual.proj.data.fill_(float("nan"))
    found = broken.detect(plates, object="plate")
    assert all("not numbers" in d.error for d in found)


@pytest.mark.parametrize("method", WITHOUT_FILE)
@pytest.mark.parametrize("tile", [None, 32])
def test_every_method_scores_a_folder_whole_and_tiled(small_model, plates, method, tile):
    detector = clipspect.load(method, model=str(small_model), tile=tile)
    needs = detector.methods[0].needs_references
    references = detector.encode_references([plate(20), plate(21)]) if needs else None
    found = list(detector.stream(sorted(plates.rglob("*.png"))[:4], object="plate", references=references))
    assert [d.error for d in found] == [None] * 4
    assert {d.method for d in found} == {method}
    for d in found:
        assert 0 <= d.score <= 1
        assert d.anomaly_map.shape == (60, 80)
        assert 0 <= d.anomaly_map.min() <= d.anomaly_map.max() <= 1


@pytest.mark.parametrize("method", WITHOUT_FILE)
def test_every_method_on_a_resnet_scores_or_says_why_not(tmp_path, plates, method):
    import json

    import open_clip
    from safetensors.torch import save_file

    from helpers.small_models import ARCHITECTURES

    config = json.loads(json.dumps(ARCHITECTURES["resnet"]))
    config["text_cfg"]["context_length"] = 32
    folder = tmp_path / "resnet"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    if method.startswith("winclip"):
        with pytest.raises(UsageError, match="ResNet"):
            score_three(method, folder, plates)
    else:
        assert [d.error for d in score_three(method, folder, plates)] == [None] * 3


def score_three(method, folder, plates):
    detector = clipspect.load(method, model=str(folder))
    references = detector.encode_references([plate(20)]) if detector.methods[0].needs_references else None
    return list(detector.stream(sorted(plates.rglob("*.png"))[:3], object="plate", references=references))


def test_good_images_that_cannot_be_scored_are_named(small_model, plates):
    detector = clipspect.load("anoclip", model=str(small_model))
    (plates / "a" / "broken.png").write_bytes(b"")
    found = detector.calibrate(plates, "plate")
    ((name, reason),) = found.failed
    assert name == "broken.png"
    assert "the file is empty" in reason
    with pytest.raises(UsageError, match=r"no known-good image .*broken.png: the file is empty"):
        detector.calibrate([plates / "a" / "broken.png"], "plate")


def test_no_object_and_an_empty_path_are_wrong_usage(small_model, plates):
    detector = clipspect.load("anoclip", model=str(small_model))
    with pytest.raises(UsageError, match="the object's name is None"):
        detector.detect(plates, object=None)
    with pytest.raises(UsageError, match="the path is empty"):
        detector.detect("", object="plate")


def test_a_folder_says_what_it_leaves_out(small_model, plates):
    (plates / "clip.mp4").write_bytes(b"x")
    detector = clipspect.load("anoclip", model=str(small_model))
    with pytest.warns(UserWarning, match=r"Left out: 1 video not supported\."):
        assert len(detector.detect(plates, object="plate")) == 10


def test_steps_before_the_first_image_are_counted(small_model, plates):
    detector = clipspect.load("dual-image", str(small_model))
    said: list[tuple[str, int, int]] = []
    good = detector.calibrate(plates / "a", "plate", on_step=lambda *step: said.append(step))
    for what in ("encoding the known-good images", "scoring the known-good images"):
        assert [step[1:] for step in said if step[0] == what] == [(n, 5) for n in range(6)]
    said.clear()
    paths = sorted(plates.rglob("*.png"))
    next(detector.stream(paths, object="plate", on_step=lambda *step: said.append(step)))
    compared = ("comparing the images of the set", 0, 10), ("comparing the images of the set", 10, 10)
    assert said == [*(("encoding the images of the set", n, 10) for n in range(11)), *compared]
    said.clear()
    next(detector.stream(paths, object="plate", good=good, on_step=lambda *step: said.append(step)))
    assert [step[0] for step in said] == ["comparing the known-good images"] * 2


def test_tiles_that_fill_the_set_end_its_progress_and_give_the_same_set_in_any_order(small_model, plates):
    detector = clipspect.load("mutual", str(small_model), tile=24, set_size=30)
    paths = sorted(plates.rglob("*.png"))
    fitting = 30 // len(detector.reader.read(paths[0]).pieces)
    assert 2 <= fitting < len(paths)
    said: list[tuple[str, int, int]] = []
    there = list(detector.stream(paths, object="plate", on_step=lambda *step: said.append(step)))
    stages = {stage: (done, total) for stage, done, total in said}
    assert [stage for stage, *_ in said[-2:]] == ["comparing the images of the set"] * 2
    assert stages["comparing the images of the set"] == (fitting, fitting)
    done, total = stages["encoding the images of the set"]
    assert done == total < len(paths)
    back = list(detector.stream(paths[::-1], object="plate"))[::-1]
    for one, other in zip(there, back, strict=True):
        assert one.path == other.path
        assert one.raw_score == pytest.approx(other.raw_score, abs=1e-5)


def test_an_image_whose_tiles_fill_the_set_is_told_what_to_raise(small_model, plates):
    detector = clipspect.load("mutual", str(small_model), tile=24, set_size=5)
    with pytest.raises(UsageError, match=r"--set-size, which counts tiles: one image has \d+$"):
        list(detector.stream(sorted(plates.rglob("*.png")), object="plate"))


def test_an_unknown_keyword_is_a_usage_error_with_the_nearest_one(detector):
    with pytest.raises(UsageError, match="did you mean 'object'"):
        detector.detect(np.zeros((32, 32, 3), np.uint8), objct="plate", object="plate")
    with pytest.raises(UsageError, match="did you mean 'false_alarm_rate'"):
        detector.calibrate([np.zeros((32, 32, 3), np.uint8)], object="plate", false_alarm=0.1)


def test_the_tokens_of_regions_are_carried_once_and_only_for_detections(small_model, plates, monkeypatch):
    both, alone = (
        clipspect.load(names, model=str(small_model)) for names in (["anoclip", "clip"], "anoclip")
    )
    found = both.detect(plates, object="plate")
    expected = alone.detect(plates, object="plate")
    for one, other in zip(found[::2], expected, strict=True):
        assert one.embedding is not None
        assert np.array_equal(one.embedding, other.embedding)

    joined = []
    monkeypatch.setattr(Features, "compared_patches", property(lambda self: joined.append(len(self))))
    images = torch.zeros(3, 3, 64, 64)
    model = alone.model.set_object("plate")
    assert model(images)["anoclip"].image.shape == (3,)
    assert joined == []
    scores, tokens = model.forward_with_tokens(images)
    assert (len(scores["anoclip"].image), tokens, sum(joined)) == (3, None, 3)

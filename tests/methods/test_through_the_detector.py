"""Methods of whole sets through the Detector: encodings counted, order of files, references."""

import numpy as np
import pytest

import clipspect
from clipspect.data import prepare
from clipspect.errors import UsageError
from clipspect.model import AnomalyModel


@pytest.fixture
def counted(small_model):
    """``load(method, …)`` with a count of the pieces its backbone encodes."""

    def load(method, **options):
        detector = clipspect.load(method, str(small_model), device="cpu", **options)
        seen, encode = [], detector.backbone.encode

        def counting(images, request):
            seen.extend([1] * len(images))
            return encode(images, request)

        detector.backbone.encode = counting
        return detector, seen

    return load


@pytest.mark.parametrize("method", ["dual-image", "mutual"])
@pytest.mark.parametrize("set_size", [128, 4])
def test_a_folder_costs_one_encoding_an_image(counted, plates, method, set_size):
    detector, seen = counted(method, set_size=set_size)
    found = detector.detect(plates, "plate")
    assert len(found) == 10
    assert len(seen) == 10
    assert all(d.error is None and np.isfinite(d.anomaly_map).all() for d in found)


def test_a_set_is_encoded_as_many_at_once_as_the_batch_has(counted, plates):
    detector, _ = counted("dual-image", batch_size=4, set_size=9)
    encode, sizes = detector.backbone.encode, []

    def sized(images, request):
        sizes.append(len(images))
        return encode(images, request)

    detector.backbone.encode = sized
    assert len(detector.detect(plates, "plate")) == 10
    assert sizes == [4, 4, 1, 1]  # nine of the set, and the tenth image when its turn comes


@pytest.mark.parametrize("method", ["mutual", "dual-image", "dual-image+"])
def test_images_of_the_set_are_compared_once_in_a_batch_with_others(counted, plates, monkeypatch, method):
    detector, _ = counted(method, set_size=4, batch_size=5)
    kind = type(detector.methods[0])
    paths, sizes, visual_scores = sorted(plates.rglob("*.png")), [], kind.visual_scores

    def sized(own, features, *others):
        sizes.append(len(features))
        return visual_scores(own, features, *others)

    monkeypatch.setattr(kind, "visual_scores", sized)
    together = list(detector.stream(paths, object="plate"))
    assert sum(sizes) == len(paths)
    alone, _ = counted(method, set_size=4, batch_size=1)
    for one, other in zip(together, alone.stream(paths, object="plate"), strict=True):
        np.testing.assert_allclose(one.score_map, other.score_map, atol=1e-5)
        assert one.raw_score == pytest.approx(other.raw_score, abs=1e-5)


@pytest.mark.parametrize("method", ["anoclip", "mutual"])
def test_features_of_many_tiles_are_not_kept_together(small_model, plates, monkeypatch, method):
    detector = clipspect.load(method, str(small_model), tile=16, batch_size=4)
    paths = sorted(plates.rglob("*.png"))[:3]
    assert len(detector.reader.read(paths[0]).pieces) > 8
    together, sizes, score = list(detector.stream(paths, object="plate")), [], AnomalyModel.score

    def sized(model, features, *others, **named):
        sizes.append(len(features))
        return score(model, features, *others, **named)

    monkeypatch.setattr(AnomalyModel, "score", sized)
    apart = list(detector.stream(paths, object="plate"))
    assert max(sizes) == 4
    whole = clipspect.load(method, str(small_model), tile=16, batch_size=400)
    for one, again, other in zip(together, apart, whole.stream(paths, object="plate"), strict=True):
        np.testing.assert_array_equal(one.score_map, again.score_map)
        np.testing.assert_allclose(one.score_map, other.score_map, atol=1e-5)


def test_several_methods_share_the_one_encoding(counted, plates):
    detector, seen = counted(["anoclip", "anoclip+", "dual-image", "mutual", "clip"])
    assert len(detector.detect(plates, "plate")) == 50
    assert len(seen) == 10


def test_corrupted_copies_are_the_only_encodings_more(counted, plates):
    detector, seen = counted("dual-image+", settings={"copies": 2})
    detector.detect(plates, "plate")
    assert len(seen) == 10 + 10 * 2


def test_the_order_of_the_files_changes_nothing(counted, plates):
    paths = sorted(plates.rglob("*.png"))
    detector, _ = counted("dual-image", settings={"references": 2})
    forth = {d.path: d for d in detector.detect(paths, "plate")}
    back = {d.path: d for d in detector.detect(paths[::-1], "plate")}
    for path, detection in forth.items():
        assert detection.raw_score == pytest.approx(back[path].raw_score, abs=1e-5)
        np.testing.assert_allclose(detection.score_map, back[path].score_map, atol=1e-5)


def test_one_image_without_another_is_told_so(counted, plates):
    detector, _ = counted("dual-image")
    with pytest.raises(clipspect.UsageError, match="there is only one"):
        detector.detect(sorted(plates.rglob("*.png"))[0], "plate")


def test_a_setting_that_no_method_of_a_comparison_has_is_refused(small_model):
    with pytest.raises(clipspect.UsageError, match="none of anoclip, mutual has a setting 'epocs'"):
        clipspect.load(["anoclip", "mutual"], str(small_model), device="cpu", settings={"epocs": "3"})
    shared = clipspect.load(["anoclip", "mutual"], str(small_model), device="cpu", settings={"lowest": "0.5"})
    assert [m.settings().get("lowest") for m in shared.methods] == [None, 0.5]


def test_a_copy_of_a_image_as_its_own_template_is_told_in_its_row(counted, plates, tmp_path):
    paths = sorted(plates.rglob("*.png"))[:3]
    templates = dict(zip(paths, [paths[1], tmp_path / "copy.png", paths[0]], strict=True))
    (tmp_path / "copy.png").write_bytes(paths[1].read_bytes())
    detector, _ = counted(["dual-image", "anoclip"])
    found = list(detector.stream(paths, object="plate", templates=templates.__getitem__))
    told = [any("only reference is the image itself" in w for w in d.warnings) for d in found]
    assert told == [False, False, True, False, False, False]


def test_known_good_images_that_are_their_own_templates_give_no_threshold(counted, plates, tmp_path):
    paths = sorted(plates.rglob("*.png"))[:5]
    detector, _ = counted(["dual-image", "anoclip"])
    templates = dict(zip(paths, [paths[0], *paths[2:], paths[1]], strict=True))
    good = detector.calibrate(paths, "plate", templates=templates.__getitem__)
    assert [name for name, _ in good.failed] == [paths[0].name]
    assert "only reference is the image itself" in good.failed[0][1]
    assert {name: one.images for name, one in good.calibrations.items()} == {"dual-image": 4, "anoclip": 5}
    with pytest.raises(clipspect.UsageError, match="no known-good image .* the image itself"):
        detector.calibrate(paths, "plate", templates=lambda path: path)


def test_the_images_of_a_pool_are_decoded_once(counted, plates, monkeypatch):
    read = []
    decode = prepare.load_image
    monkeypatch.setattr(
        prepare, "load_image", lambda path, **more: read.append(path.name) or decode(path, **more)
    )
    detector, _ = counted("dual-image")
    found = detector.detect(plates, object="plate")
    names = sorted(d.path.rpartition("/")[2] for d in found)
    assert sorted(read) == names
    small, _ = counted("mutual", set_size=3)
    read.clear()
    small.detect(plates, object="plate")
    assert sorted(read) == names


@pytest.mark.parametrize("method", ["mutual", "dual-image"])
def test_copies_of_one_image_are_no_set(counted, method):
    detector, _ = counted(method)
    images = [np.arange(3 * 40 * 40, dtype=np.uint8).reshape(40, 40, 3)] * 5
    with pytest.raises(UsageError, match=r"given one: .*copies count once"):
        detector.detect(images, "plate")

"""The engine gives what the Detector gives, together or alone, and keeps strangers apart."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest

from server.conftest import photo

pytest.importorskip("pydantic", reason="the service's extra is not installed")


import clipspect
from clipspect import scoring
from clipspect.detection import Detection
from clipspect.errors import ImageError, ReferencesError, UsageError
from clipspect.server.engine import Engine
from clipspect.server.errors import ServiceError
from clipspect.server.requests import InspectRequest, PendingRequest


def request(engine: Engine, *images: bytes, method: str = "anoclip", **more) -> InspectRequest:
    return InspectRequest(tuple(images), "plate", (method,), engine.models[0], **more)


def answered(engine: Engine, *requests: InspectRequest) -> list[list[Detection]]:
    return engine.answer([PendingRequest(one, 60) for one in requests])


def scores(detections: list[Detection]) -> list[float]:
    return [d.raw_score for d in detections]


@pytest.mark.parametrize("method", ["anoclip", "anoclip+", "dual-image"])
def test_bytes_give_what_the_files_give(engine, small_model, tmp_path, method):
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.png")
        files[-1].write_bytes(photo(number))
    expected = clipspect.load(method, model=str(small_model), batch_size=4).detect(files, object="plate")
    (found,) = answered(engine, request(engine, *(file.read_bytes() for file in files), method=method))
    assert scores(found) == scores(expected)
    assert [d.content_hash for d in found] == [sha256(file.read_bytes()).hexdigest() for file in files]
    assert (found[0].overlay().size, found[0].regions) == ((80, 60), expected[0].regions)


def test_requests_answered_together_get_what_each_gets_alone(engine):
    asked = [
        request(engine, photo(0), photo(1)),
        request(engine, photo(2), threshold=0.2),
        request(engine, photo(3), photo(4), photo(5), method="dual-image"),
        replace(request(engine, photo(6)), object="washer"),
    ]
    together = answered(engine, *asked)
    alone = [answered(engine, one)[0] for one in asked]
    for found, expected in zip(together, alone, strict=True):
        assert [d.content_hash for d in found] == [d.content_hash for d in expected]
        assert scores(found) == pytest.approx(scores(expected), abs=1e-6)
    assert (together[1][0].threshold, together[1][0].verdict) == (0.2, "flagged")
    assert (together[0][0].threshold, together[0][0].verdict) == (None, "undecided")


def test_images_of_one_object_are_encoded_in_common_batches(engine, monkeypatch):
    detector = engine.detector(("anoclip",), engine.models[0])
    batches: list[int] = []
    encoded: list[int] = []
    score, encode = scoring._score, type(detector.backbone).encode

    def scored(batch, model):
        batches.append(len(batch))
        return score(batch, model)

    def counted(self, images, request):
        encoded.append(len(images))
        return encode(self, images, request)

    monkeypatch.setattr(scoring, "_score", scored)
    monkeypatch.setattr(type(detector.backbone), "encode", counted)
    answered(engine, *(request(engine, photo(number)) for number in range(8)))
    assert batches == [4, 4]
    assert sum(encoded) == 8
    encoded.clear()
    answered(engine, *(request(engine, photo(number), photo(9), method="mutual") for number in range(2)))
    assert sum(encoded) == 4, "each request's own two images and no others"


def test_an_error_belongs_to_its_own_request(engine):
    good, missing, unknown = engine.answer(
        [
            PendingRequest(request(engine, photo(0)), 60),
            PendingRequest(request(engine, photo(0), method="winclip+"), 60),
            PendingRequest(replace(request(engine, photo(0)), methods=("no such",)), 60),
        ]
    )
    assert good[0].error is None
    assert isinstance(missing, UsageError)
    assert isinstance(unknown, UsageError)


def test_what_nobody_waits_for_is_not_scored(engine):
    left, late = PendingRequest(request(engine, photo(0)), 60), PendingRequest(request(engine, photo(1)), -1)
    left.give_up()
    for found in engine.answer([left, late]):
        assert isinstance(found, ServiceError)
        assert found.status == 503
    assert not engine._backbones


def test_only_named_models_are_loaded(engine, tmp_path):
    for name in ("tiny", str(tmp_path), "hf-hub:someone/something"):
        with pytest.raises(UsageError, match="there are"):
            engine.detector(("anoclip",), name)


def test_kept_references_serve_later_requests(engine):
    good = [photo(number, blot=False) for number in range(20, 23)]
    kept = engine.keep_references(request(engine, *good, method="dual-image"))
    again = engine.keep_references(request(engine, *reversed(good), method="dual-image"))
    assert (kept["count"], kept["id"]) == (3, again["id"])
    by_id, inline = answered(
        engine,
        request(engine, photo(0), method="dual-image", references=kept["id"]),
        request(engine, photo(0), method="dual-image", references=tuple(good)),
    )
    assert scores(by_id) == pytest.approx(scores(inline), abs=1e-6)
    assert (by_id[0].calibration.rule, by_id[0].calibration.images) == ("gumbel", 3)
    assert inline[0].calibration is None


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "0" * 32, "", "0" * 31 + "\n"])
def test_an_id_leads_nowhere_but_to_kept_references(engine, name):
    with pytest.raises(ServiceError) as refused:
        engine.references.find(name)
    assert refused.value.status == 404


def test_references_of_another_object_are_refused_without_naming_a_folder(engine):
    kept = engine.keep_references(request(engine, photo(20), method="dual-image"))
    asked = replace(request(engine, photo(0), method="dual-image", references=kept["id"]), object="washer")
    (refused,) = engine.answer([PendingRequest(asked, 60)])
    assert isinstance(refused, ReferencesError)
    assert kept["id"] in str(refused)
    assert str(engine.references.folder) not in str(refused)


def test_the_oldest_references_are_given_up(engine):
    engine.references.kept = 2
    names = [engine.keep_references(request(engine, photo(n), method="dual-image"))["id"] for n in range(4)]
    assert [engine.references._path(name).exists() for name in names] == [False, False, True, True]


def test_an_unreadable_reference_is_an_error_of_the_whole(engine):
    with pytest.raises(ImageError):
        engine.keep_references(request(engine, photo(0)[:200], method="dual-image"))


def test_each_step_is_told_and_the_last_holds_everything(engine):
    steps = list(engine.inspect(request(engine, photo(0), photo(1), photo(2)[:300])))
    assert [step.done for step in steps] == [False] * (len(steps) - 1) + [True]
    assert "Loading" in steps[0].message
    assert [d.error is None for d in steps[-1].detections] == [True, True, False]
    assert steps[-1].seconds > 0
    assert "Loading" not in next(iter(engine.inspect(request(engine, photo(0))))).message

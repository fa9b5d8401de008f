"""Decoding, encoding and writing overlap: while one batch is looked at, the next is in the encoder."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import clipspect
from clipspect import scoring
from clipspect.errors import UsageError


def plain_images(count):
    return [np.full((40, 40, 3), 10 * number, np.uint8) for number in range(count)]


def test_the_next_batch_is_encoded_while_the_consumer_holds_the_first(small_model, monkeypatch):
    detector = clipspect.load(model=str(small_model), batch_size=2)
    detector.model.set_object("plate")
    score, second = scoring._score, threading.Event()
    batches = []

    def watched(batch, run):
        batches.append(len(batch))
        if len(batches) == 2:
            second.set()
        return score(batch, run)

    monkeypatch.setattr(scoring, "_score", watched)
    stream = detector.detect(iter(plain_images(6)), object="plate")
    next(stream)
    assert second.wait(timeout=30), "the second batch waited for the consumer"
    assert sum(1 for _ in stream) == 5
    assert batches == [2, 2, 2]


def test_no_more_than_two_batches_are_encoded_ahead(small_model, monkeypatch):
    detector = clipspect.load(model=str(small_model), batch_size=1)
    encode, calls = detector.backbone.encode, []

    def counted(images, request):
        calls.append(len(images))
        return encode(images, request)

    monkeypatch.setattr(detector.backbone, "encode", counted)
    for number, _ in enumerate(detector.detect(iter(plain_images(20)), object="plate"), start=1):
        assert len(calls) <= number + 2


def test_an_error_of_the_encoder_reaches_the_consumer_and_ends_the_threads(small_model, monkeypatch):
    detector = clipspect.load(model=str(small_model), batch_size=1)

    def broken(images, request):
        raise UsageError("the encoder broke")

    monkeypatch.setattr(detector.backbone, "encode", broken)
    with pytest.raises(UsageError, match="the encoder broke") as caught:
        list(detector.detect(plain_images(3), object="plate"))
    del caught  # its traceback holds the stream
    gc.collect()
    assert not any(thread.name.startswith("clipspect-read") for thread in threading.enumerate())

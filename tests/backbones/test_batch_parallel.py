"""A batch shared out among threads: the same results in the same order, and torch's settings left as they were."""

from __future__ import annotations

import threading

import pytest
import torch

from backbones.test_encode import backbone_of
from clipspect.backbones.cpu.batch_parallel import parallel_map
from clipspect.backbones.features import FeatureRequest
from helpers.small_models import normalised_images


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_shares_are_consecutive_and_come_back_in_order(three_threads):
    seen = parallel_map(lambda share: (list(share), torch.get_num_threads()), range(8))
    assert seen == [([0, 1], 1), ([2, 3, 4], 1), ([5, 6, 7], 1)]
    assert torch.get_num_threads() == 3
    found = []
    late = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    late.start()
    late.join()
    assert found == [3]  # a thread that starts later has torch's number, not a lane's


def test_shares_are_worked_on_at_the_same_time(three_threads):
    meeting = threading.Barrier(3, timeout=60)
    assert parallel_map(lambda share: meeting.wait() >= 0, range(3)) == [True] * 3


def test_one_thing_and_what_is_in_a_lane_already_stay_where_they_are(three_threads):
    here = threading.get_ident()
    assert parallel_map(lambda share: threading.get_ident(), [1]) == [here]
    nested = parallel_map(lambda share: len(parallel_map(list, share)), range(6))
    assert nested == [1, 1, 1]


def test_an_error_in_a_lane_is_the_callers(three_threads):
    with pytest.raises(ZeroDivisionError):
        parallel_map(lambda share: [1 // number for number in share], range(-4, 4))
    assert parallel_map(sum, [1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize("threads", [2, 4])
def test_features_agree_for_any_number_of_threads(three_threads, threads):
    backbone = backbone_of("vit")
    images = normalised_images(5, 64)
    request = FeatureRequest(value_blocks=frozenset([-1]))
    torch.set_num_threads(threads)
    shared = backbone.encode(images, request)
    torch.set_num_threads(1)
    whole = backbone.encode(images, request)
    torch.testing.assert_close(shared.image, whole.image, atol=1e-6, rtol=0)
    torch.testing.assert_close(shared.values(-1), whole.values(-1), atol=1e-5, rtol=0)

"""Products by oneDNN and by torch's own choice are the same products, with the same gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from clipspect.backbones.cpu import linear as products


@pytest.fixture(params=[True, False], ids=["oneDNN", "PyTorch"])
def library(request, monkeypatch):
    if request.param and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN product")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: request.param)


@pytest.mark.parametrize("shape", [(5, 12), (2, 7, 12), (1, 1, 12)])
@torch.inference_mode()
def test_a_product_is_torchs_own(library, shape):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(9, 12), torch.randn(9)
    torch.testing.assert_close(products.linear(x, weight, bias), F.linear(x, weight, bias), atol=1e-5, rtol=0)
    turned = torch.randn(12, 9).T
    torch.testing.assert_close(products.linear(x, turned), F.linear(x, turned), atol=1e-5, rtol=0)


def test_where_a_gradient_is_wanted_there_is_one(library):
    weight = torch.randn(3, 4, requires_grad=True)
    products.linear(torch.randn(2, 4), weight).sum().backward()
    assert weight.grad is not None


def test_a_batch_of_layers_has_the_values_and_gradients_of_each_alone(library):
    torch.manual_seed(0)
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((3, 6, 8), (3, 5, 8), (3, 5))]
    mine = products.batched_linear(*leaves)
    alone = torch.stack([F.linear(*image) for image in zip(*leaves, strict=True)])
    torch.testing.assert_close(mine, alone, atol=1e-5, rtol=0)
    weights = torch.randn_like(mine)
    found = torch.autograd.grad((mine * weights).sum(), leaves)
    wanted = torch.autograd.grad((alone * weights).sum(), leaves)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("maker", "instructions", "faster"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_maker_and_instructions_decide(monkeypatch, maker, instructions, faster):
    monkeypatch.setattr(products.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    monkeypatch.setattr(products, "_maker", lambda: f"vendor_id : {maker}")
    assert products.onednn_is_faster.__wrapped__() is faster

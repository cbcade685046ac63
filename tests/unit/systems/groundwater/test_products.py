"""Products by oneDNN and layers part by part, against those of PyTorch."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from millrace.systems.groundwater import products
from millrace.systems.groundwater.products import Layers, add_product, product

COLUMNS, WIDTHS = 50, (3, 8, 5)


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("given_by", ["channels", "rows"])
def test_layers_in_parts_equal_those_of_pytorch(monkeypatch, activated, rows, given_by):
    monkeypatch.setattr(products, "CACHED_BYTES", 8 * 8 * 7)  # seven columns at once
    torch.manual_seed(0)
    layers = [nn.Linear(*pair).double() for pair in pairwise(WIDTHS)]
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    x_IR = torch.randn(WIDTHS[0], COLUMNS, dtype=torch.float64)
    if given_by == "rows":
        x_IR = x_IR.t().contiguous().t()
    x_IR.requires_grad_()
    h = x_IR.t()
    for number, layer in enumerate(layers):
        h = layer(nn.functional.gelu(h) if number or activated else h)
    found = Layers.apply(x_IR, activated, rows, *parameters)
    assert found.t().is_contiguous() == rows
    torch.testing.assert_close(found, h.t())
    weight = torch.randn_like(found)
    expected = torch.autograd.grad((h.t() * weight).sum(), [x_IR, *parameters])
    gradients = torch.autograd.grad((found * weight).sum(), [x_IR, *parameters])
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("channels", [6, 96])
def test_products_equal_those_of_pytorch_and_are_counted(channels):
    a, b, total = torch.randn(40, 96), torch.randn(channels, 96), torch.randn(40, channels)
    expected = total.double() + a.double() @ b.double().t()
    with FlopCounterMode(display=False) as counter:
        found = total + product(a, b)
        turned = total + product(a, b.t().contiguous().t())
        add_product(total, a.t().contiguous().t(), b)
    for one in (found, turned, total):
        assert (one - expected).abs().max() < 1e-5 * expected.abs().max()
    assert counter.get_total_flops() == 3 * 2 * 40 * 96 * channels

"""Layers part by part, against those of PyTorch."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from millrace.systems.groundwater import layers as in_parts
from millrace.systems.groundwater.layers import layers as applied

COLUMNS, WIDTHS = 50, (3, 8, 5)


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("given_by", ["channels", "rows"])
def test_layers_in_parts_equal_those_of_pytorch(monkeypatch, activated, rows, given_by):
    monkeypatch.setattr(in_parts, "CACHED_BYTES", 8 * 8 * 7)  # seven columns at once
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
    found = applied(x_IR, activated, rows, parameters)
    assert found.t().is_contiguous() == rows
    torch.testing.assert_close(found, h.t())
    weight = torch.randn_like(found)
    expected = torch.autograd.grad((h.t() * weight).sum(), [x_IR, *parameters])
    gradients = torch.autograd.grad((found * weight).sum(), [x_IR, *parameters])
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)

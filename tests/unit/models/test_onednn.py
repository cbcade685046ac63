"""Products and linear layers by oneDNN, against those of PyTorch in double precision."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from millrace.models import products
from millrace.models.products import Linear, add_product, linear, product


@pytest.fixture(params=[True, False], autouse=True)
def by_onednn(request, monkeypatch):
    """Small products go to oneDNN as well, on any processor; or none does."""
    if request.param and not products.HAS_ONEDNN:
        pytest.skip("this PyTorch has no products of oneDNN")
    monkeypatch.setattr(products, "ONEDNN", request.param)
    monkeypatch.setattr(products, "LEAST", 0)
    monkeypatch.setattr(products, "WIDE", 8)
    return request.param


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


@pytest.mark.parametrize("outputs", [6, 30], ids="{} channels out".format)
@pytest.mark.parametrize("bias", [True, False])
def test_layers_and_their_gradients_equal_those_of_pytorch(outputs, bias, by_onednn):
    torch.manual_seed(0)
    layer = Linear(20, outputs, bias)
    plain = nn.Linear(20, outputs, bias).double()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(4, 7, 40)[..., ::2].requires_grad_()
    exact = x.detach().double().requires_grad_()
    found, expected = layer(x).relu_(), plain(exact).relu_()
    assert (layer(x).grad_fn.name() == "_LinearBackward") == by_onednn
    weight = torch.randn_like(found)
    gradients = torch.autograd.grad((found * weight).sum(), [x, *layer.parameters()])
    exact_gradients = torch.autograd.grad((expected * weight).sum(), [exact, *plain.parameters()])
    with torch.no_grad():
        without = layer(x).relu_()
    for one, other in zip(
        (found, without, *gradients), (expected, expected, *exact_gradients), strict=True
    ):
        assert one.shape == other.shape
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_only_what_is_wanted_has_a_gradient():
    layer, x = Linear(20, 30), torch.randn(5, 20)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((30,), 5.0))


def test_gradients_have_gradients_and_transforms_work():
    torch.manual_seed(0)
    layer, x = Linear(20, 30), torch.randn(5, 20, requires_grad=True)
    plain, exact = nn.Linear(20, 30).double(), x.detach().double().requires_grad_()
    plain.load_state_dict(layer.state_dict())

    def second(module, given):
        [first] = torch.autograd.grad(module(given).square().sum(), given, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [given, module.weight])

    for one, other in zip(second(layer, x), second(plain, exact), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-3)
    by_func = torch.func.grad(lambda given: layer(given).square().sum())(x.detach())
    [gradient] = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(by_func, gradient, rtol=1e-4, atol=1e-4)


def test_half_precision_empty_batches_and_graphs_go_to_pytorch(monkeypatch):
    layer, x = Linear(20, 30), torch.randn(5, 20)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    monkeypatch.setattr(products, "LEAST", 1)
    assert linear(x[:0], layer.weight).shape == (0, 30)
    assert linear(x.double(), layer.weight.double()).dtype == torch.float64
    program = torch.export.export(layer, (x,))
    assert "_linear_pointwise" not in program.graph_module.code

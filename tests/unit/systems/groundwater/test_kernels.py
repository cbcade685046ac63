"""Kernels in C against the same operations of PyTorch in float64, which stand in for them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from neuralop.layers.fno_block import FNOBlocks
from torch import nn

from millrace.systems.groundwater import kernels
from millrace.systems.groundwater.fourier import FourierLayers
from millrace.systems.groundwater.gno import NeighbourTable, kernel_sum
from millrace.systems.groundwater.graph import radius_neighbours
from millrace.systems.groundwater.layers import layers

# All modes of an axis, one mode, one point, odd grids (shifted), and frequencies beyond the grid's.
GRIDS = {
    (8, 6, 6): (4, 4, 4),
    (4, 6, 4): (4, 6, 3),
    (7, 5, 9): (3, 4, 5),
    (5, 5, 5): (5, 5, 3),
    (1, 4, 10): (1, 1, 1),
    (9, 8, 2): (6, 3, 2),
}
ROWS, SAMPLES = 300, 5


@pytest.fixture(params=["native", "haswell", "x86-64"])
def wide(request, compile_for):
    """Numbers of a vector of kernels that are compiled for some processors."""
    compile_for(request.param)
    assert kernels.KERNELS.suit(torch.ones(1))
    return kernels.KERNELS.vector()


def compare(function, *inputs):
    """Values and gradients of a function of single numbers, and of double ones."""
    made = []
    for dtype in (torch.float32, torch.float64):
        given = [x.detach().to(dtype).requires_grad_() for x in inputs]
        out = function(*given)
        torch.manual_seed(1)
        weight = torch.randn(out.shape, dtype=torch.float64).to(dtype)
        made.append([out, *torch.autograd.grad((out * weight).sum(), given)])
    for found, expected in zip(*made, strict=True):
        difference = (found - expected).detach().abs().max()
        assert difference < 2e-6 * expected.detach().abs().max().clamp(min=1e-30)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_fourier_layers(wide, grid):
    torch.manual_seed(0)
    blocks = FNOBlocks(2 * wide, 2 * wide, GRIDS[grid], n_layers=2, use_channel_mlp=False)
    model = FourierLayers(blocks)
    names = [name for name, _ in model.named_parameters()]
    assert model.has_kernels()

    def apply(x_GBC, *parameters):
        model.to(x_GBC.dtype)
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(model, given, (x_GBC, model.basis(grid)))

    compare(apply, torch.randn(torch.Size(grid).numel(), SAMPLES, 2 * wide), *model.parameters())


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("widths", [(3, 40, 5), (16, 32), (1, 7, 130, 1), (64, 300, 16)])
def test_networks_of_linear_layers(wide, activated, widths):
    torch.manual_seed(0)
    linear = [nn.Linear(*pair) for pair in pairwise(widths)]
    parameters = [p for layer in linear for p in (layer.weight, layer.bias)]
    compare(
        lambda x_IR, *given: layers(x_IR, activated, False, given),
        torch.randn(widths[0], ROWS),
        *parameters,
    )


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("vectors", [1, 2, 3])
def test_sums_over_neighbours(wide, samples, vectors):
    torch.manual_seed(0)
    points, queries = np.random.default_rng(0).random((2, 60, 3))
    queries[:2] = 5  # without neighbours
    csr = radius_neighbours(points, queries, 0.4)
    table = NeighbourTable.from_csr(csr, len(points))
    kernel_EC = torch.randn(len(table.index), vectors * wide)
    f_CNB = torch.randn(vectors * wide, len(points), samples)
    compare(lambda kernel, f: kernel_sum(kernel.t(), f, table), kernel_EC, f_CNB)


def test_what_is_no_number_stays_none(wide):
    x_RI = torch.tensor([[torch.nan], [torch.inf], [-torch.inf], [100.0], [-100.0], [0.0]])
    one = [torch.ones(1, 1), torch.zeros(1)]
    found = kernels.Network(one).values(x_RI, activated=True).flatten()
    assert torch.isnan(found[0])
    assert found[1:].tolist() == pytest.approx([torch.inf, 0, 100, 0, 0], abs=1e-30)


def test_gelu_to_single_precision(wide):
    x = torch.linspace(-14, 14, 100_001)[:, None]
    one = [torch.ones(1, 1), torch.zeros(1)]
    found = kernels.Network(one).values(x, activated=True)
    grad_x, _ = kernels.Network(one).gradients(x, True, torch.ones_like(x), True)
    exact = x.double().requires_grad_()
    expected = nn.functional.gelu(exact)
    expected.sum().backward()
    assert float((found - expected).detach().abs().max()) < 5e-7
    assert float((grad_x - exact.grad).abs().max()) < 5e-7


def test_gradients_of_many_rows_lose_no_digits(wide):
    torch.manual_seed(0)
    x, g = torch.rand(1_000_000, 8), torch.rand(1_000_000, 8)
    net = kernels.Network([torch.eye(8), torch.zeros(8)])
    _, (weight, bias) = net.gradients(x, False, g, False)
    torch.testing.assert_close(weight.double(), g.double().t() @ x.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(bias.double(), g.double().sum(0), rtol=1e-6, atol=0)


def test_results_do_not_depend_on_the_number_of_threads(compiler):
    torch.manual_seed(0)
    wide = kernels.KERNELS.vector()
    points = np.random.default_rng(0).random((50, 3))
    table = NeighbourTable.from_csr(radius_neighbours(points, points, 0.4), len(points))
    blocks = FNOBlocks(wide, wide, (4, 4, 4), n_layers=2, use_channel_mlp=False)
    model = FourierLayers(blocks)
    basis = model.basis((8, 6, 6))
    net = [torch.randn(wide, wide), torch.randn(wide), torch.randn(wide, wide), torch.randn(wide)]
    x_GBC = torch.randn(288, SAMPLES, wide)
    kernel, f_CNB = torch.randn(len(table.index), wide), torch.randn(wide, 50, SAMPLES)
    leaves = [*model.parameters(), *net, x_GBC, kernel, f_CNB]
    for leaf in leaves:
        leaf.requires_grad_()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            made = [
                model(x_GBC, basis),
                layers(x_GBC.flatten(0, 1).t(), False, False, net),
                kernel_sum(kernel.t(), f_CNB, table),
            ]
            loss = sum(one.square().mean() for one in made)
            found.append([*made, *torch.autograd.grad(loss, leaves)])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_tensors_of_other_sizes_and_types_are_refused(compiler):
    wide = kernels.KERNELS.vector()
    blocks = FNOBlocks(wide, wide, (2, 2, 2), n_layers=1, use_channel_mlp=False)
    model = FourierLayers(blocks)
    basis = model.basis((2, 2, 2))
    net, x_IR = [torch.randn(3, 5), torch.randn(3)], torch.randn(5, 7)
    index, indptr = torch.tensor([0, 1, 1]), torch.tensor([0, 2, 3])
    table = NeighbourTable.of(indptr, index, 2)
    kernel, f_CNB = torch.randn(3, wide), torch.randn(wide, 2, 4)
    refused = [
        lambda: layers(x_IR.double(), True, False, net),
        lambda: layers(x_IR.half(), True, False, net),
        lambda: layers(x_IR[:4], True, False, net),
        lambda: layers(x_IR, False, False, [*net, torch.randn(1, 2), torch.randn(1)]),
        lambda: layers(x_IR, False, False, [net[0], torch.randn(2)]),
        lambda: model(torch.randn(8, 1, wide).double(), basis),
        lambda: model(torch.randn(8, 1, 2 * wide), basis),
        lambda: model(torch.randn(7, 1, wide), basis),
        lambda: kernel_sum(kernel.t(), f_CNB[:, :1], table),
        lambda: kernel_sum(kernel[:2].t(), f_CNB, table),
    ]
    for call in refused:
        with pytest.raises((RuntimeError, ValueError)):
            call()


def test_gradients_of_gradients_are_refused(compiler):
    x_IR = torch.randn(3, 4, requires_grad=True)
    made = layers(x_IR, True, False, [torch.randn(2, 3), torch.randn(2)])
    (gradient,) = torch.autograd.grad(made.square().sum(), x_IR, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_no_samples_have_no_gradients(compiler):
    wide = kernels.KERNELS.vector()
    where = (torch.tensor([0, 2]), torch.tensor([0, 0]), torch.tensor([0]))
    weight, f_BNC, g_BMC = torch.ones(2, wide), torch.ones(0, 1, wide), torch.ones(0, 1, wide)
    found = kernels.neighbour_gradients(weight, f_BNC, g_BMC, *where, (True, True))
    assert not found[0].any()
    assert found[1].shape == (0, 1, wide)

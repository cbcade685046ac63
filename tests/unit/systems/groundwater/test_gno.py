"""The graph layer against the library's own evaluation with the same weights."""

import numpy as np
import pytest
import torch
from neuralop.layers.gno_block import GNOBlock

from millrace.systems.groundwater import gno as ops
from millrace.systems.groundwater.gno import NeighbourTable, embed, gno, kernel_sum
from millrace.systems.groundwater.graph import radius_neighbours

N_POINTS, N_OUT, SAMPLES, CHANNELS = 120, 70, 3, 5
RADIUS = 0.3


@pytest.fixture
def points():
    random = np.random.default_rng(0)
    return random.random((N_POINTS, 3)), random.random((N_OUT, 3))


@pytest.fixture
def table(points):
    y, x = points
    return NeighbourTable.from_csr(radius_neighbours(y, x, RADIUS), N_POINTS)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_equals_library_layer(points, table, reduction, dtype, tolerance):
    torch.manual_seed(0)
    block = GNOBlock(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        coord_dim=3,
        radius=RADIUS,
        reduction=reduction,
        channel_mlp_layers=[16, 24],
        use_torch_scatter_reduce=False,
        use_open3d_neighbor_search=False,
    ).to(dtype)
    y, x = (torch.tensor(p, dtype=dtype) for p in points)
    f_BNC = torch.randn(SAMPLES, N_POINTS, CHANNELS, dtype=dtype, requires_grad=True)
    weights = torch.randn(SAMPLES, N_OUT, CHANNELS, dtype=dtype)
    inputs = [f_BNC, *block.parameters()]

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # the library allocates and embeds in the default type
    try:
        expected = block(y, x, f_BNC)
        expected_grads = torch.autograd.grad((expected * weights).sum(), inputs)
        y_embedded, x_embedded = embed(block, y), embed(block, x)
    finally:
        torch.set_default_dtype(before)
    ours = gno(block, y_embedded, x_embedded, f_BNC.permute(2, 1, 0), table, reduction)
    ours = ours.permute(2, 1, 0)
    grads = torch.autograd.grad((ours * weights).sum(), inputs)

    assert relative(ours, expected) < tolerance
    for got, wanted in zip(grads, expected_grads, strict=True):
        assert relative(got, wanted) < 10 * tolerance


def test_gradient_matches_finite_differences(table):
    n_edges = len(table.index)
    kernel = torch.randn(2, n_edges, dtype=torch.float64, requires_grad=True)
    f = torch.randn(2, N_POINTS, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda k, g: kernel_sum(k, g, table), (kernel, f), fast_mode=True
    )


def test_output_points_without_neighbours_are_zero():
    lonely = NeighbourTable.from_csr(
        radius_neighbours(np.zeros((1, 3)), [[0.0, 0, 0], [1, 1, 1]], 0.1), 1
    )
    out = kernel_sum(torch.ones(2, 1), torch.full((2, 1, 1), 3.0), lonely)
    assert out.tolist() == [[[3.0], [0.0]], [[3.0], [0.0]]]


def test_without_any_neighbours_all_is_zero():
    alone = NeighbourTable.from_csr(radius_neighbours(np.zeros((1, 3)), np.ones((2, 3)), 0.1), 1)
    kernel, f = torch.ones(3, 0, requires_grad=True), torch.ones(3, 1, 4)
    assert torch.equal(kernel_sum(kernel, f, alone), torch.zeros(3, 2, 4))


def test_channels_in_turns_give_the_same(table, monkeypatch):
    kernel = torch.randn(5, len(table.index), requires_grad=True)
    f, weight = torch.randn(5, N_POINTS, 6, requires_grad=True), torch.randn(5, N_OUT, 6)
    found = []
    for channels in (5, 2):
        rows = len(table.indptr) + len(table.transposed_indptr) + 3 * len(table.index)
        monkeypatch.setattr(ops, "BAG_BYTES", channels * 4 * rows)
        made = kernel_sum(kernel, f, table)
        found.append([made, *torch.autograd.grad((made * weight).sum(), (kernel, f))])
    for whole, in_turns in zip(*found, strict=True):
        assert torch.equal(whole, in_turns)
    assert table.bags(5).channels == 2


def test_gradients_are_deterministic(table):
    kernel = torch.randn(4, len(table.index), requires_grad=True)
    f = torch.randn(4, N_POINTS, 6, requires_grad=True)
    runs = [
        torch.autograd.grad(kernel_sum(kernel, f, table).square().sum(), (kernel, f))
        for _ in range(3)
    ]
    for first, *others in zip(*runs, strict=True):
        assert all(torch.equal(first, other) for other in others)


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()

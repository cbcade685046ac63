"""Fourier layers in real arithmetic against those of the library, in double precision."""

import copy

import pytest
import torch
from neuralop.layers.fno_block import FNOBlocks

from millrace.systems.groundwater.fourier import FourierLayers, complex_weights, real_weights
from millrace.training.parallel.state import load_full_state

SAMPLES, CHANNELS, LAYERS = 3, 4, 3
# Even grids, one with all modes of all axes, and odd ones, which the library shifts.
GRIDS = {(8, 6, 6): (4, 4, 4), (4, 6, 4): (4, 6, 4), (7, 5, 9): (3, 4, 5), (5, 5, 5): (5, 5, 5)}


@pytest.fixture(params=GRIDS, ids=str)
def case(request):
    """Layers of the library and ours with the same weights, and a grid."""
    torch.manual_seed(0)
    grid = request.param
    theirs = FNOBlocks(CHANNELS, CHANNELS, GRIDS[grid], n_layers=LAYERS, use_channel_mlp=False)
    for conv in theirs.convs:
        conv.weight.tensor.data = conv.weight.tensor.data.to(torch.complex128)
    ours = FourierLayers(copy.deepcopy(theirs.double()))
    return theirs, ours, grid


def test_values_and_gradients_equal_those_of_the_library(case):
    """To single precision, in which the library keeps its modes."""
    theirs, ours, grid = case
    x_BCG = torch.randn(SAMPLES, CHANNELS, *grid, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x_BCG)
    expected = x_BCG
    for layer in range(LAYERS):
        expected = theirs(expected, layer)
    found = (
        ours(x_BCG.flatten(2).permute(2, 0, 1), ours.basis(grid))
        .permute(1, 2, 0)
        .unflatten(2, grid)
    )
    assert difference(found, expected) < 1e-6
    own, its = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert own.keys() == its.keys()
    mine = torch.autograd.grad((found * weight).sum(), [x_BCG, *own.values()])
    wanted = torch.autograd.grad((expected * weight).sum(), [x_BCG, *(its[n] for n in own)])
    for name, one, other in zip(["x", *own], mine, wanted, strict=True):
        other = real_weights(other) if other.is_complex() else other
        assert difference(one, other) < 3e-6, name


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gradients_are_those_of_the_values(grid):
    layers = FourierLayers(FNOBlocks(2, 2, GRIDS[grid], n_layers=2, use_channel_mlp=False)).double()
    x_GBC = torch.randn(torch.Size(grid).numel(), 1, 2, dtype=torch.float64, requires_grad=True)
    inputs = (x_GBC, *layers.parameters())
    assert torch.autograd.gradcheck(
        lambda x, *_: layers(x, layers.basis(grid)), inputs, fast_mode=True
    )


def difference(found, expected):
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())


def test_parameters_stand_in_the_order_of_the_library(case):
    """Optimisers number their moments so."""
    theirs, ours, _ = case
    assert [name for name, _ in ours.named_parameters()] == [
        n for n, _ in theirs.named_parameters()
    ]


def test_state_dicts_are_those_of_the_library(case):
    theirs, ours, _ = case
    stored = theirs.state_dict()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, stored[name]), name
    before = {name: p.clone() for name, p in ours.named_parameters()}
    for parameter in ours.parameters():
        parameter.data.zero_()
    ours.load_state_dict(theirs.state_dict())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_an_optimiser_goes_on_with_moments_of_the_library(case):
    """Checkpoints of earlier versions have complex ones."""
    theirs, ours, grid = case
    x_BCG = torch.randn(SAMPLES, CHANNELS, *grid, dtype=torch.float64)
    steps = {
        theirs: lambda: theirs(theirs(x_BCG, 0), 1).square().sum(),
        ours: lambda: ours(x_BCG.flatten(2).permute(2, 0, 1), ours.basis(grid)).square().sum(),
    }
    del theirs.convs[2:], theirs.fno_skips[2:], ours.convs[2:], ours.fno_skips[2:]
    theirs.n_layers = 2
    optimizers = {one: torch.optim.AdamW(one.parameters(), lr=1e-3) for one in steps}
    steps[theirs]().backward()
    optimizers[theirs].step()
    state = {"model": theirs.state_dict(), "optimizer": optimizers[theirs].state_dict()}
    names = [name for name, _ in ours.named_parameters()]
    load_full_state(copy.deepcopy(state), optimizers[ours], ours, names, None)
    for one, loss in steps.items():
        one.zero_grad()
        loss().backward()
        optimizers[one].step()
    wanted = theirs.state_dict()
    for name, value in ours.state_dict().items():
        assert difference(value, wanted[name]) < 1e-6, name
        assert not torch.equal(value, state["model"][name]) or "bias" in name


def test_real_and_complex_weights_are_the_same_numbers():
    given = torch.randn(2, 3, 4, 5, 6, dtype=torch.complex64)
    real = real_weights(given)
    assert real.shape == (4 * 5 * 6, 2, 2 * 3)
    assert real[7, 1, 2] == given[1, 2, 0, 1, 1].real
    assert real[7, 1, 3 + 2] == given[1, 2, 0, 1, 1].imag
    assert torch.equal(complex_weights(real, (4, 5, 6)), given)

"""GINO as a whole against the library's model with the same weights."""

import numpy as np
import pytest
import torch
from neuralop.layers.neighbor_search import native_neighbor_search

from millrace.data.samples import open_dataset
from millrace.systems.groundwater.gino import SPEC, library_model
from millrace.systems.groundwater.settings import GinoConfig

CPU = torch.device("cpu")


@pytest.fixture
def case(samples, definition):
    torch.manual_seed(0)
    dataset = open_dataset("patches", samples, definition["data"], CPU)
    parameters = {k: v for k, v in definition["model"].items() if k != "name"}
    config = GinoConfig(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in parameters.items()}
    )
    return SPEC.build(config, dataset), dataset.batch("train", 1, np.arange(4)), config


def test_forecasts_and_gradients_equal_those_of_the_library_model(case):
    model, batch, config = case
    geometry = batch.geometry
    # The library finds the neighbours itself; on lattices it may decide exact ties differently.
    theirs = native_neighbor_search(geometry.latent_G3, geometry.points_N3, config.radius)
    ours = geometry.from_latent
    n_edges = int(theirs["neighbors_row_splits"][geometry.n_core])
    assert theirs["neighbors_index"][:n_edges].tolist() == ours.index.tolist()
    library = library_model(
        config, batch.x_NBC.shape[2], model.output_shape[0] * len(batch.scale_V)
    )
    library.load_state_dict(model.net.state_dict())
    change_BKC = library(
        input_geom=geometry.points_N3.unsqueeze(0),
        latent_queries=geometry.latent_G3.reshape(1, *geometry.latent_shape, 3),
        output_queries=geometry.points_N3[: geometry.n_core].unsqueeze(0),
        x=batch.x_NBC.transpose(0, 1),
    )
    change = change_BKC.transpose(0, 1).unflatten(2, model.output_shape)
    expected = batch.last_KBV.unsqueeze(2) + model.increment_scale_V * change
    forecast = model(batch)
    assert difference(forecast, expected) < 1e-5
    weight = torch.randn_like(expected)
    for values in (forecast, expected):
        (values * weight).sum().backward()
    # Through their state dicts, which hold weights and here gradients in the format of the library.
    gradients = []
    for module in (model.net, library):
        for parameter in module.parameters():
            parameter.data = parameter.grad
        gradients.append(tensors(module))
    mine, its = gradients
    assert mine.keys() == its.keys()
    for name, value in mine.items():
        assert difference(value, its[name]) < 1e-5, name


def tensors(module):
    """Without the metadata of the library."""
    return {k: v.detach() for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}


def difference(found, expected):
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())


def test_weights_of_the_library_load(case):
    model, batch, config = case
    library = library_model(
        config, batch.x_NBC.shape[2], model.output_shape[0] * len(batch.scale_V)
    )
    model.net.load_state_dict(library.state_dict())
    for name, value in tensors(model.net).items():
        assert torch.equal(value, library.state_dict()[name]), name


def test_untrained_network_of_zeros_is_persistence(case):
    model, batch, _ = case
    with torch.no_grad():
        for parameter in model.net.projection.fcs[-1].parameters():
            parameter.zero_()
        forecast = model(batch)
    expected = batch.last_KBV.unsqueeze(2).expand_as(forecast)
    torch.testing.assert_close(forecast, expected)

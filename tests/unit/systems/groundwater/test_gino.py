"""GINO as a whole against the library's model with the same weights."""

import numpy as np
import pytest
import torch
from neuralop.layers.neighbor_search import native_neighbor_search

from millrace.data.samples import open_dataset
from millrace.systems.groundwater.gino import SPEC
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


def test_equals_the_library_model(case):
    model, batch, config = case
    geometry = batch.geometry
    # The library finds the neighbours itself; on lattices it may decide exact ties differently.
    theirs = native_neighbor_search(geometry.latent_G3, geometry.points_N3, config.radius)
    ours = geometry.from_latent
    n_edges = int(theirs["neighbors_row_splits"][geometry.n_core])
    assert theirs["neighbors_index"][:n_edges].tolist() == ours.index.tolist()
    with torch.no_grad():
        change_BKC = model.net(
            input_geom=geometry.points_N3.unsqueeze(0),
            latent_queries=geometry.latent_G3.reshape(1, *geometry.latent_shape, 3),
            output_queries=geometry.points_N3[: geometry.n_core].unsqueeze(0),
            x=batch.x_NBC.transpose(0, 1),
        )
        change = change_BKC.transpose(0, 1).unflatten(2, model.output_shape)
        expected = batch.last_KBV.unsqueeze(2) + model.increment_scale_V * change
        difference = (model(batch) - expected).abs().max() / expected.abs().max()
    assert difference < 1e-5


def test_untrained_network_of_zeros_is_persistence(case):
    model, batch, _ = case
    with torch.no_grad():
        for parameter in model.net.projection.fcs[-1].parameters():
            parameter.zero_()
        forecast = model(batch)
    expected = batch.last_KBV.unsqueeze(2).expand_as(forecast)
    torch.testing.assert_close(forecast, expected)

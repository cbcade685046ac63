import dataclasses
import shutil

import h5py
import numpy as np
import pytest
import torch

from millrace.errors import ConfigError
from millrace.models.settings import LossConfig
from millrace.systems.groundwater.gfno import GFNO, SPEC
from millrace.systems.groundwater.neuraloperator import ChannelMLP, FNOBlocks
from millrace.systems.groundwater.plane_dataset import PlaneDataset
from millrace.systems.groundwater.settings import GfnoConfig, PlaneWindowConfig

DATA = PlaneWindowConfig(input_steps=4, output_steps=4, stride=2, radius=0.4)
CONFIG = GfnoConfig(gno_channels=4, kernel_widths=(8, 8), modes=(3, 4, 4), hidden=8, layers=2)


def _build(dataset, seed=0):
    torch.manual_seed(seed)
    return SPEC.build(CONFIG, dataset)


@pytest.fixture
def dataset(plane_samples):
    return PlaneDataset(plane_samples, DATA)


def test_forecast_has_the_shape_of_the_target(dataset):
    batch = dataset.batch("train", 0, np.arange(3))
    model = _build(dataset)
    assert isinstance(model, GFNO)
    assert SPEC.predict(model, batch).shape == batch.y_KBTV.shape
    assert SPEC.loss(model, batch, LossConfig()).shape == (3,)


def test_zero_network_is_persistence(dataset):
    batch = dataset.batch("train", 1, np.arange(2))
    model = _build(dataset)
    for parameter in model.projection.parameters():
        torch.nn.init.zeros_(parameter)
    expected = batch.last_KBV.unsqueeze(2).expand_as(batch.y_KBTV)
    torch.testing.assert_close(model(batch), expected)


@pytest.mark.parametrize("kind", ["mse", "relative_l2"])
def test_every_parameter_gets_a_gradient(dataset, kind):
    batch = dataset.batch("train", 0, np.arange(3))
    model = _build(dataset)
    SPEC.loss(model, batch, LossConfig(kind=kind)).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_batch_equals_its_samples(dataset):
    model = _build(dataset)
    batch = dataset.batch("train", 1, np.array([4, 1, 2]))
    together = model(batch)
    for b, window in enumerate([4, 1, 2]):
        alone = model(dataset.batch("train", 1, np.array([window])))
        assert (together[:, b] - alone[:, 0]).abs().max() < 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_graph_layer_equals_the_library(dataset, dtype, tolerance):
    batch = dataset.batch("train", 0, np.arange(2))
    torch.set_default_dtype(dtype)  # which the library takes for its embeddings and sums
    try:
        model = _build(dataset).to(dtype)
        geometry = dataclasses.replace(
            batch.geometry,
            boundary_N3=batch.geometry.boundary_N3.to(dtype),
            latent_G3=batch.geometry.latent_G3.to(dtype),
        )
        x_NBC = batch.x_NBC.to(dtype)
        prepared = model.prepared(geometry)[:2]
        ours_BGC = model.encode(x_NBC, geometry.into_latent, *prepared).permute(2, 1, 0)
        stock_BGC = model.gno(
            y=geometry.boundary_N3, x=geometry.latent_G3, f_y=model.boundary(x_NBC).transpose(0, 1)
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert stock_BGC.dtype == ours_BGC.dtype == dtype
    assert ours_BGC.abs().max() > 1e-3
    assert (ours_BGC - stock_BGC).abs().max() <= tolerance


@pytest.mark.parametrize("rubbish", [-999.0, np.nan])
def test_masked_cells_change_nothing(dataset, plane_samples, tmp_path, rubbish):
    spoilt = tmp_path / "planes.h5"
    shutil.copy(plane_samples, spoilt)
    with h5py.File(spoilt, "r+") as file:
        for name in ("plane_00", "plane_01"):
            field, outside = file[name]["field"][()], file[name]["mask"][()] == 0
            assert outside.any()
            field[:, outside] = rubbish
            file[name]["field"][()] = field
    results = []
    for samples in (dataset, PlaneDataset(spoilt, DATA)):
        model = _build(samples)
        loss = SPEC.loss(model, samples.batch("train", 0, np.arange(3)), LossConfig(kind="mse"))
        loss.sum().backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)


def test_layers_on_the_grid_equal_those_of_the_library(dataset):
    batch = dataset.batch("train", 0, np.arange(2))
    model, geometry = _build(dataset), batch.geometry
    blocks, hidden = model.fno_blocks, len(model.fno_blocks.fno_skips[0].conv.weight)
    modes = model.fno_blocks.convs[0].weight.state_dict()["tensor"].shape[2:]
    theirs = FNOBlocks(
        in_channels=hidden,
        out_channels=hidden,
        n_modes=(*modes[:2], 2 * (modes[2] - 1)),
        n_layers=len(blocks.convs),
        use_channel_mlp=False,
    )
    theirs.load_state_dict(blocks.state_dict())
    lifting, projection = (
        ChannelMLP(mlp.fcs[0].in_channels, mlp.fcs[1].out_channels, mlp.fcs[0].out_channels)
        for mlp in (model.lifting, model.projection)
    )
    lifting.load_state_dict(model.lifting.state_dict())
    projection.load_state_dict(model.projection.state_dict())
    x_CGB = model.encode(batch.x_NBC, geometry.into_latent, *model.prepared(geometry)[:2])
    x_BCG = x_CGB.permute(2, 0, 1)
    x_BCTHW = x_BCG.unflatten(2, geometry.latent_shape)
    h_BCTHW = lifting(torch.cat([x_BCTHW, batch.features_BFTHW], dim=1))
    for layer in range(len(blocks.convs)):
        h_BCTHW = theirs(h_BCTHW, layer)
    change_BVTK = projection(h_BCTHW).flatten(3)[..., geometry.cell_K]
    expected = model.forecast(batch, change_BVTK.permute(3, 0, 2, 1))
    assert (model(batch) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_masked_cells_are_not_forecast(dataset):
    batch, model, seen = dataset.batch("train", 0, np.arange(2)), _build(dataset), []
    model.projection.register_forward_hook(lambda *call: seen.append(call[2].shape[1]))
    model(batch)
    geometry = batch.geometry
    outside = geometry.latent_shape[1] * geometry.latent_shape[2] - len(geometry.cell_K)
    assert outside > 0
    assert seen == [2 * geometry.latent_shape[0] * len(geometry.cell_K)]


def test_modes_must_fit_the_grid(dataset):
    with pytest.raises(ConfigError, match=r"model.modes \[6, 8, 8\]"):
        SPEC.build(GfnoConfig(), dataset)


def test_sizes_are_positive():
    with pytest.raises(ConfigError, match="1 or more"):
        GfnoConfig.parse({"layers": 0}, "model")

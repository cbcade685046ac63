"""The diffusion downscaler: closed forms of EDM, conserved means, noise that only its seed decides."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch.utils._pytree import tree_map_only

from millrace.errors import ConfigError
from millrace.systems.downscaling import diffusion as downscaler
from millrace.systems.downscaling import regression
from millrace.systems.downscaling.dataset import BlockDataset
from millrace.systems.downscaling.diffusion import (
    SIGMA_DATA,
    SIGMA_MAX,
    preconditioning,
    recentred,
)
from millrace.systems.downscaling.sampling import SamplerConfig, carried, integrate, sample
from millrace.systems.downscaling.settings import (
    BlockDatasetConfig,
    DownscalerConfig,
    RegressionConfig,
)
from millrace.training.batches import sample_seeds


@pytest.fixture(scope="module")
def dataset(block_samples):
    return BlockDataset(block_samples, BlockDatasetConfig())


@pytest.fixture(scope="module")
def model(dataset):
    torch.manual_seed(0)
    return downscaler.SPEC.build(DownscalerConfig(channels=(8, 8, 8), embedding=8), dataset)


def test_preconditioning_keeps_variances_at_one():
    sigma = torch.tensor([0.002, 0.3, 1.0, 80.0], dtype=torch.float64)
    skip, out, into = preconditioning(sigma)
    total = sigma**2 + SIGMA_DATA**2
    torch.testing.assert_close(into**2 * total, torch.ones_like(sigma))
    # What F has to give: (y - skip (y + n)) / out has variance 1 (EDM, appendix B.6).
    variance = ((1 - skip) * SIGMA_DATA) ** 2 + (skip * sigma) ** 2
    torch.testing.assert_close(variance / out**2, torch.ones_like(sigma))
    torch.testing.assert_close(downscaler.loss_weight(sigma) * out**2, torch.ones_like(sigma))


class Gaussian(torch.nn.Module):
    """The perfect network for independent normal values: in deviations of the data."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = mean * SIGMA_DATA, std * SIGMA_DATA

    def raw(self, scaled, sigma_B1, batch):
        sigma = sigma_B1[..., None]
        skip, out, into = preconditioning(sigma)
        x = scaled / into
        best = (self.std**2 * x + sigma**2 * self.mean) / (self.std**2 + sigma**2)
        return (best - skip * x) / out


@pytest.mark.parametrize("solver", ["dpm", "euler"])
def test_sampler_draws_from_a_normal_distribution(dataset, monkeypatch, solver):
    monkeypatch.setattr("millrace.systems.downscaling.sampling.recentred", lambda x, batch: x)
    batch = dataset.at_times(np.arange(4))
    noise = torch.randn(batch.y_BNV.shape, generator=torch.Generator().manual_seed(0))
    config = SamplerConfig(steps=20, solver=solver)
    drawn = integrate(Gaussian(0.7, 0.4), noise, batch, config)
    assert float(drawn.mean()) == pytest.approx(0.7, abs=0.02)
    assert float(drawn.std()) == pytest.approx(0.4, rel=0.02 if solver == "dpm" else 0.2)


def _spread(std, steps):
    """Deviation of what is drawn over the exact one, for normal values of ``std``, less 1."""

    def raw(scaled, sigma_B):
        return Gaussian(0.0, std / SIGMA_DATA).raw(scaled, sigma_B[:, None], None)

    drawn = carried(raw, torch.ones(1, 1, 1, dtype=torch.float64), SamplerConfig(steps=steps))
    begun = math.sqrt((SIGMA_MAX**2 + 1) / (SIGMA_MAX**2 + std**2))
    return float(drawn) / (begun * std) - 1


@pytest.mark.parametrize("std", [1.0, 6.0])
def test_solver_is_of_second_order(std):
    assert _spread(std, 32) / _spread(std, 64) == pytest.approx(4, rel=0.1)
    assert abs(_spread(std, 128)) < 1e-3


@pytest.mark.parametrize("std", [0.2, 0.5, 2.0, 6.0])
def test_few_steps_leave_the_spread_on_all_scales(std):
    assert abs(_spread(std, SamplerConfig().steps)) < 0.03


def test_samples_conserve_block_means_exactly(dataset, model):
    batch = dataset.at_times(np.array([0, 3]))
    drawn = sample(model, batch, SamplerConfig(members=2, steps=3), [0, 3])
    share = batch.geometry.share_N.view(80, -1)
    means = (drawn.reshape(2, 2, 80, -1) * share).sum(dim=3)
    assert drawn.std() > 0.01
    assert means.abs().max() < 1e-5
    assert torch.equal(
        recentred(batch.y_BNV * 0 + 3.0, batch).abs() < 1e-5, batch.y_BNV == batch.y_BNV
    )


def test_a_member_depends_on_seed_time_and_number_alone(dataset, model):
    config = SamplerConfig(members=2, steps=2)
    both = sample(model, dataset.at_times(np.array([0, 3])), config, [0, 3])
    alone = sample(model, dataset.at_times(np.array([3])), config, [3])
    torch.testing.assert_close(both[:, 1], alone[:, 0], atol=1e-4, rtol=1e-4)
    other = sample(model, dataset.at_times(np.array([3])), config.replaced(seed=1), [3])
    assert (other - alone).abs().max() > 0.1
    assert (alone[0] - alone[1]).abs().max() > 0.1


def test_noise_follows_from_each_samples_seed(dataset):
    config, batch = DownscalerConfig(), dataset.at_times(np.arange(3))
    seeds = sample_seeds(0, "train", 2, 0, np.array([5, 9, 1]))
    noisy = downscaler.with_noise(config, batch, seeds)
    again = downscaler.with_noise(config, dataset.at_times(np.array([1])), seeds[1:2])
    assert torch.equal(noisy.noise_BNV[1], again.noise_BNV[0])
    assert torch.equal(noisy.sigma_BL[1], again.sigma_BL[0])
    assert noisy.sigma_BL.shape == (3, 1)
    assert len(noisy.sigma_BL.unique()) == 3


def test_seeds_differ_between_epochs_splits_and_samples_but_not_layouts():
    index = np.arange(100)
    sets = [
        sample_seeds(seed, split, epoch, 0, index)
        for seed in (0, 1)
        for split in ("train", "validation")
        for epoch in (0, 1)
    ]
    assert len(np.unique(np.concatenate(sets))) == 800
    assert np.array_equal(sample_seeds(0, "train", 0, 0, index[1::2]), sets[0][1::2])


def test_noise_levels_are_log_normal(dataset):
    batch = dataset.at_times(np.zeros(400, dtype=int))
    small = dataclasses.replace(batch, y_BNV=batch.y_BNV[:, :1])
    noisy = downscaler.with_noise(DownscalerConfig(), small, np.arange(400))
    assert float(noisy.sigma_BL.log().mean()) == pytest.approx(-1.2, abs=0.2)
    assert float(noisy.sigma_BL.log().std()) == pytest.approx(1.2, rel=0.1)


OF_BLOCKS = DownscalerConfig(architecture="mlp", noise_levels="block")


def test_levels_of_blocks_are_independent_and_log_normal(dataset):
    batch, seeds = dataset.at_times(np.arange(3)), np.array([5, 9, 1])
    noisy = downscaler.with_noise(OF_BLOCKS, batch, seeds)
    again = downscaler.with_noise(OF_BLOCKS, dataset.at_times(np.array([1])), seeds[1:2])
    assert torch.equal(noisy.sigma_BL[1], again.sigma_BL[0])
    small = dataclasses.replace(
        dataset.at_times(np.zeros(400, dtype=int)), y_BNV=batch.y_BNV[:, :1]
    )
    level_BM = downscaler.with_noise(OF_BLOCKS, small, np.arange(400)).sigma_BL.log()
    assert level_BM.shape == (400, 80)
    assert float(level_BM.mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(level_BM.std()) == pytest.approx(1.2, rel=0.02)
    deviation_MM = torch.corrcoef(level_BM.T) - torch.eye(80)
    assert float(deviation_MM.std()) == pytest.approx(400**-0.5, rel=0.1), "of independent ones"


def _in_double(batch):
    return tree_map_only(torch.Tensor, lambda x: x.double() if x.is_floating_point() else x, batch)


def test_loss_of_levels_of_blocks_is_the_mean_of_the_losses_of_blocks(block_samples):
    dataset = BlockDataset(block_samples, BlockDatasetConfig())
    model = downscaler.SPEC.build(OF_BLOCKS, dataset).double()
    torch.nn.init.normal_(model.net.rest[-1].weight, std=0.1)
    times, seeds = np.array([2, 3]), np.array([3, 4])
    noisy = downscaler.with_noise(OF_BLOCKS, _in_double(dataset.at_times(times)), seeds)
    losses_MB = []
    for block in range(80):
        # All blocks at the level of this one, as with a level for each sample.
        sigma_B1 = noisy.sigma_BL[:, block, None]
        at_one = dataclasses.replace(noisy, sigma_BL=sigma_B1)
        error_BMK = (model(at_one) - noisy.y_BNV).reshape(2, 80, -1)
        weight_B = (sigma_B1[:, 0] ** 2 + 0.25) / (sigma_B1[:, 0] * 0.5) ** 2
        losses_MB.append(weight_B * 0.25 * error_BMK[:, block].square().mean(dim=1))
    found_B = downscaler.denoising_loss(model, noisy, None)
    torch.testing.assert_close(found_B, torch.stack(losses_MB).mean(dim=0), rtol=1e-12, atol=0)
    assert found_B.dtype == torch.float64
    gradients = (
        torch.autograd.grad(loss_B.sum(), list(model.parameters()))
        for loss_B in (found_B, torch.stack(losses_MB).mean(dim=0))
    )
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_mlp_begins_linear_and_loses_nothing_of_a_field_on_its_way(block_samples):
    net = downscaler.SPEC.build(OF_BLOCKS, BlockDataset(block_samples, BlockDatasetConfig())).net
    for layer in (net.first, net.rest[1], net.rest[3]):
        torch.nn.init.zeros_(layer.bias)

    def passed(x_SC):
        """What the positive and the negative one of each pair of channels tell."""
        positive, negative = net.rest[:-1](net.first(x_SC)).chunk(2, dim=1)
        return positive - negative

    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 1000, 16, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(passed(one - 2 * other), passed(one) - 2 * passed(other))
        # It ends as half as many channels.
        assert float(passed(one).square().sum() / one.square().sum()) == pytest.approx(0.5, abs=0.1)
        assert not net.rest[-1].weight.any(), "the loss begins at 1"


def test_noise_levels_of_blocks_are_for_blocks_that_are_drawn_alone():
    with pytest.raises(ConfigError, match=r"model: noise_levels: expected sample, got 'block'"):
        DownscalerConfig.parse({"noise_levels": "block"}, "model")
    assert "noise_levels" not in DownscalerConfig(architecture="mlp").essentials()
    assert OF_BLOCKS.essentials()["noise_levels"] == "block"


def test_blocks_have_no_seams(dataset, model):
    """What is changed in one block is felt in those beside it."""
    batch = downscaler.with_noise(
        DownscalerConfig(), dataset.at_times(np.array([2])), np.array([3])
    )
    changed = batch.noise_BNV.clone()
    changed[:, :16] += 1.0
    difference = model(batch) - model(dataclasses.replace(batch, noise_BNV=changed))
    reached = difference.abs().reshape(80, -1).amax(dim=1) > 1e-7
    beside = batch.geometry.block_neighbours_M3[0]
    assert reached[beside].all()


def test_mlp_sees_each_block_alone(block_samples):
    dataset = BlockDataset(block_samples, BlockDatasetConfig())
    model = downscaler.SPEC.build(DownscalerConfig(architecture="mlp"), dataset)
    batch = downscaler.with_noise(
        DownscalerConfig(), dataset.at_times(np.array([2])), np.array([3])
    )
    changed = batch.noise_BNV.clone()
    changed[:, :16] += 1.0
    difference = model(batch) - model(dataclasses.replace(batch, noise_BNV=changed))
    reached = difference.abs().reshape(80, -1).amax(dim=1) > 0
    assert reached.nonzero().flatten().tolist() == [0]
    assert batch.features_BNF.shape == (1, dataset.grid.n_cells, 0), "it takes none of cells"


def test_cells_are_given_their_local_time(block_samples):
    dataset, steps = BlockDataset(block_samples, BlockDatasetConfig(season=True)), np.array([0, 3])
    lon_N = np.arctan2(dataset.centres_N3[:, 1], dataset.centres_N3[:, 0])
    local_BN = 2 * np.pi * dataset.time[steps, None] + lon_N
    year_B1 = 2 * np.pi * dataset.time[steps, None] / 365.2425
    given_BNF = dataset.at_times(steps).features_BNF[..., 1:].numpy()
    for number, angle in enumerate((local_BN, year_B1)):
        np.testing.assert_allclose(given_BNF[..., 2 * number], np.sin(angle) + 0 * lon_N, atol=1e-6)
        np.testing.assert_allclose(
            given_BNF[..., 2 * number + 1], np.cos(angle) + 0 * lon_N, atol=1e-6
        )


def test_regression_conserves_block_means(dataset):
    model = regression.SPEC.build(RegressionConfig(channels=(8, 8, 8)), dataset)
    batch = dataset.at_times(np.array([1]))
    share = batch.geometry.share_N.view(80, -1)
    assert (model(batch).reshape(80, -1) * share).sum(dim=1).abs().max() < 1e-5


def test_bad_parameters(dataset):
    with pytest.raises(
        ConfigError, match=r"model\.architecture: expected one of nested_unet, mlp, got 'gan'"
    ):
        DownscalerConfig.parse({"architecture": "gan"}, "model")
    with pytest.raises(ConfigError, match="expected 3 numbers, one for each level"):
        downscaler.SPEC.build(DownscalerConfig(channels=(8, 8)), dataset)
    with pytest.raises(
        ConfigError, match=r"sampler\.solver: expected one of dpm, dpm3, euler, got 'heun'"
    ):
        SamplerConfig.parse({"solver": "heun"}, "sampler")
    with pytest.raises(ConfigError, match="steps: expected 20 or more for the solver euler, got 7"):
        SamplerConfig.parse({"solver": "euler"}, "sampler")


# What the schedule of the reference does even to a perfect network. Fields are a ring of points with
# a smooth, known covariance, for which the best denoiser is linear in Fourier space.

POINTS, FIELDS = 256, 200


def _eigenvalues():
    wave = torch.fft.fftfreq(POINTS, 1 / POINTS, dtype=torch.float64).abs()
    energy = (1 + (wave / 6) ** 2) ** -1.5
    return energy / energy.mean()


def _filtered(x, response):
    return torch.fft.ifft(torch.fft.fft(x) * response).real


def _lag1(x):
    return float((x * x.roll(1, -1)).mean() / (x * x).mean())


def _noise():
    return torch.randn(
        FIELDS, POINTS, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


def test_schedule_of_the_reference_fails_even_with_a_perfect_network():
    eigenvalues = _eigenvalues()
    truth = _filtered(_noise(), eigenvalues.sqrt())
    scheduler = DDPMScheduler(
        num_train_timesteps=50, beta_start=1e-4, beta_end=0.02, clip_sample=False
    )
    scheduler.set_timesteps(50)
    assert float(scheduler.alphas_cumprod[-1]) == pytest.approx(0.603, abs=1e-3)
    x, generator = _noise(), torch.Generator().manual_seed(1)
    for step in scheduler.timesteps:
        alpha = float(scheduler.alphas_cumprod[step])
        response = math.sqrt(1 - alpha) / (alpha * eigenvalues + 1 - alpha)
        x = scheduler.step(_filtered(x, response), step, x, generator=generator).prev_sample
    assert float(x.var() / truth.var()) < 0.8 or _lag1(x) < _lag1(truth) - 0.1


def test_schedule_of_edm_passes_with_a_perfect_network(dataset, monkeypatch):
    monkeypatch.setattr("millrace.systems.downscaling.sampling.recentred", lambda x, batch: x)
    eigenvalues = _eigenvalues() * SIGMA_DATA**2
    truth = _filtered(_noise(), _eigenvalues().sqrt())

    class Perfect(torch.nn.Module):
        def raw(self, scaled, sigma_B1, batch):
            sigma = sigma_B1[:1]
            skip, out, into = preconditioning(sigma)
            x = scaled / into
            best = _filtered(x, eigenvalues / (eigenvalues + sigma**2))
            return (best - skip * x) / out

    drawn = integrate(Perfect(), _noise(), dataset.at_times(np.array([0])), SamplerConfig())
    assert float(drawn.var() / truth.var()) == pytest.approx(1.0, abs=0.05)
    assert _lag1(drawn) == pytest.approx(_lag1(truth), abs=0.01)

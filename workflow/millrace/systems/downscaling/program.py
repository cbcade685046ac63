"""Downscalers as programs, see `millrace.evaluation.program`: the whole sampler, or the regression.

What all solvers of `diffusers` do with the noise and with what the network gives is linear, and the noise
levels are known beforehand: the sampler is the network, applied in a loop, and a matrix that says of which
sum of the noise and of all results so far each step goes on.

Shape suffixes: B samples, M blocks, N fine cells, V variables, S steps, R = 1 + S terms of these sums.
"""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from millrace.evaluation.program import BATCH, Program, Scaling, Value
from millrace.evaluation.trained_model import TrainedModel, finite
from millrace.systems.downscaling.dataset import DAY, YEAR, BlockBatch, BlockDataset
from millrace.systems.downscaling.diffusion import SIGMA_DATA, Downscaler, recentred
from millrace.systems.downscaling.geometry import BlockGeometry
from millrace.systems.downscaling.icon_source import Ints
from millrace.systems.downscaling.sampling import SamplerConfig, carried, integrate


class DownscalingProgram(nn.Module):
    """From block means, time (days since 1970) and, of a sampler, noise to a field on the fine cells.

    Cells are in the order of the file of the grid, in which ``order_N`` says where each one is.
    """

    def __init__(
        self,
        net: nn.Module,
        dataset: BlockDataset,
        order_N: Ints,
        sampler: SamplerConfig | None,
    ) -> None:
        super().__init__()
        self.net, stats = net, dataset.normalisation
        every = np.arange(dataset.grid.n_blocks)
        cut = dataset.grid.cut(every, every, 1.0)
        self._geometry: BlockGeometry = cut.on(dataset.device)
        self._season = dataset.config.season
        self.means = Scaling(stats.mean_V, stats.std_V)
        self.residuals = Scaling(0 * stats.std_V, stats.increment_std_V)
        self.register_buffer("lon_N", torch.from_numpy(cut.lon_N))
        self.register_buffer("order_N", torch.from_numpy(order_N))
        self.register_buffer("place_N", torch.from_numpy(np.argsort(order_N)))
        self.register_buffer("scale_V", 1 / torch.from_numpy(dataset.increment_scale).float())
        if sampler is not None:
            sigma_S, given_SR, made_R = linear_sampler(sampler)
            self.register_buffer("sigma_S", sigma_S)
            self.register_buffer("given_SR", given_SR)
            self.register_buffer("made_R", made_R)

    def forward(
        self, block_means_BMV: Tensor, time_B: Tensor, noise_BNV: Tensor | None = None
    ) -> Tensor:
        """The field, [B, N, V]."""
        batch = self._batch(block_means_BMV, time_B)
        if noise_BNV is None:
            residual_BNV = self.net(batch)
        else:
            residual_BNV = self._sampled(batch, noise_BNV[:, self.get_buffer("order_N")])
        own_BNV = block_means_BMV.repeat_interleave(self._per_block, dim=1)
        fields_BNV = own_BNV.double() + self.residuals.unrounded(residual_BNV)
        return fields_BNV[:, self.get_buffer("place_N")].float()

    @property
    def _per_block(self) -> int:
        return self._geometry.levels[0].size // self._geometry.n_blocks

    def _batch(self, block_means_BMV: Tensor, time_B: Tensor) -> BlockBatch:
        """As `BlockDataset.at_times` makes it."""
        coarse_BMV = self.means.normalised(block_means_BMV)
        own_BNV = coarse_BMV.repeat_interleave(self._per_block, dim=1)
        smooth_BNV = self._geometry.interpolation(coarse_BMV) - own_BNV
        time_B = time_B.double()
        angle_B = 2 * torch.pi * (time_B % DAY)
        local_BN = angle_B[:, None] + self.get_buffer("lon_N")
        clock, local = [angle_B.sin(), angle_B.cos()], [local_BN.sin(), local_BN.cos()]
        if self._season:
            year_B = 2 * torch.pi * (time_B % YEAR) / YEAR
            clock += [year_B.sin(), year_B.cos()]
            local += [x[:, None].expand_as(local_BN) for x in clock[2:]]
        features = [smooth_BNV * self.get_buffer("scale_V"), torch.stack(local, dim=2).float()]
        return BlockBatch(
            y_BNV=torch.zeros_like(own_BNV),
            coarse_BMV=coarse_BMV,
            features_BNF=torch.cat(features, dim=2),
            clock_BF=torch.stack(clock, dim=1).float(),
            weight_B=angle_B.float(),
            geometry=self._geometry,
        )

    def _sampled(self, batch: BlockBatch, noise_BNV: Tensor) -> Tensor:
        """What `integrate` gives."""
        net, sigma_S = cast(Downscaler, self.net), self.get_buffer("sigma_S")
        given_SR, made_R = self.get_buffer("given_SR"), self.get_buffer("made_R")
        terms_RBNV = torch.cat(
            [noise_BNV[None], noise_BNV.new_zeros(len(sigma_S), *noise_BNV.shape)]
        )

        def again(step: Tensor, terms_RBNV: Tensor) -> Tensor:
            return step < len(sigma_S)

        def advance(step: Tensor, terms_RBNV: Tensor) -> tuple[Tensor, Tensor]:
            at = step.reshape(1)
            scaled_BNV = _sum(given_SR.index_select(0, at)[0], terms_RBNV)
            sigma_B1 = sigma_S.index_select(0, at).expand(scaled_BNV.shape[0], 1)
            raw_BNV = net.raw(scaled_BNV, sigma_B1, batch)
            is_next = torch.arange(len(made_R), device=at.device) == step + 1
            return step + 1, torch.where(is_next[:, None, None, None], raw_BNV, terms_RBNV)

        step = torch.zeros((), dtype=torch.int64, device=noise_BNV.device)
        if torch.compiler.is_exporting():
            _, terms_RBNV = torch.while_loop(again, advance, (step, terms_RBNV))
        while not torch.compiler.is_exporting() and again(step, terms_RBNV):
            step, terms_RBNV = advance(step, terms_RBNV)
        return recentred(_sum(made_R, terms_RBNV) / SIGMA_DATA, batch)


def _sum(weight_R: Tensor, terms_RBNV: Tensor) -> Tensor:
    return torch.einsum("r,rbnv->bnv", weight_R, terms_RBNV)


def linear_sampler(config: SamplerConfig) -> tuple[Tensor, Tensor, Tensor]:
    """A solver as sums of the noise and of what the network F gives in each step.

    Returns the noise levels, [S]; what the network is given in each step, [S, R], and the end, [R], as
    weights of the noise and of the results of all steps.
    """
    levels, given = [], []

    def raw(scaled_1R: Tensor, sigma_1: Tensor) -> Tensor:
        levels.append(float(sigma_1))
        given.append(scaled_1R[0])
        return torch.eye(config.steps + 1, dtype=torch.float64)[len(levels)][None]

    noise = torch.eye(config.steps + 1, dtype=torch.float64)[:1]
    end = carried(raw, noise, config)[0]
    return torch.tensor(levels), torch.stack(given).float(), end.float()


def downscaling_program(model: TrainedModel, order_N: Ints, sampler: SamplerConfig) -> Program:
    """Program of a downscaler, and examples from its samples."""
    dataset: BlockDataset = model.dataset
    steps = np.arange(2)
    batch = dataset.at_times(steps)
    means = torch.from_numpy(dataset.coarse_physical(batch.coarse_BMV)).float().to(dataset.device)
    time = torch.from_numpy(dataset.time[steps]).double().to(dataset.device)
    place_N = torch.from_numpy(np.argsort(order_N))
    draws = isinstance(model.module, Downscaler)
    units = dict(zip(dataset.config.variables, dataset.units, strict=True))
    inputs = [
        Value("block_means", means, (BATCH, "block", "variable"), units,
              "means of the blocks, the cells of the coarse grid in their order"),
        Value("time", time, (BATCH,), "days since 1970-01-01 00:00:00", "of the fields (UTC)"),
    ]  # fmt: skip
    notes = ["Cells are in the order of the file of the grid."]
    random = torch.Generator().manual_seed(sampler.seed)
    noise = torch.randn(batch.y_BNV.shape, generator=random).to(dataset.device)

    @torch.no_grad()
    def own() -> Tensor:
        if isinstance(model.module, Downscaler):
            return integrate(model.module, noise, batch, sampler)
        return model.module(batch)

    if draws:
        inputs.append(
            Value("noise", noise[:, place_N], (BATCH, "cell", "variable"), "1",
                  "standard normal; each draw gives another member of the ensemble")
        )  # fmt: skip
        notes.append(f"The sampler takes {sampler.steps} steps of the solver {sampler.solver}.")
    of_block = means.double().repeat_interleave(dataset.grid.per_block, dim=1)
    fields = of_block + torch.from_numpy(dataset.to_physical(finite(own()))).to(of_block)
    options: Any = sampler if draws else None
    module = DownscalingProgram(model.module, dataset, order_N, options).to(dataset.device)
    return Program(
        module,
        inputs,
        outputs=[
            Value("field", fields[:, place_N].float(), (BATCH, "cell", "variable"), units,
                  "fields on the fine cells, which leave the means of the blocks as they are")
        ],
        own=own,
        labels={"variable": dataset.config.variables},
        notes=notes,
    )  # fmt: skip

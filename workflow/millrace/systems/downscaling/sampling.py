"""Ensembles of a diffusion model, by the samplers of `diffusers`.

Shape suffixes: N fine cells, B samples, V variables, E members.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from torch import Tensor

from millrace.config import Count, Seed, Settings, option
from millrace.data.device import to_device
from millrace.systems.downscaling.dataset import BlockBatch, BlockDataset
from millrace.systems.downscaling.diffusion import (
    SIGMA_DATA,
    SIGMA_MAX,
    Downscaler,
    recentred,
)

# Of normal values 7 steps of second order between levels at a constant factor, 4.5, leave the spread
# within 3 % on large scales, as 20 steps of third order between the levels of EDM do, because errors of
# opposite signs meet. What a trained model makes of it: docs/results.md.
SOLVERS: dict[str, Callable[..., Any]] = {
    "dpm": partial(
        EDMDPMSolverMultistepScheduler,
        solver_order=2,
        sigma_schedule="exponential",
        sigma_min=0.01,
    ),
    "dpm3": partial(EDMDPMSolverMultistepScheduler, solver_order=3, sigma_min=0.002, rho=7.0),
    "euler": partial(EDMEulerScheduler, sigma_min=0.002, rho=7.0),
}

_LEAST_STEPS = 20
HELD_BYTES = 1 << 30
"""Size of the samples of pieces that are kept while an ensemble is drawn."""


class SamplerConfig(Settings):
    """How samples are drawn."""

    members: Count = 10
    """Fields drawn for each time."""
    steps: int = option(7, ge=2, le=10**6)
    """Calls of the network for each."""
    solver: Literal["dpm", "dpm3", "euler"] = "dpm"
    """`dpm`: DPM-Solver++ of second order (Lu et al. 2022, arXiv:2211.01095). `dpm3`, of third order
    between the levels of EDM, with 20 steps what versions up to 0.2 drew; or `euler`: 20 steps and more."""
    seed: Seed = 0
    """Of the noise that is drawn."""

    def model_post_init(self, _: Any) -> None:
        """Refuse so few steps that members are too narrow or too wide by a third and more."""
        if self.solver != "dpm" and self.steps < _LEAST_STEPS:
            raise ValueError(
                f"steps: expected {_LEAST_STEPS} or more for the solver {self.solver}, got {self.steps}"
            )


@torch.no_grad()
def sample(
    module: Downscaler, batch: BlockBatch, config: SamplerConfig, times: Sequence[int]
) -> Tensor:
    """Draw an ensemble for each sample of a batch, normalised, [E, B, N, V].

    A member depends on (seed, time, member), not on what else is drawn; ``times`` are the time indices of
    the samples.
    """
    shape, members = batch.y_BNV.shape[1:], []
    for member in range(config.members):
        noise = torch.stack([_noise(shape, (config.seed, time, member)) for time in times])
        members.append(integrate(module, noise.to(batch.y_BNV), batch, config))
    return torch.stack(members)


@torch.no_grad()
def integrate(
    module: Downscaler, noise_BNV: Tensor, batch: BlockBatch, config: SamplerConfig
) -> Tensor:
    """Carry standard normal noise to samples whose block means are 0, [B, N, V]."""
    batch = replace(batch, sigma_BL=None, noise_BNV=None)

    def raw(scaled_BNV: Tensor, sigma_B: Tensor) -> Tensor:
        return module.raw(scaled_BNV, sigma_B[:, None], batch)

    x_BNV = carried(raw, noise_BNV, config)
    return recentred(x_BNV / SIGMA_DATA, batch)


@torch.no_grad()
def sample_grid(
    module: Downscaler,
    dataset: BlockDataset,
    config: SamplerConfig,
    time: int,
    number: int | None = None,
) -> Tensor:
    """Draw an ensemble at a time index on the whole grid, normalised, [E, N, V].

    The noise is that of the time ``number``, by default of the index. Of a grid that is divided into pieces
    the noisy fields of all members are in the memory of the host. In each step the network is applied to
    piece after piece with the noise on the blocks around it, so that the pieces do not show.
    """
    number = time if number is None else number
    if dataset.is_whole:
        return sample(module, dataset.at_times(np.array([time])), config, [number])[:, 0]
    shape = (dataset.grid.n_cells, len(dataset.config.variables))
    keys = [(config.seed, number, member) for member in range(config.members)]
    noise_ENV = torch.stack([_noise(shape, key) for key in keys])
    samples = _Samples(dataset, time)

    def raw(scaled_ENV: Tensor, sigma_E: Tensor) -> Tensor:
        def of_piece(batch: BlockBatch, member: int, given_1NV: Tensor) -> Tensor:
            return module.raw(given_1NV, sigma_E[:1, None].to(given_1NV.device), batch)

        return _in_pieces(of_piece, samples, scaled_ENV)

    x_ENV = carried(raw, noise_ENV, config) / SIGMA_DATA
    return _in_pieces(lambda batch, _, given: recentred(given, batch), samples, x_ENV)


@torch.no_grad()
def expected_grid(
    module: Callable[[BlockBatch], Tensor], dataset: BlockDataset, time: int
) -> Tensor:
    """What a deterministic module gives at a time index on the whole grid, normalised, [1, N, V]."""
    if dataset.is_whole:
        return module(dataset.at_times(np.array([time])))
    nothing_1NV = torch.zeros(1, dataset.grid.n_cells, len(dataset.config.variables))
    return _in_pieces(lambda batch, *_: module(batch), _Samples(dataset, time), nothing_1NV)


class _Samples:
    """Samples of all pieces of a grid at a time index, which each step of a solver asks for again.

    Up to `HELD_BYTES` of them are kept in the memory of the host, without their matrices, which the
    dataset keeps.
    """

    def __init__(self, dataset: BlockDataset, time: int) -> None:
        self.dataset, self._steps = dataset, np.array([time])
        self._held: dict[int, dict[str, Tensor]] = {}
        self._bytes = 0

    def batch(self, piece: int) -> BlockBatch:
        """The sample of a piece on the device."""
        if piece in self._held:
            held = {
                name: to_device(x, self.dataset.device) for name, x in self._held[piece].items()
            }
            return BlockBatch(geometry=self.dataset.geometry(piece), **held)
        batch = self.dataset.at_times(self._steps, piece=piece)
        tensors = {name: x for name, x in vars(batch).items() if isinstance(x, Tensor)}
        size = sum(x.nbytes for x in tensors.values())
        if self._bytes + size <= HELD_BYTES:
            self._bytes += size
            self._held[piece] = {name: x.cpu() for name, x in tensors.items()}
        return batch


def _in_pieces(
    function: Callable[[BlockBatch, int, Tensor], Tensor],
    samples: "_Samples",
    given_ENV: Tensor,
) -> Tensor:
    """Apply a function to the fields of each member on each piece, with those on the blocks around it.

    It is called with (batch of the piece, member, fields [1, N, V]); what it gives on own blocks counts.
    """
    made_ENV = torch.empty_like(given_ENV)
    dataset = samples.dataset
    given_EMKV, made_EMKV = (
        x.unflatten(1, (dataset.grid.n_blocks, -1)) for x in (given_ENV, made_ENV)
    )
    for piece in range(len(dataset.pieces)):
        batch, cut = samples.batch(piece), dataset.cut(piece)
        blocks_M, own_M = (torch.from_numpy(one) for one in (cut.blocks_M, dataset.pieces[piece]))
        for member in range(len(given_ENV)):
            part_1NV = given_EMKV[member, blocks_M].flatten(0, 1)[None].to(dataset.device)
            own_1NV = batch.geometry.own(function(batch, member, part_1NV))
            made_EMKV[member, own_M] = own_1NV[0].unflatten(0, (len(own_M), -1)).to(made_ENV)
    return made_ENV


def carried(
    raw: Callable[[Tensor, Tensor], Tensor], noise_BNV: Tensor, config: SamplerConfig
) -> Tensor:
    """Integrate from standard normal noise; ``raw`` is (scaled fields, noise level of each) -> F."""
    scheduler = SOLVERS[config.solver](sigma_max=SIGMA_MAX, sigma_data=SIGMA_DATA)
    scheduler.set_timesteps(config.steps, device=noise_BNV.device)
    x_BNV = noise_BNV * scheduler.init_noise_sigma
    for step, time in enumerate(scheduler.timesteps):
        sigma_B = scheduler.sigmas[step].to(x_BNV).expand(len(x_BNV))
        raw_BNV = raw(scheduler.scale_model_input(x_BNV, time), sigma_B)
        x_BNV = scheduler.step(raw_BNV, time, x_BNV).prev_sample
    return x_BNV


def _noise(shape: Sequence[int], key: tuple[int, ...]) -> Tensor:
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))

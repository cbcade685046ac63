"""Aurora: a foundation model of the atmosphere (Bodnar et al. 2025, Nature 641, 1180-1187).

A Perceiver maps the pressure levels to a few latent ones, a 3-D Swin U-Net works on them, a Perceiver maps
back. Own code after the paper; it may hold the weights of any grid whose sides divide by the patch.

Shape suffixes: B samples, T past steps, K future steps, C channels of a state (surface variables, then
each variable of the air level by level), I x J cells, N tokens, D channels of a token.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from millrace.errors import ConfigError
from millrace.systems.weather.aurora.config import AuroraConfig
from millrace.systems.weather.aurora.perceiver import Decoder, Encoder, Grid
from millrace.systems.weather.aurora.swin import (
    PatchMerging,
    PatchSplitting,
    Size,
    SwinBlock,
    coarser,
)

Carry = tuple[Tensor, ...]


class Aurora(nn.Module):
    """Forecast states of the atmosphere step by step.

    The network is a chain of units: the encoder, the ``blocks`` of the backbone, the decoder. `part` passes
    through some of them, so that the chain can be cut anywhere. ``shape`` is rows and columns of cells,
    ``steps`` the number of past states T.
    """

    to_published_2C: Tensor | None
    """See `millrace.systems.weather.aurora.perceiver.Grid`."""
    increment_scale_C: Tensor
    """Standard deviation of one-step changes over that of the variable."""

    def __init__(
        self,
        config: AuroraConfig,
        grid: Grid,
        shape: tuple[int, int],
        steps: int,
        increment_scale_C: Tensor,
    ) -> None:
        super().__init__()
        self.config, self.hours = config, grid.hours
        rows, columns = (cells // config.patch_size for cells in shape)
        self.encoder = Encoder(config, grid, steps)
        size = (config.latent_levels, rows, columns)
        self.blocks = _backbone(config, size, grid.periodic)
        self.decoder = Decoder(config, grid, rows)
        kinds = [type(block) for block in self.blocks]
        self._saved = kinds.index(PatchMerging)
        self._added = len(kinds) - 1 - kinds[::-1].index(PatchSplitting)
        self.register_buffer("increment_scale_C", increment_scale_C.float(), persistent=False)
        self.register_buffer("to_published_2C", grid.to_published_2C, persistent=False)
        if config.lora_rank:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(".lora_" in name)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Forecast a batch, [B, K, C, I, J] in normalised units; or pass through a `part` of the chain."""
        if options:
            return self.part(*arguments, **options)
        (batch,) = arguments
        whole: dict[str, Any] = {**stage_inputs(batch), "begin": 0, "end": self.units}
        states: Carry = ()
        for step in range(batch.steps):
            states = self.part(*states, **whole, step=step, steps=batch.steps)
        return states[0]

    @property
    def units(self) -> int:
        """Length of the chain."""
        return len(self.blocks) + 2

    def part(
        self,
        *carry: Tensor,
        past_BTCIJ: Tensor,
        hours_B: Tensor,
        begin: int,
        end: int,
        step: int,
        steps: int,
    ) -> Carry:
        """Pass through units ``begin`` to ``end``, after ``step`` of the ``steps`` of a rollout.

        ``carry`` is what the units before gave. At the beginning of the chain: the states forecast so far
        [B, step, C, I, J] (none at step 0); within it: tokens, the embedding of time, the tokens that the
        last resolution takes again (once they are passed), and the states so far. The given states and the
        time of the last of them are the same for all parts.
        """
        new, skip = carry[-1:] if step else (), carry[2:3] if begin - 1 > self._saved else ()
        if begin == 0:
            given = [states.detach() if self.config.push_forward else states for states in new]
            states = torch.cat([past_BTCIJ, *given], dim=1)[:, -past_BTCIJ.shape[1] :]
            if self.to_published_2C is not None:
                factor_C11, offset_C11 = self.to_published_2C[:, :, None, None]
                states = states * factor_C11 + offset_C11
            # Time advances with the forecast.
            x_BND, context_BD = self.encoder(states, hours_B + self.hours * step)
        else:
            x_BND, context_BD = carry[:2]
        for index in range(max(begin - 1, 0), min(end - 1, len(self.blocks))):
            if index == self._saved:
                skip = (x_BND,)
            x_BND = self.blocks[index](x_BND, context_BD)
            if index == self._added:
                x_BND = x_BND + skip[0]
        if end < self.units:
            return (x_BND, context_BD, *skip, *new)
        state_BCIJ = self.decoder(torch.cat([x_BND, skip[0]], dim=-1))
        if self.config.head == "residual":
            last_BCIJ = new[0][:, -1] if new else past_BTCIJ[:, -1]
            if new and self.config.push_forward:
                last_BCIJ = last_BCIJ.detach()
            state_BCIJ = last_BCIJ + self.increment_scale_C[:, None, None] * state_BCIJ
        elif self.to_published_2C is not None:
            factor_C11, offset_C11 = self.to_published_2C[:, :, None, None]
            state_BCIJ = (state_BCIJ - offset_C11) / factor_C11
        return (torch.cat([*new, state_BCIJ[:, None]], dim=1),)


class AuroraPart(nn.Module):
    """Some units of the chain at one step of a rollout: a stage of a pipeline.

    The module may have lost its other units, see `drop`.
    """

    def __init__(self, model: Aurora, begin: int, end: int, step: int = 0, steps: int = 1) -> None:
        super().__init__()
        self.model = model
        self.span = {"begin": begin, "end": end, "step": step, "steps": steps}

    def forward(self, *carry: Tensor, **inputs: Tensor) -> Any:
        """See `Aurora.part`; a single tensor is not wrapped."""
        given = carry if self.span["begin"] or self.span["step"] else ()
        out = self.model(*given, **inputs, **self.span)
        return out[0] if len(out) == 1 else out


def drop(model: Aurora, unit: int) -> None:
    """Remove a unit of the chain; the others keep their names."""
    if unit == 0:
        model.encoder = None  # type: ignore[assignment]
    elif unit == model.units - 1:
        model.decoder = None  # type: ignore[assignment]
    else:
        setattr(model.blocks, str(unit - 1), None)


def unit_costs(model: Aurora) -> list[float]:
    """Floating-point operations of each unit for a sample.

    All blocks do the same: halving the grid and doubling the channels leaves their work. What encoder and
    decoder do grows with the pressure levels: with 13 of them, the decoder does that of several blocks.
    """
    encoder = model.encoder
    levels, cells = len(encoder.level_LD), encoder.static_FIJ.shape[1:]
    past = encoder.air_tokens.in_features // (encoder.air * encoder.patch**2)
    channels = encoder.surface + encoder.air * levels
    span = {"begin": 0, "end": model.units, "step": 0, "steps": 1}
    # Tensors without content: nothing is computed.
    with FakeTensorMode(), torch.device("cpu"), torch.no_grad():
        tensors = itertools.chain(model.named_parameters(), model.named_buffers())
        values = {name: torch.empty(x.shape, dtype=x.dtype) for name, x in tensors}
        past_BTCIJ = torch.empty(1, past, channels, *cells)
        hours_B = torch.empty(1, dtype=torch.float64)
        # The counter does not know the fused attention of CPUs.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            inputs = {"past_BTCIJ": past_BTCIJ, "hours_B": hours_B}
            functional_call(model, values, (), span | inputs)
    counts, top = counter.get_flop_counts(), type(model).__name__
    return [float(sum(counts[f"{top}.{name}"].values())) for name in unit_names(model)]


def unit_names(model: Aurora) -> list[str]:
    """Names of the units along the chain."""
    return ["encoder", *(f"blocks.{i}" for i in range(len(model.blocks))), "decoder"]


def stage_inputs(batch: Any) -> Mapping[str, Tensor]:
    """What every stage of a pipeline gets of a batch."""
    return {"past_BTCIJ": batch.past_BTCIJ, "hours_B": batch.hours_B}


def _backbone(config: AuroraConfig, size: Size, periodic: bool) -> nn.ModuleList:
    sizes = [size, coarser(size), coarser(coarser(size))]
    blocks: list[nn.Module] = []
    rates = iter(np.linspace(0, config.drop_path, config.swin_blocks).tolist())

    def add(level: int, depth: int, heads: int) -> None:
        width = config.embed_dim << level
        for index in range(depth):
            shifted = index % 2 == 1
            drop = next(rates)
            blocks.append(SwinBlock(config, width, heads, sizes[level], shifted, drop, periodic))

    for level in range(3):
        add(level, config.encoder_depths[level], config.encoder_heads[level])
        if level < 2:
            blocks.append(PatchMerging(config.embed_dim << level, sizes[level]))
    for position, level in enumerate((2, 1, 0)):
        add(level, config.decoder_depths[position], config.decoder_heads[position])
        if level:
            blocks.append(PatchSplitting(config.embed_dim << level, sizes[level - 1]))
    return nn.ModuleList(blocks)


def check_grid(config: AuroraConfig, shape: tuple[int, int]) -> None:
    """Raise `ConfigError` if patches do not tile the grid."""
    if any(cells % config.patch_size or cells < 4 * config.patch_size for cells in shape):
        raise ConfigError(
            f"model.patch_size {config.patch_size}: does not divide the grid of {shape[0]} x {shape[1]} "
            "cells into at least 4 x 4 patches; take a smaller patch"
        )

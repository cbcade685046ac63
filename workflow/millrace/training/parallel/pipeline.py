"""Pipeline parallelism: the chain of a model cut into stages, by `torch.distributed.pipelining`.

Every process of a pipeline reads the same samples; between stages only tensors pass. A rollout is a longer
pipeline: its steps are stages that share their modules with those of the step before.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    PipelineScheduleMulti,
    PipelineScheduleSingle,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleLoopedBFS,
)

from millrace.models.spec import Division
from millrace.training.parallel.config import ParallelConfig


def stage_bounds(costs: Sequence[float], stages: int) -> list[tuple[int, int]]:
    """Cut a chain into stages of about equal cost, at least one unit each.

    Parameters
    ----------
    costs : sequence of float
        Of the units.
    stages : int
    """
    ends = np.cumsum(costs)
    cuts = [0]
    for stage in range(1, stages):
        wanted = ends[-1] * stage / stages
        cut = int(np.argmin(np.abs(ends - wanted))) + 1
        cuts.append(min(max(cut, cuts[-1] + 1), len(costs) - (stages - stage)))
    cuts.append(len(costs))
    return list(itertools.pairwise(cuts))


def stages(
    division: Division, module: nn.Module, config: ParallelConfig
) -> tuple[list[tuple[int, int]], list[float]]:
    """Units of each stage of one pass through a whole module, and how much work that is."""
    units = len(division.units(module))
    costs = division.costs(module) if config.stages > 1 else [1.0] * units
    bounds = stage_bounds(costs, config.stages)
    return bounds, [sum(costs[slice(*bound)]) for bound in bounds]


class Pipeline:
    """The stages of this process and the order of their work.

    Parameters
    ----------
    modules : mapping
        Index of a stage in the whole pipeline -> its module, for the stages of this process.
    total : int
        Stages of the whole pipeline.
    config : ParallelConfig
    group : ProcessGroup
        The processes of this pipeline.
    device : torch.device
    """

    def __init__(
        self,
        modules: dict[int, nn.Module],
        total: int,
        config: ParallelConfig,
        group: ProcessGroup,
        device: torch.device,
    ) -> None:
        self._parts = config.micro_batches or 1
        self._loss: Callable[[Tensor, int], Tensor] | None = None
        self._device = device
        for module in modules.values():
            module.register_forward_pre_hook(_send_contiguous_gradients)
        stages = [
            PipelineStage(module, index, total, device, group=group)
            for index, module in sorted(modules.items())
        ]
        self._has_first, self._has_last = 0 in modules, total - 1 in modules
        self._schedule: PipelineScheduleSingle | PipelineScheduleMulti
        if len(stages) == 1:
            single = ScheduleGPipe if config.schedule == "gpipe" else Schedule1F1B
            self._schedule = single(stages[0], self._parts, self._measure, scale_grads=False)
        else:
            many = ScheduleLoopedBFS if config.schedule == "gpipe" else ScheduleInterleaved1F1B
            self._schedule = many(list(stages), self._parts, self._measure, scale_grads=False)

    def run(
        self,
        inputs: dict[str, Tensor],
        loss: Callable[[Tensor, int], Tensor],
        backward: bool,
    ) -> Tensor:
        """Pass samples through, and their gradients back; the sum of the losses, on the last stage only.

        Parameters
        ----------
        inputs : dict
            What every stage gets, all micro-batches in one.
        loss : callable
            (output of the last stage, number of the micro-batch) -> a number.
        backward : bool
        """
        self._loss = loss
        samples = len(next(iter(inputs.values())))
        # What comes back to the loss says which micro-batch it is.
        number = torch.arange(samples) // (samples // self._parts)
        losses: list[Tensor] = []
        run: Any = self._schedule.step if backward else self._schedule.eval
        options: dict[str, Any] = {"target": number, "losses": losses} if self._has_last else {}
        # The first stage of torch's schedules wants a positional input, which it does not look at.
        first = (torch.zeros(samples, 1, device=self._device),) if self._has_first else ()
        run(*first, **options, **inputs)
        self._loss = None
        return torch.stack([x.detach() for x in losses]).sum() if losses else self._nothing()

    def _nothing(self) -> Tensor:
        return torch.zeros((), device=self._device)

    def _measure(self, output: Tensor, number: Tensor) -> Tensor:
        if number.is_meta or output.is_meta:
            return output.float().mean()  # torch asks for shapes first
        assert self._loss is not None
        return self._loss(output, int(number[0]))


def _send_contiguous_gradients(
    module: nn.Module, arguments: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Have the gradients of a stage's inputs in one piece: others cannot be sent."""
    return tuple(_ContiguousGradient.apply(x) if x.requires_grad else x for x in arguments)


class _ContiguousGradient(torch.autograd.Function):
    """The identity, whose gradient is contiguous."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()

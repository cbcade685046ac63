"""Pipeline parallelism: the chain of a model cut into stages, by `torch.distributed.pipelining`.

Every process of a pipeline reads the same samples; only tensors pass from stage to stage. A rollout is a
longer pipeline: the stages of a step share their modules with those of the step before.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from millrace.models.spec import Division
from millrace.training.parallel.config import ParallelConfig


def stage_bounds(costs: Sequence[float], stages: int) -> list[tuple[int, int]]:
    """Cut a chain of units with the given costs into stages of about equal cost, at least one unit each.

    Returns the first unit of each stage, and the one after its last.
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
    """Bounds of the stages of one pass through an undivided module, see `stage_bounds`, and their costs."""
    units = len(division.units(module))
    costs = division.costs(module) if config.stages > 1 else [1.0] * units
    bounds = stage_bounds(costs, config.stages)
    return bounds, [sum(costs[slice(*bound)]) for bound in bounds]


class Pipeline:
    """The stages of this process, and the schedule of their work.

    ``modules`` are those of this process by the index of their stage in the pipeline, which has ``total``
    stages; ``group`` holds the processes of the pipeline.
    """

    def __init__(
        self,
        modules: dict[int, nn.Module],
        total: int,
        config: ParallelConfig,
        group: ProcessGroup,
        device: torch.device,
    ) -> None:
        # Here, because few processes have a pipeline and torch's imports its compiler.
        from torch.distributed.pipelining import PipelineStage, schedules

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
        kinds: Any = (schedules.ScheduleGPipe, schedules.Schedule1F1B)
        if len(stages) > 1:
            kinds = (schedules.ScheduleLoopedBFS, schedules.ScheduleInterleaved1F1B)
        schedule = kinds[config.schedule != "gpipe"]
        given = stages[0] if len(stages) == 1 else stages
        self._schedule = schedule(given, self._parts, self._measure, scale_grads=False)

    def run(
        self, inputs: dict[str, Tensor], loss: Callable[[Tensor, int], Tensor], backward: bool
    ) -> Tensor:
        """Pass samples through the pipeline, and their gradients back if ``backward`` is true.

        ``inputs`` hold all micro-batches in one tensor; ``loss`` is (output of the last stage, number of
        the micro-batch) -> a number. Returns the sum of the losses, 0 on processes without the last stage.
        """
        self._loss = loss
        samples = len(next(iter(inputs.values())))
        # The target that torch passes to the loss is the number of the micro-batch.
        number = torch.arange(samples) // (samples // self._parts)
        losses: list[Tensor] = []
        run = self._schedule.step if backward else self._schedule.eval
        options: dict[str, Any] = {"target": number, "losses": losses} if self._has_last else {}
        # The first stage of torch's schedules needs a positional input, which it does not use.
        first = (torch.zeros(samples, 1, device=self._device),) if self._has_first else ()
        run(*first, **options, **inputs)
        self._loss = None
        nothing = torch.zeros((), device=self._device)
        return torch.stack([x.detach() for x in losses]).sum() if losses else nothing

    def _measure(self, output: Tensor, number: Tensor) -> Tensor:
        if number.is_meta or output.is_meta:
            return output.float().mean()  # torch infers shapes first
        assert self._loss is not None
        return self._loss(output, int(number[0]))


def _send_contiguous_gradients(
    module: nn.Module, arguments: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Make the gradients of a stage's inputs contiguous: others cannot be sent."""
    return tuple(_ContiguousGradient.apply(x) if x.requires_grad else x for x in arguments)


class _ContiguousGradient(torch.autograd.Function):
    """The identity, whose gradient is contiguous."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()

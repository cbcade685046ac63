"""The section ``parallel`` of an experiment: how the processes of a layout are used."""

from dataclasses import dataclass, replace
from typing import Any

from millrace.config import check_one_of
from millrace.errors import ConfigError
from millrace.systems.registry import models

SCHEDULES = ("gpipe", "1f1b", "interleaved")
# Micro-batches for each process of a pipeline from which on its bubble is small.
_ADVISED = 4


@dataclass(frozen=True)
class ParallelConfig:
    """Numbers of processes by purpose; the product of the first four is that of all processes.

    They may change during a run, like the layout: checkpoints fit all modes.
    """

    dp_replicate: int | None = None
    """Replicas of the model, each with its share of the batch; None: as many as processes are left."""
    dp_shard: int = 1
    """Processes that share a batch, and keep parameters, gradients and optimiser in shards (FSDP)."""
    pipeline: int = 1
    """Processes in a pipeline, each of which holds a part of the chain of units."""
    tensor: int = 1
    """Processes among which each large layer is cut."""
    micro_batches: int | None = None
    """Number of parts in which samples pass through a pipeline; None: one sample in each."""
    schedule: str = "1f1b"
    """Order of the work in a pipeline; with ``interleaved`` each process has two stages."""
    static_graph: bool = False
    """For replicas only: tell DDP that every step does the same."""

    def __post_init__(self) -> None:
        for key in ("dp_replicate", "dp_shard", "pipeline", "tensor", "micro_batches"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"parallel.{key}: expected 1 or more, got {value}")
        check_one_of("parallel.schedule", self.schedule, SCHEDULES)

    @property
    def is_divided(self) -> bool:
        """Whether a process holds less than the whole model."""
        return max(self.dp_shard, self.pipeline, self.tensor) > 1

    @property
    def data_size(self) -> int:
        """Number of shares of a batch, each taken by a process or a group of processes."""
        return (self.dp_replicate or 1) * self.dp_shard

    @property
    def stages_per_rank(self) -> int:
        """Stages of one step that a process of a pipeline holds."""
        return 2 if self.pipeline > 1 and self.schedule == "interleaved" else 1

    @property
    def stages(self) -> int:
        """Stages of one pass through the model."""
        return self.pipeline * self.stages_per_rank

    def bubble(self, steps: int = 1) -> float:
        """Pipeline bubble, the idle part of a step: (p - 1) / (v m s + p - 1) if all stages are equal.

        There are p processes, each with v stages of every one of the s ``steps`` of a rollout, and m
        micro-batches (Narayanan et al. 2021, arXiv:2104.04473). For stages of unequal cost see
        `millrace.training.parallel.order.bubbles`.
        """
        idle = self.pipeline - 1
        return idle / (self.stages_per_rank * (self.micro_batches or 1) * steps + idle)

    def samples(self, global_batch: int) -> int:
        """Largest number of samples of a batch in one share."""
        return -(-global_batch // self.data_size)

    def check_options(self, compiled: bool, compression: str, replay: bool) -> None:
        """Raise `ConfigError` for options of the section ``train`` that a divided model cannot have."""
        if self.pipeline > 1 and replay:
            raise ConfigError(
                "train.replay: forecasts leave a pipeline at its last stage and cannot be started from; "
                "divide the model by parallel.dp_shard or tensor, or leave the section out"
            )
        if self.is_divided and (compiled or compression != "none"):
            raise ConfigError(
                "train.compile, train.gradient_compression: work on replicas of a model only; leave them "
                "out or leave parallel.dp_shard, pipeline and tensor at 1"
            )

    def for_model(
        self, model: str, model_config: Any, world_size: int, global_batch: int, steps: int = 1
    ) -> "ParallelConfig":
        """Fill in the open numbers for a model on a layout, and check all of them.

        ``model_config`` is an instance of `millrace.models.spec.ModelSpec.config`, ``world_size`` the
        number of processes of the layout, ``steps`` that of a rollout. Raises `ConfigError` if the model
        cannot be divided in this way, or the numbers do not fit the layout, the batch or each other.
        """
        found = models().get(model)
        limits = found.limits if found else None
        if limits is None and self.is_divided:
            raise ConfigError(
                f"parallel: {model} can only be replicated; leave dp_shard, pipeline and tensor at 1"
            )
        if self.tensor > 1 and getattr(model_config, "lora_rank", None):
            raise ConfigError(
                "parallel.tensor: low-rank updates are not cut; train them with dp_shard or pipeline, or "
                "set model.lora_rank to 0"
            )
        inner = self.dp_shard * self.pipeline * self.tensor
        replicas = self.dp_replicate or max(1, world_size // inner)
        if replicas * inner != world_size:
            raise ConfigError(
                f"parallel: dp_replicate {replicas} x dp_shard {self.dp_shard} x pipeline {self.pipeline} "
                f"x tensor {self.tensor} = {replicas * inner} processes, but the layout has {world_size}; "
                "make the product that of the layout"
            )
        largest = limits.stages(model_config) if limits else 1
        if self.pipeline > 1 and self.stages > largest:
            raise ConfigError(
                f"parallel.pipeline: {self.stages} stages, but the model can have at most {largest}; "
                "take fewer"
            )
        for heads in limits.heads(model_config) if limits else ():
            if heads % self.tensor:
                raise ConfigError(
                    f"parallel.tensor {self.tensor}: does not divide the {heads} heads of an attention; "
                    "take a common divisor of all heads"
                )
        if self.pipeline == 1:
            return replace(self, dp_replicate=replicas, micro_batches=None)
        samples = replace(self, dp_replicate=replicas).samples(global_batch)
        micro_batches = self.micro_batches or samples
        if not self.pipeline <= micro_batches <= samples:
            raise ConfigError(
                f"parallel.micro_batches {micro_batches}: expected at least the {self.pipeline} stages of "
                f"the pipeline and at most the {samples} samples of a share; change it or "
                "train.global_batch"
            )
        if self.schedule == "interleaved" and micro_batches % self.pipeline:
            raise ConfigError(
                f"parallel.micro_batches {micro_batches}: the interleaved schedule needs a multiple of the "
                f"{self.pipeline} processes of the pipeline"
            )
        # Each step of a rollout is one more stage of every process, which torch's 1f1b interleaves.
        rounds = max(1, micro_batches // self.pipeline)
        if self.schedule == "1f1b" and steps > 1 and micro_batches % rounds:
            raise ConfigError(
                f"parallel.micro_batches {micro_batches}: in a rollout (data.output_steps {steps}) the "
                f"1f1b schedule needs a multiple of the {self.pipeline} processes of the pipeline; set it "
                "to one, or parallel.schedule to gpipe"
            )
        return replace(self, dp_replicate=replicas, micro_batches=micro_batches)

    def advice(self, steps: int = 1, bubble: float | None = None) -> str | None:
        """Advice about a pipeline with a large bubble, in one sentence; None: it is small.

        The ``steps`` of a rollout make a longer pipeline with a smaller bubble. If ``bubble``, the idle
        part of a step, is not known, that of equal stages is a lower bound.
        """
        advised = -(-_ADVISED // steps) * self.pipeline
        if self.pipeline == 1 or (self.micro_batches or 1) >= advised:
            return None
        share = f"at least {self.bubble(steps):.0%}" if bubble is None else f"{bubble:.0%}"
        return (
            f"parallel.micro_batches {self.micro_batches}: the pipeline bubble is {share} of the time; "
            f"{advised} or more would be better"
        )

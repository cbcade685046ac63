"""The ``parallel:`` block of an experiment: how the processes of a layout are used."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from millrace.errors import ConfigError
from millrace.systems.registry import models

SCHEDULES = ("gpipe", "1f1b", "interleaved")
_STAGES_PER_RANK = {"interleaved": 2}
_ADVISED = 4


@dataclass(frozen=True)
class ParallelConfig:
    """How many processes do what; the product of the four numbers is that of all processes.

    It may change in a run's lifetime, like the layout: checkpoints move between all modes.
    """

    dp_replicate: int | None = None
    """Copies of the model, each with its share of the batch; None: as many as processes are left."""
    dp_shard: int = 1
    """Processes that share a batch, and keep parameters, gradients and optimiser in shards (FSDP)."""
    pipeline: int = 1
    """Processes that hold one stage of the model each."""
    tensor: int = 1
    """Processes among which each large layer is cut."""
    micro_batches: int | None = None
    """Parts in which samples pass through a pipeline; None: one sample each."""
    schedule: str = "1f1b"
    """Order of the work in a pipeline; ``interleaved`` gives each process two stages."""
    static_graph: bool = False
    """Copies only: tell DDP that every step does the same."""

    def __post_init__(self) -> None:
        for key in ("dp_replicate", "dp_shard", "pipeline", "tensor", "micro_batches"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"parallel.{key}: expected 1 or more, got {value}")
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f"parallel.schedule {self.schedule!r}: expected one of {', '.join(SCHEDULES)}"
            )

    @property
    def is_divided(self) -> bool:
        """Whether a process holds less than the whole model."""
        return max(self.dp_shard, self.pipeline, self.tensor) > 1

    @property
    def data_size(self) -> int:
        """Processes, or groups of them, that each take their own share of a batch."""
        return (self.dp_replicate or 1) * self.dp_shard

    @property
    def stages_per_rank(self) -> int:
        """Stages of one step that a process of a pipeline holds."""
        return _STAGES_PER_RANK.get(self.schedule, 1) if self.pipeline > 1 else 1

    @property
    def stages(self) -> int:
        """Stages of one pass through the model."""
        return self.pipeline * self.stages_per_rank

    def bubble(self, steps: int = 1) -> float:
        """Share of its time that a process waits: (p - 1) / (v m s + p - 1) if all stages are equal.

        There are p processes, each with v stages of every one of the s ``steps`` of a rollout, and m
        micro-batches. `millrace.training.parallel.order.waiting` knows of stages that are not equal.
        """
        waits = self.pipeline - 1
        return waits / (self.stages_per_rank * (self.micro_batches or 1) * steps + waits)

    def samples(self, global_batch: int) -> int:
        """Samples of a batch that a process (or its group) takes at most."""
        return -(-global_batch // self.data_size)

    def of(
        self, model: str, model_config: Any, world_size: int, global_batch: int, steps: int = 1
    ) -> "ParallelConfig":
        """`resolved` for a model; raises `ConfigError` also if it can only be copied."""
        found = models().get(model)
        if found is None or found.limits is None:
            if self.is_divided:
                raise ConfigError(
                    f"parallel: {model} can only be copied; leave dp_shard, pipeline and tensor at 1"
                )
            return self.resolved(world_size, global_batch, (), 1, steps)
        if self.tensor > 1 and getattr(model_config, "lora_rank", None):
            raise ConfigError(
                "parallel.tensor: low-rank updates are not cut; train them with dp_shard or pipeline, or "
                "set model.lora_rank to 0"
            )
        heads, stages = found.limits.heads(model_config), found.limits.stages(model_config)
        return self.resolved(world_size, global_batch, heads, stages, steps)

    def check_options(self, compiled: bool, compression: str, replay: bool) -> None:
        """Raise `ConfigError` for options of the block ``train`` that a divided model cannot have."""
        if self.pipeline > 1 and replay:
            raise ConfigError(
                "train.replay: forecasts leave a pipeline at its last stage and cannot be started from; "
                "divide the model by parallel.dp_shard or tensor, or leave the block out"
            )
        if self.is_divided and (compiled or compression != "none"):
            raise ConfigError(
                "train.compile, train.gradient_compression: work on copies of a model only; leave them out "
                "or leave parallel.dp_shard, pipeline and tensor at 1"
            )

    def resolved(
        self, world_size: int, global_batch: int, heads: Sequence[int], limit: int, steps: int
    ) -> "ParallelConfig":
        """Fill in what is left open, and check it.

        Parameters
        ----------
        world_size : int
            Processes of the layout.
        global_batch : int
        heads : sequence of int
            Numbers of heads of the model's attention.
        limit : int
            Most stages that the model can have.
        steps : int
            Of a rollout.

        Raises
        ------
        ConfigError
        """
        inner = self.dp_shard * self.pipeline * self.tensor
        copies = self.dp_replicate or max(1, world_size // inner)
        whole = replace(self, dp_replicate=copies)
        if copies * inner != world_size:
            raise ConfigError(
                f"parallel: dp_replicate {copies} x dp_shard {self.dp_shard} x pipeline {self.pipeline} x "
                f"tensor {self.tensor} = {copies * inner} processes, but the layout has {world_size}; make "
                "the product that of the layout"
            )
        if self.pipeline > 1 and self.stages > limit:
            raise ConfigError(
                f"parallel.pipeline: {self.stages} stages, but the model has {limit} blocks; take fewer"
            )
        for number in heads:
            if number % self.tensor:
                raise ConfigError(
                    f"parallel.tensor {self.tensor}: does not divide the {number} heads of a block; take a "
                    "common divisor of all heads"
                )
        if self.pipeline == 1:
            return replace(whole, micro_batches=None)
        samples = whole.samples(global_batch)
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
        return replace(whole, micro_batches=micro_batches)

    def advice(self, steps: int = 1, waits: float | None = None) -> str | None:
        """A sentence about a pipeline that waits a lot; None: it does not.

        Parameters
        ----------
        steps : int
            Of a rollout: a longer pipeline, which waits less.
        waits : float, optional
            Share of its time that it waits; None: the stages are not known, and what it would wait if all
            took equally long is the least.
        """
        advised = -(-_ADVISED // steps) * self.pipeline
        if self.pipeline == 1 or (self.micro_batches or 1) >= advised:
            return None
        share = f"at least {self.bubble(steps):.0%}" if waits is None else f"{waits:.0%}"
        return (
            f"parallel.micro_batches {self.micro_batches}: processes of the pipeline wait "
            f"{share} of their time; {advised} or more would be better"
        )

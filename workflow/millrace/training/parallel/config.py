"""The section ``parallel`` of an experiment: how the processes of a layout are used."""

from typing import Any, Literal

from millrace.config import Count, Settings, option
from millrace.errors import ConfigError
from millrace.systems.registry import models

# Micro-batches for each process of a pipeline from which on its bubble is small.
_ADVISED = 4


class ParallelConfig(Settings):
    """How the processes of a layout, one for each GPU, are used.

    By default each has a replica of the model and its share of every batch. A model that can be divided
    (Aurora) may also be sharded (each process keeps a part of all parameters, gradients and optimiser
    states, and fetches the others when it needs them), cut into stages of a pipeline, or have its large
    layers cut; all in any mix. The product of `dp_replicate`, `dp_shard`, `pipeline` and `tensor` is
    the number of GPUs of the layout; an experiment with this block therefore runs on layouts of one
    size. All mixes train the same problem: gradients agree to rounding, and a run may be continued with
    another one, from the same checkpoints. `train.compile` and `train.gradient_compression` are for
    replicas only.

    With `train.precision` `bfloat16` or `float16`, the shards of the backbone's blocks are sent in that
    type, which halves what is sent for them; the shards themselves, gradients and optimiser states stay
    in float32. Stages are cut so that each does about the same number of operations.
    """

    dp_replicate: Count | None = option(None, unit="processes")
    """Replicas of the model, each with its share of the batch; null: as many as the others leave."""
    dp_shard: Count = option(1, unit="processes")
    """Among which a replica's parameters, gradients and optimiser states are shared out, each with its
    share of the batch (FSDP); within a node, the first thing to try if a model does not fit."""
    pipeline: Count = option(1, unit="processes")
    """Stages of a pipeline, at most the blocks of the backbone; between nodes: it sends least."""
    tensor: Count = option(1, unit="processes")
    """Among which attention and MLP of each block are cut; divides all numbers of heads. Within a node,
    with fast links: it sends most."""
    micro_batches: Count | None = None
    """Parts in which a share of a batch passes through the pipeline, at least the number of stages;
    null: one sample each. With `interleaved`, and with `1f1b` if `data.output_steps` is above 1, a
    multiple of `pipeline`. The pipeline bubble, the idle part of a step, is (p - 1) / (m s + p - 1),
    where s is `data.output_steps`, larger if stages have unequal costs, and a warning names it: take
    m s of 4 times `pipeline` or more."""
    schedule: Literal["gpipe", "1f1b", "interleaved"] = "1f1b"
    """Order of the work in a pipeline: `gpipe` keeps activations of all parts, `1f1b` of few, `interleaved`
    gives each process two stages, which halves the bubble and doubles what is sent."""
    static_graph: bool = False
    """Replicas only: tell DDP that every step does the same."""

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
            return self.replaced(dp_replicate=replicas, micro_batches=None)
        samples = self.replaced(dp_replicate=replicas).samples(global_batch)
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
        return self.replaced(dp_replicate=replicas, micro_batches=micro_batches)

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

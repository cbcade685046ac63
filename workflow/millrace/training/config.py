"""The block ``train`` of an experiment: what decides the weights, and how they are computed."""

from typing import Annotated, Any, Literal

from pydantic import Field

from millrace.config import UNIQUE, Count, Positive, Settings, Share, Text, option
from millrace.models.settings import LossConfig
from millrace.training.schedules import ScheduleConfig

MOST_MILESTONES = 10_000
"""Each is a job."""


class EarlyStoppingConfig(Settings):
    """Training stops at the end of an epoch, and its last state stands for all later milestones.

    They are published at once, and their receipts say `stopped_early` and `best_epoch`. Take
    `keep_best` with it: the last state is `patience` epochs past the best one.
    """

    patience: Count = option(unit="epochs")
    """Without a better validation loss, after which training stops; longer than the validation loss jumps
    about."""
    min_delta: float = option(0.0, ge=0)
    """A validation loss is better if it is lower by more than this."""


class InitFromConfig(Settings):
    """Start from the weights of another run, those that would be evaluated, or from published ones.

    The parameters must have the names and shapes of those of the run they come from; a mismatch is named.
    Keys of the model block that have no weights (`loss_weights`, `closed_loop` and others) may differ, and
    so may `lora_rank`, whose updates begin at zero. SMART needs samples with the same vocabulary. Learning
    rate, optimiser and normalisation of the data are the new run's. The run depends on the content of the
    checkpoint, not on where it lies.
    """

    checkpoint: Text | None = option(
        None, examples=["results/train/first/n1_gpu1/seed{seed}/epoch_12.ckpt"]
    )
    """`epoch_<n>.ckpt` of another run; `{seed}` in it stands for the seed, so that each run starts from the
    one of its own seed."""
    published: Text | None = option(None, examples=["aurora-0.25-small-pretrained.ckpt"])
    """In place of `checkpoint`, for Aurora: weights of `microsoft-aurora`, a file, a folder that holds one,
    or `hf://owner/repository/file`, `@revision` after it if not the newest. What fits is taken over; the
    log and the receipt name what is changed or begins anew. The model takes `conventions: published`."""
    freeze: tuple[Text, ...] = option((), examples=[["encoder."]])
    """Parameters whose names begin so are not trained; with few data: train the last layers alone."""

    def model_post_init(self, _: Any) -> None:
        """Check that there is one source."""
        if (self.checkpoint is None) == (self.published is None):
            raise ValueError("expected one of the keys checkpoint and published")


class ReplayConfig(Settings):
    """Samples that start from the model's own forecasts (pushing forward out of a replay buffer).

    Only for weather and groundwater. What the model forecasts in training is kept, and later samples go on
    from it: the model learns to live with its own errors at far lead times, while a step costs what it
    costs without. Ghost nodes of groundwater patches keep their true states. The buffer belongs to the
    batch: the same with any number of GPUs, and part of checkpoints. It starts empty. Not with
    `parallel.pipeline`.

    It holds `global_batch` x `depth` forecasts, for each patch or plane of groundwater as many, each of
    points x variables x `data.input_steps` states x 4 bytes; variables of weather are surface variables +
    air variables x levels, points its cells: at 0.25 degrees, with 4 + 5 x 13 variables and 2 states, 0.6
    GB, so 18 GB for a batch of 16. The processes share it out in their main memory; while a checkpoint is
    made, all of it is in that of the first process, and of several GPUs the first one holds it too.
    """

    longest: int = option(ge=2, le=10**6, unit="states")
    """Lead time of the last forecast that is learned from, at least 2 x `data.output_steps`: from there on
    forecasts start from others. 40 for ten days of 6 h."""
    fresh: Share = 0.25
    """Share of the samples that start from data all the same; forecasts are about 1 / `fresh` steps old."""
    depth: Count = 2
    """Forecasts kept for each sample of a batch."""


class RollBackConfig(Settings):
    """Go back when the loss, a gradient or the validation loss is infinite or NaN, in place of stopping.

    Training goes on from the end of the epoch before, with a smaller learning rate from there on. After the
    last roll-back it stops as without. The log, `metrics.jsonl`, the receipt and `millrace runs` tell of
    each. A resumed run goes back as an uninterrupted one does.
    """

    times: Count = option()
    """How often at most, in the whole run."""
    factor: Share = 0.5
    """On the learning rate, at each roll-back."""
    spike: Annotated[float, Field(gt=1)] | None = option(None, examples=[10])
    """Go back, too, if the training or validation loss of an epoch is more than this times the median of
    the ten epochs before; null: only if it is infinite or NaN."""


class TrainConfig(Settings):
    """The keys of the block ``train`` that decide the weights: part of a run's definition."""

    global_batch: int = option(ge=1, le=10**9, unit="samples")
    """Samples of an optimiser step over all ranks, the same for every layout; a multiple of the largest
    number of ranks, else some wait for others."""
    learning_rate: float = option(1e-3, gt=0, le=1e30)
    """Of AdamW, before the schedule; the first thing to tune."""
    weight_decay: float = option(0.0, ge=0, le=100)
    """Of AdamW, against overfitting."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient; null: no clipping. Lower if the loss jumps."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over time."""
    loss: LossConfig = LossConfig()
    """What is minimised."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the layers; weights, Fourier layers, sums over neighbours and the loss stay in float32.
    `bfloat16` on GPUs that have it: less memory, more speed."""
    ema: Share | None = None
    """Decay of an exponential moving average of the weights, which validation and evaluation use; null: no
    average. 0.99 to 0.999 if the validation loss jumps from epoch to epoch."""
    early_stopping: EarlyStoppingConfig | None = None
    """Stop when more epochs do not help; null: never."""
    keep_best: bool = False
    """Keep the weights of the epoch with the lowest validation loss in every checkpoint, and evaluate
    those."""
    gradient_compression: Literal["none", "bfloat16", "float16"] = "none"
    """Number format in which ranks exchange gradients, if the network between the GPUs is slow."""
    init_from: InitFromConfig | None = None
    """Start from the weights of another run or from published ones, for fine-tuning; null: from random
    ones."""
    replay: ReplayConfig | None = None
    """Start some of the samples from the model's own forecasts, for long forecasts; null: all from data."""
    roll_back: RollBackConfig | None = None
    """Go back before a loss that is infinite, NaN or a spike, with a smaller learning rate; null: stop."""


class ProfileConfig(Settings):
    """Trace some optimiser steps.

    The first rank writes `profile_step_<start>.json.gz` to the run's store, for
    [Perfetto](https://ui.perfetto.dev); the receipt names it.
    """

    start: int = option(ge=0, le=10**9, unit="steps")
    """Optimiser steps before the first one traced; a resumed run does not go back for them."""
    steps: Count = option(unit="steps")
    """How many to trace; some tens, traces are large."""


class ExecutionConfig(Settings):
    """The keys of the block ``train`` that say how the weights are computed and what is reported.

    They may change during a run, like its layout: results agree to rounding.
    """

    micro_batch: Count | None = option(None, unit="samples")
    """A rank takes at most so many samples at once and adds up their gradients, if memory is short;
    null: its whole share."""
    compile: bool | Literal["reduce-overhead"] = False
    """Compile the model with `torch.compile`; without a working compiler a warning is given.
    `reduce-overhead` also records what a GPU does as CUDA graphs, for models whose kernels are shorter than
    their launch: each size of a batch, and each patch, is recorded anew and kept in memory."""
    activation_checkpointing: bool = False
    """Compute activations of the large blocks again in the backward pass instead of keeping them, if
    memory is short; costs about a third more time."""
    local_copies: bool = False
    """Copy the samples to `$TMPDIR` of each node first and read them there, if the nodes' own disks are
    faster than the file system that they share; without room for them they are read where they are."""
    profile: ProfileConfig | None = None
    """Trace some steps, to find out where time goes; null: none."""
    log: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], *UNIQUE] = ()
    """Where epochs are reported besides `metrics.jsonl`."""
    log_steps: Count | None = option(None, unit="steps")
    """Every so many steps the loss, the learning rate and the norm of the gradient are reported there,
    too; null: epochs alone. Each time the processor waits for the GPU."""

    @property
    def has_graphs(self) -> bool:
        """Whether steps are CUDA graphs, which keep the memory of what they give."""
        return self.compile == "reduce-overhead"

    def model_post_init(self, context: Any) -> None:
        """Check that somebody hears of the steps."""
        super().model_post_init(context)
        if self.log_steps and not self.log:
            raise ValueError(
                "log_steps: nothing reports steps; name tensorboard, wandb or mlflow in log"
            )


class LengthConfig(Settings):
    """The keys of the block ``train`` that say how long and how often."""

    epochs: int = option(ge=1, le=10**7, unit="epochs")
    """Length of training; raising it continues the run."""
    milestone_every: Count | None = option(None, unit="epochs")
    """Between checkpoints that are outputs, each made by its own job, so that a job fits into the
    walltime; null: only the last."""
    save_every: Count = option(1, unit="epochs")
    """Between checkpoints in the run's store, at the ends of epochs. Larger if epochs take seconds."""
    save_steps: Count | None = option(None, unit="optimiser steps")
    """Between further checkpoints, within epochs; null: none."""
    save_minutes: Positive | None = option(None, unit="minutes", examples=[10])
    """Between further checkpoints, within epochs that are long: what a kill can cost, but for a validation;
    null: none. They are begun early enough to be written in time. Training waits only until the state is
    copied, and a checkpoint that is still being written is not overtaken."""

    def model_post_init(self, _: Any) -> None:
        """Check that there are not more jobs than anybody wants."""
        every = self.milestone_every or self.epochs
        if self.epochs > every * MOST_MILESTONES:
            raise ValueError(
                f"milestone_every: {self.epochs:,} epochs in steps of {every:,} are more than "
                f"{MOST_MILESTONES:,} jobs; expected {-(-self.epochs // MOST_MILESTONES):,} or more"
            )


class TrainSettings(ExecutionConfig, TrainConfig, LengthConfig):
    """How a model is trained.

    The first five keys say how long and how often, the last seven how it is computed and what is told of
    it; changing them, or the block `parallel`, never starts a new run. Changing any other does.
    """

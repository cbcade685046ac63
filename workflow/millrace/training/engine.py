"""The training loop: any model, any number of ranks, stopped and continued at any step.

The state of a run is a function of (identity, step). Batches follow from (seed, epoch), the learning
rate from the step, and everything else is in the checkpoint, so that a run that was stopped continues
bit by bit as if it had not been.
"""

import contextlib
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from millrace.errors import ConfigError, ExitCode, UserError
from millrace.models.spec import ModelSpec
from millrace.training.acceleration import checkpoint_activations, compile_in_place
from millrace.training.batches import (
    BatchPlan,
    GlobalBatch,
    RankShare,
    micro_batches,
    rank_shares,
    sample_seeds,
)
from millrace.training.compression import exchange_gradients
from millrace.training.config import ExecutionConfig, TrainConfig
from millrace.training.deadline import Deadline, Stop
from millrace.training.distributed import (
    Ranks,
    peak_memory,
    restore_rng_state,
    rng_state,
    seed_everything,
)
from millrace.training.early_stopping import best_epoch, is_exhausted
from millrace.training.ema import Ema
from millrace.training.parallel.checkpoints import is_sharded
from millrace.training.parallel.config import ParallelConfig
from millrace.training.parallel.copies import check_static_graph
from millrace.training.parallel.divided import Divided, divide
from millrace.training.parallel.shards import kinds
from millrace.training.parallel.state import (
    held,
    load_sharded,
    load_whole,
    sharded,
)
from millrace.training.phases import Mark, unmarked
from millrace.training.precision import LossScaler, autocast
from millrace.training.replay import Replay
from millrace.training.schedules import factor
from millrace.training.store import Position
from millrace.training.sums import EpochSums
from millrace.training.warm_start import warm_start
from millrace.training.watchdog import Watchdog

# Ranks agree on stopping about this often; every step would cost an all-reduce of its own.
_AGREE_EVERY_S = 0.5


class NotFiniteError(UserError):
    """Loss or gradients became infinite or NaN."""

    exit_code = ExitCode.NOT_FINITE


class View(Protocol):
    """Samples as the engine sees them: groups of samples that share a geometry."""

    group_costs: np.ndarray
    """How long a sample of each group takes, in any unit, [G]."""

    def groups(self, split: Any) -> np.ndarray:
        """Samples of each group, int64[G]."""

    def batch(self, split: Any, group: int, index: np.ndarray, weight: Any = None) -> Any:
        """Gather samples of a group; the result has ``weight_B``."""


class Observer(Protocol):
    """Who follows the training: progress display and the run's store."""

    def on_step(self, position: Position, steps_per_epoch: int, loss: Tensor) -> None:
        """After some steps, with the loss of the last."""

    def on_epoch(self, record: dict[str, Any]) -> None:
        """After an epoch and its validation."""

    def on_state(self, trainer: "Trainer", stopping: bool) -> None:
        """Where a checkpoint can be taken: at the end of an epoch, or when stopping."""


class Trainer:
    """A model in training.

    Parameters
    ----------
    spec : ModelSpec
    model_config : object
        An instance of ``spec.config``.
    view : View
        Samples; its device decides where the model trains.
    config : TrainConfig
    seed : int
        Decides initial weights and the order of the samples.
    ranks : Ranks
    execution : ExecutionConfig, optional
        How the weights are computed, see there.
    parallel : ParallelConfig, optional
        How the ranks are used; by default each has a copy of the model.
    mark : Mark, optional
        Is told where each step is, see `millrace.training.phases`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        model_config: Any,
        view: View,
        config: TrainConfig,
        seed: int,
        ranks: Ranks,
        execution: ExecutionConfig | None = None,
        parallel: ParallelConfig | None = None,
        mark: Mark = unmarked,
    ) -> None:
        self._mark = mark
        self.spec, self.view, self.config, self.ranks = spec, view, config, ranks
        self._model_config, self._seed = model_config, seed
        self.execution = execution or ExecutionConfig()
        seed_everything(seed, rank=0)
        self.module = spec.build(model_config, view).to(ranks.device)
        if config.init_from is not None:
            warm_start(self.module, config.init_from, spec.bound)
        self._trained_names = [n for n, p in self.module.named_parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in self.module.parameters())
        """Numbers that the whole model holds."""
        self.divided = self._divide(parallel or ParallelConfig())
        seed_everything(seed, self.divided.data_rank if self.divided else ranks.rank)
        self._parallel = self._wrapped()
        self._trained = [p for p in self.module.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": group} for group in kinds(self._trained)]
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._scaler = LossScaler(config.precision)
        self._ema = Ema(self.module, config.ema) if config.ema else None
        self._best: dict[str, Tensor] = {}
        self._plan, self._validation = (
            BatchPlan(view.groups(split), config.global_batch, seed, view.group_costs)
            for split in ("train", "validation")
        )
        self.step = 0
        self.stopped = Stop.NO
        """Why `run` ended before its target."""
        self.history: list[dict[str, Any]] = []
        self.sessions: list[dict[str, Any]] = []
        self._replay = self._replayed()
        self._sums = EpochSums(ranks)
        self._watchdog = Watchdog()
        self._not_finite = torch.zeros((), dtype=torch.bool, device=ranks.device)

    def _divide(self, parallel: ParallelConfig) -> Divided | None:
        """Leave this rank its part of the module; None: all of it."""
        self.parallel = resolved = parallel.of(
            self.spec.name, self._model_config, self.ranks.world_size, self.config.global_batch
        )
        resolved.check_options(
            self.execution.compile, self.config.gradient_compression, self.config.replay is not None
        )
        if not resolved.is_divided:
            return None
        return divide(
            self.spec,
            self.module,
            resolved,
            self.ranks,
            self.view,
            self.config.precision,
            self._checkpoint_activations,
        )

    def _replayed(self) -> Replay | None:
        if self.config.replay is None:
            return None
        if self.spec.go_on is None:
            raise ConfigError(
                f"train.replay: samples of {self.spec.name} do not follow on each other; leave it out"
            )
        windows: Any = self.view  # of models that go on from their forecasts
        return Replay(self.config.replay, windows, self._seed)

    def _checkpoint_activations(self, module: nn.Module) -> None:
        if self.execution.activation_checkpointing:
            checkpoint_activations(module, self.spec.blocks)

    def _wrapped(self) -> nn.Module:
        """The module as it is called in training."""
        if self.divided is not None:
            return self.module
        self._checkpoint_activations(self.module)
        if self.execution.compile:
            compile_in_place(self.module, self.ranks.device)
        if self.ranks.world_size == 1:
            return self.module
        if self.parallel.static_graph:
            check_static_graph(self.view.batch("train", 0, np.zeros(1, dtype=np.int64)))
        with warnings.catch_warnings():
            # Newer versions have another name for it, which 2.11 does not know.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            # Buffers are constants of the data, equal on all ranks.
            parallel = DistributedDataParallel(
                self.module,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                bucket_cap_mb=self._bucket_megabytes(),
                static_graph=self.parallel.static_graph,
            )
        exchange_gradients(parallel, self.config.gradient_compression, self._mark)
        return parallel

    def _bucket_megabytes(self) -> int | None:
        """Largest bucket of gradients that is exchanged on its own; None: what torch finds best for GPUs.

        On CPUs an exchange hides behind nothing, it takes the cores that compute: one at the end is
        quicker.
        """
        if self.ranks.device.type != "cpu":
            return None
        return 1 + (sum(p.numel() * p.element_size() for p in self.module.parameters()) >> 20)

    @property
    def position(self) -> Position:
        """Steps and epochs done."""
        epoch, batch = divmod(self.step, len(self._plan))
        return Position(self.step, epoch, batch)

    def batches(self, epoch: int) -> Iterator[GlobalBatch]:
        """Batches of an epoch, the same on all ranks."""
        return self._plan.epoch(epoch)

    def run(self, target_epoch: int, deadline: Deadline, observer: Observer) -> bool:
        """Train until the end of ``target_epoch``, or until more epochs do not help.

        Returns
        -------
        bool
            Whether there is nothing left to do; False: stopped in good order because ``deadline`` said
            so.

        Raises
        ------
        NotFiniteError
            On all ranks, before anything is saved.
        """
        if self.stopped_early:
            observer.on_state(self, stopping=False)  # its store may have been removed
        while self.position.epoch < target_epoch and not self.stopped_early:
            if not self._run_epoch(deadline, observer):
                observer.on_state(self, stopping=True)
                return False
            started = time.monotonic()
            observer.on_epoch(self._finish_epoch())
            deadline.record_validation(time.monotonic() - started)
            observer.on_state(self, stopping=False)
        return True

    @property
    def stopped_early(self) -> bool:
        """Whether the patience of ``early_stopping`` has run out: this state is the last."""
        return self.position.batch == 0 and is_exhausted(self.history, self.config.early_stopping)

    def _run_epoch(self, deadline: Deadline, observer: Observer) -> bool:
        """Do the rest of an epoch; False: stopped before its end."""
        self._parallel.train()
        position, agree_at = self.position, self.step
        started = time.monotonic()
        with self._watchdog.watching():
            for batch in self._plan.epoch(position.epoch, start=position.batch):
                if self.step >= agree_at:
                    stop, seconds = self.ranks.maximum(deadline.stop, self._sums.seconds_per_step)
                    self._check_finite()
                    if stop:
                        self.stopped = Stop(int(stop))
                        return False
                    agree_at = self.step + max(1, int(_AGREE_EVERY_S / max(seconds, 1e-3)))
                loss = self.train_step(batch)
                self.step += 1
                now = time.monotonic()
                deadline.record_step(now - started)
                self._watchdog.beat(now - started)
                self._sums.add(loss, batch.size, now - started)
                started = now
                observer.on_step(self.position, len(self._plan), self._sums.mean)
        self._check_finite()
        return True

    def train_step(self, batch: GlobalBatch) -> Tensor:
        """Do one optimiser step on this rank's share; gives its part of the loss of the global batch."""
        learning_rate = self.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss = self._backward(batch)
        self._mark("optimiser")
        norm = self._clipped()
        if self._scaler.is_exhausted:
            self._not_finite |= ~torch.isfinite(norm)
        if self._scaler.accepts(norm):
            self.optimizer.step()
            if self._ema is not None:
                self._ema.update(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _clipped(self) -> Tensor:
        """Norm of the gradient before it is clipped, the same on all ranks."""
        if self.divided is not None:
            return self.divided.clip(self._scaler, self.config.clip_norm or math.inf)
        # Of pairs of real numbers the norm is the same, and many times faster.
        gradients = [
            torch.view_as_real(p.grad) if p.grad.is_complex() else p.grad
            for p in self._trained
            if p.grad is not None
        ]
        self._scaler.unscale(gradients)
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        largest = self.config.clip_norm or math.inf
        torch._foreach_mul_(gradients, torch.clamp(largest / (norm + 1e-6), max=1.0))
        return norm

    def _backward(self, batch: GlobalBatch) -> Tensor:
        """Add up the gradients of this rank's share, micro-batch by micro-batch.

        Ranks may have different numbers of micro-batches, but each has a last one: only that one
        exchanges gradients, so that nobody waits for a rank that has none left.
        """
        if self.divided is not None:
            return self._backward_divided(self.divided, *self._shares(batch))
        total = torch.zeros((), device=self.ranks.device)
        *first, last = micro_batches(self._shares(batch), self.execution.micro_batch)
        for part in first:
            with self._without_exchange():
                total += self._backward_part(part, self.ranks.world_size)
        return total + self._backward_part(last, self.ranks.world_size)

    def _backward_part(self, part: RankShare, factor: float) -> Tensor:
        loss = self._losses("train", part, self._parallel).sum() / part.batch_size
        self._mark("backward")
        # Gradients are averaged over the ranks; what is wanted is the sum of the ranks' parts.
        (loss * factor * self._scaler.scale).backward()
        return loss.detach()

    def _backward_divided(self, divided: Divided, share: RankShare) -> Tensor:
        if divided.is_pipeline:
            total = self._through_stages(divided, "train", share, backward=True) / share.batch_size
        else:
            total = torch.zeros((), device=self.ranks.device)
            parts = micro_batches([share], self.execution.micro_batch)
            for number, part in enumerate(parts, start=1):
                divided.exchanging(number == len(parts))
                total += self._backward_part(part, divided.loss_factor)
        divided.finish_gradients()
        return total / divided.counted  # others report the same

    def _through_stages(
        self, divided: Divided, split: str, share: RankShare, backward: bool
    ) -> Tensor:
        """Sum of the losses of a share, the same on all ranks of the pipeline."""
        size = len(share.index) // (divided.config.micro_batches or 1)
        samples = [self.samples(split, part) for part in micro_batches([share], size)]
        scale = divided.loss_factor * self._scaler.scale / share.batch_size if backward else 1.0

        def loss(output: Tensor, part: Any) -> Tensor:
            assert self.spec.division is not None
            loss_B = self.spec.division.loss(self.module, output, part, self.config.loss)
            return (loss_B * part.weight_B).sum() * scale

        with self._autocast():
            total = divided.run(samples, loss, backward)
        return total * (
            share.batch_size / (divided.loss_factor * self._scaler.scale) if backward else 1.0
        )

    def _without_exchange(self) -> contextlib.AbstractContextManager[None]:
        parallel = self._parallel
        if isinstance(parallel, DistributedDataParallel):
            return parallel.no_sync()
        return contextlib.nullcontext()

    def _shares(self, batch: GlobalBatch) -> list[RankShare]:
        """What this rank takes of a batch."""
        if self.divided is None:
            return rank_shares(batch, self.ranks.rank, self.ranks.world_size)
        # All samples of a model that can be divided are alike.
        [share] = rank_shares(batch, self.divided.data_rank, self.divided.data_size)
        return [self.divided.padded(share, self.config.global_batch)]

    def _losses(self, split: str, part: RankShare, model: nn.Module) -> Tensor:
        """Loss of each sample, [B], 0 for those that do not count."""
        self._mark("data")
        if self._replay is not None and split == "train":
            return self._losses_of_replay(self._replay, part, model)
        samples = self.samples(split, part)
        self._mark("forward")
        with self._autocast():
            loss_B = self.spec.loss(model, samples, self.config.loss)
        return loss_B * samples.weight_B

    def _losses_of_replay(self, replay: Replay, part: RankShare, model: nn.Module) -> Tensor:
        assert self.spec.go_on is not None
        samples, draw = replay.samples(part, self.step)
        self._mark("forward")
        with self._autocast():
            loss_B, past = self.spec.go_on(model, samples, self.config.loss)
        replay.keep(draw, past)
        return loss_B * samples.weight_B

    def _autocast(self) -> torch.autocast:
        # FSDP collects the gradients of a unit when those of its inputs are there. If micro-batches, or the
        # steps of a rollout, shared rounded weights, theirs would come later, and could be lost.
        keep = self.divided is None or self.divided.config.dp_shard == 1
        return autocast(self.config.precision, self.ranks.device, keep)

    def samples(self, split: str, part: RankShare) -> Any:
        """Gather samples, with what the model draws at random for this epoch."""
        samples = self.view.batch(split, part.group, part.index, part.weight)
        if self.spec.randomise is not None:
            # Validation draws the same in every epoch: its losses can be compared.
            epoch = self.position.epoch if split == "train" else 0
            seeds = sample_seeds(self._seed, split, epoch, part.group, part.index)
            samples = self.spec.randomise(self._model_config, samples, seeds)
        return samples

    @property
    def learning_rate(self) -> float:
        """Rate of the next step."""
        epoch = self.step / len(self._plan)
        return self.config.learning_rate * factor(self.config.schedule, epoch)

    def _check_finite(self) -> None:
        # The gradient norm is that of the averaged gradient: the same on all ranks, no need to agree.
        if bool(self._not_finite):
            raise NotFiniteError(
                f"the gradient became infinite or NaN before step {self.step}; the last checkpoint is "
                "intact: lower train.learning_rate or train.clip_norm (a new run), or check the data"
            )

    def _finish_epoch(self) -> dict[str, Any]:
        loss, seconds = self._sums.collect()
        record: dict[str, Any] = {
            "epoch": self.position.epoch,
            "step": self.step,
            "train_loss": loss,
            "validation_loss": self.validation_loss(),
            "learning_rate": self.learning_rate,
            "samples_per_second": float(self.view.groups("train").sum()) / max(seconds, 1e-9),
            "seconds": seconds,
            "session": len(self.sessions),
            **peak_memory(self.ranks),
        }
        self.history.append(record)
        record["best_epoch"] = best_epoch(self.history)
        if self.config.keep_best and record["best_epoch"] == record["epoch"]:
            self._best = self._forecasting()
        return record

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean loss over the validation samples, the same on all ranks."""
        self.module.eval()
        total, count = 0.0, 0
        with self._ema.applied() if self._ema else contextlib.nullcontext():
            for batch in self._validation.epoch(0):
                total += self._validated(self._shares(batch))
                count += batch.size
        return self.ranks.sum(total)[0] / count

    def _validated(self, shares: list[RankShare]) -> float:
        """Sum of the losses of what this rank takes of a batch, or of its part of that."""
        if self.divided is not None and self.divided.is_pipeline:
            [share] = shares
            total = self._through_stages(self.divided, "validation", share, backward=False)
            return float(total) / self.divided.counted
        parts = micro_batches(shares, self.execution.micro_batch)
        losses = (self._losses("validation", part, self.module).double().sum() for part in parts)
        return sum(map(float, losses)) / (self.divided.counted if self.divided else 1)

    def _forecasting(self) -> dict[str, Tensor]:
        """The weights that are validated: averaged, if that is asked for."""
        with self._ema.applied() if self._ema else contextlib.nullcontext():
            return {
                n: value.detach().clone() for n, value in held(self.module, self.divided).items()
            }

    def begin_session(self, description: Mapping[str, Any]) -> None:
        """Note that training starts or resumes here."""
        self.sessions.append({"session": len(self.sessions) + 1, "step": self.step, **description})

    def state(self) -> dict[str, Any]:
        """Everything that training needs to continue, of an undivided model; call it on all ranks."""
        optimizer = self.optimizer.state_dict()
        return self._plain_state() | self._weights() | {"optimizer": optimizer}

    def checkpoint(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """`state`; of a divided model without tensors, this rank's come apart. Call it on all."""
        if self.divided is None:
            return self.state(), {}
        facts, tensors = sharded(
            self._weights(), self.optimizer, self.module, self._trained_names, self.divided
        )
        return self._plain_state() | facts, tensors

    def _weights(self) -> dict[str, dict[str, Tensor]]:
        """All kinds of weights that are kept, as far as this rank has them."""
        weights = {"model": held(self.module, self.divided)}
        if self._ema is not None:
            weights["ema_model"] = self._forecasting()
        return weights | ({"best_model": self._best} if self._best else {})

    def _plain_state(self) -> dict[str, Any]:
        best = {"best_epoch": best_epoch(self.history)} if self._best else {}
        replay = {"replay": self.ranks.gather(self._replay.state())} if self._replay else {}
        return (
            best
            | replay
            | {
                "scaler": self._scaler.state(),
                "step": self.step,
                "history": self.history,
                "sessions": self.sessions,
                "sums": self._sums.state(),
                "rng": self.ranks.gather(rng_state()),
                "threads": torch.get_num_threads(),
            }
        )

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, or from a `checkpoint` in shards, saved by any number of ranks."""
        if self.divided is not None and is_sharded(state):
            weights = load_sharded(state, self.optimizer, self.module, self.divided)
        else:
            weights = load_whole(
                state, self.optimizer, self.module, self._trained_names, self.divided
            )
        self.step = state["step"]
        self.history, self.sessions = list(state["history"]), list(state["sessions"])
        self._sums.load(state["sums"])
        if "scaler" in state:
            self._scaler.load(state["scaler"])
        if self._ema is not None:
            self._ema.load(weights["ema_model"])
        best = weights.get("best_model", {})
        self._best = {name: value.to(self.ranks.device) for name, value in best.items()}
        if self._replay is not None:
            data_ranks = (self.ranks.rank, self.ranks.world_size)
            if self.divided is not None:
                data_ranks = (self.divided.data_rank, self.divided.data_size)
            self._replay.load(state["replay"], *data_ranks)
        if len(state["rng"]) == self.ranks.world_size:
            restore_rng_state(state["rng"][self.ranks.rank])

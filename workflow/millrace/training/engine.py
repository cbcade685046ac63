"""The training loop: any model, any number of ranks, stopped and continued at any step.

The state of a run is a function of (run hash, step). Batches follow from (seed, epoch), the learning
rate from the step, and everything else is in the checkpoint, so that a run that was stopped continues
bit by bit as if it had not been.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from millrace.errors import ConfigError, ExitCode, UserError
from millrace.models.spec import ModelSpec
from millrace.training.acceleration import checkpoint_activations, compile_in_place
from millrace.training.batches import BatchPlan, GlobalBatch
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
from millrace.training.parallel.copies import check_static_graph, synchronised
from millrace.training.parallel.divided import Divided, divide
from millrace.training.parallel.shards import kinds
from millrace.training.parallel.state import held, load_sharded, load_whole, sharded
from millrace.training.passes import Dataset, Passes
from millrace.training.phases import Mark, unmarked
from millrace.training.precision import LossScaler
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
    dataset : Dataset
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
        dataset: Dataset,
        config: TrainConfig,
        seed: int,
        ranks: Ranks,
        execution: ExecutionConfig | None = None,
        parallel: ParallelConfig | None = None,
        mark: Mark = unmarked,
    ) -> None:
        self._mark = mark
        self.spec, self.dataset, self.config, self.ranks = spec, dataset, config, ranks
        self._model_config, self._seed = model_config, seed
        self.execution = execution or ExecutionConfig()
        seed_everything(seed, rank=0)
        self.module = spec.build(model_config, dataset).to(ranks.device)
        if config.init_from is not None:
            warm_start(self.module, config.init_from, spec.bound)
        self._trained_names = [n for n, p in self.module.named_parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in self.module.parameters())
        """Numbers that the whole model holds."""
        self.divided = self._divide(parallel or ParallelConfig())
        seed_everything(seed, self.divided.data_rank if self.divided else ranks.rank)
        trained = self._called_in_training()
        self._trained = [p for p in self.module.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": group} for group in kinds(self._trained)]
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._scaler = LossScaler(config.precision)
        self._ema = Ema(self.module, config.ema) if config.ema else None
        self._best: dict[str, Tensor] = {}
        self._plan, self._validation = (
            BatchPlan(dataset.groups(split), config.global_batch, seed, dataset.group_costs)
            for split in ("train", "validation")
        )
        self.step = 0
        self.stopped = Stop.NO
        """Why `run` ended before its target."""
        self.history: list[dict[str, Any]] = []
        self.sessions: list[dict[str, Any]] = []
        self._replay = self._replayed()
        self.passes = Passes(
            spec,
            model_config,
            dataset,
            config,
            self.execution,
            seed,
            ranks,
            module=self.module,
            trained=trained,
            divided=self.divided,
            scaler=self._scaler,
            replay=self._replay,
            mark=mark,
        )
        self._sums = EpochSums(ranks)
        self._watchdog = Watchdog()
        self._not_finite = torch.zeros((), dtype=torch.bool, device=ranks.device)

    def _divide(self, parallel: ParallelConfig) -> Divided | None:
        """Leave this rank its part of the module; None: all of it."""
        division = self.spec.division
        self.parallel = resolved = parallel.of(
            self.spec.name,
            self._model_config,
            self.ranks.world_size,
            self.config.global_batch,
            division.steps(self.dataset) if division else 1,
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
            self.dataset,
            self.config.precision,
            self._checkpoint_activations,
        )

    def _replayed(self) -> Replay | None:
        if self.config.replay is None:
            return None
        if self.spec.continued is None:
            raise ConfigError(
                f"train.replay: samples of {self.spec.name} do not follow on each other; leave it out"
            )
        windows: Any = self.dataset  # of models that go on from their forecasts
        return Replay(self.config.replay, windows, self._seed)

    def _checkpoint_activations(self, module: nn.Module) -> None:
        if self.execution.activation_checkpointing:
            checkpoint_activations(module, self.spec.blocks)

    def _called_in_training(self) -> nn.Module:
        """The module as a training step calls it."""
        if self.divided is not None:
            return self.module
        self._checkpoint_activations(self.module)
        if self.execution.compile:
            compile_in_place(self.module, self.ranks.device)
        if self.ranks.world_size == 1:
            return self.module
        if self.parallel.static_graph:
            check_static_graph(self.dataset.batch("train", 0, np.zeros(1, dtype=np.int64)))
        copy = synchronised(self.module, self.ranks.device, self.parallel.static_graph)
        exchange_gradients(copy, self.config.gradient_compression, self._mark)
        return copy

    @property
    def position(self) -> Position:
        """Steps and epochs done."""
        epoch, batch = divmod(self.step, len(self._plan))
        return Position(self.step, epoch, batch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[GlobalBatch]:
        """Batches of an epoch from the ``start``-th on, the same on all ranks."""
        return self._plan.epoch(epoch, start)

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
            with self._watchdog.watching_end_of_epoch(deadline.has_saved):
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
        self.module.train()
        position, agree_at = self.position, self.step
        started = time.monotonic()
        with self._watchdog.watching_steps():
            for batch in self.batches(position.epoch, start=position.batch):
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
        loss = self.passes.backward(batch, self.position)
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
            "samples_per_second": float(self.dataset.groups("train").sum()) / max(seconds, 1e-9),
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
                total += self.passes.validated(batch, self.position)
                count += batch.size
        return self.ranks.sum(total)[0] / count

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
        """`state`; of a divided model this rank's weights and moments come apart. Call it on all ranks."""
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
        return (
            best
            | self._replay_state()
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

    def _replay_state(self) -> dict[str, list[dict[str, Any]]]:
        """What is kept to go on from by all ranks, on the first."""
        if self._replay is None:
            return {}
        # Ranks that take the same samples keep the same.
        is_only = self.divided is None or self.divided.is_first_of_share
        states = self.ranks.gather(self._replay.state() if is_only else None)
        return {"replay": [state for state in states if state is not None]}

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

"""The training loop: any model, any number of ranks, stopped and continued at any step.

The state of a run is a function of (run hash, step). Batches follow from (seed, epoch), the learning rate
from the step, and everything else is in the checkpoint, so that a run that was stopped continues bit by bit
as if it had not been stopped.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from millrace.data.joint import JointDataset
from millrace.data.window_dataset import WindowDataset
from millrace.errors import ConfigError, NotFiniteError
from millrace.models.spec import Adopted, ModelSpec
from millrace.training.acceleration import checkpoint_activations, compile_in_place
from millrace.training.batches import BatchPlan, GlobalBatch
from millrace.training.config import ExecutionConfig, TrainConfig
from millrace.training.deadline import Deadline, Stop
from millrace.training.distributed import (
    Ranks,
    peak_memory,
    restore_rng_state,
    rng_state,
    seed_everything,
)
from millrace.training.ema import Ema
from millrace.training.history import EpochSums, best_epoch, is_exhausted
from millrace.training.parallel.config import ParallelConfig
from millrace.training.parallel.replicas import check_static_graph, replicated
from millrace.training.parallel.shards import by_mesh
from millrace.training.parallel.state import (
    load_full_state,
    load_sharded_state,
    local_weights,
    sharded_state,
)
from millrace.training.passes import Dataset, Passes
from millrace.training.phases import Mark, no_mark
from millrace.training.precision import LossScaler
from millrace.training.replay import Replay
from millrace.training.roll_back import DivergedError, count, rate_factor, spike
from millrace.training.schedules import factor
from millrace.training.store import Position, is_sharded
from millrace.training.warm_start import warm_start
from millrace.training.watchdog import Watchdog

if TYPE_CHECKING:
    from millrace.training.parallel.divided import DividedModel

# Ranks agree on stopping about this often; every step would cost an all-reduce of its own.
AGREE_EVERY_S = 0.5


class Observer(Protocol):
    """Follows the training: progress display and the run's store."""

    def on_step(self, position: Position, steps_per_epoch: int, loss: Tensor) -> None:
        """After a step, with this rank's mean loss of the epoch so far."""

    def on_epoch(self, record: dict[str, Any]) -> None:
        """After an epoch and its validation, with its record of the history."""

    def on_state(self, trainer: "Trainer", stopping: bool) -> None:
        """When a checkpoint can be taken: at the end of an epoch, or when stopping."""

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due at a step within an epoch: the same on all ranks."""
        return False

    def is_late(self, step: int) -> bool:
        """Whether a checkpoint is due within an epoch by the clock; one rank that says so is enough."""
        return False

    def on_due(self, trainer: "Trainer") -> None:
        """When a checkpoint that is due can be taken, within an epoch."""

    def on_begin(self, trainer: "Trainer") -> None:
        """Before the first step, if training may be rolled back."""

    def on_roll_back(
        self, trainer: "Trainer", roll_back: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """Return the newest state until the end of ``roll_back["epoch"]``; None: there is none."""


class Trainer:
    """A model in training.

    ``model_config`` is an instance of ``spec.config``; the dataset is on the device of the rank; ``seed``
    decides initial weights and the order of the samples. ``parallel`` says how the ranks are used; by
    default each has a replica of the model. ``mark`` is called at the beginning of each phase of a step,
    see `millrace.training.phases`. Raises `ConfigError` if the configuration does not fit the model, the
    samples or the number of ranks.
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
        mark: Mark = no_mark,
    ) -> None:
        self._mark = mark
        self.spec, self.dataset, self.config, self.ranks = spec, dataset, config, ranks
        self.execution = execution or ExecutionConfig()
        if spec.check is not None:
            spec.check(model_config, ranks.device)
        seed_everything(seed, rank=0)
        self.module = spec.build(model_config, dataset).to(ranks.device)
        self.adopted: Adopted | None = None
        """What was taken of published weights."""
        if config.init_from is not None:
            self.adopted = warm_start(self.module, config.init_from, spec, model_config, dataset)
        self._trained_names = [n for n, p in self.module.named_parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in self.module.parameters())
        """Number of parameters of the whole model."""
        division = spec.division
        self.parallel = (parallel or ParallelConfig()).for_model(
            spec.name,
            model_config,
            ranks.world_size,
            config.global_batch,
            division.steps(dataset) if division else 1,
        )
        self.parallel.check_options(
            bool(self.execution.compile), config.gradient_compression, config.replay is not None
        )
        prepare = self._checkpoint_activations
        self.divided: DividedModel | None = None
        if self.parallel.is_divided:
            from millrace.training.parallel import divided  # takes a third of a second

            self.divided = divided.DividedModel(
                spec, self.module, self.parallel, ranks, dataset, config.precision, prepare
            )
            members = dataset.datasets if isinstance(dataset, JointDataset) else [dataset]
            for one in members if self.divided.counted > 1 else ():
                if isinstance(one, WindowDataset):
                    one.group_of_ranks = str(self.divided.data_rank)
        self._seeds = (seed, self.divided.data_rank if self.divided else ranks.rank)
        seed_everything(*self._seeds)
        trained = self._called_in_training()
        self._trained = [p for p in self.module.parameters() if p.requires_grad]
        if self.execution.has_graphs:
            for parameter in self._trained:
                parameter.grad = torch.zeros_like(parameter)
        groups: list[dict[str, Any]] = [{"params": group} for group in by_mesh(self._trained)]
        # One pass over weights and moments; complex weights, as models of others may have, it refuses.
        fused = self.divided is None and not any(p.is_complex() for p in self._trained)
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused
        )
        self.scaler = LossScaler(config.precision)
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
        self._initial_loss: float | None = None
        self.sessions: list[dict[str, Any]] = []
        self.roll_backs: list[dict[str, Any]] = []
        """See `millrace.training.roll_back`."""
        self.replay: Replay | None = None
        if config.replay is not None:
            if spec.continued is None:
                raise ConfigError(
                    f"train.replay: samples of {spec.name} do not follow on each other; leave it out"
                )
            in_time: Any = dataset
            self.replay = Replay(config.replay, in_time, seed)
        parts = (ranks, self.module, trained, self.divided, self.scaler, self.replay, mark)
        self.passes = Passes(spec, model_config, dataset, config, self.execution, seed, *parts)
        self._sums = EpochSums(ranks)
        self._watchdog = Watchdog()
        self._not_finite = torch.zeros((), dtype=torch.bool, device=ranks.device)
        self.gradient_norm = torch.zeros((), device=ranks.device)
        """Norm of the gradient of the last step before it was clipped, the same on all ranks."""
        self.step_loss = torch.zeros((), device=ranks.device)
        """This rank's part of the mean loss of the last step."""

    def _checkpoint_activations(self, module: nn.Module) -> None:
        if self.execution.activation_checkpointing:
            checkpoint_activations(module, self.spec.recomputed)

    def _called_in_training(self) -> nn.Module:
        """The module as called in a training step: compiled and replicated if configured."""
        if self.divided is not None:
            return self.module
        self._checkpoint_activations(self.module)
        if how := self.execution.compile:
            mode = how if isinstance(how, str) else None
            compile_in_place(self.module, self.ranks.device, mode)
        if self.ranks.world_size == 1:
            return self.module
        static_graph, compression = self.parallel.static_graph, self.config.gradient_compression
        if static_graph:
            check_static_graph(self.dataset.batch("train", 0, np.zeros(1, dtype=np.int64)))
        return replicated(self.module, self.ranks.device, static_graph, compression, self._mark)

    @property
    def position(self) -> Position:
        """Steps and epochs done."""
        epoch, batch = divmod(self.step, len(self._plan))
        return Position(self.step, epoch, batch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[GlobalBatch]:
        """Iterate over the batches of an epoch, beginning with batch ``start``, the same on all ranks.

        The samples of the next ones are gathered meanwhile.
        """
        return self.passes.iterate("train", self._plan, epoch, start)

    def run(self, target_epoch: int, deadline: Deadline, observer: Observer) -> bool:
        """Train until the end of ``target_epoch``, or until early stopping.

        Returns False if training stopped before because of ``deadline``. Raises `NotFiniteError` on all
        ranks, before anything is saved, unless training can be rolled back.
        """
        if self.stopped_early:
            observer.on_state(self, stopping=False)  # its store may have been removed
        if self.step == 0 and self.config.init_from is None:
            # `millrace.training.learning` compares with it; trained weights need not improve.
            self._initial_loss = self.validation_loss()
            self._check_loss("validation", self._initial_loss)
        if self.config.roll_back is not None:
            observer.on_begin(self)
        while self.position.epoch < target_epoch and not self.stopped_early:
            try:
                if not self._run_epoch(deadline, observer):
                    if self.stopped is not Stop.NO:
                        observer.on_state(self, stopping=True)
                        return False
                    with self._watchdog.watching_end_of_epoch(deadline.has_saved):
                        observer.on_due(self)
                    continue
                with self._watchdog.watching_end_of_epoch(deadline.has_saved):
                    started = time.monotonic()
                    observer.on_epoch(self._finish_epoch())
                    deadline.record_validation(time.monotonic() - started)
                    observer.on_state(self, stopping=False)
            except DivergedError as error:  # on all ranks
                self._roll_back(error, observer)
        return True

    def _roll_back(self, error: DivergedError, observer: Observer) -> None:
        """Go back to the end of the epoch before, or an earlier state; raises the error if that is over."""
        config = self.config.roll_back
        if config is None:
            raise error
        if len(self.roll_backs) == config.times:
            raise NotFiniteError(
                f"{error}; train.roll_back went back {config.times} times before"
            ) from None
        epoch = (self.step - 1) // len(self._plan)
        made = {"epoch": epoch, "step": epoch * len(self._plan), "cause": error.cause}
        roll_backs, sessions = [*self.roll_backs, made], self.sessions
        state = observer.on_roll_back(self, made)
        if state is None:
            raise NotFiniteError(f"{error}; there is no checkpoint to go back to") from None
        # As in a new process.
        self.optimizer.state.clear()
        seed_everything(*self._seeds)
        self._not_finite.zero_()
        self.load(state)
        self.roll_backs, self.sessions = roll_backs, sessions

    @property
    def stopped_early(self) -> bool:
        """Whether the patience of ``early_stopping`` has run out: this state is the last."""
        return self.position.batch == 0 and is_exhausted(self.history, self.config.early_stopping)

    def _run_epoch(self, deadline: Deadline, observer: Observer) -> bool:
        """Train for the rest of an epoch; False: not to its end, but to stop or to take a checkpoint."""
        self.module.train()
        position, agree_at = self.position, self.step
        started = time.monotonic()
        with self._watchdog.watching_steps():
            for batch in self.batches(position.epoch, start=position.batch):
                is_due = observer.saves_at(self.step)
                if is_due or self.step >= agree_at:
                    stop, is_late, seconds = self.ranks.maximum(
                        deadline.stop, observer.is_late(self.step), self._sums.seconds_per_step
                    )
                    self.check_finite()
                    if stop or is_due or is_late:
                        self.stopped = Stop(int(stop))
                        return False
                    agree_at = self.step + max(1, int(AGREE_EVERY_S / max(seconds, 1e-3)))
                loss = self.step_loss = self.train_step(batch)
                self.step += 1
                now = time.monotonic()
                deadline.record_step(now - started)
                self._watchdog.beat(now - started)
                self._sums.add(loss, batch.size, now - started)
                started = now
                observer.on_step(self.position, len(self._plan), self._sums.mean)
        self.check_finite()
        return True

    def train_step(self, batch: GlobalBatch) -> Tensor:
        """Do one optimiser step; returns this rank's part of the mean loss of the global batch."""
        learning_rate = self.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss = self.passes.backward(batch, self.position)
        self._mark("optimiser")
        norm = self.gradient_norm = self.clipped_norm()
        if self.scaler.is_exhausted:
            self._not_finite |= ~torch.isfinite(norm)
        if self.scaler.accepts(norm):
            self.optimizer.step()
            if self._ema is not None:
                self._ema.update(self.step)
        self.clear_gradients()
        return loss

    def clear_gradients(self) -> None:
        """As before the first step."""
        self.optimizer.zero_grad(set_to_none=not self.execution.has_graphs)

    def clipped_norm(self) -> Tensor:
        """Clip the gradient; returns its norm before, the same on all ranks."""
        largest = self.config.clip_norm or math.inf
        if self.divided is not None:
            return self.divided.clip(self.scaler, largest)
        gradients = [p.grad for p in self._trained if p.grad is not None]
        self.scaler.unscale(gradients)
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        torch._foreach_mul_(gradients, torch.clamp(largest / (norm + 1e-6), max=1.0))
        return norm

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return self._rate(self.step)

    def _rate(self, rolled_back_until: int) -> float:
        """Learning rate of the next step, reduced by the roll-backs to that step or before alone."""
        epoch = self.step / len(self._plan)
        planned = self.config.learning_rate * factor(self.config.schedule, epoch)
        return planned * rate_factor(self.config.roll_back, self.roll_backs, rolled_back_until)

    def check_finite(self) -> None:
        """Raise `DivergedError` after a gradient that was not finite."""
        # All ranks see the same norm, that of the averaged gradient: there is no need to agree.
        if bool(self._not_finite):
            raise DivergedError(
                "the gradient became infinite or NaN",
                f"before step {self.step}",
                "lower train.learning_rate or train.clip_norm (a new run), or check the data",
            )

    def _check_loss(self, what: str, loss: float) -> None:
        """Raise `DivergedError` for a mean loss, the same on all ranks, that is not finite or a spike."""
        name = {"training": "train_loss"}.get(what, f"{what}_loss")
        cause = spike(self.config.roll_back, self.history, name, loss)
        if not math.isfinite(loss):
            cause = f"the {what} loss became infinite or NaN"
        if cause:
            advice = f"check the {what} data, or lower train.learning_rate (a new run)"
            raise DivergedError(cause, f"at step {self.step}", advice)

    def _finish_epoch(self) -> dict[str, Any]:
        """Validate, and add the record of the epoch to the history."""
        loss, seconds = self._sums.collect()
        validation_loss = self.validation_loss()
        # Before anything of the epoch is kept: what is published is finite.
        self._check_loss("training", loss)
        self._check_loss("validation", validation_loss)
        record: dict[str, Any] = {
            "epoch": self.position.epoch,
            "step": self.step,
            "train_loss": loss,
            "validation_loss": validation_loss,
            "learning_rate": self._rate(self.step - 1),
            "samples_per_second": float(self.dataset.groups("train").sum()) / max(seconds, 1e-9),
            "seconds": seconds,
            "session": len(self.sessions),
            **peak_memory(self.ranks),
        }
        if not self.history and self._initial_loss is not None:
            record["initial_validation_loss"] = self._initial_loss
        if rolled_back := count(self.roll_backs, self.step - 1):
            record["roll_backs"] = rolled_back
        self.history.append(record)
        record["best_epoch"] = best_epoch(self.history)
        if self.config.keep_best and record["best_epoch"] == record["epoch"]:
            self._best = self._validated_weights()
        return record

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean loss over the validation samples, the same on all ranks."""
        self.module.eval()
        total, count = 0.0, 0
        with self._averaged():
            for batch in self.passes.iterate("validation", self._validation, 0):
                total += self.passes.loss_sum(batch, self.position)
                count += batch.size
        return self.ranks.sum(total)[0] / count

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """Context with the averaged weights, if ``ema`` is configured."""
        return self._ema.applied() if self._ema else contextlib.nullcontext()

    def _validated_weights(self) -> dict[str, Tensor]:
        """Copy of the weights that are validated, as far as this rank holds them."""
        with self._averaged():
            weights = local_weights(self.module, self.divided)
            return {name: value.detach().clone() for name, value in weights.items()}

    def state(self) -> dict[str, Any]:
        """State of an undivided model from which training continues; call it on all ranks."""
        optimizer = self.optimizer.state_dict()
        return self._plain_state() | self._weights() | {"optimizer": optimizer}

    def checkpoint(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """`state`, and the tensors of this rank, if the model is divided. Call it on all ranks."""
        if self.divided is None:
            return self.state(), {}
        facts, tensors = sharded_state(
            self._weights(), self.optimizer, self._trained_names, self.divided
        )
        return self._plain_state() | facts, tensors

    def _weights(self) -> dict[str, dict[str, Tensor]]:
        """All kinds of weights that are kept, as far as this rank holds them."""
        weights = {"model": local_weights(self.module, self.divided)}
        if self._ema is not None:
            weights["ema_model"] = self._validated_weights()
        return weights | ({"best_model": self._best} if self._best else {})

    def _plain_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"best_epoch": best_epoch(self.history)} if self._best else {}
        if self.replay is not None:
            # Ranks that take the same samples keep the same forecasts.
            is_only = self.divided is None or self.divided.is_first_of_share
            kept = self.ranks.gather(self.replay.state() if is_only else None)
            state["replay"] = [one for one in kept if one is not None]
        if self.roll_backs:
            state["roll_backs"] = self.roll_backs
        return state | {
            "scaler": self.scaler.state(),
            "step": self.step,
            "initial_validation_loss": self._initial_loss,
            "history": self.history,
            "sessions": self.sessions,
            "sums": self._sums.state(),
            "rng": self.ranks.gather(rng_state()),
            "threads": torch.get_num_threads(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`, or from a `checkpoint` in shards, saved by any number of ranks."""
        if self.divided is not None and is_sharded(state):
            weights = load_sharded_state(state, self.optimizer, self.divided)
        else:
            weights = load_full_state(
                state, self.optimizer, self.module, self._trained_names, self.divided
            )
        self.step = state["step"]
        self.history, self.sessions = list(state["history"]), list(state["sessions"])
        self.roll_backs = list(state.get("roll_backs", []))
        self._initial_loss = state.get("initial_validation_loss")
        self._sums.load(state["sums"])
        if "scaler" in state:
            self.scaler.load(state["scaler"])
        if self._ema is not None:
            self._ema.load(weights["ema_model"])
        best = weights.get("best_model", {})
        self._best = {name: value.to(self.ranks.device) for name, value in best.items()}
        if self.replay is not None:
            data_ranks = (self.ranks.rank, self.ranks.world_size)
            if self.divided is not None:
                data_ranks = (self.divided.data_rank, self.divided.data_size)
            self.replay.load(state["replay"], *data_ranks)
        if len(state["rng"]) == self.ranks.world_size:
            restore_rng_state(state["rng"][self.ranks.rank])

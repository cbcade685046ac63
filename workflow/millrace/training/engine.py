"""The training loop: any model, any number of ranks, stopped and continued at any step.

The state of a run is a function of (identity, step). Batches follow from (seed, epoch), the learning
rate from the step, and everything else is in the checkpoint, so that a run that was stopped continues
bit by bit as if it had not been.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from millrace.errors import ExitCode, UserError
from millrace.models.losses import LossConfig
from millrace.models.spec import ModelSpec
from millrace.training.batches import BatchPlan, GlobalBatch, rank_share
from millrace.training.deadline import Deadline
from millrace.training.distributed import Ranks, restore_rng_state, rng_state, seed_everything
from millrace.training.schedules import ScheduleConfig, factor
from millrace.training.store import Position

# Ranks agree on stopping about this often; every step would cost an all-reduce of its own.
_AGREE_EVERY_S = 0.5


class NotFiniteError(UserError):
    """Loss or gradients became infinite or NaN."""

    exit_code = ExitCode.NOT_FINITE


@dataclass(frozen=True)
class TrainConfig:
    """The ``train:`` block of an experiment: what decides the weights, not how long it runs."""

    global_batch: int
    """Samples of an optimiser step over all ranks, the same for every layout."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    """Largest norm of the gradient; None: no clipping."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)


class View(Protocol):
    """Samples as the engine sees them: groups of samples that share a geometry."""

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
    """

    def __init__(
        self,
        spec: ModelSpec,
        model_config: Any,
        view: View,
        config: TrainConfig,
        seed: int,
        ranks: Ranks,
    ) -> None:
        self.spec, self.view, self.config, self.ranks = spec, view, config, ranks
        seed_everything(seed, rank=0)
        self.module = spec.build(model_config, view).to(ranks.device)
        seed_everything(seed, ranks.rank)
        self._parallel: nn.Module = (
            DistributedDataParallel(self.module) if ranks.world_size > 1 else self.module
        )
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._plan = BatchPlan(view.groups("train"), config.global_batch, seed)
        self._validation = BatchPlan(view.groups("validation"), config.global_batch, seed)
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.sessions: list[dict[str, Any]] = []
        self._sums = _Sums(ranks)
        self._not_finite = torch.zeros((), dtype=torch.bool, device=ranks.device)

    @property
    def position(self) -> Position:
        """Steps and epochs done."""
        epoch, batch = divmod(self.step, len(self._plan))
        return Position(self.step, epoch, batch)

    def run(self, target_epoch: int, deadline: Deadline, observer: Observer) -> bool:
        """Train until the end of ``target_epoch``.

        Returns
        -------
        bool
            Whether it was reached; False: stopped in good order because ``deadline`` said so.

        Raises
        ------
        NotFiniteError
            On all ranks, before anything is saved.
        """
        while self.position.epoch < target_epoch:
            if not self._run_epoch(deadline, observer):
                observer.on_state(self, stopping=True)
                return False
            observer.on_epoch(self._finish_epoch())
            observer.on_state(self, stopping=False)
        return True

    def _run_epoch(self, deadline: Deadline, observer: Observer) -> bool:
        """Do the rest of an epoch; False: stopped before its end."""
        self._parallel.train()
        position, agree_at = self.position, self.step
        started = time.monotonic()
        for batch in self._plan.epoch(position.epoch, start=position.batch):
            if self.step >= agree_at:
                stop, seconds = self.ranks.maximum(
                    deadline.reason is not None, self._sums.seconds_per_step
                )
                self._check_finite()
                if stop:
                    return False
                agree_at = self.step + max(1, int(_AGREE_EVERY_S / max(seconds, 1e-3)))
            loss = self._train_step(batch)
            self.step += 1
            now = time.monotonic()
            deadline.record_step(now - started)
            self._sums.add(loss, len(batch.index), now - started)
            started = now
            observer.on_step(self.position, len(self._plan), self._sums.mean)
        self._check_finite()
        return True

    def _train_step(self, batch: GlobalBatch) -> Tensor:
        learning_rate = self.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss = self._global_loss("train", batch)
        # Gradients are averaged over the ranks; what is wanted is the sum of the ranks' parts.
        (loss * self.ranks.world_size).backward()
        norm = nn.utils.clip_grad_norm_(
            self.module.parameters(), self.config.clip_norm or math.inf, foreach=True
        )
        self._not_finite |= ~torch.isfinite(norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _global_loss(self, split: str, batch: GlobalBatch) -> Tensor:
        """Part of the mean loss of a global batch that this rank's samples contribute."""
        share = rank_share(batch, self.ranks.rank, self.ranks.world_size)
        samples = self.view.batch(split, share.group, share.index, share.weight)
        loss_B = self.spec.loss(self._parallel, samples, self.config.loss)
        return (loss_B * samples.weight_B).sum() / share.batch_size

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
        record = {
            "epoch": self.position.epoch,
            "step": self.step,
            "train_loss": loss,
            "validation_loss": self.validation_loss(),
            "learning_rate": self.learning_rate,
            "samples_per_second": float(self.view.groups("train").sum()) / max(seconds, 1e-9),
            "seconds": seconds,
            "session": len(self.sessions),
        }
        self.history.append(record)
        return record

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean loss over the validation samples, the same on all ranks."""
        self.module.eval()
        total, count = 0.0, 0
        for batch in self._validation.epoch(0):
            share = rank_share(batch, self.ranks.rank, self.ranks.world_size)
            samples = self.view.batch("validation", share.group, share.index, share.weight)
            loss_B = self.spec.loss(self.module, samples, self.config.loss)
            total += float((loss_B * samples.weight_B).double().sum())
            count += share.batch_size
        return self.ranks.sum(total)[0] / count

    def begin_session(self, description: Mapping[str, Any]) -> None:
        """Note that training starts or resumes here."""
        self.sessions.append({"session": len(self.sessions) + 1, "step": self.step, **description})

    def state(self) -> dict[str, Any]:
        """Everything that training needs to continue; call it on all ranks, meant for the first."""
        return {
            # Tensors only: library models add metadata that may hold code.
            "model": {
                name: value
                for name, value in self.module.state_dict().items()
                if isinstance(value, Tensor)
            },
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "history": self.history,
            "sessions": self.sessions,
            "sums": self._sums.state(),
            "rng": self.ranks.gather(rng_state()),
            "threads": torch.get_num_threads(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, saved by any number of ranks."""
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.history, self.sessions = list(state["history"]), list(state["sessions"])
        self._sums.load(state["sums"])
        if len(state["rng"]) == self.ranks.world_size:
            restore_rng_state(state["rng"][self.ranks.rank])


class _Sums:
    """Loss and time of the epoch so far, over all ranks, without waiting for the device each step."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._reset()

    def _reset(self) -> None:
        self._loss = torch.zeros((), dtype=torch.float64, device=self._ranks.device)
        self._samples, self._steps, self._seconds = 0, 0, 0.0

    def add(self, loss: Tensor, samples: int, seconds: float) -> None:
        self._loss += loss.double() * samples
        self._samples, self._steps = self._samples + samples, self._steps + 1
        self._seconds += seconds

    @property
    def mean(self) -> Tensor:
        """Mean loss so far of this rank's share."""
        return self._loss / max(1, self._samples) * self._ranks.world_size

    @property
    def seconds_per_step(self) -> float:
        return self._seconds / max(1, self._steps)

    def collect(self) -> tuple[float, float]:
        """Mean loss of the epoch and its time, and begin the next."""
        state = self.state()
        self._reset()
        return state["loss"] / max(1, state["samples"]), state["seconds"]

    def state(self) -> dict[str, Any]:
        (loss,) = self._ranks.sum(float(self._loss))
        return {
            "loss": loss,
            "samples": self._samples,
            "steps": self._steps,
            "seconds": self._seconds,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        # The sum over ranks is kept by the first; the others start from nothing.
        self._reset()
        if self._ranks.is_first:
            self._loss += state["loss"]
        self._samples, self._steps = state["samples"], state["steps"]
        self._seconds = state["seconds"]

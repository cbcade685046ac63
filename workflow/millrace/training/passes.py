"""Forward and backward passes of a rank's samples, for losses and gradients."""

import contextlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from millrace.models.spec import ModelSpec
from millrace.training.batches import (
    GlobalBatch,
    RankShare,
    micro_batches,
    rank_shares,
    sample_seeds,
)
from millrace.training.config import ExecutionConfig, TrainConfig
from millrace.training.distributed import Ranks
from millrace.training.parallel.divided import DividedModel
from millrace.training.phases import Mark
from millrace.training.precision import LossScaler, autocast
from millrace.training.replay import Replay
from millrace.training.store import Position


class Dataset(Protocol):
    """Samples as the engine sees them: groups of samples that share a geometry."""

    group_costs: np.ndarray
    """Computing time of a sample of each group, in any unit, [G]."""

    def groups(self, split: Any) -> np.ndarray:
        """Number of samples of each group, int64[G]."""

    def batch(self, split: Any, group: int, index: np.ndarray, weight: Any = None) -> Any:
        """Gather samples of a group; the result has ``weight_B``."""


@dataclass(frozen=True, eq=False)
class Passes:
    """A model, its samples and the ranks it is trained on."""

    spec: ModelSpec
    model_config: Any
    """An instance of ``spec.config``."""
    dataset: Dataset
    config: TrainConfig
    execution: ExecutionConfig
    seed: int
    ranks: Ranks
    module: nn.Module
    """The model without wrappers for training."""
    trained: nn.Module
    """``module`` as called in training; among replicas its backward pass exchanges gradients."""
    divided: DividedModel | None
    """How the module is divided among ranks; None: each has a replica."""
    scaler: LossScaler
    replay: Replay | None
    """Forecasts to start from; None: all samples start from data."""
    mark: Mark

    def backward(self, batch: GlobalBatch, position: Position) -> Tensor:
        """Add up the gradients of this rank's samples; returns their part of the mean loss of the batch.

        Ranks may have different numbers of micro-batches, but each has a last one. Only the last one
        exchanges gradients, so that no rank waits for another that has no micro-batches left.
        """
        if self.divided is not None:
            [share] = self._shares(batch)
            return self._backward_divided(self.divided, share, position)
        total = torch.zeros((), device=self.ranks.device)
        *first, last = micro_batches(self._shares(batch), self.execution.micro_batch)
        without_exchange: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if first and isinstance(self.trained, DistributedDataParallel):
            without_exchange = self.trained.no_sync()
        with without_exchange:
            for part in first:
                total += self._backward_part(part, position, self.ranks.world_size)
        return total + self._backward_part(last, position, self.ranks.world_size)

    def loss_sum(self, batch: GlobalBatch, position: Position) -> float:
        """Sum of the validation losses of this rank's samples; the sum over ranks is that of the batch."""
        shares = self._shares(batch)
        if self.divided is not None and self.divided.is_pipeline:
            [share] = shares
            samples = self._in_micro_batches(self.divided, "validation", share, position)
            return float(self._through_stages(self.divided, samples)) / self.divided.counted
        parts = micro_batches(shares, self.execution.micro_batch)
        losses = (
            self._losses("validation", part, position, self.module).double().sum() for part in parts
        )
        return sum(map(float, losses)) / (self.divided.counted if self.divided else 1)

    def samples(self, split: str, part: RankShare, position: Position) -> Any:
        """Gather samples, with their random numbers of this epoch."""
        samples = self.dataset.batch(split, part.group, part.index, part.weight)
        if self.spec.add_noise is not None:
            # Validation uses the same random numbers in every epoch: its losses can be compared.
            epoch = position.epoch if split == "train" else 0
            seeds = sample_seeds(self.seed, split, epoch, part.group, part.index)
            samples = self.spec.add_noise(self.model_config, samples, seeds)
        return samples

    def _shares(self, batch: GlobalBatch) -> list[RankShare]:
        """This rank's shares of a batch."""
        if self.divided is None:
            return rank_shares(batch, self.ranks.rank, self.ranks.world_size)
        # All samples of a model that can be divided belong to one group.
        [share] = rank_shares(batch, self.divided.data_rank, self.divided.data_size)
        return [self.divided.padded(share, self.config.global_batch)]

    def _backward_part(self, part: RankShare, position: Position, factor: float) -> Tensor:
        loss = self._losses("train", part, position, self.trained).sum() / part.batch_size
        self.mark("backward")
        # Gradients are averaged over the ranks, but the sum of the ranks' parts is needed.
        (loss * factor * self.scaler.scale).backward()
        return loss.detach()

    def _backward_divided(
        self, divided: DividedModel, share: RankShare, position: Position
    ) -> Tensor:
        if divided.is_pipeline:
            samples = self._in_micro_batches(divided, "train", share, position)
            factor = divided.loss_factor * self.scaler.scale / share.batch_size
            total = self._through_stages(divided, samples, factor) / share.batch_size
        else:
            total = torch.zeros((), device=self.ranks.device)
            parts = micro_batches([share], self.execution.micro_batch)
            for number, part in enumerate(parts, start=1):
                divided.exchanging(number == len(parts))
                total += self._backward_part(part, position, divided.loss_factor)
        divided.finish_gradients()
        return total / divided.counted  # other processes report the same loss

    def _in_micro_batches(
        self, divided: DividedModel, split: str, share: RankShare, position: Position
    ) -> list[Any]:
        size = len(share.index) // (divided.config.micro_batches or 1)
        return [self.samples(split, part, position) for part in micro_batches([share], size)]

    def _through_stages(
        self, divided: DividedModel, samples: list[Any], backward: float | None = None
    ) -> Tensor:
        """Sum of the losses, the same on all ranks of the pipeline.

        ``backward`` is the factor on the losses in the backward pass; None: there is no backward pass.
        """
        factor = 1.0 if backward is None else backward

        def loss(output: Tensor, part: Any) -> Tensor:
            assert self.spec.division is not None
            loss_B = self.spec.division.loss(self.module, output, part, self.config.loss)
            return (loss_B * part.weight_B).sum() * factor

        with self._autocast():
            return divided.run(samples, loss, backward is not None) / factor

    def _losses(self, split: str, part: RankShare, position: Position, model: nn.Module) -> Tensor:
        """Loss of each sample, [B]; 0 for those that do not count."""
        self.mark("data")
        if self.replay is not None and split == "train":
            assert self.spec.continued is not None
            samples, draw = self.replay.samples(part, position.step)
            self.mark("forward")
            with self._autocast():
                loss_B, past = self.spec.continued(model, samples, self.config.loss)
            self.replay.keep(draw, past)
        else:
            samples = self.samples(split, part, position)
            self.mark("forward")
            with self._autocast():
                loss_B = self.spec.loss(model, samples, self.config.loss)
        return loss_B * samples.weight_B

    def _autocast(self) -> torch.autocast:
        # FSDP collects the gradients of a unit when the gradients of its inputs are complete. If
        # micro-batches, or the steps of a rollout, shared rounded weights, the gradients of these would
        # arrive later and could be lost.
        cache = self.divided is None or self.divided.config.dp_shard == 1
        return autocast(self.config.precision, self.ranks.device, cache)

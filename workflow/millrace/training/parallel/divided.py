"""A model of which each process holds a part, and the operations of a training step that differ for it."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils._pytree import tree_map_only

from millrace.models.spec import ModelSpec
from millrace.training.batches import RankShare
from millrace.training.distributed import Ranks
from millrace.training.parallel.config import ParallelConfig
from millrace.training.parallel.order import bubbles
from millrace.training.parallel.pipeline import Pipeline, stages
from millrace.training.parallel.shards import fill, full, global_norm, local, reduced, scale
from millrace.training.parallel.tensor import divide_layers
from millrace.training.precision import LossScaler, half_type

AXES = ("pp", "dp_replicate", "dp_shard", "tp")


class DividedModel:
    """Cuts a module that is complete and equal on all processes, so that each holds its part afterwards.

    ``spec`` has a division; the module is as built, and loses the units of other stages. ``config`` is
    resolved for the model and the layout; the dataset decides the number of steps of a rollout. Shards of
    weights that autocast rounds are sent in ``precision``, that of the layers. ``prepare`` is called with
    the remaining part of the module before it is sharded, for example to have its activations recomputed.
    """

    def __init__(
        self,
        spec: ModelSpec,
        module: nn.Module,
        config: ParallelConfig,
        ranks: Ranks,
        dataset: Any,
        precision: str,
        prepare: Callable[[nn.Module], None],
    ) -> None:
        division = spec.division
        assert division is not None
        self.config, self.module, self.ranks, self._division = config, module, ranks, division
        sizes = (config.pipeline, config.dp_replicate or 1, config.dp_shard, config.tensor)
        self._mesh = _mesh(ranks.device.type, sizes)
        self._at = dict(zip(AXES, self._mesh.get_coordinate() or (0,) * 4, strict=True))
        self.data_rank = self._at["dp_replicate"] * config.dp_shard + self._at["dp_shard"]
        self.data_size = config.data_size
        self.names = [name for name, _ in module.named_parameters()]
        units, steps = division.units(module), division.steps(dataset)
        bounds, costs = stages(division, module, config)
        mine = [s for s in range(config.stages) if s % config.pipeline == self._at["pp"]]
        held = [unit for stage in mine for unit in range(*bounds[stage])]
        if config.pipeline > 1:
            for unit in set(range(len(units))) - set(held):
                division.drop(module, unit)
        self._orders: dict[str, Tensor] = {}
        if config.tensor > 1:
            self._orders = divide_layers(
                module, self._mesh["tp"], division.pairs(module), division.packed(module)
            )
        prepare(module)
        parts = {
            step * config.stages + stage: division.stage(module, *bounds[stage], step, steps)
            for step in range(steps)
            for stage in mine
        }
        self._shards = config.dp_shard > 1
        if self._shards:
            self._shard([units[unit] for unit in held], parts, half_type(precision))
        self._pipeline: Pipeline | None = None
        if config.pipeline > 1:
            group, total = self._mesh["pp"].get_group(), config.stages * steps
            self._pipeline = Pipeline(parts, total, config, group, ranks.device)
        advice = config.advice(steps, float(np.mean(bubbles(config, costs * steps))))
        if ranks.is_first and advice:
            warnings.warn(advice, stacklevel=2)

    def _shard(
        self, names: Sequence[str], parts: Mapping[int, nn.Module], half: torch.dtype | None
    ) -> None:
        axes: Any = "dp_shard"
        if (self.config.dp_replicate or 1) > 1:
            axes = ("dp_replicate", "dp_shard")
        mesh: DeviceMesh = self._mesh[axes]
        # Inputs stay as they are: the residual stream between units is float32, and so are the shards.
        rounded = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False)
        roundable = set(self._division.rounded(self.module)) if half else set()
        for name in names:
            policy = rounded if name in roundable else MixedPrecisionPolicy()
            # The last unit, too, frees its weights: they may change between two forward passes.
            fully_shard(
                self.module.get_submodule(name),
                mesh=mesh,
                reshard_after_forward=True,
                mp_policy=policy,
            )
        root = self.module
        if self.config.pipeline > 1 and len(parts) == 1:
            (root,) = parts.values()  # torch's stages delay the exchange to the last micro-batch
        root.register_forward_hook(_without_views)  # before the hook of FSDP
        fully_shard(root, mesh=mesh, reshard_after_forward=True)

    @property
    def counted(self) -> int:
        """Processes that report the same loss as this one."""
        return self.config.pipeline * self.config.tensor

    @property
    def is_first_of_share(self) -> bool:
        """Whether this is the first of the processes that take the same samples."""
        return self._at["pp"] == self._at["tp"] == 0

    @property
    def is_pipeline(self) -> bool:
        """Whether samples pass through stages."""
        return self._pipeline is not None

    @property
    def loss_factor(self) -> float:
        """Factor on the loss with which the exchange of gradients, an average, becomes their sum."""
        return float(self.data_size) if self._shards else 1.0

    def exchanging(self, is_last: bool) -> None:
        """Exchange gradients in the next backward pass only if it is the last of a step."""
        if self._shards and not self.is_pipeline and isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(is_last)

    def finish_gradients(self) -> None:
        """Sum the gradients of replicas, unless FSDP has done so."""
        if self._shards or self.data_size == 1:
            return
        gradients = [local(p.grad) for p in self.module.parameters() if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat, group=self._mesh["dp_replicate"].get_group())
        parts = flat.split([g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def clip(self, scaler: LossScaler, largest: float) -> Tensor:
        """Clip the gradient by its norm over all processes, which is returned."""
        gradients = []
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                parameter.grad = reduced(parameter.grad)
                gradients.append(parameter.grad)
        scaler.unscale([local(g) for g in gradients])
        holders = self.ranks.world_size // self.config.pipeline
        norm = global_norm(gradients, holders, self.ranks.device)
        if largest < float("inf"):
            scale(gradients, torch.clamp(largest / (norm + 1e-6), max=1.0))
        return norm

    def padded(self, share: RankShare, global_batch: int) -> RankShare:
        """Fill up a share to the size of all shares, with samples that do not count.

        Processes that exchange shards of weights have to pass through the model equally often; a pipeline
        needs the same number of samples in every step.
        """
        parts = self.config.micro_batches or 1
        if self.is_pipeline:
            size = -(-self.config.samples(global_batch) // parts) * parts
        else:
            size = -(-share.batch_size // self.data_size)
        missing = max(0, size - len(share.index))
        return replace(
            share,
            index=np.concatenate([share.index, np.repeat(share.index[:1], missing)]),
            weight=np.concatenate([share.weight, np.zeros(missing, dtype=np.float32)]),
            place=np.concatenate([share.place, np.repeat(share.place[:1], missing)]),
        )

    def run(
        self, samples: Sequence[Any], loss: Callable[[Tensor, Any], Tensor], backward: bool
    ) -> Tensor:
        """Pass micro-batches through the pipeline; returns the sum of their losses on all its processes."""
        assert self._pipeline is not None
        every = [self._division.inputs(part) for part in samples]
        inputs = {name: torch.cat([part[name] for part in every]) for name in every[0]}
        total = self._pipeline.run(inputs, lambda out, number: loss(out, samples[number]), backward)
        dist.all_reduce(total, group=self._mesh["pp"].get_group())
        return total

    def portable(self, tensor: Tensor, name: str) -> Tensor:
        """A tensor that is cut like the parameter ``name``, in a form that fits any division.

        Tensors of packed layers, whose rows were reordered for the heads of the processes, are returned in
        full, in the order of the undivided model.
        """
        if name not in self._orders:
            return tensor
        return full(tensor)[torch.argsort(self._orders[name]).to(tensor.device)].detach()

    def target(self, tensor: Tensor, name: str) -> Tensor:
        """Tensor to read a portable one into: ``tensor`` itself, or a full one for `fill` to cut."""
        if name not in self._orders:
            return tensor
        return torch.empty(tensor.shape, dtype=tensor.dtype)

    def fill(self, tensor: Tensor, name: str, values: Tensor) -> None:
        """Copy this process's part of a full tensor into one that is cut like the parameter ``name``."""
        values = values.to(local(tensor).device)
        if name in self._orders:
            values = values[self._orders[name].to(values.device)]
        fill(tensor, values)


@functools.cache
def _mesh(device: str, sizes: tuple[int, ...]) -> DeviceMesh:
    """Mesh of the processes, one for all models with the same sizes: each group of gloo has costly threads.

    Destroying groups is no alternative: DTensor remembers meshes, and would use an earlier, equal one.
    """
    return init_device_mesh(device, sizes, mesh_dim_names=AXES)


def _without_views(_: nn.Module, given: Any, output: Any) -> Any:
    """Copy outputs that are views of other tensors, on which hooks of FSDP could be lost."""
    return tree_map_only(Tensor, lambda x: x.clone() if x._is_view() else x, output)

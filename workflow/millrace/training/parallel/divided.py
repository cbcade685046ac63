"""A model of which each process holds a part, and how a step of training goes with it."""

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

from millrace.models.spec import Division, ModelSpec
from millrace.training.batches import RankShare
from millrace.training.distributed import Ranks
from millrace.training.parallel.config import ParallelConfig
from millrace.training.parallel.order import waiting
from millrace.training.parallel.pipeline import Pipeline, stages
from millrace.training.parallel.shards import fill, global_norm, local, scale, settled, whole
from millrace.training.parallel.tensor import divide_layers, ordered, restored
from millrace.training.precision import LossScaler, half_type

AXES = ("pp", "dp_replicate", "dp_shard", "tp")


class Divided:
    """Cuts a module that is whole and equal on all processes; afterwards each holds its part.

    Parameters
    ----------
    division : Division
    module : nn.Module
        As built; it loses the units of other stages.
    config : ParallelConfig
        Resolved.
    ranks : Ranks
    steps : int
        Of a rollout.
    half : torch.dtype or None
        Type in which shards of the weights are sent that autocast rounds to it anyway; None: as they are.
    prepare : callable
        Called with the part of the module that is left, before it is sharded: to have its activations
        computed again, for one.
    """

    def __init__(
        self,
        division: Division,
        module: nn.Module,
        config: ParallelConfig,
        ranks: Ranks,
        steps: int,
        half: torch.dtype | None,
        prepare: Callable[[nn.Module], None],
    ) -> None:
        self.config, self.module, self.ranks, self._division = config, module, ranks, division
        sizes = (config.pipeline, config.dp_replicate or 1, config.dp_shard, config.tensor)
        self._mesh = _mesh(ranks.device.type, sizes)
        self._at = dict(zip(AXES, self._mesh.get_coordinate() or (0,) * 4, strict=True))
        self.data_rank = self._at["dp_replicate"] * config.dp_shard + self._at["dp_shard"]
        self.data_size = config.data_size
        self.names = [name for name, _ in module.named_parameters()]
        units = division.units(module)
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
            self._shard([units[unit] for unit in held], parts, half)
        self._pipeline: Pipeline | None = None
        if config.pipeline > 1:
            group, total = self._mesh["pp"].get_group(), config.stages * steps
            self._pipeline = Pipeline(parts, total, config, group, ranks.device)
        advice = config.advice(steps, float(np.mean(waiting(config, costs * steps))))
        if ranks.is_first and advice:
            warnings.warn(advice, stacklevel=2)

    def _shard(
        self, names: Sequence[str], parts: Mapping[int, nn.Module], half: torch.dtype | None
    ) -> None:
        both = (self.config.dp_replicate or 1) > 1
        mesh: DeviceMesh = (
            self._mesh["dp_replicate", "dp_shard"] if both else self._mesh["dp_shard"]
        )
        # Inputs stay as they are: what is added up from block to block is float32, and so are the shards.
        rounded = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False)
        roundable = set(self._division.half(self.module)) if half else set()
        for name in names:
            fully_shard(
                self.module.get_submodule(name),
                mesh=mesh,
                # Also the last unit frees its weights: they may change between two forward passes.
                reshard_after_forward=True,
                mp_policy=rounded if name in roundable else MixedPrecisionPolicy(),
            )
        if self.config.pipeline > 1 and len(parts) == 1:
            (root,) = parts.values()  # torch's stages delay the exchange to the last micro-batch
        else:
            root = self.module
        root.register_forward_hook(_without_datasets)  # before the hook of FSDP
        fully_shard(root, mesh=mesh, reshard_after_forward=True)

    @property
    def holders(self) -> int:
        """Processes that hold parts or copies of the same parameters as this one."""
        return self.ranks.world_size // self.config.pipeline

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
        """What the loss is multiplied with so that the exchange of gradients adds them up."""
        return float(self.data_size) if self._shards else 1.0

    def exchanging(self, is_last: bool) -> None:
        """Say whether the next backward pass is the last of a step."""
        if self._shards and not self.is_pipeline and isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(is_last)

    def finish_gradients(self) -> None:
        """Add up the gradients of copies that nothing else adds up."""
        if self._shards or self.data_size == 1:
            return
        gradients = [local(p.grad) for p in self.module.parameters() if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat, group=self._mesh["dp_replicate"].get_group())
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def clip(self, scaler: LossScaler, largest: float) -> Tensor:
        """Clip the gradient by its norm over all processes, which is returned."""
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                parameter.grad = settled(parameter.grad)
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        scaler.unscale([local(g) for g in gradients])
        norm = global_norm(gradients, self.holders, self.ranks.device)
        if largest < float("inf"):
            scale(gradients, torch.clamp(largest / (norm + 1e-6), max=1.0))
        return norm

    def padded(self, share: RankShare, global_batch: int) -> RankShare:
        """A share of the size that all processes have, and a pipeline at every step.

        What is missing does not count. Processes that exchange shards of weights have to pass through the
        model equally often.
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
        self,
        samples: Sequence[Any],
        loss: Callable[[Tensor, Any], Tensor],
        backward: bool,
    ) -> Tensor:
        """Pass micro-batches through the pipeline; their loss, on every process of it."""
        assert self._pipeline is not None
        every = [self._division.inputs(part) for part in samples]
        inputs = {name: torch.cat([part[name] for part in every]) for name in every[0]}
        total = self._pipeline.run(inputs, lambda out, number: loss(out, samples[number]), backward)
        dist.all_reduce(total, group=self._mesh["pp"].get_group())
        return total

    def portable(self, tensor: Tensor, name: str) -> Tensor:
        """A tensor that is cut like a parameter, in a form that fits any division.

        Packed rows that were put in the order of the processes' heads are no part of the undivided tensor:
        those layers are whole.
        """
        order = self._orders.get(name)
        return tensor if order is None else restored(whole(tensor), order).detach()

    def target(self, tensor: Tensor, name: str) -> Tensor:
        """Where a portable tensor can be read to: ``tensor`` itself, or what `fill` takes its part of."""
        if name not in self._orders:
            return tensor
        return torch.empty(tensor.shape, dtype=tensor.dtype)

    def fill(self, tensor: Tensor, name: str, full: Tensor) -> None:
        """Take this process's part of a whole tensor that is cut like a parameter."""
        fill(tensor, ordered(full.to(local(tensor).device), self._orders.get(name)))


@functools.cache
def _mesh(device: str, sizes: tuple[int, ...]) -> DeviceMesh:
    """The same for all models that are divided alike: each group of gloo has threads that take time.

    Groups cannot be left instead: DTensor remembers meshes, and takes an earlier one for an equal one.
    """
    return init_device_mesh(device, sizes, mesh_dim_names=AXES)


def _without_datasets(_: nn.Module, given: Any, output: Any) -> Any:
    """Copy what a stage only passes on: on datasets of other tensors, hooks of FSDP could be lost."""
    return tree_map_only(Tensor, lambda x: x.clone() if x._is_dataset() else x, output)


def divide(
    spec: ModelSpec,
    module: nn.Module,
    config: ParallelConfig,
    ranks: Ranks,
    dataset: Any,
    precision: str,
    prepare: Callable[[nn.Module], None],
) -> Divided:
    """Divide a module among processes, see `Divided`."""
    assert spec.division is not None
    steps = spec.division.steps(dataset)
    half = half_type(precision)
    return Divided(spec.division, module, config, ranks, steps, half, prepare)

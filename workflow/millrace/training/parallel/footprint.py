"""Memory and traffic of each process of a training, found without weights or data.

One step is carried out on fake tensors, which have shapes and no content, in the order of the pipeline's
schedule. Every tensor that would exist is counted from when it is made until it is freed.
"""

import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from millrace.models.spec import ModelSpec
from millrace.training.acceleration import checkpoint_activations
from millrace.training.ahead import DEPTH
from millrace.training.config import TrainConfig
from millrace.training.parallel.config import ParallelConfig
from millrace.training.parallel.order import Work, bubbles, order
from millrace.training.parallel.pipeline import stages
from millrace.training.precision import autocast, half_type

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Footprint:
    """Bytes that a process holds at its peak and sends in a step, and its pipeline bubble."""

    stages: tuple[int, ...]
    """Stages of the pipeline that the process has."""
    parameters: int
    gradients: int
    optimiser: int
    activations: int
    """All the rest: activations kept for the backward pass, gathered weights, buffers."""
    sent: Mapping[str, int]
    """Bytes sent in a step, by what is sent."""
    bubble: float = 0.0
    """Part of a step in which the process is idle, see `millrace.training.parallel.order.bubbles`."""

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.parameters + self.gradients + self.optimiser + self.activations


@dataclass(frozen=True)
class Workload:
    """A training whose footprint is wanted."""

    spec: ModelSpec
    """With a division."""
    model_config: Any
    """An instance of ``spec.config``."""
    dataset: Any
    """The dataset, or an outline of it that is sufficient for `ModelSpec.build`."""
    batch: Callable[[int], Any]
    """(number of samples) -> batch of the dataset, with any content."""
    train: TrainConfig


def footprints(
    workload: Workload, config: ParallelConfig, micro_batch: int | None, recompute: bool
) -> list[Footprint]:
    """Footprint of a process at each position of the pipeline.

    ``config`` is resolved for the model and the layout; for ``micro_batch`` see `ExecutionConfig`; with
    ``recompute`` activations are recomputed in the backward pass.
    """
    assert workload.spec.division is not None
    with torch.device("meta"):
        module = workload.spec.build(workload.model_config, workload.dataset)
    bounds, costs = stages(workload.spec.division, module, config)
    idle = bubbles(config, costs * workload.spec.division.steps(workload.dataset))
    return [
        _Process(workload, config, micro_batch, recompute, rank, bounds).footprint(idle[rank])
        for rank in range(config.pipeline)
    ]


@dataclass(frozen=True)
class _Unit:
    """Bytes of a unit's parameters, of their gradients, and of its weights where they are gathered."""

    parameters: int
    gradients: int
    gathered: int


class _Process:
    """One process at position ``rank`` of its pipeline."""

    def __init__(
        self,
        workload: Workload,
        config: ParallelConfig,
        micro_batch: int | None,
        recompute: bool,
        rank: int,
        bounds: list[tuple[int, int]],
    ) -> None:
        division = workload.spec.division
        assert division is not None
        self.division, self.workload, self.config = division, workload, config
        self.rank, self.bounds = rank, bounds
        with torch.device("meta"):
            module = workload.spec.build(workload.model_config, workload.dataset)
        if config.tensor > 1:
            _cut_layers(module, division.pairs(module), config.tensor)
        self.steps = division.steps(workload.dataset)
        self.stages = [s for s in range(config.stages) if s % config.pipeline == rank]
        units = division.units(module)
        self.held = [unit for s in self.stages for unit in units[slice(*bounds[s])]]
        half = half_type(workload.train.precision) if config.dp_shard > 1 else None
        for name in set(division.rounded(module)) if half else ():
            module.get_submodule(name).to(half)
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        with self.fake:
            self.module = module.to_empty(device="cpu").train()
        if recompute:
            checkpoint_activations(module, workload.spec.recomputed)
        share = config.samples(workload.train.global_batch)
        self.parts = config.micro_batches or -(-share // (micro_batch or share))
        self.size = -(-share // self.parts)
        self.sent: dict[str, int] = defaultdict(int)

    def footprint(self, bubble: float) -> Footprint:
        """Carry out a step; ``bubble`` is `Footprint.bubble`."""
        units = {module: _unit(module) for module in map(self.module.get_submodule, self.held)}
        own = {parameter for module in units for parameter in module.parameters()}
        shard = self.config.dp_shard
        parameters = -(-sum(unit.parameters for unit in units.values()) // shard)
        gradients = -(-sum(unit.gradients for unit in units.values()) // shard)
        with self.fake, warnings.catch_warnings():
            # The first unit has no input that needs a gradient: torch warns that its hook is called later.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            # Micro-batches before the last keep full gradients, and stages of a pipeline full weights, too.
            reduces_each = self.config.pipeline > 1 and not self._is_one_stage
            keeps_full = self.parts > 1 and not reduces_each
            tally = _Tally(
                units if shard > 1 else {}, 1 if keeps_full else shard, self._is_one_stage
            )
            self._count_layers()
            peak = self._step(tally, own)
        replicas = self.config.data_size // shard
        if not self.config.is_divided and replicas > 1:
            peak += gradients  # DDP collects them in buckets
        self._add("gradients of replicas", 2 * (replicas - 1) / replicas * gradients)
        gathered = sum(unit.gathered for unit in units.values()) / shard
        passed = gathered * self._gathers() + gradients * self._reductions()
        self._add("shards", (shard - 1) * passed)
        # AdamW keeps two moments, and two more sets of values for a moment during its step.
        optimiser = 2 * gradients
        activations = max(peak, 2 * gradients) - gradients
        kept = (parameters, gradients, optimiser, activations)
        return Footprint(tuple(self.stages), *kept, dict(self.sent), bubble)

    @property
    def _is_one_stage(self) -> bool:
        """Whether this is one stage of a pipeline, whose gradients torch exchanges only once."""
        return self.config.pipeline > 1 and len(self._local()) == 1

    def _gathers(self) -> int:
        """How often the shards of the weights are gathered in a step."""
        if not self._is_one_stage:
            return 2 * self.parts * self.steps  # in the forward pass, and in the backward pass
        count, kept = 0, False
        for kind, _, _ in order(self.config, self.rank, 1, self.parts):
            count += not kept
            kept = kind == "B"  # until the next pass
        return count

    def _reductions(self) -> int:
        """How often gradients are summed over processes in a step."""
        if self.config.pipeline > 1:
            return 1 if self._is_one_stage else self.parts * self.steps
        # Gradients kept from the other micro-batches are added to the first of a rollout's last step.
        return 2 if self.steps > 1 and self.parts > 1 else 1

    def _add(self, kind: str, sent: float) -> None:
        if sent:
            self.sent[kind] += round(sent)

    def _count_layers(self) -> None:
        """Count what tensor parallelism sums over processes: outputs, and gradients of inputs."""
        parts = self.config.tensor
        factor, self._layer_bytes = 2 * (parts - 1) / parts, 0.0

        def count(tensor: Tensor) -> None:
            self._layer_bytes += factor * _size(tensor)

        mine = tuple(f"{name}." for name in self.held)
        for one, other in self.division.pairs(self.module) if parts > 1 else ():
            if other.startswith(mine):
                first, second = self.module.get_submodule(one), self.module.get_submodule(other)
                first.register_forward_hook(lambda _, given, out: count(given[0]))
                second.register_forward_hook(lambda _, given, out: count(out))

    def _step(self, tally: "_Tally", own: set[nn.Parameter]) -> int:
        """Peak of all bytes but parameters and moments, gradients included."""
        is_pipeline = self.config.pipeline > 1
        whole = self.workload.batch(self.size * (self.parts if is_pipeline else 1))
        part = self.workload.batch(self.size)
        borders = self._borders(part) if is_pipeline else []
        # Beside the samples of this step those of the next micro-batches.
        fixed = _size(whole) + DEPTH * _size(part)
        if is_pipeline:
            fixed += _size(self.division.inputs(whole)) + self._buffers(borders)
        tally.ignore([*self.module.parameters(), *self.module.buffers(), whole, part, borders])
        tally.share_gradients(own, there=self.parts > 1 and not is_pipeline)
        running: dict[tuple[int, int], Any] = {}
        self._layer_bytes = 0.0
        cache = self.config.dp_shard == 1
        with tally, _Fused(), autocast(self.workload.train.precision, _CPU, cache):
            for kind, chunk, number in self._order():
                if kind == "F":
                    running[chunk, number] = self._forward(chunk, part, borders)
                else:
                    torch.autograd.backward(*running.pop((chunk, number)))
        done = sum(kind == "F" and chunk == 0 for kind, chunk, _ in self._order())
        self._add("layers", self._layer_bytes * self.parts / max(1, done))
        return fixed + tally.peak

    def _borders(self, part: Any) -> list[tuple[Tensor, ...]]:
        """Inputs of each stage of all steps of a rollout, and the outputs of the last stage."""
        carry: tuple[Tensor, ...] = ()
        borders = [carry]
        with torch.no_grad(), _Fused(), autocast(self.workload.train.precision, _CPU):
            for step in range(self.steps):
                for bound in self.bounds:
                    stage = self.division.stage(self.module, *bound, step, self.steps)
                    out = stage(*carry, **self.division.inputs(part))
                    carry = out if isinstance(out, tuple) else (out,)
                    borders.append(tuple(torch.empty_like(x) for x in carry))
        return borders

    def _buffers(self, borders: list[tuple[Tensor, ...]]) -> int:
        """Memory in which a pipeline receives tensors of all parts; counts what it sends."""
        total, last = 0, len(borders) - 2
        for stage in self._local():
            given, made = _size(borders[stage]), _size(borders[stage + 1])
            total += self.parts * (
                given + made
            )  # the last stage keeps outputs instead of gradients
            self._add("between stages", self.parts * made * (stage < last))
            self._add("between stages", self.parts * given * (stage > 0))
        return total

    def _local(self) -> list[int]:
        """Stages of all steps of a rollout that this process has, in their order."""
        return [step * self.config.stages + s for step in range(self.steps) for s in self.stages]

    def _forward(
        self, chunk: int, part: Any, borders: list[tuple[Tensor, ...]]
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """Outputs of a forward pass, and their gradients; None: the outputs are losses."""
        if self.config.pipeline == 1:
            loss_B = self.workload.spec.loss(self.module, part, self.workload.train.loss)
            return [loss_B.sum()], None
        index = self._local()[chunk]
        step, stage = divmod(index, self.config.stages)
        module = self.division.stage(self.module, *self.bounds[stage], step, self.steps)
        given = [x.detach().requires_grad_(x.is_floating_point()) for x in borders[index]]
        out = module(*given, **self.division.inputs(part))
        outs = list(out) if isinstance(out, tuple) else [out]
        if index == len(borders) - 2:
            loss_B = self.division.loss(self.module, outs[0], part, self.workload.train.loss)
            return [loss_B.sum()], None
        kept = [x for x in outs if x.requires_grad]
        # Gradients arrive in buffers that are counted separately.
        like = zip(borders[index + 1], outs, strict=True)
        return kept, [gradient for gradient, x in like if x.requires_grad]

    def _order(self) -> Iterator[Work]:
        """Forward and backward passes until the peak is past.

        In a pipeline two rounds are enough, and without one a single round: gradients of the micro-batches
        before it are counted from the start, and nothing else of them is left.
        """
        is_pipeline = self.config.pipeline > 1
        chunks = len(self._local()) if is_pipeline else 1
        left = 2 * chunks + 1 if is_pipeline else 1
        for work in order(self.config, self.rank, chunks, self.parts):
            left -= work[0] == "B"
            if left < 0:
                return
            yield work


def _cut_layers(module: nn.Module, pairs: Iterable[tuple[str, str]], parts: int) -> None:
    """Replace pairs of linear layers by layers of the size that one of ``parts`` processes has."""
    for first, second in pairs:
        for name, outputs, inputs in ((first, parts, 1), (second, 1, parts)):
            layer = module.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            sizes = (layer.in_features // inputs, layer.out_features // outputs)
            parent, _, last = name.rpartition(".")
            made = nn.Linear(*sizes, bias=layer.bias is not None, device="meta")
            setattr(module.get_submodule(parent), last, made)


def _size(values: Any) -> int:
    """Bytes of all tensors in a structure."""
    return sum(x.numel() * x.element_size() for x in tree_leaves(values) if isinstance(x, Tensor))


def _unit(module: nn.Module) -> _Unit:
    parameters = list(module.parameters())
    trained = [p for p in parameters if p.requires_grad]
    return _Unit(_bytes(parameters), _bytes(trained), _size(parameters))


def _bytes(parameters: Iterable[Tensor]) -> int:
    """Bytes in float32, in which parameters and gradients are kept."""
    return sum(p.numel() * torch.float32.itemsize for p in parameters)


class _Fused(TorchFunctionMode):
    """Attention as computed by the fused kernels, which do not store the attention weights."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        q, k, v = args[:3]
        mask = kwargs.get("attn_mask")
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype)
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash(q, k, v, 0.0, False, attn_mask=mask)[0]


class _Tally(TorchDispatchMode):
    """Counts the memory of the tensors that are made while it is active, and that of gradients.

    The shards of ``units`` are gathered while they compute, or stay gathered with ``keeps``; ``shard``
    processes share the gradients.
    """

    def __init__(self, units: Mapping[nn.Module, _Unit], shard: int, keeps: bool) -> None:
        super().__init__()
        self.peak, self._live, self._gathered = 0, 0.0, 0
        self._shard = shard
        self._known: dict[int, int] = {}
        self._ignored: list[Any] = []
        sizes = [unit.gathered for unit in units.values()]
        for index, (module, unit) in enumerate(units.items()):
            # While a unit computes, the next one's weights arrive; its own gradients leave afterwards.
            ahead = unit.gathered + sizes[min(index + 1, len(sizes) - 1)]
            behind = unit.gathered + sizes[max(index - 1, 0)]
            if keeps:
                ahead = behind = sum(sizes)
            module.register_forward_pre_hook(self._gathering(ahead))
            module.register_full_backward_pre_hook(self._gathering(behind + unit.gradients))

    def _gathering(self, size: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._gathered = size
            self._note()

        return hook

    def ignore(self, values: Any) -> None:
        """Leave out tensors that are counted elsewhere."""
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                self._known[value.untyped_storage()._cdata] = 0
                self._ignored.append(value)

    def share_gradients(self, parameters: Iterable[nn.Parameter], there: bool) -> None:
        """Count this process's part of the gradients, once; ``there``: from the start."""
        counted: set[Tensor] = set()

        def settle(parameter: Tensor) -> None:
            if parameter not in counted:
                counted.add(parameter)
                self._live += _bytes([parameter]) / self._shard
            parameter.grad = None
            self._note()

        for parameter in parameters:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(settle)
                if there:
                    settle(parameter)

    def _note(self) -> None:
        self.peak = max(self.peak, round(self._live + self._gathered))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, out)
        return out

    def _see(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known[key] = size
            self._live += size
            weakref.finalize(storage, self._free, key, size)
            self._note()
        return tensor

    def _free(self, key: int, size: int) -> None:
        self._live -= size
        self._known.pop(key, None)

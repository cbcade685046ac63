"""What a process of a training holds in memory, found without weights or data.

One step is carried out on fake tensors, which have shapes and no content, in the order of the
pipeline's schedule. Every tensor that would be there is counted from when it is made until it is freed.
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
from millrace.training.config import TrainConfig
from millrace.training.parallel.config import ParallelConfig
from millrace.training.parallel.order import Work, order, waiting
from millrace.training.parallel.pipeline import stages
from millrace.training.precision import autocast, half_type

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Footprint:
    """Bytes that a process holds when it holds most, and that it sends in a step; how much it waits."""

    stages: tuple[int, ...]
    """Stages of the pipeline that it has."""
    parameters: int
    gradients: int
    optimiser: int
    activations: int
    """All else: activations that wait for the backward pass, weights of others for a while, buffers."""
    sent: Mapping[str, int]
    """By what is sent."""
    waits: float = 0.0
    """Share of its time that it waits for other stages, see `waiting`."""

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.parameters + self.gradients + self.optimiser + self.activations


@dataclass(frozen=True)
class Subject:
    """What is trained.

    Parameters
    ----------
    spec : ModelSpec
        With a division.
    model_config : object
    dataset : object
        What `ModelSpec.build` needs of the samples' dataset.
    batch : callable
        (number of samples) -> batch of the dataset, of any content.
    train : TrainConfig
    """

    spec: ModelSpec
    model_config: Any
    dataset: Any
    batch: Callable[[int], Any]
    train: TrainConfig


def footprints(
    subject: Subject, config: ParallelConfig, micro_batch: int | None, recompute: bool
) -> list[Footprint]:
    """Footprint of a process at each position of the pipeline.

    Parameters
    ----------
    subject : Subject
    config : ParallelConfig
        Resolved.
    micro_batch : int or None
        See `ExecutionConfig`.
    recompute : bool
        Whether the activations of large blocks are computed again.
    """
    assert subject.spec.division is not None
    with torch.device("meta"):
        module = subject.spec.build(subject.model_config, subject.dataset)
    bounds, costs = stages(subject.spec.division, module, config)
    waits = waiting(config, costs * subject.spec.division.steps(subject.dataset))
    return [
        _Process(subject, config, micro_batch, recompute, rank, bounds).footprint(waits[rank])
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
        subject: Subject,
        config: ParallelConfig,
        micro_batch: int | None,
        recompute: bool,
        rank: int,
        bounds: list[tuple[int, int]],
    ) -> None:
        division = subject.spec.division
        assert division is not None
        self.division, self.subject, self.config, self.rank = division, subject, config, rank
        with torch.device("meta"):
            module = subject.spec.build(subject.model_config, subject.dataset)
        if config.tensor > 1:
            _cut_layers(module, division.pairs(module), config.tensor)
        self.units = division.units(module)
        half = half_type(subject.train.precision) if config.dp_shard > 1 else None
        halved = set(division.half(module)) if half else set()
        for name in halved:
            module.get_submodule(name).to(half)
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        with self.fake:
            self.module = module.to_empty(device="cpu").train()
        self.steps = division.steps(subject.dataset)
        self.stages = [s for s in range(config.stages) if s % config.pipeline == rank]
        self.held = [unit for s in self.stages for unit in self.units[slice(*bounds[s])]]
        self.bounds = bounds
        if recompute:
            checkpoint_activations(module, subject.spec.blocks)
        share = config.samples(subject.train.global_batch)
        self.parts = config.micro_batches or -(-share // (micro_batch or share))
        self.size = -(-share // self.parts)
        self.sent: dict[str, int] = defaultdict(int)

    def footprint(self, waits: float) -> Footprint:
        """Carry out a step; ``waits`` is `Footprint.waits`."""
        units = {module: _unit(module) for module in map(self.module.get_submodule, self.held)}
        own = {parameter for module in units for parameter in module.parameters()}
        shard = self.config.dp_shard
        parameters = -(-sum(unit.parameters for unit in units.values()) // shard)
        gradients = -(-sum(unit.gradients for unit in units.values()) // shard)
        with self.fake, warnings.catch_warnings():
            # The first unit has no input that wants a gradient: torch says that its hook comes later.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            # Micro-batches before the last leave their gradients whole, stages of a pipeline weights too.
            alone = self.config.pipeline > 1 and not self._is_one_stage
            adds_up = self.parts > 1 and not alone
            tally = _Tally(units if shard > 1 else {}, 1 if adds_up else shard, self._is_one_stage)
            self._count_layers()
            peak = self._step(tally, own)
        copies = self.config.data_size // shard
        reduced = 2 * (copies - 1) / copies * gradients
        if not self.config.is_divided and copies > 1:
            peak += gradients  # DDP gathers them in buckets
        gathered = sum(unit.gathered for unit in units.values()) / shard
        self._add("gradients of copies", reduced)
        passed = gathered * self._gathers() + gradients * self._reductions()
        self._add("shards", (shard - 1) * passed)
        # AdamW: two moments, and for a while another set of values.
        optimiser = 2 * gradients
        stepping = 2 * gradients
        return Footprint(
            tuple(self.stages),
            parameters,
            gradients,
            optimiser,
            max(peak, stepping) - gradients,
            dict(self.sent),
            waits,
        )

    @property
    def _is_one_stage(self) -> bool:
        """Whether this is one stage of a pipeline, whose gradients torch exchanges only once."""
        return self.config.pipeline > 1 and len(self._local()) == 1

    def _gathers(self) -> int:
        """How often the shards of the weights are gathered in a step."""
        if not self._is_one_stage:
            return 2 * self.parts * self.steps  # on the way forward, and on the way back
        count, kept = 0, False
        for kind, _, _ in order(self.config, self.rank, 1, self.parts):
            count += not kept
            kept = kind == "B"  # until the next pass
        return count

    def _reductions(self) -> int:
        """How often gradients are added up in a step."""
        if self.config.pipeline > 1:
            return 1 if self._is_one_stage else self.parts * self.steps
        # What the other micro-batches left comes with the first gradients of a rollout's last step.
        return 2 if self.steps > 1 and self.parts > 1 else 1

    def _add(self, kind: str, sent: float) -> None:
        if sent:
            self.sent[kind] += round(sent)

    def _count_layers(self) -> None:
        """Count what tensor parallelism adds up: outputs, and gradients of inputs."""
        parts = self.config.tensor
        if parts == 1:
            return
        factor = 2 * (parts - 1) / parts
        mine = tuple(f"{name}." for name in self.held)

        def after(_: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            self._layer_bytes += factor * _size(out)

        self._layer_bytes = 0.0
        for one, other in self.division.pairs(self.module):
            if other.startswith(mine):
                self.module.get_submodule(other).register_forward_hook(after)
                self.module.get_submodule(one).register_forward_hook(
                    lambda _, given, out: after(_, given, given[0])
                )

    def _step(self, tally: "_Tally", own: set[nn.Parameter]) -> int:
        """Most bytes that are there besides parameters and moments, gradients included."""
        whole = self.subject.batch(self.size * (self.parts if self.config.pipeline > 1 else 1))
        part = self.subject.batch(self.size)
        borders = self._borders(part)
        fixed = _size(whole)
        if self.config.pipeline > 1:
            fixed += _size(self.division.inputs(whole))
            fixed += self._buffers(borders)
        tally.ignore([*self.module.parameters(), *self.module.buffers(), whole, part, borders])
        tally.share_gradients(own)
        running: dict[tuple[int, int], Any] = {}
        self._layer_bytes = 0.0
        keep = self.config.dp_shard == 1
        with tally, _Fused(), autocast(self.subject.train.precision, _CPU, keep):
            for kind, chunk, number in self._order():
                if kind == "F":
                    running[chunk, number] = self._forward(chunk, part, borders)
                else:
                    _backward(*running.pop((chunk, number)))
        done = sum(1 for kind, chunk, _ in self._order() if kind == "F" and chunk == 0)
        self._add("layers", self._layer_bytes * self.parts / max(1, done))
        return fixed + tally.peak

    def _borders(self, part: Any) -> list[tuple[Tensor, ...]]:
        """What goes into each stage of all steps of a rollout, and comes out of the last."""
        carry: tuple[Tensor, ...] = ()
        borders = [carry]
        with torch.no_grad(), _Fused(), autocast(self.subject.train.precision, _CPU):
            for step in range(self.steps):
                for bound in self.bounds:
                    stage = self.division.stage(self.module, *bound, step, self.steps)
                    out = stage(*carry, **self.division.inputs(part))
                    carry = out if isinstance(out, tuple) else (out,)
                    borders.append(tuple(torch.empty_like(x) for x in carry))
        return borders

    def _buffers(self, borders: list[tuple[Tensor, ...]]) -> int:
        """Memory that a pipeline keeps for what it receives of all parts; counts what it sends."""
        total = 0
        last = len(borders) - 2
        for stage in self._local():
            given, made = _size(borders[stage]), _size(borders[stage + 1])
            total += self.parts * (given + made)  # of the last: outputs are kept, not gradients
            crossing = self.config.pipeline > 1
            if stage < last and crossing:
                self._add("between stages", self.parts * made)
            if stage > 0 and crossing:
                self._add("between stages", self.parts * given)
        return total

    def _local(self) -> list[int]:
        """Stages of all steps of a rollout that this process has, in their order."""
        return [step * self.config.stages + s for step in range(self.steps) for s in self.stages]

    def _forward(
        self, chunk: int, part: Any, borders: list[tuple[Tensor, ...]]
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        if self.config.pipeline == 1:
            loss_B = self.subject.spec.loss(self.module, part, self.subject.train.loss)
            return [loss_B.sum()], [None]
        index = self._local()[chunk]
        step, stage = divmod(index, self.config.stages)
        module = self.division.stage(self.module, *self.bounds[stage], step, self.steps)
        given = [x.detach().requires_grad_(x.is_floating_point()) for x in borders[index]]
        out = module(*given, **self.division.inputs(part))
        outs = list(out) if isinstance(out, tuple) else [out]
        if index == len(borders) - 2:
            loss_B = self.division.loss(self.module, outs[0], part, self.subject.train.loss)
            return [loss_B.sum()], [None]
        kept = [x for x in outs if x.requires_grad]
        # Gradients arrive in buffers that are counted apart.
        like = [b for b, x in zip(borders[index + 1], outs, strict=True) if x.requires_grad]
        return kept, list(like)

    def _order(self) -> Iterator[Work]:
        """Forward and backward passes up to where the peak is past: two rounds show it."""
        chunks = len(self._local()) if self.config.pipeline > 1 else 1
        left = 2 * chunks + 1
        for work in order(self.config, self.rank, chunks, self.parts):
            left -= work[0] == "B"
            if left < 0:
                return
            yield work


def _backward(outputs: list[Tensor], gradients: list[Tensor | None]) -> None:
    torch.autograd.backward(outputs, gradients)


def _cut_layers(module: nn.Module, pairs: Iterable[tuple[str, str]], parts: int) -> None:
    """Give pairs of linear layers the size that they have on one of ``parts`` processes."""
    for first, second in pairs:
        for name, outputs, inputs in ((first, parts, 1), (second, 1, parts)):
            layer = module.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            made = nn.Linear(
                layer.in_features // inputs,
                layer.out_features // outputs,
                bias=layer.bias is not None,
                device="meta",
            )
            parent, _, last = name.rpartition(".")
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
    """Attention as the fast kernels do it, which keep no weights of the attention."""

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
    """Counts the memory of the tensors that are made while it is active, and what gradients take.

    Parameters
    ----------
    units : mapping
        Units whose shards are gathered while they work.
    shard : int
        Processes that share the gradients.
    keeps : bool
        Whether the weights of all units stay gathered.
    """

    def __init__(self, units: Mapping[nn.Module, _Unit], shard: int, keeps: bool) -> None:
        super().__init__()
        self.peak, self._live, self._gathered = 0, 0.0, 0
        self._shard = shard
        self._known: dict[int, int] = {}
        self._ignored: list[Any] = []
        sizes = [unit.gathered for unit in units.values()]
        for index, (module, unit) in enumerate(units.items()):
            # While a unit works, the next one's weights arrive; its own gradients leave afterwards.
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
        """Leave out what is counted elsewhere."""
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                self._known[value.untyped_storage()._cdata] = 0
                self._ignored.append(value)

    def share_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Count this process's part of the gradients, once."""
        counted: set[nn.Parameter] = set()

        def settle(parameter: Tensor) -> None:
            if parameter not in counted:
                counted.add(parameter)  # type: ignore[arg-type]
                self._live += _bytes([parameter]) / self._shard
            parameter.grad = None
            self._note()

        for parameter in parameters:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(settle)

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

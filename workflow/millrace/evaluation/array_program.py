"""Models on arrays as programs, see `millrace.evaluation.program`.

Shape suffixes: B samples, T steps, K cells, V targets.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from millrace.data.arrays import ArrayBatch, ArrayDataset
from millrace.evaluation.program import BATCH, Program, Scaling, Value
from millrace.evaluation.trained_model import TrainedModel


class ArrayProgram(nn.Module):
    """From fields, one after the other as `ArrayDataset` names them, to fields."""

    def __init__(
        self,
        net: nn.Module,
        predict: Callable[[nn.Module, ArrayBatch], Tensor],
        dataset: ArrayDataset,
    ) -> None:
        super().__init__()
        self.net, self._predict = net, predict
        self._past, self._steps = dataset.config.input_steps, dataset.config.output_steps
        self._grid, stats = dataset.grid_shape, dataset.normalisation
        self._n_targets = len(dataset.names["targets"])
        axes = len(self._grid)
        self.targets = Scaling(stats.mean_V, stats.std_V, axes)
        self.inputs = Scaling(stats.forcing_mean_F, stats.forcing_std_F, axes)
        scale_V = torch.as_tensor(dataset.increment_scale).float()
        self.register_buffer("scale_V", scale_V)

    def forward(self, *fields: Tensor) -> tuple[Tensor, ...]:
        """Forecasts of the targets, [B, T, *grid] each."""
        n_past = self._n_targets if self._past else 0
        batch_size, parts = fields[0].shape[0], []
        past = None
        if n_past:
            past = self.targets.normalised(torch.stack(fields[:n_past], dim=2))
            parts.append(past.flatten(1, 2))
        if len(fields) > n_past:
            one = [1] * len(self._grid)
            wide = [
                x if x.dim() > 2 else x.reshape(*x.shape, *one).expand(-1, -1, *self._grid)
                for x in fields[n_past:]
            ]
            parts.append(self.inputs.normalised(torch.stack(wide, dim=2)).flatten(1, 2))
        x = torch.cat(parts, dim=1)
        y = x.new_zeros(batch_size, self._steps, self._n_targets, *self._grid)
        last = y[:, 0] if past is None else past[:, -1]
        scale_V = self.get_buffer("scale_V")
        batch = ArrayBatch(x, last, y, scale_V, x.new_ones(batch_size))
        values_KBTV = self._predict(self.net, batch)
        values = values_KBTV.permute(1, 2, 3, 0).unflatten(3, self._grid)
        return self.targets.physical(values).unbind(2)


def array_program(model: TrainedModel, axes: Sequence[str], scalars: Collection[str]) -> Program:
    """Program of a model on arrays with grids of these axes, and examples from its samples.

    ``scalars`` are the inputs that are the same in all cells.
    """
    dataset: ArrayDataset = model.dataset
    module = ArrayProgram(model.module, model.spec.predict, dataset).to(dataset.device)
    starts = dataset.starts("test")[:2]
    steps = torch.as_tensor(starts)[:, None] + torch.arange(dataset.config.length)
    past, given = steps[:, : dataset.config.input_steps], steps[:, dataset.given]
    inputs = []
    for role, at, when in (("targets", past, "given states"), ("inputs", given, "given")):
        if not at.shape[1]:
            continue
        values = torch.from_numpy(dataset.values(role, at.numpy())).float().to(dataset.device)
        for number, name in enumerate(dataset.names[role]):
            field, own = values[:, :, number], (BATCH, f"{role}_step", *axes)
            if role == "inputs" and name in scalars:
                field, own = field.flatten(2)[:, :, 0], own[:2]
            unit = dataset.units[role][number]
            inputs.append(Value(name, field.contiguous(), own, unit, f"{name}, {when}"))
    batch = dataset.at_times(0, starts)
    expected = torch.from_numpy(dataset.to_physical(model(batch))).permute(1, 2, 3, 0)
    fields = expected.unflatten(3, dataset.grid_shape).to(dataset.device)
    outputs = [
        Value(f"{name}_forecast" if dataset.config.input_steps else name, fields[:, :, v].float(),
              (BATCH, "lead", *axes), dataset.units["targets"][v], f"{name}, predicted")
        for v, name in enumerate(dataset.names["targets"])
    ]  # fmt: skip
    return Program(module, inputs, outputs, own=lambda: model(batch))

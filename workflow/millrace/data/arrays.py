"""Samples that are arrays on a grid: their file, and how models see them.

Samples that do not depend on each other are windows of one step in random order, so that one dataset class
serves them and series. How they are read: `millrace.systems.arrays`.

Shape suffixes: S samples or steps of a series, B samples of a batch, T steps, V targets, F inputs, C
channels of the model's input, G axes of the grid, K cells.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from millrace.config import Settings
from millrace.data.account import Account, count_steps
from millrace.data.device import to_device
from millrace.data.hdf5 import create, create_dataset, open_checked, rows_per_chunk, strings
from millrace.data.normalisation import Normalisation
from millrace.data.recipe import Outline
from millrace.data.split import MINIMUM_STD, Moments, SplitConfig, time_split
from millrace.data.validity import Screening
from millrace.data.window_dataset import CACHE_BYTES, WindowDataset
from millrace.errors import ConfigError, DataError
from millrace.provenance import code_version, fingerprint
from millrace.systems.arrays import ArrayConfig, Samples
from millrace.systems.base import Progress

SCHEMA = "millrace.arrays/1"
ROLES = ("inputs", "targets")

Floats = NDArray[np.float64]

CHUNKS, READ_BYTES = 16, 64 << 20
"""Chunks of the file that are written at once, and bytes that are read at once."""


def extract_arrays(
    source: Path,
    output: Path,
    settings: Any,
    split: SplitConfig,
    progress: Progress | None,
    read: Callable[[Path, Any], Samples],
    series: bool,
) -> None:
    """Read raw files of the directory ``source`` and write the sample file of a kind, whole or not at all.

    Of a series the split divides the steps in their order, else the samples in a random one. ``settings``
    are those of ``read``; for it and for ``series`` see `millrace.systems.arrays.array_kind`. ``progress``
    is called with (fields done, all). Raises `ConfigError` if the split leaves a part empty, and
    `DataError`, which names the field, if arrays do not fit each other or hold values that are not finite
    or look like no-data values. `samples.json` beside ``output`` says what was read, kept and left out.
    """
    samples = read(source, settings)
    n_samples, grid = _checked(samples, series, source)
    order_S = np.arange(n_samples)
    if not series:
        order_S = np.random.default_rng(0).permutation(n_samples)
    ranges = time_split(n_samples, split)
    is_training_S = np.zeros(n_samples, dtype=bool)
    is_training_S[order_S[slice(*ranges[0])]] = True
    config = {
        "settings": settings.model_dump() if isinstance(settings, Settings) else settings,
        "split": split.model_dump(),
        "series": series,
    }
    digest = hashlib.sha256(json.dumps({**config, "grid": grid}, sort_keys=True).encode())
    account = Account()
    for what, reasons in samples.left_out.items():
        for reason, number in reasons.items():
            account.leave_out(what, reason, number)
    count_steps(account, "time steps" if series else "samples", ranges)
    fields = [(role, *item) for role in ROLES for item in getattr(samples, role).items()]
    with create(output) as file:
        for done, (role, name, (values, unit)) in enumerate(fields, start=1):
            digest.update(f"{role}/{name} {unit}".encode())
            what = f"{source}: {name!r} of the {role}"
            screening = Screening.of(samples.missing)
            path = f"{role}/{name}"
            data = _write_field(file, path, values, what, is_training_S, digest, screening)
            data.attrs["unit"] = unit
            account.keep(f"{role} of samples")
            if progress is not None:
                progress(done, len(fields))
        for name, (values, unit) in samples.coordinates.items():
            create_dataset(file, f"coordinates/{name}", values).attrs["unit"] = unit
        time, unit = samples.time or (np.arange(n_samples), "1")
        create_dataset(file, "time", time).attrs["unit"] = unit
        create_dataset(file, "order", order_S)
        create_dataset(file, "split", ranges)
        file.attrs.update(
            schema=SCHEMA,
            digest=digest.hexdigest(),
            source_digest=fingerprint(source),
            code_version=code_version(),
            config=json.dumps(config, sort_keys=True),
            grid=np.array(grid, dtype=np.int64),
            series=series,
            coordinates=strings(list(samples.coordinates)),
            **{role: strings(list(getattr(samples, role))) for role in ROLES},
        )
    account.write(output.with_name("samples.json"))


def _checked(samples: Samples, series: bool, source: Path) -> tuple[int, tuple[int, ...]]:
    """Return the number of samples and the shape of the grid, if all arrays fit them."""
    if not samples.inputs and not series:
        raise DataError(f"{source}: no inputs were read; a model needs at least one")
    if not samples.targets:
        raise DataError(f"{source}: no targets were read; a model needs at least one")
    time = {} if samples.time is None else {"time": samples.time}
    for fields in (samples.inputs, samples.targets, samples.coordinates, time):
        for name, (values, unit) in fields.items():
            _check_field(name, values, unit, source)
    first, (values, _) = next(iter(samples.targets.items()))
    n_samples, *grid = np.shape(values) or (0,)
    for role in ROLES:
        for name, (values, _) in getattr(samples, role).items():
            allowed = [(n_samples, *grid)] + [(n_samples,)] * (role == "inputs")
            if np.shape(values) not in allowed:
                raise DataError(
                    f"{source}: {name!r} of the {role} has the shape {np.shape(values)}, expected "
                    f"{' or '.join(map(str, allowed))}, as {first!r} of the targets has it"
                )
    shapes = {name: np.shape(values) for name, (values, _) in samples.coordinates.items()}
    if [*shapes.values()] != [(n,) for n in grid] and {*shapes.values()} != {tuple(grid)}:
        raise DataError(
            f"{source}: coordinates of the shapes {shapes} do not fit the grid {tuple(grid)}; expected "
            "one for each axis, of its length, or any number of the shape of the grid"
        )
    _check_labels(samples, source)
    for fields in (samples.coordinates, time):
        for name, (values, _) in fields.items():
            _check_whole(name, values, samples, source)
    if series:
        time_S = None if samples.time is None else np.asarray(samples.time[0])
        if time_S is None or time_S.shape != (n_samples,) or not (np.diff(time_S) > 0).all():
            raise DataError(f"{source}: a series needs {n_samples} times that increase")
    return n_samples, tuple(grid)


def _axes(values: Any) -> tuple[str, ...]:
    """Names of the axes of a variable of xarray or netCDF4; empty for what has none, such as an array."""
    for attribute in ("dims", "dimensions"):
        names = getattr(values, attribute, None)
        if isinstance(names, tuple) and all(isinstance(name, str) for name in names):
            return names
    return ()


def _check_labels(samples: Samples, source: Path) -> None:
    """Refuse fields whose named axes, or coordinates along them, are not those of the other fields."""
    order: tuple[str, ...] = ()
    known = {name: (name, np.asarray(values)) for name, (values, _) in samples.coordinates.items()}
    for fields in (samples.targets, samples.inputs):
        for field, (values, _) in fields.items():
            names = _axes(values)
            order = order or names
            if set(names) == set(order) and names != order:
                raise DataError(
                    f"{source}: {field!r} has the axes {', '.join(names)}; expected {', '.join(order)} as "
                    f"in {next(iter(samples.targets))!r}: transpose it"
                )
            for name in names:
                coordinate = getattr(values, "coords", {}).get(name)
                if coordinate is None:
                    continue
                first, expected = known.setdefault(name, (field, np.asarray(coordinate)))
                if not np.array_equal(np.asarray(coordinate), expected):
                    raise DataError(
                        f"{source}: {name!r} of {field!r} is not that of {first!r}; expected all fields on "
                        "one grid, in one order: select their values by label"
                    )


def _check_whole(name: str, values: Any, samples: Samples, source: Path) -> None:
    """Refuse coordinates and times that are not finite or look like no-data values."""
    numbers = np.ma.filled(np.ma.asarray(values).astype(np.float64), np.nan)
    if not np.isfinite(numbers).all():
        raise DataError(f"{source}: {name!r} has values that are not finite; expected all of them")
    screening = Screening.of(samples.missing)
    screening.add(numbers)
    for suspect in screening.suspects():
        raise DataError(f"{source}: {suspect.sentence(name, '`missing` of its Samples')}")


def _check_field(name: Any, values: Any, unit: str, source: Path) -> None:
    if not isinstance(name, str) or not name or "/" in name or name.startswith(".") or not unit:
        raise DataError(
            f"{source}: field {name!r} in {unit!r}: expected a name without slashes and a unit, which is "
            "'1' for plain numbers"
        )
    try:
        shape = np.shape(values)
    except ValueError:  # of a list of lists
        shape = ()
    if not shape:
        raise DataError(
            f"{source}: {name!r} is no array with one shape, expected values of samples"
        )
    if (dtype := np.asanyarray(values[:1]).dtype).kind not in "biuf":
        raise DataError(
            f"{source}: {name!r} holds values of the type {dtype}, expected real numbers"
        )


def _write_field(
    file: h5py.File,
    path: str,
    values: Any,
    what: str,
    is_training_S: NDArray[np.bool_],
    digest: Any,
    screening: Screening,
) -> h5py.Dataset:
    """Write a field piece by piece, with statistics of its training samples as attributes."""
    shape, dtype = np.shape(values), np.result_type(np.asarray(values[:1]), np.float32)
    data = create_dataset(file, path, shape=shape, dtype=dtype)
    moments, changes, rows = Moments(1), Moments(1), CHUNKS * rows_per_chunk(shape, dtype)
    last = np.empty((0, *shape[1:]), dtype)
    for start in range(0, shape[0], rows):
        # NetCDF readers give masked arrays.
        part = np.ma.filled(np.asanyarray(values[start : start + rows]).astype(dtype), np.nan)
        part = np.ascontiguousarray(part)
        if not np.isfinite(part).all():
            sample = start + int(np.argmin(np.isfinite(part).reshape(len(part), -1).all(axis=1)))
            raise DataError(
                f"{what} has values that are not finite, the first in sample {sample} (from 0); fill them "
                "or leave the sample out"
            )
        screening.add(part)
        data[start : start + rows] = part
        digest.update(part)
        trained = part[is_training_S[start : start + rows]]
        moments.add(trained.reshape(-1, 1))
        changes.add(np.diff(np.concatenate([last, trained]), axis=0).reshape(-1, 1))
        last = trained[-1:] if len(trained) else last
    for suspect in screening.suspects():
        sample = suspect.piece * rows + suspect.index // max(1, math.prod(shape[1:]))
        sentence = suspect.sentence(
            path, "`missing` of its Samples", f" in sample {sample} (from 0)"
        )
        raise DataError(f"{what}: {sentence}")
    mean, std, change = moments.mean[0], moments.std[0], changes.std[0]
    # A field that does not vary has no deviation but its rounding error. Its unit may make both tiny.
    least = MINIMUM_STD * abs(mean)
    data.attrs["mean"] = mean
    data.attrs["std"] = std if std > least else least or 1.0
    data.attrs["increment_std"] = change if change > least else least or 1.0
    return data


@dataclass(frozen=True)
class ArrayBatch:
    """Samples on the grid, normalised."""

    x: Tensor
    """What is given, [B, C, *grid]: targets of the given steps, then inputs, step by step."""
    last: Tensor
    """Targets at the last given step, [B, V, *grid]: the persistence forecast; 0 if none is given."""
    y: Tensor
    """Targets to predict, [B, T, V, *grid]."""
    scale_V: Tensor
    """Typical size of what a model adds to ``last``: that of one-step changes, or 1."""
    weight_B: Tensor
    """1 for a sample that counts, 0 for one that only keeps the ranks in step."""

    @property
    def y_KBTV(self) -> Tensor:
        """The target in the layout of field models."""
        return as_points(self.y)


# DDP looks for tensors in what it is called with.
torch.utils._pytree.register_dataclass(ArrayBatch)


def as_points(values: Tensor) -> Tensor:
    """Fields [B, T, V, *grid] in the layout of field models, [K, B, T, V]."""
    return values.reshape(*values.shape[:3], -1).permute(3, 0, 1, 2)


@dataclass(frozen=True)
class _Fields:
    inputs: Tensor
    targets: Tensor


class ArrayDataset(WindowDataset):
    """Samples of a file that `extract_arrays` wrote.

    Positions count samples in the order of the splits: training, validation, test. Batches are made on
    ``device``, where fields of up to ``cache_bytes`` are kept; larger ones are read again for each batch.
    ``statistics`` are those of the data that a model was trained on, to apply it to other data.

    Raises `ConfigError` if a field is not in the file, a sample holds no input, or a window is longer than
    the gap between the splits, which would let it straddle two of them.
    """

    config_type = ArrayConfig
    roles = ("samples",)

    def __init__(
        self,
        samples: Path,
        config: ArrayConfig,
        device: torch.device | None = None,
        cache_bytes: int = CACHE_BYTES,
        statistics: Normalisation | None = None,
    ) -> None:
        self._path = Path(samples)
        with open_checked(self._path, SCHEMA) as file:
            self.names = {role: _chosen(file, role, getattr(config, role)) for role in ROLES}
            about = {role: [file[role][n].attrs for n in self.names[role]] for role in ROLES}
            self.units = {role: [str(one["unit"]) for one in about[role]] for role in ROLES}
            inputs, targets = (
                {
                    key: np.array([one[key] for one in about[role]], dtype=np.float64)
                    for key in ("mean", "std", "increment_std")
                }
                for role in ROLES
            )
            self.grid_shape = tuple(int(n) for n in file.attrs["grid"])
            self.coordinates = {
                name: (file["coordinates"][name][()], str(file["coordinates"][name].attrs["unit"]))
                for name in file.attrs["coordinates"]
            }
            """Of the cells, with units, see `millrace.systems.arrays.Samples`."""
            self.order_S, split, time_S = (file[name][()] for name in ("order", "split", "time"))
            self.digest = str(file.attrs["digest"])
            self.preparation = {"arrays": str(file.attrs["config"])}
        corners = [(values.min(), values.max()) for values, _ in self.coordinates.values()]
        low_D, high_D = np.array(corners, dtype=np.float64).reshape(-1, 2).T
        normalisation = statistics or Normalisation(
            variables=self.names["targets"],
            mean_V=targets["mean"],
            std_V=targets["std"],
            increment_std_V=targets["increment_std" if config.input_steps else "std"],
            forcings=self.names["inputs"],
            forcing_mean_F=inputs["mean"],
            forcing_std_F=inputs["std"],
            low_D=low_D,
            high_D=high_D,
        )
        is_foreign = statistics is not None
        super().__init__(
            self._path, config, time_S, split, normalisation, is_foreign, device, cache_bytes
        )
        n_cells = int(np.prod(self.grid_shape))
        self.core_nodes, self.ghost_nodes = [np.arange(n_cells)], [np.empty(0, dtype=np.int64)]
        n_fields = sum(map(len, self.names.values()))
        self._sample_bytes = 4 * n_cells * n_fields
        self._is_cached = self._sample_bytes * len(time_S) <= cache_bytes
        if not self.in_channels:
            raise ConfigError(
                f"data.input_steps = 0, but {self._path} has no inputs: give steps before those to predict"
            )

    def recipe(self) -> dict[str, Outline]:
        """What is needed to make samples of named arrays, see `millrace.data.recipe`."""
        rows = ("inputs/*", "targets/*", "time", "order")
        return {"samples": Outline(self._path, rows)}

    @property
    def in_channels(self) -> int:
        """Channels of a model's input."""
        n_inputs, n_targets = (len(self.names[role]) for role in ROLES)
        given = len(range(self.config.length)[self.given])
        return self.config.input_steps * n_targets + given * n_inputs

    @property
    def out_channels(self) -> int:
        """Channels of a model's output."""
        return self.config.output_steps * len(self.names["targets"])

    def values(self, role: str, positions: np.ndarray) -> Floats:
        """Read ``inputs`` or ``targets`` in their units at positions of any shape P.

        Returns float64[*P, F, *grid], fields in the order of ``names[role]``.
        """
        positions = np.asarray(positions)
        row, back = np.unique(self.order_S[positions.ravel()], return_inverse=True)
        follow = len(row) and row[-1] - row[0] + 1 == len(row)
        at = slice(row[0], row[-1] + 1) if follow else row  # which HDF5 reads much faster
        fields = np.empty((len(row), len(self.names[role]), *self.grid_shape))
        with open_checked(self._path, SCHEMA) as file:
            for number, name in enumerate(self.names[role]):
                data = file[role][name][at]
                fields[:, number] = data.reshape(*data.shape, *[1] * (fields.ndim - data.ndim - 1))
        return fields[back].reshape(*positions.shape, *fields.shape[1:])

    def at_times(self, group: int, starts: np.ndarray) -> ArrayBatch:
        """Samples that start at positions, whatever their split."""
        steps_BT = np.asarray(starts)[:, None] + np.arange(self.config.length)
        past_BT, future_BT = np.split(steps_BT, [self.config.input_steps], axis=1)
        past, y = (self._normalised("targets", steps) for steps in (past_BT, future_BT))
        given = self._normalised("inputs", steps_BT[:, self.given])
        return ArrayBatch(
            x=torch.cat([past.flatten(1, 2), given.flatten(1, 2)], dim=1),
            last=past[:, -1] if self.config.input_steps else torch.zeros_like(y[:, 0]),
            y=y,
            scale_V=self._scale_V,
            weight_B=torch.ones(len(steps_BT), device=self.device),
        )

    def with_states(self, batch: ArrayBatch, past: Tensor) -> ArrayBatch:
        """Replace the given targets of a batch, [K, B, T, V], for autoregressive forecasts."""
        fields = past.permute(1, 2, 3, 0).reshape(*past.shape[1:], *self.grid_shape)
        kept = batch.x[:, fields.shape[1] * fields.shape[2] :]
        return replace(batch, x=torch.cat([fields.flatten(1, 2), kept], dim=1), last=fields[:, -1])

    def core_states(self, group: int, steps: np.ndarray) -> Tensor:
        """Targets in all cells at positions of any shape S, [K, *S, V]."""
        fields = self._normalised("targets", steps)
        return fields.reshape(*steps.shape, fields.shape[steps.ndim], -1).movedim(-1, 0)

    @property
    def given(self) -> slice:
        """Steps of a window whose inputs are given."""
        config = self.config
        if config.input_steps and not config.future_inputs:
            return slice(config.input_steps)
        return slice(None)

    def _normalised(self, role: str, positions: np.ndarray) -> Tensor:
        """Fields at positions of any shape P, [*P, F, *grid]."""
        if not self._is_cached:
            values = self._once_for_ranks(
                [role, np.asarray(positions).tolist()],
                lambda: torch.from_numpy(self._scaled(role, positions).astype(np.float32)),
            )
            return to_device(values, self.device)
        at = to_device(np.asarray(positions), self.device)
        return getattr(self._series(0), role)[at]

    def _scaled(self, role: str, positions: np.ndarray) -> Floats:
        stats, grid = self.normalisation, [1] * len(self.grid_shape)
        mean, std = stats.forcing_mean_F, stats.forcing_std_F
        if role == "targets":
            mean, std = stats.mean_V, stats.std_V
        return (self.values(role, positions) - mean.reshape(-1, *grid)) / std.reshape(-1, *grid)

    def _read(self, group: int) -> _Fields:
        position_S = np.argsort(self.order_S)
        rows = 1 + READ_BYTES // self._sample_bytes
        found = {}
        for role in ROLES:
            shape = (len(position_S), len(self.names[role]), *self.grid_shape)
            found[role] = np.empty(shape, dtype=np.float32)
            for start in range(0, len(position_S), rows):
                positions = position_S[start : start + rows]  # of samples side by side in the file
                found[role][positions] = self._scaled(role, positions)
        return _Fields(**{role: self._tensor(fields) for role, fields in found.items()})


def _chosen(file: h5py.File, role: str, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the fields that a sample holds."""
    present = [str(name) for name in file.attrs[role]]
    for name in wanted:
        if name not in present:
            raise ConfigError(
                f"data.{role}: {file.filename} has no {name!r}; it has {', '.join(present) or 'none'}"
            )
    return wanted or tuple(present)

"""What a checkpoint holds beside weights, so that its model can be applied where no samples are.

A recipe is of plain values and tensors, which `torch.load` reads without executing anything::

    version, kind       of the recipe; the kind of samples
    definition          the blocks ``data`` and ``model`` of the experiment
    normalisation       statistics of the training period
    preparation         how samples were made of raw files
    time_step           median time between samples that follow on each other, in the unit of their times
    periods             first and last time of training, validation and test, of samples in time
    samples             by role, the `Outline` of a sample file: all but the samples themselves

A sample file with samples of its own is made of an outline by `restore`; the class that opened the files of
the training opens this one.
"""

import contextlib
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from millrace.data.hdf5 import create, create_dataset, reading, strings
from millrace.data.normalisation import Normalisation
from millrace.data.split import SPLITS
from millrace.errors import DataError

VERSION = 1
MOST_BYTES = 64 << 20
"""Of the outlines of a recipe. Those of larger grids are left out, and have to be read from their files."""
_OF_PARTS = ("parts", "part_sizes", "part_names", "reference")
"""Attributes that say in which other files samples are."""


def recipe_of(
    kind: str, definition: Mapping[str, Any], dataset: Any, most: int | None = MOST_BYTES
) -> dict[str, Any]:
    """What applies a model of an experiment that was trained on a dataset, see above.

    ``samples`` is missing if the dataset has no ``recipe``, or one of more than ``most`` bytes.
    """
    recipe = {
        "version": VERSION,
        "kind": kind,
        "definition": {key: definition[key] for key in ("data", "model")},
        "normalisation": dataset.normalisation.to_json(),
        "preparation": dataset.preparation,
    }
    outlines: Mapping[str, Outline] = getattr(dataset, "recipe", dict)()
    time = np.asarray(getattr(dataset, "time", []), dtype=np.float64)
    if len(time) > 1:
        recipe["time_step"] = float(np.median(np.diff(time)))
    ranges, order = getattr(dataset, "split_ranges", None), getattr(dataset, "order_S", ())
    # Of several datasets each has periods of its own.
    if ranges is not None and (np.diff(order) > 0).all() and not hasattr(dataset, "datasets"):
        recipe["periods"] = {
            split: [float(time[begin]), float(time[end - 1])]
            for split, (begin, end) in zip(SPLITS, ranges, strict=True)
        }
    if outlines and (most is None or sum(one.size() for one in outlines.values()) <= most):
        recipe["samples"] = {role: one.read() for role, one in outlines.items()}
    plain: dict[str, Any] = _plain(recipe)
    return plain


def statistics_of(values: Mapping[str, Any]) -> Normalisation | None:
    """Statistics of a recipe or receipt; None: nothing is normalised."""
    if "variables" not in values:
        return None
    return Normalisation.from_json(values, list(values["variables"]), list(values["forcings"]))


@dataclass(frozen=True)
class Outline:
    """All that an HDF5 file holds, without the samples."""

    path: Path
    rows: Sequence[str]
    """Patterns of the datasets whose rows are samples."""
    without: Sequence[str] = ()
    """Patterns of datasets that are left out."""
    first: Sequence[str] = ()
    """Patterns of groups of which the first, in the order of names, is kept alone."""

    def size(self) -> int:
        """Bytes of the values that are kept, which are not read for this."""
        with self._kept() as items:
            return sum(
                item.nbytes
                for name, item in items
                if isinstance(item, h5py.Dataset) and not _matches(name, self.rows)
            )

    def read(self) -> dict[str, Any]:
        """Names of the ``rows``, ``values`` by name, of rows none, and ``attributes`` by name."""
        found: dict[str, Any] = {"rows": [], "values": {}, "attributes": {}}
        with self._kept() as items:
            for name, item in items:
                attributes = {k: v for k, v in item.attrs.items() if k not in _OF_PARTS}
                if attributes:
                    found["attributes"][name] = attributes
                if isinstance(item, h5py.Group):
                    continue
                is_row = _matches(name, self.rows)
                if is_row:
                    found["rows"].append(name)
                value = item[:0] if is_row else item[()]
                found["values"][name] = value.astype(str) if value.dtype == object else value
        plain: dict[str, Any] = _plain(found)
        return plain

    @contextlib.contextmanager
    def _kept(self) -> Iterator[list[tuple[str, Any]]]:
        """Groups and datasets by name, the file itself under an empty one."""
        with reading(self.path), h5py.File(self.path, "r") as file:
            found: list[tuple[str, Any]] = [("", file)]
            file.visititems(lambda name, item: found.append((name, item)))
            others = [
                n for pattern in self.first for n in sorted(fnmatch.filter(file, pattern))[1:]
            ]
            yield [
                (name, item)
                for name, item in found
                if not (name and _matches(name, self.without))
                and name.partition("/")[0] not in others
            ]


def restore(
    content: Mapping[str, Any],
    output: Path,
    rows: Mapping[str, Any],
    fill: Callable[[h5py.File], None] = lambda _: None,
) -> Path:
    """Write a sample file of its `Outline` and of samples; returns its path.

    ``rows`` are the samples by dataset: arrays, or for what ``fill`` writes the number of rows. Those that
    are not named have none. ``split`` is replaced if it is not named: all times are those of the test.
    """
    with create(output) as file:
        given: dict[str, Any] = dict(rows)
        if "split" not in content["rows"]:  # of a period, not of each sample
            given.setdefault("split", np.array([[0, 0], [0, 0], [0, len(rows.get("time", ()))]]))
        for name, value in content["values"].items():
            if name in given and not isinstance(given[name], int):
                create_dataset(file, name, np.asarray(given.pop(name)))
            elif isinstance(value, list):
                file[name] = strings(given.pop(name, []) if name in content["rows"] else value)
            elif name in content["rows"]:
                shape = (given.pop(name, 0), *value.shape[1:])
                create_dataset(file, name, shape=shape, dtype=_numpy(value).dtype)
            else:
                create_dataset(file, name, _numpy(value))
        for name, values in given.items():
            if name != "split":
                create_dataset(file, name, np.asarray(values))
        for name, attributes in content["attributes"].items():
            target = file[name] if name else file
            target.attrs.update({key: _attribute(value) for key, value in attributes.items()})
        fill(file)
    return output


def outline_in(recipe: Mapping[str, Any], role: str) -> Mapping[str, Any]:
    """Outline of the sample file of a role; raises `DataError` if the recipe has none."""
    if "samples" not in recipe:
        raise DataError(
            "the checkpoint does not hold the grid of its training, because it is of an earlier version or "
            f"the grid is too large; give the sample file of its training, `samples={{{role!r}: FILE}}` or "
            f"`--samples {role}=FILE`"
        )
    found: Mapping[str, Any] = recipe["samples"][role]
    return found


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _plain(value: Any) -> Any:
    """Values that `torch.load` takes as weights: tensors for arrays, lists for arrays of strings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "OSU":
            return [one.decode() if isinstance(one, bytes) else str(one) for one in value.flat]
        return torch.from_numpy(np.array(value))
    return value.item() if isinstance(value, np.generic) else value


def _attribute(value: Any) -> Any:
    if isinstance(value, list):
        return strings(value)
    return _numpy(value) if isinstance(value, torch.Tensor) else value


def _numpy(value: Any) -> np.ndarray:
    return np.asarray(value.numpy() if isinstance(value, torch.Tensor) else value)

"""How models of groundwater are applied: to named states on a mesh, or to raw files of it.

``states`` are the variables of the training along ``time`` (d) and ``node``, with the coordinates ``x``,
``y``, ``z`` (m) and ``slice`` of each node: of the mesh of the training or of another one of the site.
``forcings`` are those of the training along the same axes, NaN where none is given, from the first state to
the last time that is forecast. Models on sections interpolate between the nodes by themselves.

Shape suffixes: T times, W windows, L lead steps, N nodes (or cells of sections), V variables, F forcings.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from millrace.data.hdf5 import create, create_dataset, open_checked, strings
from millrace.data.recipe import outline_in, restore
from millrace.data.samples import dataset_class
from millrace.data.split import SplitConfig
from millrace.errors import ConfigError, DataError
from millrace.evaluation import ugrid
from millrace.evaluation.application import (
    ISSUE_TIME,
    ISSUED,
    TIME,
    Application,
    Piece,
    Prepared,
    Recipe,
    SeriesForecasts,
    dataset_of,
    days_of,
    field,
    values_of,
)
from millrace.evaluation.program import Program
from millrace.evaluation.selection import period_of
from millrace.evaluation.trained_model import TrainedModel
from millrace.systems.base import Progress
from millrace.systems.groundwater.feflow_csv import find_files
from millrace.systems.groundwater.layered_mesh import LayeredMesh
from millrace.systems.groundwater.plane_dataset import PlaneDataset
from millrace.systems.groundwater.plane_folders import convert_plane_folders
from millrace.systems.groundwater.planes import BOUNDARY
from millrace.systems.groundwater.prediction import Prediction
from millrace.systems.groundwater.preparation import cut, prepare
from millrace.systems.groundwater.program import groundwater_program
from millrace.systems.groundwater.series import SCHEMA as SERIES_SCHEMA
from millrace.systems.groundwater.settings import PatchConfig
from millrace.systems.groundwater.units import UNITS

_SPLIT = {"train": 1 / 3, "validation": 1 / 3}
"""Nothing is trained: the split is there because a series has one."""
_STANDARD_NAMES = {"temperature": "temperature_in_ground"}
_TIME_UNIT = "days"


class GroundwaterApplication(Application):
    """Models of groundwater, on patches of a mesh or on sections."""

    options = SeriesForecasts

    def write(
        self, recipe: Recipe, states: Any, forcings: xr.Dataset | None, directory: Path
    ) -> Prepared:
        """See `Application.write`."""
        data, config = dataset_of(states, "states"), _config(recipe)
        units = {**UNITS, **recipe["preparation"].get("units", {})}
        variables = list(recipe["normalisation"]["variables"])
        series, time = directory / "series.h5", days_of(data, "states")
        state_TNV = np.stack(
            [values_of(data, name, ("time", "node"), units.get(name), "states") for name in variables],
            axis=2,
        )  # fmt: skip
        n_given, names = len(time), _forcings(recipe)
        values_TNF, mask_TNF, after = _given(names, forcings, time, state_TNV.shape[1])
        if not names:
            step = np.median(np.diff(time)) if len(time) > 1 else 1.0
            after = time[-1] + step * np.arange(1, config.output_steps + 1)
            values_TNF = np.empty((n_given + len(after), state_TNV.shape[1], 0))
            mask_TNF = values_TNF.astype(bool)
        if recipe["preparation"].get("clip_negative_concentration"):
            for v, name in enumerate(variables):
                if name == "mass_concentration":
                    state_TNV[..., v] = state_TNV[..., v].clip(min=0)
        state_TNV = np.concatenate([state_TNV, np.repeat(state_TNV[-1:], len(after), axis=0)])
        n_times, n_nodes = state_TNV.shape[:2]
        coords = np.column_stack(
            [values_of(data, axis, ("node",), "m", "states") for axis in "xyz"]
        )
        layer = values_of(data, "slice", ("node",), None, "states").astype(np.int32)
        node = data["node"].values if "node" in data.coords else np.arange(1, n_nodes + 1)
        with create(series) as file:
            for name, values in (
                ("node", node.astype(np.int64)),
                ("slice", layer),
                ("coords", coords),
                ("time", np.concatenate([time, after])),
                ("split", np.array([[0, n_times], [n_times, n_times], [n_times, n_times]])),
                ("obs", state_TNV.astype(np.float32)),
                ("forcing", values_TNF.astype(np.float32)),
                ("forcing_mask", mask_TNF.astype(np.uint8)),
            ):
                create_dataset(file, name, values)
            # Normalised is with the statistics of the training; a file of samples has some.
            for name, size in (
                ("obs", len(variables)),
                ("increment", len(variables)),
                ("forcing", len(names)),
            ):
                create_dataset(file, f"stats/{name}_mean", np.zeros(size))
                create_dataset(file, f"stats/{name}_std", np.ones(size))
            file["obs"].attrs["variables"] = strings(variables)
            file["obs"].attrs["units"] = strings([units[name] for name in variables])
            for name in ("forcing", "forcing_mask"):
                file[name].attrs["variables"] = strings(names)
            file.attrs.update(schema=SERIES_SCHEMA, digest="named arrays")
        model = recipe["definition"]["model"]
        files = cut(series, directory, _cutting(recipe), model)
        return Prepared(files, n_given, _remarks(recipe, coords))

    def prepare(
        self,
        recipe: Recipe,
        source: Path,
        raw: str,
        directory: Path,
        workers: int,
        options: Any = None,
    ) -> Prepared:
        """See `Application.prepare`; all times are read."""
        if options is not None:
            period_of(options.times, recipe, is_date=False)  # refused before anything is read
        if raw == "plane_folders":
            path = directory / "planes.h5"
            convert_plane_folders(source, path, None, SplitConfig.parse(_SPLIT, "split"))
            return Prepared({"planes": path})
        needed = max(3, _config(recipe).length)
        if (found := len(find_files(source, with_forcings=False).fields)) < needed:
            raise DataError(f"{source}: {found} output times; this model needs {needed} or more")
        block = {**_cutting(recipe), "split": _SPLIT}
        files = prepare(source, directory, block, recipe["definition"]["model"], workers)
        with open_checked(directory / "series.h5", SERIES_SCHEMA) as series:
            remarks = _remarks(recipe, series["coords"][()])
        return Prepared(files, remarks=remarks)

    def pieces(
        self,
        model: TrainedModel,
        recipe: Recipe,
        prepared: Prepared,
        options: Any,
        progress: Progress | None = None,
    ) -> Iterator[Piece]:
        """See `Application.pieces`."""
        period = period_of(options.times, recipe, is_date=False)
        prediction = Prediction(model, options, period, prepared.steps)
        file = next(iter(prepared.files.values()))
        points = _points(model.dataset, Path(str(file)).with_name("series.h5"))
        for first, forecast_WLNV, known in prediction.batches(progress):
            windows = slice(first, first + len(forecast_WLNV))
            fields: list[NDArray[Any]] = [forecast_WLNV, *known]
            made = [_named(prediction, points, values, windows) for values in fields]
            yield Piece(
                made[0],
                made[1] if known else None,
                {"persistence": made[2]} if known else {},
            )

    def example(self, recipe: Recipe, directory: Path) -> Prepared:
        """See `Application.example`: a mesh in the box of the training, or the sections of the training."""
        random, stats = np.random.default_rng(0), recipe["normalisation"]
        n_times = _config(recipe).length + 1
        if recipe["kind"] == "planes":
            return Prepared({"planes": _drawn_planes(recipe, directory / "planes.h5", n_times)})
        low, high = (np.asarray(corner, float) for corner in stats["box"])
        cutting = PatchConfig.parse(_cutting(recipe)["patches"], "patches")
        layers, of_layer = cutting.slice_groups + 1, 12 * cutting.clusters
        layer = np.repeat(np.arange(layers), of_layer)
        plan = random.uniform(low[:2], high[:2], (of_layer, 2))
        depth = (layer + random.uniform(0, 0.4, len(layer))) / layers
        z = high[2] - (high[2] - low[2]) * depth
        time, n_nodes = np.arange(n_times, dtype=float), len(layer)
        axes = ("time", "node")

        def drawn(one: Mapping[str, float]) -> tuple[tuple[str, str], NDArray[np.float64]]:
            return axes, one["mean"] + one["std"] * random.standard_normal((n_times, n_nodes))

        states = xr.Dataset(
            {name: drawn(one) for name, one in stats["variables"].items()}
            | {"slice": ("node", layer), "z": ("node", z)}
            | {key: ("node", np.tile(plan[:, d], layers)) for d, key in enumerate("xy")},
            {"time": time},
        )
        given = xr.Dataset(
            {name: drawn(one) for name, one in stats["forcings"].items()}, {"time": time}
        )
        given = given.where(random.random((n_times, n_nodes)) < 0.5) if given.data_vars else given
        return self.write(recipe, states, given if given.data_vars else None, directory)

    def program(
        self, model: TrainedModel, recipe: Recipe, prepared: Prepared, options: Any
    ) -> Program:
        """See `Application.program`."""
        del options
        given = {k: v for k, v in recipe["definition"]["model"].items() if k != "name"}
        radius = getattr(model.spec.config.parse(given, "model"), "radius", None)
        return groundwater_program(model, prepared.files, radius)


def _drawn_planes(recipe: Recipe, output: Path, n_times: int) -> Path:
    """Sample file of the sections of the training with random states and boundary values."""
    content, random = outline_in(recipe, "planes"), np.random.default_rng(0)
    stats, attributes = recipe["normalisation"], content["attributes"][""]
    rows: dict[str, Any] = {"time": np.arange(n_times, dtype=float)}
    for name in content["rows"]:
        shape = (n_times, *content["values"][name].shape[1:])
        last = name.rpartition("/")[2]
        if last == "bc_mask":
            rows[name] = (random.random(shape) < 0.5).astype(np.uint8)
        elif last in ("field", "bc"):
            names = attributes["variables"] if last == "field" else attributes["boundary"]
            known = stats["variables"] if last == "field" else stats["forcings"]
            about = [known.get(one, {"mean": 0.0, "std": 1.0}) for one in names]
            mean, std = (np.array([one[key] for one in about]) for key in ("mean", "std"))
            rows[name] = (mean + std * random.standard_normal(shape)).astype(np.float32)
    return restore(content, output, rows)


def _config(recipe: Recipe) -> Any:
    opened: Any = dataset_class(recipe["kind"])
    return opened.config_type.parse(recipe["definition"]["data"], "data")


def _forcings(recipe: Recipe) -> list[str]:
    """Forcings that are read of raw files."""
    if recipe["kind"] == "planes":
        return list(BOUNDARY.values())
    return list(recipe["normalisation"]["forcings"])


def _cutting(recipe: Recipe) -> dict[str, Any]:
    """Block of a dataset that is cut as that of the training; raises `ConfigError` if it was not cut."""
    kind, preparation = recipe["kind"], recipe["preparation"]
    if not preparation[kind]:
        raise ConfigError(
            f"the model was trained on {kind} that were not cut from raw files of a mesh, so it is unknown "
            f"how to cut {kind} from new ones"
        )
    variables = list(recipe["normalisation"]["variables"])
    return {**preparation, "variables": variables, "forcings": _forcings(recipe)}


def _given(
    names: list[str], forcings: xr.Dataset | None, time: NDArray[np.float64], nodes: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Values of forcings, 0 where none is given, where they are given, and the times after the states."""
    if not names:
        return np.empty((len(time), nodes, 0)), np.empty((len(time), nodes, 0), bool), np.empty(0)
    if forcings is None:
        raise DataError(f"forcings: expected {', '.join(names)}, with which the model was trained")
    data = dataset_of(forcings, "forcings")
    every = days_of(data, "forcings")
    place = np.searchsorted(every, time).clip(max=len(every) - 1)
    if not np.allclose(every[place], time):
        raise DataError("forcings: not all times of the states are among those of the forcings")
    rows = np.concatenate([place, np.flatnonzero(every > time[-1])])
    found = []
    for name in names:
        if name not in data.variables:
            raise DataError(f"forcings: no variable {name!r}, with which the model was trained")
        values = data[name].transpose("time", "node").values[rows].astype(np.float64)
        if values.shape[1] != nodes:
            raise DataError(
                f"forcings: {name!r} has {values.shape[1]} nodes, the states have {nodes}"
            )
        found.append(values)
    values_TNF = np.stack(found, axis=2)
    given = np.isfinite(values_TNF)
    return np.where(given, values_TNF, 0.0), given, every[every > time[-1]]


def _remarks(recipe: Recipe, coords: NDArray[np.float64]) -> list[str]:
    """In which ways a mesh differs from that of the training."""
    found = []
    low, high = (np.asarray(corner, float) for corner in recipe["normalisation"]["box"])
    unit = (coords[:, : len(low)] - low) / np.maximum(high - low, 1e-12)
    # Outside is beyond the box of the training data by more than a tenth of its size.
    outside = float(((unit < -0.1) | (unit > 1.1)).any(axis=1).mean())
    if outside:
        found.append(f"{outside:.0%} of the points lie outside the box of the training data")
    return found


def _points(dataset: Any, series: Path) -> dict[str, Any]:
    """Coordinates and mesh of the points of forecasts, as variables of a `xarray.Dataset`."""
    if isinstance(dataset, PlaneDataset):
        coords, axis = dataset.cell_coords, "cell"
        found: dict[str, Any] = {
            "plane": (
                axis,
                dataset.plane_of_cell.astype(np.int32),
                {"long_name": "number of the section"},
            )
        }
    else:
        with open_checked(series, SERIES_SCHEMA) as file:
            node, layer, coords = (file[name][()] for name in ("node", "slice", "coords"))
        axis = "node"
        found = {
            "node": (axis, node, {"long_name": "number of the node"}),
            "slice": (axis, layer, {"long_name": "slice of the node"}),
        }
        try:
            faces = LayeredMesh(coords, layer).triangles
        except DataError:  # of a single slice, or one on a line: points without a mesh
            faces = np.empty((0, 3), np.int64)
        if len(faces):
            found |= ugrid.topology(coords, faces, ugrid.IN_PLANE, node=axis)
    places = (*ugrid.IN_PLANE, ("z", {"standard_name": "altitude", "units": "m", "positive": "up"}))
    for number, (name, about) in enumerate(places):
        found[name] = (axis, coords[:, number], {**about, "long_name": f"{name} of the point"})
    return {"axis": axis, **found}


def _named(
    prediction: Prediction, points: Mapping[str, Any], values_WLNV: NDArray[Any], windows: slice
) -> xr.Dataset:
    """Fields with names, units and coordinates."""
    axes = (ISSUE_TIME, "lead", points["axis"])
    data: dict[str, Any] = {}
    for v, (name, unit) in enumerate(prediction.units.items()):
        about = field(unit, name.replace("_", " "), _STANDARD_NAMES.get(name, ""))
        data[name] = (axes, values_WLNV[..., v].astype(np.float32), about)
    made = xr.Dataset(data)
    steps = np.arange(1, values_WLNV.shape[1] + 1, dtype=np.int32)
    mesh = {k: v for k, v in points.items() if k.startswith(ugrid.MESH)}
    others = {k: v for k, v in points.items() if k not in mesh and k != "axis"}
    if mesh:
        made = ugrid.on_mesh(made, "node").assign(mesh)
    return made.assign_coords(
        {
            ISSUE_TIME: (
                ISSUE_TIME,
                prediction.issue_time_W[windows],
                {"long_name": ISSUED["long_name"], "units": _TIME_UNIT},
            ),
            "lead": ("lead", steps, {"long_name": "steps after the last given state", "units": "1"}),
            "valid_time": (
                (ISSUE_TIME, "lead"),
                prediction.time_WL[windows],
                {"long_name": TIME["long_name"], "units": _TIME_UNIT},
            ),
            **others,
        }
    )  # fmt: skip


APPLICATION = GroundwaterApplication()

"""How downscalers are applied: to named block means or fine fields, or to raw files of ICON.

``states`` are the variables of the training along ``time`` and either ``block``, the cells of the coarse
grid in their order, or ``cell``, those of the fine grid, whose block means are taken then. What is drawn is
on the cells of the fine grid in the order of its file, by time and member.

Shape suffixes: T times, E members, N fine cells, M blocks, V variables.
"""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
import xarray as xr

from millrace.config import Count
from millrace.data.recipe import outline_in, restore
from millrace.errors import DataError
from millrace.evaluation import ugrid
from millrace.evaluation.application import (
    CLOCK,
    TIME,
    Application,
    Piece,
    Prepared,
    Recipe,
    dataset_of,
    days_of,
    field,
    values_of,
)
from millrace.evaluation.program import Program
from millrace.evaluation.selection import Selection, period_of
from millrace.evaluation.trained_model import TrainedModel
from millrace.systems.base import Progress
from millrace.systems.downscaling.blocks import block_means
from millrace.systems.downscaling.corners import corners
from millrace.systems.downscaling.dataset import BlockDataset
from millrace.systems.downscaling.ensembles import downscaled
from millrace.systems.downscaling.icon import open_source
from millrace.systems.downscaling.icon_source import FieldScreening, Floats, Ints, refuse_no_data
from millrace.systems.downscaling.program import downscaling_program
from millrace.systems.downscaling.sampling import SamplerConfig
from millrace.systems.settings import MissingConfig

STANDARD_NAMES = {
    "tas": "air_temperature",
    "psl": "air_pressure_at_mean_sea_level",
    "ps": "surface_air_pressure",
    "pr": "precipitation_flux",
    "huss": "specific_humidity",
    "hurs": "relative_humidity",
    "uas": "eastward_wind",
    "vas": "northward_wind",
    "sfcWind": "wind_speed",
    "rsds": "surface_downwelling_shortwave_flux_in_air",
    "rlds": "surface_downwelling_longwave_flux_in_air",
}
"""Standard names of CF by the names of CMIP, which ICON gives its output."""
SLAB_BYTES = 16 << 20


class DownscalingForecasts(SamplerConfig, Selection):
    """Which times are downscaled, and how."""

    stride: Count = 1
    """Steps between times that are downscaled."""


class BlockApplication(Application):
    """Downscalers."""

    options = DownscalingForecasts
    of_spread = ("steps", "solver")
    export_options = SamplerConfig
    exported_data = MappingProxyType({"piece_blocks": None})
    """A program is of the whole grid: the network gives on pieces what it gives there."""

    def write(
        self, recipe: Recipe, states: Any, forcings: xr.Dataset | None, directory: Path
    ) -> Prepared:
        """See `Application.write`; there are no forcings."""
        if forcings is not None:
            raise DataError("forcings: downscalers take none; leave them out")
        data, grid = dataset_of(states, "states"), _Grid(recipe)
        time, fields = days_of(data, "states"), dict[str, Floats]()
        for name in grid.used:
            if name not in data:
                raise DataError(f"states: no variable {name!r}, with which the model was trained")
            axis = "cell" if "cell" in data[name].dims else "block"
            values_TK = values_of(data, name, ("time", axis), grid.units[name], "states")
            expected = len(grid.order_N) if axis == "cell" else grid.n_blocks
            if values_TK.shape[1] != expected:
                raise DataError(
                    f"states: {name!r} has {values_TK.shape[1]} along {axis}; expected the {expected} of "
                    "the grid of the training"
                )
            fields[name] = values_TK[:, grid.order_N] if axis == "cell" else values_TK
        is_fine = {values.shape[1] == len(grid.order_N) for values in fields.values()}
        if len(is_fine) > 1:
            raise DataError(
                "states: some variables are along cell, others along block; give one of both"
            )
        any_TK = next(iter(fields.values()))
        given_TKV = np.stack(
            [fields.get(name, np.zeros_like(any_TK)) for name in grid.names], axis=2
        )
        if is_fine == {True}:
            coarse_TMV = block_means(given_TKV, grid.area_N, grid.n_blocks)
        else:
            coarse_TMV = given_TKV
            given_TKV = given_TKV.repeat(len(grid.order_N) // grid.n_blocks, axis=1)
        rows = {"time": time, "fine": given_TKV.astype(np.float32)}
        rows["coarse"] = coarse_TMV.astype(np.float32)
        path = restore(grid.content, directory / "blocks.h5", rows)
        return Prepared({"blocks": path}, None if is_fine == {True} else 0)

    def prepare(
        self,
        recipe: Recipe,
        source: Path,
        raw: str,
        directory: Path,
        workers: int,
        options: Any = None,
    ) -> Prepared:
        """See `Application.prepare`."""
        del raw, workers
        grid, settings = _Grid(recipe), json.loads(recipe["preparation"]["blocks"])
        given = settings.get("missing")
        missing = None if given is None else MissingConfig.parse(given, "missing")
        icon = open_source(source, grid.names, grid.levels)
        finest, screening = icon.grids[0], FieldScreening(missing)
        n_cells = len(grid.order_N)
        if len(finest.lon_N) != n_cells or not np.allclose(
            finest.centres_N3[grid.order_N], grid.centres_N3, atol=1e-5
        ):
            raise DataError(
                f"{finest.path}: is another grid than that of the training ({n_cells} cells); a downscaler "
                "knows one grid, train it on this one"
            )
        time = icon.fields.time_T
        steps = max(1, SLAB_BYTES // (4 * n_cells * len(grid.names)))
        chosen = np.arange(len(time)) if options is None else _chosen(recipe, time, options)
        first, stop = int(chosen[0]), int(chosen[-1]) + 1

        def fill(file: h5py.File) -> None:
            spans = [
                range(max(first, span.start), min(stop, span.stop))
                for group in icon.fields.groups(steps, 1)
                for span in group
                if span.start < stop and span.stop > first
            ]
            slabs = icon.fields.slabs(spans, screening)
            for span, values_TNV in zip(spans, slabs, strict=True):
                fine_TNV = values_TNV[:, grid.order_N]
                rows = slice(span[0] - first, span[-1] - first + 1)
                file["fine"][rows] = fine_TNV
                file["coarse"][rows] = block_means(fine_TNV, grid.area_N, grid.n_blocks)
            refuse_no_data([screening.evidence()], missing)

        n_times = stop - first
        rows = {"time": time[first:stop], "fine": n_times, "coarse": n_times}
        path = restore(grid.content, directory / "blocks.h5", rows, fill)
        return Prepared({"blocks": path}, first=first)

    def pieces(
        self,
        model: TrainedModel,
        recipe: Recipe,
        prepared: Prepared,
        options: Any,
        progress: Progress | None = None,
    ) -> Iterator[Piece]:
        """See `Application.pieces`."""
        dataset: BlockDataset = model.dataset
        grid, chosen = _Grid(recipe), _chosen(recipe, dataset.time, options)
        for done, step in enumerate(chosen.tolist(), start=1):
            made = downscaled(model.module, dataset, step, options, prepared.first + step)
            forecast = grid.named(dataset, made.ensemble_ENV, made.time, members=True)
            truth, baselines = None, {}
            if prepared.steps is None:
                truth = grid.named(dataset, made.truth_NV[None], made.time)
                own_NV = made.coarse_MV.repeat(len(grid.order_N) // grid.n_blocks, axis=0)
                baselines = {"block_mean": grid.named(dataset, own_NV[None], made.time)}
            weight = xr.DataArray(grid.in_file(grid.area_N), dims="cell")
            yield Piece(forecast, truth, baselines, weight / weight.mean())
            if progress is not None:
                progress(done, len(chosen))

    def example(self, recipe: Recipe, directory: Path) -> Prepared:
        """See `Application.example`."""
        grid, random = _Grid(recipe), np.random.default_rng(0)
        stats, n_times = recipe["normalisation"]["variables"], 2
        shape = (n_times, grid.n_blocks, len(grid.order_N) // grid.n_blocks, len(grid.names))
        fine, drawn = random.standard_normal(shape), random.standard_normal(shape)
        for v, name in enumerate(grid.names):
            one = stats.get(name, {"mean": 0.0, "std": 1.0, "increment_std": 1.0})
            fine[..., v] = one["mean"] + one["std"] * fine[:, :, :1, v]
            fine[..., v] += one["increment_std"] * drawn[..., v]
        fine_TNV = fine.reshape(n_times, -1, len(grid.names)).astype(np.float32)
        rows = {"time": 10_000 + np.array([0.0, 0.4]), "fine": fine_TNV}
        rows["coarse"] = block_means(fine_TNV, grid.area_N, grid.n_blocks)
        return Prepared({"blocks": restore(grid.content, directory / "blocks.h5", rows)})

    def program(
        self, model: TrainedModel, recipe: Recipe, prepared: Prepared, options: Any
    ) -> Program:
        """See `Application.program`."""
        del prepared
        return downscaling_program(model, _Grid(recipe).order_N, options)


def _chosen(recipe: Recipe, time: Floats, options: DownscalingForecasts) -> Ints:
    """Numbers of the times that are downscaled; raises `ConfigError` if there is none."""
    period = period_of(options.times, recipe, is_date=True)
    chosen = np.flatnonzero(period.holds(time, time))[:: options.stride][: options.limit]
    if not len(chosen):
        raise period.nothing(time, is_date=True)
    return chosen


class _Grid:
    """What the outline of the samples says of the grid; cells in nested order, unless it is said."""

    def __init__(self, recipe: Recipe) -> None:
        self.content = outline_in(recipe, "blocks")
        values, attributes = self.content["values"], self.content["attributes"][""]
        self.order_N: Ints = np.asarray(values["cell"]).astype(np.int64) - 1
        """Where each cell is in the file of the grid."""
        self.centres_N3: Floats = np.asarray(values["geometry/centre"])
        self.area_N: Floats = np.asarray(values["geometry/area"])
        self.names: list[str] = list(attributes["variables"])
        self.used: list[str] = list(recipe["definition"]["data"].get("variables", ("tas",)))
        self.units: Mapping[str, str] = dict(zip(self.names, attributes["units"], strict=True))
        self.levels = int(attributes["levels"])
        self.n_blocks = len(self.order_N) // 4**self.levels
        self._neighbours = np.asarray(values["neighbours/0"]).astype(np.int64)

    def in_file(self, values_N: np.ndarray) -> np.ndarray:
        """Values of cells, the first axis, in the order of the file of the grid."""
        found = np.empty_like(values_N)
        found[self.order_N] = values_N
        return found

    def named(
        self, dataset: BlockDataset, fields_ENV: Floats, time: float, members: bool = False
    ) -> xr.Dataset:
        """Fields with names, units and coordinates, on the mesh of the grid."""
        axes = ("time", "member", "cell") if members else ("time", "cell")
        data: dict[str, Any] = {}
        for v, name in enumerate(dataset.config.variables):
            values_EN = self.in_file(fields_ENV[..., v].T).T.astype(np.float32)
            about = field(dataset.units[v], name, STANDARD_NAMES.get(name, ""))
            data[name] = (axes, values_EN[None] if members else values_EN, about)
        made = ugrid.on_mesh(xr.Dataset(data), "face")
        place, faces = _mesh(
            self.in_file(self.centres_N3).tobytes(), self._in_file_beside().tobytes()
        )
        centre = _degrees(self.in_file(self.centres_N3))
        coordinates: dict[str, Any] = {
            "time": ("time", np.array([time]), {**TIME, **CLOCK}),
            **{
                name: (
                    "cell",
                    centre[:, number],
                    {**about, "long_name": f"{name} of the cell's centre"},
                )
                for number, (name, about) in enumerate(ugrid.ON_SPHERE)
            },
        }
        if members:
            about = {"standard_name": "realization", "long_name": "member", "units": "1"}
            coordinates["member"] = ("member", np.arange(len(fields_ENV), dtype=np.int32), about)
        mesh = ugrid.topology(place, faces, ugrid.ON_SPHERE, face="cell")
        return made.assign(mesh).assign_coords(coordinates)

    def _in_file_beside(self) -> Ints:
        beside = self._neighbours
        return self.in_file(np.where(beside >= 0, self.order_N[beside], -1))


@lru_cache(maxsize=2)
def _mesh(centres: bytes, neighbours: bytes) -> tuple[Floats, Ints]:
    """Corners (degrees), and those of each cell, of a grid in the order of its file."""
    place_C3, faces = corners(
        np.frombuffer(centres).reshape(-1, 3), np.frombuffer(neighbours, np.int64).reshape(-1, 3)
    )
    return _degrees(place_C3), faces


def _degrees(place_N3: Floats) -> Floats:
    """Longitude and latitude (degrees), [N, 2]."""
    lon = np.arctan2(place_N3[:, 1], place_N3[:, 0])
    return np.rad2deg(np.column_stack([lon, np.arcsin(place_N3[:, 2].clip(-1, 1))]))


APPLICATION = BlockApplication()

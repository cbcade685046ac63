"""Files of forecasts: CF-1.11 as NetCDF or Zarr, written piece by piece, complete or absent.

Conventions: https://cfconventions.org/cf-conventions/cf-conventions.html, meshes after UGRID 1.0.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import netCDF4
import numpy as np
import xarray as xr

from millrace.errors import ConfigError
from millrace.files import atomic_write, output_errors, sync

_PROBE_BYTES = 1 << 20
_COMPRESSED = {"zlib": True, "complevel": 1, "shuffle": True}


class ForecastWriter(Protocol):
    """Takes one piece after the other."""

    def __call__(self, piece: xr.Dataset) -> None:
        """Append a piece along its first axis."""


def attributes_of(about: Mapping[str, str]) -> dict[str, str]:
    """Attributes of forecasts, from what is said of their model."""
    return {
        "Conventions": "CF-1.11 UGRID-1.0",
        "title": f"Forecasts of the model {about.get('model', '')}",
        "source": f"Millrace {about.get('millrace_version', '')}",
        **about,
    }


@contextlib.contextmanager
def forecast_file(path: Path, about: Mapping[str, str], command: str) -> Iterator[ForecastWriter]:
    """Write a file of forecasts, NetCDF (.nc) or Zarr (.zarr), which appears when it is complete.

    ``about`` becomes attributes, ``command`` a line of ``history``. Raises `ConfigError` for another
    suffix, and `OutputError` like `atomic_write`.
    """
    writers = {".nc": _netcdf, ".zarr": _zarr}
    if path.suffix not in writers:
        raise ConfigError(
            f"{path}: files of forecasts are NetCDF, with the suffix .nc, or Zarr, with .zarr"
        )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    attributes = {**attributes_of(about), "history": f"{now}: {command}"}
    with writers[path.suffix](path, attributes) as write:
        yield write


@contextlib.contextmanager
def _netcdf(path: Path, attributes: Mapping[str, str]) -> Iterator[ForecastWriter]:
    with atomic_write(path) as partial:
        done = 0

        def write(piece: xr.Dataset) -> None:
            nonlocal done
            axis = axis_of(piece)
            with _reasons(partial):
                if not done:
                    first = piece.assign_attrs(attributes)
                    encoding = _encoding(piece, True)
                    first.to_netcdf(partial, encoding=encoding, unlimited_dims=[axis])
                else:
                    _append(partial, piece, axis, done)
            done += piece.sizes[axis]

        yield write


@contextlib.contextmanager
def _reasons(path: Path) -> Iterator[None]:
    """Raise `OSError` where the library of NetCDF cannot write, which does not say why."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("NetCDF: "):
            raise
        probe = path.with_name(f"{path.name}.probe")
        try:
            with probe.open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
        raise OSError(errno.EIO, str(error)) from error


def _append(path: Path, piece: xr.Dataset, axis: str, done: int) -> None:
    with netCDF4.Dataset(path, "a") as file:
        for name, variable in piece.variables.items():
            if axis in variable.dims:
                at = done if variable.dims[0] == axis else None
                assert at is not None, f"{name}: {axis} is not its first axis"
                target = file.variables[str(name)]
                target[at : at + variable.shape[0]] = variable.values


@contextlib.contextmanager
def _zarr(path: Path, attributes: Mapping[str, str]) -> Iterator[ForecastWriter]:
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            begun = False

            def write(piece: xr.Dataset) -> None:
                nonlocal begun
                axis = axis_of(piece)
                if begun:
                    fixed = [name for name, one in piece.variables.items() if axis not in one.dims]
                    piece.drop_vars(fixed).to_zarr(partial, append_dim=axis, consolidated=False)
                else:
                    first = piece.assign_attrs(attributes)
                    options: Any = {"consolidated": False, "encoding": _encoding(piece, False)}
                    first.to_zarr(partial, mode="w", zarr_format=2, **options)
                begun = True

            yield write
            # One file with all metadata, which readers at an address look for.
            import zarr

            zarr.consolidate_metadata(str(partial), zarr_format=2)
            if path.exists():
                shutil.rmtree(path)
            partial.replace(path)
            sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def axis_of(piece: xr.Dataset) -> str:
    """The first axis of the fields of a piece, along which pieces follow on each other."""
    fields = (one for one in piece.data_vars.values() if one.dtype.kind == "f" and one.ndim > 1)
    return str(next(fields).dims[0])


def _encoding(piece: xr.Dataset, is_netcdf: bool) -> dict[str, dict[str, Any]]:
    """Coordinates have no missing values, as CF wants it; fields are compressed without loss."""
    found: dict[str, dict[str, Any]] = {}
    for name, variable in piece.variables.items():
        is_field = name in piece.data_vars and variable.dtype.kind == "f" and variable.ndim > 1
        made: dict[str, Any] = {}
        if variable.dtype.kind == "f":
            made["_FillValue"] = np.float32(np.nan) if is_field else None
        if is_netcdf and is_field:
            made |= _COMPRESSED
        found[str(name)] = made
    return found

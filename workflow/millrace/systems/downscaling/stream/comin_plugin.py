"""ComIn plug-in for ICON: writes two-dimensional fields to chunk files while the model runs.

In the namelist of ICON::

    &comin_nml
      plugin_list(1)%name           = "millrace"
      plugin_list(1)%plugin_library = "libpython_adapter.so"
      plugin_list(1)%options        = "comin_plugin.py --directory /scratch/run42 --variables tas"
    /

Every rank writes the cells it owns into a folder of its own: ``rank_00003/chunk_<first time>.npz`` with
``cell`` i64[n] (from 0), ``time`` and ``values`` f32[steps, n, variables]. A file is written beside and
renamed; then its line is appended to ``manifest.jsonl``. Nothing is exchanged between ranks.

This file is run by ICON's Python: it needs NumPy, and nothing else of Millrace.
"""

import argparse
import importlib
import io
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

DOMAIN = 1


class ChunkWriter:
    """Collects the fields of one rank and writes them to its directory, ``steps`` output times a chunk.

    ``cells`` are the global numbers, from 0, of the cells that the rank owns.
    """

    def __init__(
        self, directory: Path, cells: np.ndarray, variables: Sequence[str], steps: int
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._cells, self._steps = directory, cells, steps
        self._variables = list(variables)
        self._times: list[str] = []
        self._values: list[np.ndarray] = []

    def add(self, time: str, fields: Sequence[np.ndarray]) -> None:
        """Add the owned cells of all variables at a time (ISO 8601)."""
        self._times.append(time)
        self._values.append(np.stack(fields, axis=1).astype(np.float32))
        if len(self._times) >= self._steps:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        if not self._times:
            return
        buffer = io.BytesIO()
        np.savez(
            buffer,
            cell=self._cells,
            time=self._times,
            variables=self._variables,
            values=self._values,
        )
        content = buffer.getvalue()
        # Named by its first time: a restarted model writes the same chunk again, not another one.
        name = "chunk_" + "".join(c for c in self._times[0] if c.isalnum()) + ".npz"
        self.write_file(name, content)
        line = {"file": name, "times": self._times, "bytes": len(content)}
        with (self._directory / "manifest.jsonl").open("a") as manifest:
            # After the remains of a line that a kill cut off, the next one stands alone.
            manifest.write("\n" + json.dumps(line | {"crc32": zlib.crc32(content)}) + "\n")
        self._times, self._values = [], []

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file of the stream, which appears whole."""
        part = self._directory / f"{name}.tmp"
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.rename(self._directory / name)


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Options of the plug-in, as they stand in the namelist."""
    parser = argparse.ArgumentParser(prog="comin_plugin.py")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--variables", nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=24, help="output times of a chunk")
    parser.add_argument("--every", type=int, default=1, help="take every n-th output time")
    return parser.parse_args(arguments)


def flat(field: Any, n_cells: int) -> np.ndarray:
    """Local cells of an array of blocks (nproma, nblks, ...), which is in Fortran order, [n_cells]."""
    return np.asarray(field).ravel(order="F")[:n_cells]


def register(comin: Any) -> None:
    """Attach to a `comin` module."""
    chosen = options(comin.current_get_plugin_info().args)
    cells = comin.descrdata_get_domain(DOMAIN).cells
    # Cells of the halo belong to another rank, which writes them.
    owned = flat(cells.decomp_domain, cells.ncells) == 0
    number = flat(cells.glb_index, cells.ncells)[owned].astype(np.int64) - 1
    folder = chosen.directory / f"rank_{comin.parallel_get_host_mpi_rank():05d}"
    writer = ChunkWriter(folder, number, chosen.variables, chosen.steps)
    fields: list[Any] = []
    calls = 0

    @comin.register_callback(comin.EP_SECONDARY_CONSTRUCTOR)
    def find_variables() -> None:
        entry = [comin.EP_ATM_WRITE_OUTPUT_BEFORE]
        for name in chosen.variables:
            fields.append(comin.var_get(entry, (name, DOMAIN), comin.COMIN_FLAG_READ))

    @comin.register_callback(comin.EP_ATM_WRITE_OUTPUT_BEFORE)
    def take() -> None:
        nonlocal calls
        if calls % chosen.every == 0:
            values = [flat(field, cells.ncells)[owned] for field in fields]
            writer.add(str(comin.current_get_datetime()), values)
        calls += 1

    @comin.register_callback(comin.EP_DESTRUCTOR)
    def finish() -> None:
        writer.flush()


if __name__ == "__main__":
    # `comin` is there only inside ICON.
    register(importlib.import_module("comin"))

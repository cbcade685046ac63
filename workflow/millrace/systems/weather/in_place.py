"""States that stay where they are: read from the Zarr store of the raw files when a batch asks for them.

What `extract` wrote to ``weather.h5`` says which store, and holds a checksum of each state: one that is no
longer what statistics and digest were made of is refused.

Shape suffixes: T times, C channels, I latitudes, J longitudes.
"""

import json
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.errors import DataError
from millrace.input_files import Address, is_there, resolve_address
from millrace.systems.weather.catalogue import Catalogue
from millrace.systems.weather.settings import WeatherExtraction
from millrace.systems.weather.source import open_sources
from millrace.systems.weather.zarr_stores import cache_folder, metadata_digest


class StatesInPlace:
    """States of a ``weather.h5`` that refers to its source: ``states[index]`` is float32[C, I, J].

    ``attributes`` are those of the file, ``time_T`` (days since 1970) and ``check_T`` its datasets. The
    source is opened when the first state is read; threads may read at once. Raises `DataError` if the
    source is not there or has changed.
    """

    def __init__(
        self,
        attributes: Mapping[str, Any],
        time_T: NDArray[np.float64],
        check_T: NDArray[np.uint32],
    ) -> None:
        self._reference = json.loads(attributes["reference"])
        config = json.loads(attributes["config"])
        del config["split"]
        self._config = WeatherExtraction.parse(config, "weather")
        self._digest = str(attributes["digest"])
        self._time_T, self._check_T = time_T, check_T
        self._reader: Catalogue | None = None
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        with self._lock:
            reader = self._reader = self._reader or self._open()
        state_CIJ = reader.state(index)
        if checksum(state_CIJ) != self._check_T[index]:
            when = np.datetime64("1970-01-01") + np.timedelta64(
                round(float(self._time_T[index]) * 1440), "m"
            )
            raise self._changed(f"the state at {when}")
        return state_CIJ

    def _open(self) -> Catalogue:
        source = resolve_address(self._reference["source"])
        if not isinstance(source, Address) and not is_there(source):
            raise DataError(
                f"{source}: not there, but samples of `store: reference` are read from it; put it back, or "
                "make the samples again from where it is"
            )
        cache = cache_folder(self._digest)
        reader = Catalogue(source, open_sources(source, whole=True, cache=cache), self._config)
        if fingerprint(reader) != self._reference["metadata"]:
            raise self._changed("its metadata")
        if not np.array_equal(reader.time, self._time_T):
            raise self._changed("its axis of time")
        return reader

    def _changed(self, what: str) -> DataError:
        return DataError(
            f"{self._reference['source']}: {what} changed since the samples were made of it; put back what "
            "was there, or make the samples again: `-R extract_samples` or `-R extract_part`"
        )


def reference_to(reader: Catalogue, source: Path) -> dict[str, str]:
    """What ``weather.h5`` says of a source whose states stay there: its path or address, and metadata.

    Raises `DataError` if states of it cannot be read one by one, see `Catalogue.refuse_to_refer`.
    """
    reader.refuse_to_refer()
    address = source if isinstance(source, Address) else source.absolute()
    return {"source": str(address), "metadata": fingerprint(reader)}


def fingerprint(reader: Catalogue) -> str:
    """Hash of the metadata of all stores that hold states."""
    return "-".join(metadata_digest(path) for path in reader.stores())


def checksum(state_CIJ: NDArray[np.float32]) -> int:
    """CRC-32 of a state: a guard against change and damage, and faster than its SHA-256."""
    return zlib.crc32(np.ascontiguousarray(state_CIJ).data)

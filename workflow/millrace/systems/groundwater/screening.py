"""Whether states are what they should be: values where there are some, in the units that are expected.

Shape suffixes: N nodes, C fields, F forcings.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from millrace.data.validity import Screening, same
from millrace.systems.groundwater.feflow_csv import PLACE, FeflowReader, Snapshot
from millrace.systems.groundwater.settings import MaskedMissing
from millrace.systems.groundwater.units import POSSIBLE, UNITS

Floats = NDArray[np.float64]

_AT_LEAST = 10.0  # m: thinner aquifers say little on where heads may be
_LENGTHS = {"cm": 1e-2, "mm": 1e-3, "ft": 0.3048}
_WEIGHT = 9.8  # kPa: of 1 m of water
_PRESSURES = {"Pa": 1e-3, "hPa": 0.1, "m of water": _WEIGHT, "bar": 100.0, "MPa": 1e3}
_SEA = 35_000.0
_CONCENTRATIONS = {"g/L (kg/m³)": 1e3, "kg/kg": 1e6, "µg/L": 1e-3}


class StateScreening:
    """Takes all states of a series, and refuses or warns in the end.

    ``units`` are those of the fields; only what is in the unit of `UNITS` is checked for plausibility.
    """

    def __init__(
        self, reader: FeflowReader, missing: MaskedMissing | None, units: Mapping[str, str]
    ) -> None:
        self._reader, self._units = reader, units
        self._screenings = {
            name: Screening.of(missing, POSSIBLE.get(name))
            for name in (*reader.variables, *reader.forcings)
        }
        self._ranges: dict[str, list[tuple[float, float]]] = {name: [] for name in units}
        self._first: dict[str, Floats] = {}

    def add(self, snapshot: Snapshot) -> None:
        """Add the next output time."""
        columns = [*snapshot.fields_NC.T, *given_values(snapshot).T]
        for (name, screening), values_N in zip(self._screenings.items(), columns, strict=True):
            screening.add(values_N)
            if name in self._reader.variables:
                if np.isfinite(values_N).any():
                    span = float(np.nanmin(values_N)), float(np.nanmax(values_N))
                    self._ranges[name].append(span)
                self._first.setdefault(name, values_N.astype(np.float64))

    def finish(self) -> None:
        """Print warnings on what is not plausible.

        Raises
        ------
        DataError
            There are no-data values: ``file:line:column`` of the first, and the key that admits them.
        """
        places = dict(zip(PLACE, self._reader.mesh.coords.T, strict=True))
        for name, values_N in places.items():
            self._screenings[name] = Screening()
            self._screenings[name].add(values_N)
        for name, screening in self._screenings.items():
            for suspect in screening.suspects():
                node = self._reader.mesh.node[suspect.index]
                sentence = suspect.sentence(
                    name,
                    "the key missing of the dataset",
                    at=f" at node {node}",
                    mask="leaves such nodes out",
                )
                raise self._reader.error(suspect.piece, suspect.index, name, sentence)
        for told in self.implausible():
            print(f"WARNING: {told}", file=sys.stderr)

    def implausible(self) -> list[str]:
        """Sentences on fields whose values do not look like their unit."""
        checked = {n for n in self._ranges if self._units[n] == UNITS.get(n) and self._ranges[n]}
        found = []
        z_N = self._reader.mesh.coords[:, 2]
        if "head" in checked:
            found.append(_odd_heads(self._range("head"), z_N))
        if "mass_concentration" in checked:
            found.append(_odd_concentrations(self._range("mass_concentration")))
        if "pressure" in checked:
            head_N = self._first["head"] if "head" in checked else np.full(len(z_N), z_N.max())
            found.append(_odd_pressures(self._first["pressure"], head_N - z_N))
        return [told for told in found if told]

    def _range(self, name: str) -> tuple[float, float]:
        low, high = zip(*self._ranges[name], strict=True)
        return min(low), max(high)


def given_values(snapshot: Snapshot) -> NDArray[np.float32]:
    """Forcings of a state, NaN where none is given, float32[N, F]."""
    return np.where(snapshot.mask_NF == 1, snapshot.forcing_NF, np.float32(np.nan))


def without(snapshot: Snapshot, value: float) -> Snapshot:
    """A state with NaN in place of a no-data value in fields, and blanks in forcings."""
    blank_NF = same(snapshot.forcing_NF.astype(np.float64), value) & (snapshot.mask_NF == 1)
    absent_NC = same(snapshot.fields_NC.astype(np.float64), value)
    return replace(
        snapshot,
        fields_NC=np.where(absent_NC, np.float32(np.nan), snapshot.fields_NC),
        forcing_NF=np.where(blank_NF, np.float32(0), snapshot.forcing_NF),
        mask_NF=np.where(blank_NF, np.uint8(0), snapshot.mask_NF),
    )


def missing_nodes(snapshot: Snapshot, value: float) -> NDArray[np.bool_]:
    """Nodes at which some field is a no-data value, bool[N]."""
    return np.logical_or.reduce(same(snapshot.fields_NC.astype(np.float64), value), axis=1)


def _odd_heads(span: tuple[float, float], z_N: Floats) -> str | None:
    """Heads lie about the top of an aquifer, rarely above it by more than twice its thickness."""
    bottom, top = float(z_N.min()), float(z_N.max())
    thickness = max(top - bottom, _AT_LEAST)
    middle = sum(span) / 2
    if bottom - 2 * thickness <= middle <= top + 2 * thickness:
        return None
    off = {
        unit: max(bottom - factor * middle, factor * middle - top, 0)
        for unit, factor in _LENGTHS.items()
    }
    best = min(off, key=lambda unit: off[unit])
    unit = f" (these look like {best})" if off[best] <= thickness else ""
    return (
        f"head is {span[0]:.5g} to {span[1]:.5g}, but Z {bottom:.5g} to {top:.5g} m; expected heads in m "
        f"about the top of the aquifer{unit}; turn them into m, or say the unit under units of the dataset"
    )


def _odd_concentrations(span: tuple[float, float]) -> str | None:
    """Nothing dissolves beyond brine, and the salt of sea water is 35,000 mg/L in whatever unit."""
    high = span[1]
    unit = _likely(_CONCENTRATIONS, lambda factor: 0.85 <= factor * high / _SEA <= 1.2)
    if high <= POSSIBLE["mass_concentration"][1] and not unit:
        return None
    return (
        f"mass_concentration is {span[0]:.5g} to {high:.5g}; expected mg/L, where sea water has 35,000 and "
        f"brine less than 400,000{unit}; turn it into mg/L, or say the unit under units of the dataset"
    )


def _odd_pressures(pressure_N: Floats, depth_N: Floats) -> str | None:
    """Pressure grows by 9.8 kPa for each m below the water table."""
    known = np.isfinite(pressure_N) & np.isfinite(depth_N)
    depth_N, pressure_N = depth_N[known], pressure_N[known]
    deepest = depth_N.max(initial=0)
    if deepest < 1:
        return None
    deep = depth_N > 0.5 * deepest
    ratio = float(np.median(pressure_N[deep] / depth_N[deep])) / _WEIGHT
    if 0.3 <= ratio <= 3:
        return None
    unit = _likely(_PRESSURES, lambda factor: 0.7 <= factor * ratio <= 1.4)
    return (
        f"pressure grows by {ratio * _WEIGHT:.3g} for each m of depth; expected about {_WEIGHT:g} kPa"
        f"{unit}; turn it into kPa, or say the unit under units of the dataset"
    )


def _likely(units: Mapping[str, float], fits: Callable[[float], bool]) -> str:
    found = next((unit for unit, factor in units.items() if fits(factor)), None)
    return f" (these look like {found})" if found else ""

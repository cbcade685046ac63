"""Whether states are what they should be: values where there are some, in the units that are expected.

Shape suffixes: N nodes, C fields, F forcings.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from millrace.data.units import conversion
from millrace.data.validity import Screening, same
from millrace.systems.groundwater.feflow_csv import PLACE, SLICE, TIME, FeflowReader, Snapshot
from millrace.systems.groundwater.settings import MaskedMissing
from millrace.systems.groundwater.units import POSSIBLE, UNITS

Floats = NDArray[np.float64]

_AT_LEAST = 10.0  # m: thinner aquifers say little on where heads may be
_WEIGHT = 9.8  # kPa: of 1 m of water
_SEA = 35_000.0


def _factors(units: Sequence[str], wanted: str) -> dict[str, float]:
    found = {unit: conversion(unit, wanted) for unit in units}
    return {unit: factors[0] for unit, factors in found.items() if factors}


# Units in which people write what is wanted in others.
_LENGTHS = _factors(("cm", "mm", "ft"), UNITS["head"])
_PRESSURES = {"m of water": _WEIGHT, **_factors(("Pa", "hPa", "bar", "MPa"), UNITS["pressure"])}
_CONCENTRATIONS = {"kg/kg": 1e6, **_factors(("g/L", "µg/L"), UNITS["mass_concentration"])}


_SCALES = [
    f for scale in (10, 24, 100, 1e3, 1e4, 86400, 1e6, 0.3048, 9.80665) for f in (scale, 1 / scale)
]
"""By what a field changes that is written in another unit."""
_KELVIN = 273.15
_SAMPLE, _FEWEST = 10_000, 10  # nodes that are looked at


class StateScreening:
    """Takes all states of a series, and refuses or warns in the end.

    ``units`` are those of the fields; only what is in the unit of `UNITS` is checked for plausibility.
    """

    def __init__(
        self, reader: FeflowReader, missing: MaskedMissing | None, units: Mapping[str, str]
    ) -> None:
        self._reader, self._missing, self._units = reader, missing, units
        self._screenings = {
            name: Screening.of(missing, POSSIBLE.get(name))
            for name in (*reader.variables, *reader.forcings)
        }
        self._ranges: dict[str, list[tuple[float, float]]] = {name: [] for name in units}
        self._first: dict[str, Floats] = {}
        self._times = Screening.of(missing)
        self._last: Snapshot | None = None
        self._added = 0

    def add(self, snapshot: Snapshot) -> None:
        """Add the next output time; raises `DataError` if its unit is not that of the one before."""
        self._times.add(snapshot.time)
        if self._last is not None:
            self._compare(snapshot, self._last)
        self._last, self._added = snapshot, self._added + 1
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
        mesh = self._reader.mesh
        labels = {**dict(zip(PLACE, mesh.coords.T, strict=True)), SLICE: mesh.slice}
        for name, values_N in labels.items():
            self._screenings[name] = Screening.of(self._missing)
            self._screenings[name].add(values_N)
        key = "the key missing of the dataset"
        for name, screening in self._screenings.items():
            for suspect in screening.suspects():
                at = f" at node {mesh.node[suspect.index]}"
                sentence = suspect.sentence(name, key, at, "leaves such nodes out")
                raise self._reader.error(suspect.piece, suspect.index, name, sentence)
        for suspect in self._times.suspects():
            raise self._reader.error(suspect.piece, 0, TIME, suspect.sentence(TIME, key))
        for told in self.implausible():
            print(f"WARNING: {told}", file=sys.stderr)

    def _compare(self, snapshot: Snapshot, last: Snapshot) -> None:
        for name, now_N, before_N in zip(
            self._reader.variables, snapshot.fields_NC.T, last.fields_NC.T, strict=True
        ):
            every = max(1, len(now_N) // _SAMPLE)
            now, before = (one[::every].astype(np.float64) for one in (now_N, before_N))
            in_kelvin = conversion(self._units[name], "K") is not None
            change, certain = other_unit(now, before, in_kelvin)
            if change:
                before_it = self._reader.files.fields[self._added - 1]
                told = (
                    f"{name} is {change} that of {before_it} at nearly all nodes, as if in another unit; "
                    "expected one unit in all files"
                )
                error = self._reader.error(self._added, 0, name, told)
                if certain:
                    raise error
                print(f"WARNING: {error}", file=sys.stderr)

    def implausible(self) -> list[str]:
        """Sentences on fields whose values do not look like their unit."""
        checked = {n for n in self._ranges if self._units[n] == UNITS.get(n) and self._ranges[n]}
        found = []
        z_N = self._reader.mesh.coords[:, 2]
        if "head" in checked:
            found.append(odd_heads(self._range("head"), z_N))
        if "mass_concentration" in checked:
            found.append(odd_concentrations(self._range("mass_concentration")))
        if "pressure" in checked:
            head_N = self._first["head"] if "head" in checked else np.full(len(z_N), z_N.max())
            found.append(_odd_pressures(self._first["pressure"], head_N - z_N))
        return [told for told in found if told]

    def _range(self, name: str) -> tuple[float, float]:
        low, high = zip(*self._ranges[name], strict=True)
        return min(low), max(high)


def other_unit(now: Floats, before: Floats, in_kelvin: bool) -> tuple[str, bool]:
    """How a state differs from that before if it looks like another unit, and whether that is certain.

    Units change all values by one factor. States of nature do not, where values differ between nodes.
    """
    both = np.isfinite(now) & np.isfinite(before)
    now, before = now[both], before[both]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, difference = now / before, now - before
    known = np.isfinite(ratio) & (ratio > 0)
    if known.sum() >= max(_FEWEST, 0.9 * len(now)):
        low, middle, high = np.quantile(ratio[known], [0.05, 0.5, 0.95])
        size = np.quantile(np.abs(before[known]), [0.05, 0.95])
        off = min(abs(np.log(middle / scale)) for scale in _SCALES)
        uniform = size[1] > 1.5 * size[0] and high < 2 * low
        certain = uniform and high < 1.1 * low and off < 0.03
        if certain or (uniform and off < 0.4 and abs(np.log(middle)) > 2):
            return f"{middle:.4g} times", certain
    if in_kelvin and len(now) >= _FEWEST:
        low, middle, high = np.nanquantile(difference, [0.05, 0.5, 0.95])
        if high - low < 20 and abs(abs(middle) - _KELVIN) < 10:
            return f"{abs(middle):.5g} {'above' if middle > 0 else 'below'}", True
    return "", False


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


def odd_heads(span: tuple[float, float], z_N: Floats) -> str | None:
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


def odd_concentrations(span: tuple[float, float]) -> str | None:
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

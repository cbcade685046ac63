"""Whether states are what they should be: values where there are some, in the units that are expected.

Shape suffixes: N nodes, C fields, F forcings.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.data.units import conversion
from millrace.data.validity import Screening, Suspect, same
from millrace.systems.groundwater.feflow_csv import (
    PLACE,
    SLICE,
    TIME,
    FeflowReader,
    Place,
    Snapshot,
    error_at,
)
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
    """Takes states of a series in the order of time; `judge` refuses or warns in the end.

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
        self._spans: dict[str, tuple[float, float]] = {}
        self._times = Screening.of(missing)
        self._numbers: list[int] = []
        self._last: Snapshot | None = None

    def add(self, number: int, snapshot: Snapshot, looked_at: bool, follows: bool) -> None:
        """Add an output time, or if it is not to be ``looked_at`` take it as the one before.

        Raises `DataError` if it ``follows`` on the one before and its unit is not that of that.
        """
        if looked_at:
            self._times.add(snapshot.time)
            self._numbers.append(number)
            if self._last is not None and follows:
                self._compare(number, snapshot, self._last)
            columns = [*snapshot.fields_NC.T, *given_values(snapshot).T]
            for (name, screening), values_N in zip(self._screenings.items(), columns, strict=True):
                screening.add(values_N)
                if name in self._reader.variables and np.isfinite(values_N).any():
                    span = float(np.nanmin(values_N)), float(np.nanmax(values_N))
                    self._spans[name] = _wider(span, self._spans.get(name))
        self._last = snapshot

    def evidence(self) -> dict[str, Any]:
        """What was seen of these states, as plain values for `judge`."""
        found = {name: self._seen(name, one) for name, one in self._screenings.items()}
        times = self._seen(TIME, self._times)
        return {"columns": found, "times": times, "spans": self._spans}

    def _seen(self, column: str, screening: Screening) -> dict[str, Any]:
        def place(piece: int, index: int) -> Place:
            return self._reader.place(self._numbers[piece], index, column)

        return screening.to_json(place)

    def _compare(self, number: int, snapshot: Snapshot, last: Snapshot) -> None:
        for name, now_N, before_N in zip(
            self._reader.variables, snapshot.fields_NC.T, last.fields_NC.T, strict=True
        ):
            every = max(1, len(now_N) // _SAMPLE)
            now, before = (one[::every].astype(np.float64) for one in (now_N, before_N))
            in_kelvin = conversion(self._units[name], "K") is not None
            change, certain = other_unit(now, before, in_kelvin)
            if change:
                before_it = self._reader.files.fields[number - 1]
                told = (
                    f"{name} is {change} that of {before_it} at nearly all nodes, as if in another unit; "
                    "expected one unit in all files"
                )
                error = self._reader.error(number, 0, name, told)
                if certain:
                    raise error
                print(f"WARNING: {error}", file=sys.stderr)


def mesh_evidence(
    reader: FeflowReader,
    first: Snapshot,
    missing: MaskedMissing | None,
    units: Mapping[str, str],
) -> dict[str, Any]:
    """What is known from the mesh, and from the first state on it, as plain values for `judge`."""
    mesh, labels = reader.mesh, {}
    for name, values_N in (*zip(PLACE, mesh.coords.T, strict=True), (SLICE, mesh.slice)):
        screening = Screening.of(missing)
        screening.add(values_N)
        labels[name] = screening.to_json(partial(_place_of_mesh, reader, name))
    z_N = mesh.coords[:, 2]
    field = dict(zip(reader.variables, first.fields_NC.T, strict=True))
    told, known = None, {name for name in field if units[name] == UNITS.get(name)}
    if "pressure" in known:
        head_N = field["head"].astype(np.float64) if "head" in known else z_N.max()
        told = _odd_pressures(field["pressure"].astype(np.float64), head_N - z_N)
    heights = float(z_N.min()), float(z_N.max())
    return {"columns": labels, "heights": heights, "odd_pressures": told}


def _place_of_mesh(reader: FeflowReader, column: str, _piece: int, index: int) -> Place:
    return reader.place(0, index, column)


def judge(
    evidence: Sequence[Mapping[str, Any]],
    mesh: Mapping[str, Any],
    missing: MaskedMissing | None,
    units: Mapping[str, str],
) -> None:
    """Print warnings on what is not plausible in a series, of which all states were screened.

    ``evidence`` is that of groups of states, in the order of time; ``mesh`` is `mesh_evidence`.

    Raises
    ------
    DataError
        There are no-data values: ``file:line:column`` of the first, and the key that admits them.
    """
    key = "the key missing of the dataset"
    columns = {
        **{name: [one["columns"][name] for one in evidence] for name in evidence[0]["columns"]},
        **{name: [seen] for name, seen in mesh["columns"].items()},
    }
    for name, seen in columns.items():
        possible = None if name in mesh["columns"] else POSSIBLE.get(name)
        for suspect, place in _suspects(seen, missing, possible):
            sentence = suspect.sentence(name, key, f" at node {place[2]}", "leaves such nodes out")
            raise error_at(place, sentence, units)
    for suspect, place in _suspects([one["times"] for one in evidence], missing):
        raise error_at(place, suspect.sentence(TIME, key), units)
    spans: dict[str, tuple[float, float]] = {}
    for name in units:
        for span in (one["spans"][name] for one in evidence if name in one["spans"]):
            spans[name] = _wider(span, spans.get(name))
    odd = []
    if "head" in spans and units["head"] == UNITS["head"]:
        odd.append(odd_heads(spans["head"], np.array(mesh["heights"])))
    if "mass_concentration" in spans and units["mass_concentration"] == UNITS["mass_concentration"]:
        odd.append(odd_concentrations(spans["mass_concentration"]))
    for told in (*odd, mesh["odd_pressures"]):
        if told:
            print(f"WARNING: {told}", file=sys.stderr)


def _suspects(
    seen: Sequence[Mapping[str, Any]],
    missing: MaskedMissing | None,
    possible: tuple[float, float] | None = None,
) -> Iterator[tuple[Suspect, Place]]:
    """No-data values that were seen in one column, and the place of the first of each."""
    places: list[Place] = []
    screening = Screening.of(missing, possible)
    for one in seen:
        screening.add_seen(one, places)
    for suspect in screening.suspects():
        yield suspect, places[suspect.piece]


def _wider(span: Sequence[float], other: Sequence[float] | None) -> tuple[float, float]:
    low, high = zip(span, other or span, strict=True)
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

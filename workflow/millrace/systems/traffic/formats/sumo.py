"""SUMO (Lopez et al. 2018): floating car data of a simulation on its network.

``<name>.fcd.xml`` or ``<name>.fcd.csv`` gives the middle of the front bumper, the angle in degrees
clockwise from north and the speed along it; of a person the foremost point, and the vehicle in which it
rides, if SUMO was asked for it (SUMO's own CSV tables never have it). ``<name>.net.xml`` is the network,
``<name>.tls.xml`` the states of the traffic lights (``SaveTLSStates``, optional). Sizes follow from the
types of the vehicles: those in ``*.rou.xml``, ``*.add.xml`` and ``*.typ.xml`` in the same directory, or the
defaults of SUMO. A configuration, ``*.sumocfg`` beside the floating car data, may name other files;
floating car data are known by their content as well. All files may be compressed (``.gz``). Each
observation belongs to the nearest intersection, around which scenarios are cut.

Shape suffixes: C intersections, N observations, T steps.
"""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from millrace.data.account import Account
from millrace.errors import DataError
from millrace.input_files import check_columns, files_below, is_there, open_file
from millrace.systems.traffic.formats.recordings import GAP_S, Converted, Track, cut_scenarios
from millrace.systems.traffic.formats.sumo_network import (
    Link,
    Network,
    distance,
    read_network,
)
from millrace.systems.traffic.formats.xml_elements import elements, has_root
from millrace.systems.traffic.geometry import Floats, unit, wrap
from millrace.systems.traffic.tracks import LIGHT_STATES

_Size = tuple[str | None, float, float]  # class, None if not on roads; length and width (m)
_Phases = Mapping[str, tuple[Floats, list[str]]]

_REACH = 100.0  # m; agents farther from an intersection are not recorded
# m beyond what the speed allows: no motion, but a pedestrian put elsewhere, or a teleport
_JUMP = 0.5
_FASTEST = 10.5  # m/s, of pedestrians: by SUMO's defaults none runs faster
_FIELDS = ("x", "y", "angle", "speed")
_ASK = "--fcd-output.attributes x,y,angle,type,speed,vehicle"
_OPTIONS = ("net-file", "route-files", "additional-files", "fcd-output")
_CHUNK = 200_000  # rows of a CSV file
# Defaults of the vehicle classes in SUMO 1.28; classes that are not listed are like passenger cars.
_CAR: _Size = ("vehicle", 5.0, 1.8)
_SIZES: dict[str, _Size] = {
    "pedestrian": ("pedestrian", 0.215, 0.478),
    "wheelchair": ("pedestrian", 1.2, 0.72),
    "bicycle": ("cyclist", 1.6, 0.65),
    "moped": ("cyclist", 2.1, 0.78),
    "motorcycle": ("cyclist", 2.2, 0.9),
    "scooter": ("cyclist", 1.2, 0.5),
    "bus": ("vehicle", 12.0, 2.5),
    "coach": ("vehicle", 14.0, 2.6),
    "delivery": ("vehicle", 6.5, 2.16),
    "emergency": ("vehicle", 6.5, 2.16),
    "truck": ("vehicle", 7.1, 2.4),
    "trailer": ("vehicle", 16.5, 2.55),
    "tram": ("vehicle", 22.0, 2.4),
}
_NOT_ON_ROADS: _Size = (None, 1.0, 1.0)
_SIZES |= dict.fromkeys(("rail", "rail_electric", "rail_fast", "rail_urban"), _NOT_ON_ROADS)
_SIZES |= dict.fromkeys(("subway", "cable_car", "ship", "aircraft"), _NOT_ON_ROADS)
_SIZES |= dict.fromkeys(("drone", "container"), _NOT_ON_ROADS)
_DEFAULTS = {
    "DEFAULT_VEHTYPE": _CAR,
    "DEFAULT_TAXITYPE": _CAR,
    "DEFAULT_BIKETYPE": _SIZES["bicycle"],
    "DEFAULT_PEDTYPE": _SIZES["pedestrian"],
    "DEFAULT_RAILTYPE": _NOT_ON_ROADS,
    "DEFAULT_CONTAINERTYPE": _NOT_ON_ROADS,
}
# u, red and yellow together, is not yet green; s is a green arrow after a stop; o and O (off) are unknown.
_STATES = {**dict.fromkeys("rsu", "red"), **dict.fromkeys("yY", "yellow")}
_STATES |= dict.fromkeys("gG", "green")


def find(source: Path) -> list[Path]:
    """Floating car data, by name (``*.fcd.*``) or, of XML files, by content."""
    found = {*files_below(source, "*.fcd.*")}
    xml = [path for end in ("xml", "xml.gz") for path in files_below(source, f"*.{end}")]
    found |= {path for path in xml if path not in found and has_root(path, "fcd-export")}
    return sorted(found)


def beside(path: Path) -> list[Path]:
    """What a simulation may be read from beside its floating car data: all but that of others."""
    there = [*path.parent.glob("*.xml*"), *path.parent.glob("*.sumocfg")]
    return sorted(one for one in there if ".fcd." not in one.name)


def read(path: Path, source: Path, account: Account) -> Iterator[Converted]:
    """Read a simulation: one recording around each intersection.

    See `millrace.systems.traffic.formats.Adapter`. The network is the one that the configuration
    (``*.sumocfg``) of the simulation names, the one of the same name, or the only one in the directory.
    """
    name = re.sub(r"(\.fcd\..*|\.xml(\.gz)?)$", "", path.name)
    label = "_".join([*path.relative_to(source).parts[:-1], name])
    inputs = _configured(path, name)
    network_file = inputs.get("net-file", [None])[0] or _beside(path, f"{name}.net.xml")
    networks = sorted(path.parent.glob("*.net.xml*"))
    if network_file is None and len(networks) != 1:
        raise DataError(
            f"{path}: no network; expected {name}.net.xml beside it, or a .sumocfg that names it"
        )
    network_file = network_file or networks[0]
    network = read_network(network_file)
    more = [*inputs.get("route-files", []), *inputs.get("additional-files", [])]
    tracks = read_tracks(path, read_types(path.parent, name, more), account)
    _check(path, tracks, network)
    states = _beside(path, f"{name}.tls.xml")
    if states is None and inputs:
        written = [p for p in sorted(path.parent.glob("*.xml*")) if has_root(p, "tlsStates")]
        states = written[0] if len(written) == 1 else None
    phases = read_states(states) if states is not None else {}
    parts = _nearest_parts(tracks, network.centre_C2, account)
    low_R2, high_R2 = (
        np.array([ends(line.points_P2, axis=0) for line in network.road])
        for ends in (np.min, np.max)
    )
    for place, (centre_2, own) in enumerate(zip(network.centre_C2, parts, strict=True)):
        reach = _REACH + 20
        near_R = ((centre_2 > low_R2 - reach) & (centre_2 < high_R2 + reach)).all(axis=1)
        lines_near = (network.road[row] for row in np.flatnonzero(near_R))
        road = tuple(line for line in lines_near if distance(centre_2, line.points_P2) < reach)
        lines = {line.name for line in road} if phases else set()
        signals = {line: links for line, links in network.signals.items() if line in lines}
        lights = partial(_light_states, signals, phases)
        made = cut_scenarios(f"{label}_{place}", own, road, lights, account)
        yield Converted(f"{label}_{place}", network_file, made)


def _configured(path: Path, name: str) -> dict[str, list[Path]]:
    """Files that the configuration of a simulation names, by option; none without a configuration.

    It is the one that names the floating car data as its output, that has the same name, or the only one in
    the directory.

    Raises
    ------
    DataError
        A configuration is malformed, or names a network or types that are not there.
    """
    found: list[tuple[Path, dict[str, list[Path]]]] = []
    for file in sorted(path.parent.glob("*.sumocfg")):
        options: dict[str, list[Path]] = {}
        for element in elements(file, *_OPTIONS):
            values = element.get("value", element.get("v", "")).split(",")
            options[element.tag] = [
                file.parent / value.strip() for value in values if value.strip()
            ]
        found.append((file, options))
    outputs = [pair for pair in found if path in pair[1].get("fcd-output", [])]
    same = [pair for pair in found if pair[0].stem == name]
    (file, options), *_ = [*outputs, *same, *(found if len(found) == 1 else []), (path, {})]
    for option, files in options.items():
        options[option] = [p for p in map(_packed, files) if option == "net-file" or p.is_file()]
    if any(not p.is_file() for p in options.get("net-file", [])):
        raise DataError(f"{file}: no network {options['net-file'][0]}; copy it there")
    return options


def _packed(path: Path) -> Path:
    """A file, or the same compressed."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if not path.is_file() and packed.is_file() else path


def _beside(path: Path, name: str) -> Path | None:
    return next((p for end in ("", ".gz") if is_there(p := path.with_name(name + end))), None)


def read_types(folder: Path, name: str, more: Sequence[Path] = ()) -> dict[str, _Size]:
    """Read class (None: not on roads), length and width (m) of the types of vehicles and persons.

    Files of the directory define them; definitions in ``<name>.*`` replace those of other files, and
    those in the files ``more`` replace both.

    Raises
    ------
    DataError
        A file is malformed.
    """
    types = dict(_DEFAULTS)
    files = [p for end in ("rou", "add", "typ") for p in sorted(folder.glob(f"*.{end}.xml*"))]
    for path in [*sorted(files, key=lambda p: p.name.startswith(f"{name}.")), *more]:
        for element in elements(path, "vType"):
            get = element.attrib
            kind, length, width = _SIZES.get(get.get("vClass", "passenger"), _CAR)
            try:
                size = float(get.get("length", length)), float(get.get("width", width))
                types[get["id"]] = (kind, *size)
            except (KeyError, ValueError) as error:
                raise DataError(
                    f"{path}: vType {get.get('id')!r}: {error}; expected an id, and metres"
                ) from None
    return types


def read_tracks(
    path: Path, types: Mapping[str, _Size], account: Account | None = None
) -> list[Track]:
    """Read the tracks of all vehicles and persons, without persons in vehicles.

    Those that are not on roads are counted in ``account``.

    Raises
    ------
    DataError
        The file is malformed, or has a type that no file defines.
    """
    # A vehicle and a person may share a name, but no type.
    rows: dict[tuple[str, str], list[tuple[float, ...]]] = defaultdict(list)
    observations = {".xml": _xml, ".csv": _csv}.get(Path(path.name.removesuffix(".gz")).suffix)
    if observations is None:
        raise DataError(f"{path}: expected floating car data as .fcd.xml or .fcd.csv, perhaps .gz")
    for name, kind, *numbers in observations(path):
        rows[name, kind].append(tuple(numbers))
    tracks: list[Track] = []
    names = Counter(name for name, _ in rows)
    for (name, vehicle), observed in rows.items():
        if vehicle not in types:
            raise DataError(
                f"{path}: no vType {vehicle!r}; put the file that defines it "
                "beside, as *.rou.xml or *.add.xml"
            )
        kind, length, width = types[vehicle]
        if kind is None:
            if account is not None:
                account.leave_out("tracks", f"of the type {vehicle!r}, not on roads")
            continue
        time_N, x, y, angle, speed = np.array(observed, dtype=float).T
        heading = np.pi / 2 - np.radians(angle)
        unit_N2 = unit(heading)
        middle = np.stack([x, y], axis=1) - length / 2 * unit_N2
        state_N5 = np.column_stack([middle, wrap(heading), speed[:, None] * unit_N2])
        label = name if names[name] == 1 else f"{name} ({vehicle})"
        track = Track(label, kind, length, width, time_N, state_N5)
        # Measured at the front, which does not move when an agent turns on the spot.
        moved = np.hypot(np.diff(x), np.diff(y))
        jumps = moved > np.maximum(speed[1:], speed[:-1]) * np.diff(time_N) + _JUMP
        ends = [0, *(np.flatnonzero(jumps) + 1), len(x)]
        tracks += [
            _part(track, slice(*bounds), f"{track.name}#{part}" if part else track.name)
            for part, bounds in enumerate(itertools.pairwise(ends))
        ]
    return tracks


def _part(track: Track, kept_N: NDArray[np.bool_] | slice, name: str) -> Track:
    return replace(track, name=name, time_N=track.time_N[kept_N], state_N5=track.state_N5[kept_N])


def _xml(path: Path) -> Iterator[tuple]:
    """Rows of floating car data: name, type, time, x, y, angle, speed."""
    for step in elements(path, "timestep"):
        for element in step:
            get = element.attrib
            if element.tag not in ("vehicle", "person"):
                continue
            try:
                # For a person that walks the attribute is empty, not missing.
                if element.tag == "person" and get["vehicle"]:
                    continue
                numbers = [float(step.attrib["time"]), *(float(get[key]) for key in _FIELDS)]
                yield get["id"], get["type"], *numbers
            except (KeyError, ValueError) as error:
                raise DataError(
                    f"{path}: time {step.get('time')}, {element.tag} {get.get('id')!r}: {error}; "
                    f"expected the attributes type, {', '.join(_FIELDS)}, of persons also vehicle: "
                    f"run sumo with {_ASK}"
                ) from None


def _csv(path: Path) -> Iterator[tuple]:
    """The same rows of a CSV table; SUMO itself, unlike its ``xml2csv.py``, writes persons as vehicles."""
    try:
        check_columns(path)
        with open_file(path) as file:
            for frame in pd.read_csv(file, sep=";", chunksize=_CHUNK, dtype=str):
                for role in ("vehicle", "person"):
                    columns = [f"{role}_{key}" for key in ("id", "type", *_FIELDS)]
                    if columns[0] not in frame:
                        continue
                    part = frame[frame[columns[0]].notna()]
                    if role == "person":
                        part = part[part[f"{role}_vehicle"].isna()]
                    numbers = part[["timestep_time", *columns[2:]]].astype(float)
                    if numbers.isna().any(axis=None):
                        raise ValueError("an empty cell")
                    part = pd.concat([part[columns[:2]], numbers], axis=1)
                    yield from part.itertuples(index=False)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: {error}; expected timestep_time and vehicle_id, vehicle_type, "
            f"{', '.join(f'vehicle_{key}' for key in _FIELDS)} among the columns, with person_id also "
            f"person_vehicle: run sumo with {_ASK}"
        ) from error


def _check(path: Path, tracks: Sequence[Track], network: Network) -> None:
    """Refuse coarse time steps, and positions that are not in metres of the network; raises `DataError`."""
    apart = [np.diff(track.time_N) for track in tracks if len(track.time_N) > 1]
    step = float(np.median(np.concatenate(apart))) if apart else 0.0
    if step > GAP_S:
        raise DataError(
            f"{path}: steps of {step:g} s; expected 0.1 s, run sumo with --step-length 0.1"
        )
    for track in tracks:
        speed = float(np.linalg.norm(track.state_N5[:, 3:], axis=1).max())
        if track.kind == "pedestrian" and speed > _FASTEST:
            raise DataError(
                f"{path}: pedestrian {track.name!r} moves at {speed:.1f} m/s, as in a vehicle, which "
                f"SUMO's own tables do not name: write .fcd.xml, with {_ASK}"
            )
    places = [track.state_N5[:, :2] for track in tracks]
    if places:
        place = np.concatenate(places)
        beyond = (place < network.low_2 - _REACH) | (place > network.high_2 + _REACH)
        moved = np.concatenate([np.linalg.norm(np.diff(p, axis=0), axis=1) for p in places]).sum()
        speeds = [np.linalg.norm(track.state_N5[1:, 3:], axis=1) for track in tracks]
        steps = [np.diff(track.time_N) for track in tracks]
        said = sum(float(speed @ step) for speed, step in zip(speeds, steps, strict=True))
        if beyond.any(axis=1).mean() > 0.5 or (said > 10 and not 0.5 < moved / said < 2):
            raise DataError(
                f"{path}: positions do not fit the network and the speeds; run sumo without "
                "--fcd-output.geo and --fcd-output.utm"
            )
    if not len(network.centre_C2):
        raise DataError(f"{path}: its network has no intersection of three roads or more")


def _nearest_parts(
    tracks: Sequence[Track], centre_C2: Floats, account: Account
) -> list[list[Track]]:
    """For each intersection, the parts of tracks to which it is the nearest one."""
    nearest = cKDTree(centre_C2)
    parts: list[list[Track]] = [[] for _ in centre_C2]
    for track in tracks:
        apart_N, place_N = nearest.query(track.state_N5[:, :2])
        reached_N = apart_N < _REACH
        account.keep("observations", int(reached_N.sum()))
        beyond = f"{_REACH:.0f} m or more from each intersection"
        account.leave_out("observations", beyond, int((~reached_N).sum()))
        for place in np.unique(place_N[reached_N]):
            parts[place].append(_part(track, reached_N & (place_N == place), track.name))
    return parts


def read_states(path: Path) -> _Phases:
    """Read the times at which the states of traffic lights change, and the states from then on.

    Raises
    ------
    DataError
        The file is malformed.
    """
    phases: dict[str, tuple[list[float], list[str]]] = {}
    for element in elements(path, "tlsState"):
        try:
            name, state = element.attrib["id"], element.attrib["state"]
            times, states = phases.setdefault(name, ([], []))
            if not states or states[-1] != state:
                times.append(float(element.attrib["time"]))
                states.append(state)
        except (KeyError, ValueError) as error:
            raise DataError(f"{path}: a tlsState without {error}; write it again") from None
    return {name: (np.array(times), states) for name, (times, states) in phases.items()}


def _light_states(
    signals: Mapping[str, Sequence[Link]], phases: _Phases, time_T: NDArray
) -> dict[str, NDArray[np.int8]]:
    """States at given times by polyline; one with several links shows the most that one of them may do."""
    states: dict[str, list[NDArray[np.int8]]] = defaultdict(list)
    for line, links in signals.items():
        for light, index in links:
            times, shown = phases.get(light, (np.empty(0), []))
            names = ["unknown", *(_STATES.get(s[index : index + 1], "unknown") for s in shown)]
            row = np.searchsorted(times, time_T + 1e-6, side="right")
            states[line].append(np.array([*map(LIGHT_STATES.index, names)], dtype=np.int8)[row])
    return {line: np.max(found, axis=0) for line, found in states.items()}

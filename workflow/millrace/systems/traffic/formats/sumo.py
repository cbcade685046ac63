"""SUMO (Lopez et al. 2018): floating car data of a simulation on its network.

``<name>.fcd.xml`` or ``<name>.fcd.csv`` gives the middle of the front bumper, the angle in degrees
clockwise from north and the speed along it; of a person the foremost point, and the vehicle that it rides
in, if SUMO was asked for it; its own tables never tell. ``<name>.net.xml`` is the network,
``<name>.tls.xml`` the states of the traffic lights (``SaveTLSStates``, optional). Sizes follow from the
types of the vehicles: those in ``*.rou.xml``, ``*.add.xml`` and ``*.typ.xml`` beside, or the defaults of
SUMO. All may be compressed (``.gz``). Each moment of a road user belongs to the nearest intersection,
around which scenarios are cut.

Shape suffixes: C intersections, N observations, T steps.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from millrace.errors import DataError
from millrace.systems.base import Progress
from millrace.systems.traffic.formats.recordings import GAP_S, Track, cut_scenes, files_like
from millrace.systems.traffic.formats.sumo_network import (
    Link,
    Network,
    around,
    elements,
    read_network,
)
from millrace.systems.traffic.tracks import LIGHTS, write_recording

Floats = NDArray[np.float64]
Size = tuple[str | None, float, float]
"""Class, None for what does not drive on roads; length and width (m)."""

REACH = 100.0
"""Who is farther from an intersection is not recorded (m)."""

_JUMP = (
    0.5  # m beyond what the speed allows: no motion, but a pedestrian put elsewhere, or a teleport
)
_FASTEST = 10.5  # m/s, of pedestrians: SUMO lets none by its defaults run faster
_FIELDS = ("x", "y", "angle", "speed")
_ASK = "--fcd-output.attributes x,y,angle,type,speed,vehicle"
_CHUNK = 200_000  # rows of a CSV file
# Defaults of the vehicle classes in SUMO 1.28; those not listed are of passenger cars.
_CAR: Size = ("vehicle", 5.0, 1.8)
_SIZES: Mapping[str, Size] = {
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
_ELSEWHERE = {"rail", "rail_electric", "rail_fast", "rail_urban", "subway", "cable_car", "ship"}
_ELSEWHERE |= {"aircraft", "drone", "container"}
_NOT_ON_ROADS: Size = (None, 1.0, 1.0)
_DEFAULTS = {
    "DEFAULT_VEHTYPE": _CAR,
    "DEFAULT_TAXITYPE": _CAR,
    "DEFAULT_BIKETYPE": _SIZES["bicycle"],
    "DEFAULT_PEDTYPE": _SIZES["pedestrian"],
    "DEFAULT_RAILTYPE": _NOT_ON_ROADS,
    "DEFAULT_CONTAINERTYPE": _NOT_ON_ROADS,
}
# Red and yellow together (u) is not yet green, the green arrow (s) is to stop first; off (o, O) is unknown.
_STATES = {
    "r": "red",
    "s": "red",
    "u": "red",
    "y": "yellow",
    "Y": "yellow",
    "g": "green",
    "G": "green",
}


def convert(source: Path, output: Path, progress: Progress | None = None) -> int:
    """Convert all simulations of a directory; returns the number of scenarios.

    The network of a simulation is the one of its name, or the only one beside it.
    """
    files, count = files_like(source, "*.fcd.*", "floating car data of SUMO, <name>.fcd.xml"), 0
    for number, path in enumerate(files):
        name = path.name.split(".fcd.")[0]
        label = "_".join([*path.relative_to(source).parts[:-1], name])
        network = read_network(_network_of(path, name))
        tracks = read_tracks(path, read_types(path.parent, name))
        _check(path, tracks, network)
        states = _beside(path, f"{name}.tls.xml")
        phases = read_states(states) if states is not None else {}
        parts = _near(tracks, network.centre_C2)
        for place, (centre_2, own) in enumerate(zip(network.centre_C2, parts, strict=True)):
            road = around(network.road, centre_2, REACH + 20)
            lines = {line.name for line in road}
            signals = {line: links for line, links in network.signals.items() if line in lines}
            scenes = cut_scenes(
                f"{label}_{place}", own, road, lights=_Lights(signals, phases) if phases else None
            )
            if scenes:
                write_recording(output, f"{label}_{place}", scenes)
            count += len(scenes)
        if progress is not None:
            progress(number + 1, len(files))
    return count


def _beside(path: Path, name: str) -> Path | None:
    return next((p for end in ("", ".gz") if (p := path.with_name(name + end)).is_file()), None)


def _network_of(path: Path, name: str) -> Path:
    own = _beside(path, f"{name}.net.xml")
    others = sorted(path.parent.glob("*.net.xml*"))
    if own is None and len(others) != 1:
        raise DataError(f"{path}: no network; expected {name}.net.xml beside it")
    return own or others[0]


def read_types(folder: Path, name: str) -> dict[str, Size]:
    """Class, length and width of the types of vehicles and persons that the files of a directory define.

    Where several define one type, those that are called ``<name>.`` have the last word.

    Raises
    ------
    DataError
        A file is malformed.
    """
    types = dict(_DEFAULTS)
    files = [p for end in ("rou", "add", "typ") for p in sorted(folder.glob(f"*.{end}.xml*"))]
    for path in sorted(files, key=lambda p: p.name.startswith(f"{name}.")):
        for element in elements(path, "vType"):
            get = element.attrib
            vehicle = get.get("vClass", "passenger")
            usual = _NOT_ON_ROADS if vehicle in _ELSEWHERE else _SIZES.get(vehicle, _CAR)
            kind, length, width = usual
            try:
                size = float(get.get("length", length)), float(get.get("width", width))
                types[get["id"]] = (kind, *size)
            except (KeyError, ValueError) as error:
                raise DataError(
                    f"{path}: vType {get.get('id')!r}: {error}; expected an id, and metres"
                ) from None
    return types


def read_tracks(path: Path, types: Mapping[str, Size]) -> list[Track]:
    """Tracks of all vehicles and persons, without persons in vehicles.

    Raises
    ------
    DataError
        The file is malformed, or has a type that no file defines.
    """
    # A vehicle and a person may share a name, but no type.
    rows: dict[tuple[str, str], list[tuple[float, ...]]] = defaultdict(list)
    read = {".xml": _xml, ".csv": _csv}.get(Path(path.name.removesuffix(".gz")).suffix)
    if read is None:
        raise DataError(f"{path}: expected floating car data as .fcd.xml or .fcd.csv, perhaps .gz")
    for name, kind, *numbers in read(path):
        rows[name, kind].append(tuple(numbers))
    tracks: list[Track] = []
    names = Counter(name for name, _ in rows)
    for (name, vehicle), observed in rows.items():
        made = types.get(vehicle)
        if made is None:
            raise DataError(
                f"{path}: no vType {vehicle!r}; put the file that defines it "
                "beside, as *.rou.xml or *.add.xml"
            )
        kind, length, width = made
        if kind is None:
            continue
        time_N, x, y, angle, speed = np.array(observed, dtype=float).T
        heading = np.pi / 2 - np.radians(angle)
        unit_N2 = np.stack([np.cos(heading), np.sin(heading)], axis=1)
        middle = np.stack([x, y], axis=1) - length / 2 * unit_N2
        heading = (heading + np.pi) % (2 * np.pi) - np.pi
        track = Track(
            name=name if names[name] == 1 else f"{name} ({vehicle})",
            kind=kind,
            length=length,
            width=width,
            time_N=time_N,
            pose_N3=np.column_stack([middle, heading]),
            velocity_N2=speed[:, None] * unit_N2,
        )
        # The front, which does not move when one turns on the spot.
        moved = np.hypot(np.diff(x), np.diff(y))
        jumps = moved > np.maximum(speed[1:], speed[:-1]) * np.diff(time_N) + _JUMP
        parts = np.concatenate([[0], np.cumsum(jumps)])
        tracks += [
            _part(track, parts == part, f"{track.name}#{part}" if part else track.name)
            for part in range(parts[-1] + 1)
        ]
    return tracks


def _part(track: Track, kept_N: NDArray[np.bool_], name: str) -> Track:
    return replace(
        track,
        name=name,
        time_N=track.time_N[kept_N],
        pose_N3=track.pose_N3[kept_N],
        velocity_N2=track.velocity_N2[kept_N],
    )


def _xml(path: Path) -> Iterator[tuple]:
    """Rows of floating car data: name, type, time, x, y, angle, speed."""
    for step in elements(path, "timestep"):
        for element in step:
            get = element.attrib
            if element.tag not in ("vehicle", "person"):
                continue
            try:
                # Of those who walk it is empty, not missing.
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
    """The same of a table with semicolons; SUMO calls all of them vehicles, its ``xml2csv.py`` does not."""
    try:
        for frame in pd.read_csv(path, sep=";", chunksize=_CHUNK, dtype=str):
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
                for names, values in zip(
                    part[columns[:2]].itertuples(index=False),
                    numbers.itertuples(index=False),
                    strict=True,
                ):
                    yield *names, *values
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: {error}; expected timestep_time and vehicle_id, vehicle_type, "
            f"{', '.join(f'vehicle_{key}' for key in _FIELDS)} among the columns, with person_id also "
            f"person_vehicle: run sumo with {_ASK}"
        ) from error


def _check(path: Path, tracks: Sequence[Track], network: Network) -> None:
    """Refuse what would be read as nonsense: coarse steps, places that are no metres of the network."""
    apart = [np.diff(track.time_N) for track in tracks if len(track.time_N) > 1]
    step = float(np.median(np.concatenate(apart))) if apart else 0.0
    if step > GAP_S:
        raise DataError(
            f"{path}: steps of {step:g} s; expected 0.1 s, run sumo with --step-length 0.1"
        )
    for track in tracks:
        speed = float(np.linalg.norm(track.velocity_N2, axis=1).max())
        if track.kind == "pedestrian" and speed > _FASTEST:
            raise DataError(
                f"{path}: pedestrian {track.name!r} moves at {speed:.1f} m/s, as one who rides; "
                f"SUMO's own tables do not tell: write .fcd.xml, with {_ASK}"
            )
    places = [track.pose_N3[:, :2] for track in tracks]
    if places:
        place = np.concatenate(places)
        beyond = (place < network.low_2 - REACH) | (place > network.high_2 + REACH)
        moved = np.concatenate([np.linalg.norm(np.diff(p, axis=0), axis=1) for p in places]).sum()
        speeds = [np.linalg.norm(track.velocity_N2[1:], axis=1) for track in tracks]
        said = sum(float(speed @ dt) for speed, dt in zip(speeds, map(_steps, tracks), strict=True))
        if beyond.any(axis=1).mean() > 0.5 or (said > 10 and not 0.5 < moved / said < 2):
            raise DataError(
                f"{path}: places that do not fit the network and the speeds; run sumo without "
                "--fcd-output.geo and --fcd-output.utm"
            )
    if not len(network.centre_C2):
        raise DataError(f"{path}: its network has no intersection of three roads or more")


def _steps(track: Track) -> Floats:
    return np.diff(track.time_N)


def _near(tracks: Sequence[Track], centre_C2: Floats) -> list[list[Track]]:
    """For each intersection, what of the tracks is nearest to it."""
    nearest = cKDTree(centre_C2)
    parts: list[list[Track]] = [[] for _ in centre_C2]
    for track in tracks:
        apart_N, place_N = nearest.query(track.pose_N3[:, :2])
        reached_N = apart_N < REACH
        for place in np.unique(place_N[reached_N]):
            parts[place].append(_part(track, reached_N & (place_N == place), track.name))
    return parts


def read_states(path: Path) -> dict[str, tuple[Floats, list[str]]]:
    """Times at which the states of traffic lights change, and the states from then on.

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


class _Lights:
    """States of the signals at lines, at the times of a scenario.

    A line with several links shows the most that one of them may do.
    """

    def __init__(
        self,
        signals: Mapping[str, Sequence[Link]],
        phases: Mapping[str, tuple[Floats, list[str]]],
    ) -> None:
        self._signals, self._phases = signals, phases

    def __call__(self, time_T: Floats) -> dict[str, NDArray[np.int8]]:
        return {
            line: np.max([self._of(link, time_T) for link in links], axis=0)
            for line, links in self._signals.items()
        }

    def _of(self, link: Link, time_T: Floats) -> NDArray[np.int8]:
        light, index = link
        times, states = self._phases.get(light, (np.empty(0), []))
        shown = [LIGHTS.index(_STATES.get(state[index : index + 1], "unknown")) for state in states]
        row = np.searchsorted(times, time_T + 1e-6, side="right")
        return np.array([LIGHTS.index("unknown"), *shown], dtype=np.int8)[row]

"""Waymo Open Motion: scenarios as protocol buffers in TFRecord files, read without TensorFlow.

A TFRecord file is a sequence of records: length (uint64), masked CRC-32C of the length, content, masked
CRC-32C of the content, all little-endian. A record holds one ``Scenario``; only the fields of its messages
that are needed are described here, and the others are skipped. Units and angles are already those of
`millrace.systems.traffic.tracks`, and a road edge has the road on its left, too.
"""

import functools
import operator
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from millrace.data.account import Account
from millrace.errors import DataError, listed
from millrace.input_files import check_file, check_memory, in_words
from millrace.systems.traffic.formats.recordings import (
    WITHOUT_FUTURE,
    Converted,
    Wanted,
    make_scenario,
)
from millrace.systems.traffic.tracks import CURRENT_STEP, LIGHT_STATES, STEPS, Polyline, Scenario

Messages = Mapping[str, tuple[tuple[str, int, str], ...]]
"""Fields of each message as (name, number, type); "*" marks a repeated field, "+" one that is packed."""

_MESSAGES: Messages = {
    "Point": (("x", 1, "double"), ("y", 2, "double")),
    "State": (
        ("center_x", 2, "double"),
        ("center_y", 3, "double"),
        ("center_z", 4, "double"),
        ("length", 5, "float"),
        ("width", 6, "float"),
        ("heading", 8, "float"),
        ("velocity_x", 9, "float"),
        ("velocity_y", 10, "float"),
        ("valid", 11, "bool"),
    ),
    "Track": (("id", 1, "int32"), ("object_type", 2, "int32"), ("states", 3, "*State")),
    "Signal": (("lane", 1, "int64"), ("state", 2, "int32")),
    "Dynamic": (("lane_states", 1, "*Signal"),),
    "Lane": (("type", 2, "int32"), ("polyline", 8, "*Point")),
    "Line": (("type", 1, "int32"), ("polyline", 2, "*Point")),
    "Stop": (("lane", 1, "*int64"), ("position", 2, "Point")),
    "Area": (("polygon", 1, "*Point"),),
    "Feature": (
        ("id", 1, "int64"),
        ("lane", 3, "Lane"),
        ("road_line", 4, "Line"),
        ("road_edge", 5, "Line"),
        ("stop_sign", 7, "Stop"),
        ("crosswalk", 8, "Area"),
        ("speed_bump", 9, "Area"),
        ("driveway", 10, "Area"),
    ),
    # A scenario of which no more is read.
    "Name": (("scenario_id", 5, "string"),),
    # tf.Example, which the data set offers as well: only to say so.
    "Entry": (("key", 1, "string"),),
    "Features": (("entry", 1, "*Entry"),),
    "Example": (("features", 1, "Features"),),
    "Scenario": (
        ("timestamps_seconds", 1, "*double"),
        ("tracks", 2, "*Track"),
        ("scenario_id", 5, "string"),
        ("dynamic_map_states", 7, "*Dynamic"),
        ("map_features", 8, "*Feature"),
        ("current_time_index", 10, "int32"),
    ),
}
_KINDS = {1: "vehicle", 2: "pedestrian", 3: "cyclist"}
_OTHERS = (0, 4)  # unset, other: no road users
# TrafficSignalLaneState: arrows (1 to 3), discs (4 to 6), flashing lights (7: as red, 8: as yellow).
_STATES = dict(enumerate(("red", "yellow", "green", "red", "yellow", "green", "red", "yellow"), 1))
_STATE = operator.attrgetter(
    *("center_x", "center_y", "heading", "velocity_x", "velocity_y", "length", "width", "valid")
)
_BIKE_LANE = 3
_LARGEST = 64 << 20  # bytes of a scenario: they have some hundred kB
_PER_BYTE = 50  # bytes of memory for one of a message


def read(
    path: Path, source: Path, account: Account, wanted: Wanted = lambda _: True
) -> Iterator[Converted]:
    """Read the scenarios of a file, see `millrace.systems.traffic.formats.Adapter`."""
    for content in read_records(path):
        if wanted(_name(content)):
            name, scenarios = read_scenario(content, path, account)
            yield Converted(name, path, scenarios)


def _name(content: bytes) -> str:
    """Identifier of a serialised ``Scenario``, whose other fields are skipped; empty if there is none."""
    named = message("Name")
    try:
        named.ParseFromString(content)
    except DecodeError:  # said where the whole message is read
        named.Clear()
    return str(named.scenario_id)


def read_records(path: Path) -> Iterator[bytes]:
    """Contents of the records of a TFRecord file.

    Raises
    ------
    DataError
        The file is truncated, a checksum is wrong, or a record is too large for a scenario.
    """
    check_file(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        while head := file.read(12):
            where = f"{path}: record at byte {file.tell() - len(head)}"
            if len(head) < 12:
                raise DataError(f"{where}: the file ends in it; copy it again")
            (length,), (check,) = struct.unpack("<Q", head[:8]), struct.unpack("<I", head[8:])
            if masked_crc(head[:8]) != check:
                raise DataError(f"{where}: wrong checksum; expected a TFRecord file")
            if length > size - file.tell() - 4:
                raise DataError(f"{where}: the file ends in it; copy it again")
            if length > _LARGEST:
                raise DataError(
                    f"{where}: {in_words(length)} long; expected a scenario, of up to {in_words(_LARGEST)}"
                )
            check_memory(path, _PER_BYTE * length, "a record")
            body = file.read(length + 4)
            if masked_crc(body[:length]) != struct.unpack("<I", body[length:])[0]:
                raise DataError(f"{where}: wrong checksum; the file is damaged, copy it again")
            yield body[:length]


def masked_crc(content: bytes) -> int:
    """CRC-32C, rotated and offset as in TFRecord files."""
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_scenario(
    content: bytes, path: Path, account: Account | None = None, futures: bool = True
) -> tuple[str, list[Scenario]]:
    """Read a serialised ``Scenario``: its identifier, and itself, or none without an agent or a future.

    An agent has to be there at step 10; the test set has no futures, which are not needed if ``futures`` is
    False.

    Raises
    ------
    DataError
        It is not such a message, has more than 91 steps, another current step than 10, or unknown types.
    """
    account = account or Account()
    scenario = message("Scenario")
    try:
        scenario.ParseFromString(content)
    except DecodeError:
        scenario.Clear()
    name, steps = scenario.scenario_id, len(scenario.timestamps_seconds)
    if not name or not steps:
        raise DataError(f"{path}: {_other_message(content)}")
    at = f"{path}: scenario {name!r}"
    if not CURRENT_STEP < steps <= STEPS or scenario.current_time_index != CURRENT_STEP:
        raise DataError(
            f"{at} has {steps} steps and the current step {scenario.current_time_index}; expected up to "
            f"{STEPS} steps, and step {CURRENT_STEP}"
        )
    if futures and steps == CURRENT_STEP + 1:
        account.leave_out("scenarios", WITHOUT_FUTURE)
        account.leave_out("tracks", "in no scenario", len(scenario.tracks))
        return name, []
    for track in scenario.tracks:
        if track.object_type not in _KINDS and track.object_type not in _OTHERS:
            raise DataError(
                f"{at}, track {track.id}: object_type {track.object_type}; expected 1 (vehicle), 2 "
                "(pedestrian), 3 (cyclist), 4 (other) or 0 (unset)"
            )
        if len(track.states) != steps:
            raise DataError(
                f"{at}, track {track.id}: {len(track.states)} states; expected {steps}, one a timestamp"
            )
    others = sum(track.object_type not in _KINDS for track in scenario.tracks)
    account.leave_out("tracks", "of the type other or unset", others)
    tracks = [track for track in scenario.tracks if track.object_type in _KINDS]
    seen = [track for track in tracks if any(state.valid for state in track.states)]
    account.leave_out("tracks", "never valid", len(tracks) - len(seen))
    values = [_STATE(state) for track in seen for state in track.states]
    value_ATF = np.array(values, dtype=np.float64).reshape(len(seen), steps, 8)
    valid_AT = value_ATF[..., -1] > 0
    wrong = np.argwhere(valid_AT & ~np.isfinite(value_ATF[..., :5]).all(axis=-1))
    if len(wrong):
        a, t = map(int, wrong[0])
        raise DataError(
            f"{at}, track {seen[a].id}, step {t}: a valid state with {value_ATF[a, t, :5].tolist()}; "
            "expected finite numbers"
        )
    states = np.full((len(seen), STEPS, 5), np.nan)
    states[:, :steps] = np.where(valid_AT[..., None], value_ATF[..., :5], np.nan)
    agents = []
    for track, value_TF, valid_T in zip(seen, value_ATF, valid_AT, strict=True):
        known = np.flatnonzero(valid_T[: CURRENT_STEP + 1])
        size = np.maximum(value_TF[known[-1], 5:7], 0.1).tolist() if len(known) else (0.5, 0.5)
        agents.append((str(track.id), _KINDS[track.object_type], *size))
    if len({agent[0] for agent in agents}) < len(agents):
        raise DataError(f"{at}: two tracks of one id; expected different ones, copy the file again")
    road = tuple(_lines(scenario.map_features))
    lights = _lights(scenario, {line.name for line in road})
    made = make_scenario(name, agents, states, road, lights)
    if made:
        account.keep("tracks", len(seen))
    else:
        account.leave_out("tracks", "in no scenario", len(seen))
        account.leave_out("scenarios", f"without an agent at step {CURRENT_STEP}")
    return name, made


def _other_message(content: bytes) -> str:
    """What a record is that is no ``Scenario``."""
    example = message("Example")
    try:
        example.ParseFromString(content)
        keys = [entry.key for entry in example.features.entry]
    except DecodeError:
        keys = []
    if keys:
        return (
            f"a record holds tf.Example (features {listed(sorted(keys))}), not a Scenario; expected the "
            "files of the folder scenario of the Waymo Open Motion Dataset, beside tf_example"
        )
    return (
        "a record is not a Scenario of the Waymo Open Motion Dataset, with an id and timestamps (perhaps "
        "it is of the Perception Dataset); expected the files of the folder scenario"
    )


def _lines(features: Any) -> Iterator[Polyline]:
    for feature in features:
        for kind in ("lane", "road_line", "road_edge", "crosswalk", "speed_bump", "driveway"):
            if not feature.HasField(kind):
                continue
            part = getattr(feature, kind)
            is_area = kind in ("crosswalk", "speed_bump", "driveway")
            points = part.polygon if is_area else part.polyline
            place = np.array([[point.x, point.y] for point in points]).reshape(-1, 2)
            if is_area and len(place):
                place = np.concatenate([place, place[:1]])
            if kind == "lane" and part.type == _BIKE_LANE:
                kind = "bike_lane"
            if len(place) > 1:
                yield Polyline(str(feature.id), kind, place)


def _lights(scenario: Any, lines: set[str]) -> dict[str, np.ndarray]:
    lights: dict[str, np.ndarray] = {}
    for t, dynamic in enumerate(scenario.dynamic_map_states[:STEPS]):
        for signal in dynamic.lane_states:
            if str(signal.lane) in lines:
                series = lights.setdefault(str(signal.lane), np.zeros(STEPS, dtype=np.int8))
                series[t] = LIGHT_STATES.index(_STATES.get(signal.state, "unknown"))
    return lights


def message(name: str) -> Any:
    """Make an empty message of one of the types of ``_MESSAGES``."""
    return _classes()[name]()


@functools.cache
def _classes() -> dict[str, Any]:
    return message_classes(_MESSAGES)


def message_classes(messages: Messages) -> dict[str, Any]:
    """Make the classes of messages, which read and write them."""
    file = descriptor_pb2.FileDescriptorProto(name="womd.proto", package="womd", syntax="proto2")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in messages.items():
        described = file.message_type.add(name=name)
        for field, number, kind in fields:
            base = kind.lstrip("*+")
            added = described.field.add(name=field, number=number)
            added.label = kinds.LABEL_REPEATED if kind[0] in "*+" else kinds.LABEL_OPTIONAL
            if kind[0] == "+":
                added.options.packed = True
            if base in messages:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".womd.{base}"
            else:
                added.type = getattr(kinds, f"TYPE_{base.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"womd.{name}"))
        for name in messages
    }

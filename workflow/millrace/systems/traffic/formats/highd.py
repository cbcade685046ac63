"""highD (Krajewski et al. 2018): recordings of motorways from above.

``XX_tracks.csv`` gives the upper left corner of each box in an image, y downward, ``width`` along the road
and ``height`` across it, in metres at 25 Hz; ``XX_tracksMeta.csv`` the direction of each track (1: to the
left, on the upper carriageway); ``XX_recordingMeta.csv`` the rate and the positions of the lane markings.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from millrace.data.account import Account
from millrace.data.csv_table import read_header
from millrace.errors import DataError
from millrace.systems.traffic.formats.recordings import (
    Converted,
    Track,
    classes,
    cut_scenarios,
    read_columns,
    refuse_cell,
)
from millrace.systems.traffic.geometry import Floats
from millrace.systems.traffic.tracks import Polyline

_NARROW, _WIDE = 1.5, 10.0  # m, of lanes
_TRACKS = ("frame", "id", "x", "y", "width", "height", "xVelocity", "yVelocity")


def meta_of(path: Path) -> tuple[Path, Path]:
    """What is said of the place of a recording, and of its tracks."""
    name = path.name.split("_")[0]
    return path.with_name(f"{name}_recordingMeta.csv"), path.with_name(f"{name}_tracksMeta.csv")


def read(path: Path, source: Path, account: Account) -> Iterator[Converted]:
    """Read a recording, see `millrace.systems.traffic.formats.Adapter`."""
    name = path.name.split("_")[0]
    map_file, about_file = meta_of(path)
    if "xCenter" in read_header(path):
        raise DataError(
            f"{path}: xCenter is a column of inD, rounD, exiD and uniD, whose maps are Lanelet2; expected "
            "highD, convert it to `format: tracks`"
        )
    marks = [f"{side}LaneMarkings" for side in ("upper", "lower")]
    recordings = read_columns(map_file, ("frameRate",), marks)
    if len(recordings) != 1 or not recordings["frameRate"].iloc[0] > 0:
        raise DataError(f"{map_file}: expected one row, and a frameRate above 0 per second")
    recording = recordings.iloc[0]
    about = read_columns(about_file, ("id", "drivingDirection"), ("class",))
    refuse_cell(
        about_file,
        about["drivingDirection"],
        ~about["drivingDirection"].isin([1, 2]),
        "1 (upper carriageway) or 2 (lower one)",
    )
    direction = dict(zip(about["id"], about["drivingDirection"], strict=True))
    kinds = dict(zip(about["id"], classes(about_file, about["class"]), strict=True))
    frame = read_columns(path, _TRACKS)
    if not frame["id"].isin(list(direction)).all():
        raise DataError(f"{path}: a track is not in {name}_tracksMeta.csv; copy both again")
    again = frame.duplicated(["id", "frame"])
    refuse_cell(path, frame["frame"], again, "each frame of a track only once")
    tracks = []
    for track, rows in frame.sort_values("frame").groupby("id"):
        kind = kinds[track]
        if kind is None:
            account.leave_out("tracks", "of a type that is no road user")
            continue
        length, width = rows[["width", "height"]].median().tolist()
        corner = rows[["x", "y"]].to_numpy(dtype=float)
        middle = (corner + rows[["width", "height"]].to_numpy() / 2) * [1, -1]
        heading = np.full(len(rows), np.pi if direction[track] == 1 else 0.0)
        time_N = rows["frame"].to_numpy(dtype=float) / float(recording["frameRate"])
        velocity = rows[["xVelocity", "yVelocity"]].to_numpy() * [1.0, -1.0]
        state_N5 = np.column_stack([middle, heading, velocity])
        tracks.append(Track(str(track), kind, length, width, time_N, state_N5))
    reach = (frame["x"].min() - 20, (frame["x"] + frame["width"]).max() + 20)
    road: list[Polyline] = []
    for side in ("upper", "lower"):
        marks = str(recording[f"{side}LaneMarkings"]).split(";")
        try:
            y = np.sort([-float(mark) for mark in marks if mark.strip()])[::-1]
            if len(y) < 2 or not ((-np.diff(y) >= _NARROW) & (-np.diff(y) <= _WIDE)).all():
                raise ValueError
        except ValueError:
            raise DataError(
                f"{map_file}:2: {side}LaneMarkings {recording[f'{side}LaneMarkings']!r}; expected the y "
                f"of two or more markings, {_NARROW:g} to {_WIDE:g} m apart, separated by ;"
            ) from None
        road += _carriageway(side, y, reach)
    label = f"highd{name}"
    yield Converted(label, map_file, cut_scenarios(label, tracks, tuple(road), account=account))


def _carriageway(side: str, mark: Floats, reach: tuple[float, float]) -> list[Polyline]:
    """Polylines of one direction; ``mark`` are the y of the markings (m), from the top downward."""
    x = np.linspace(*reach, max(2, int((reach[1] - reach[0]) / 5)))
    leftward = side == "upper"

    def line(name: str, kind: str, y: float, backward: bool) -> Polyline:
        points = np.column_stack([x, np.full(len(x), y)])
        return Polyline(f"{side}_{name}", kind, points[::-1] if backward else points)

    lines = [line("top", "road_edge", mark[0], True), line("bottom", "road_edge", mark[-1], False)]
    lines += [line(f"mark{i}", "road_line", y, leftward) for i, y in enumerate(mark[1:-1])]
    middles = (mark[1:] + mark[:-1]) / 2
    return lines + [line(f"lane{i}", "lane", y, leftward) for i, y in enumerate(middles)]

"""highD (Krajewski et al. 2018): recordings of motorways from above.

``XX_tracks.csv`` gives the upper left corner of each box in an image, y downward, ``width`` along the road
and ``height`` across it, in metres at 25 Hz; ``XX_tracksMeta.csv`` the direction of each track (1: to the
left, on the upper carriageway); ``XX_recordingMeta.csv`` the rate and the positions of the lane markings.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from millrace.errors import DataError
from millrace.systems.traffic.formats.recordings import Track, cut_scenarios, read_columns
from millrace.systems.traffic.geometry import Floats
from millrace.systems.traffic.tracks import Polyline, Scenario

_TRACKS = ("frame", "id", "x", "y", "width", "height", "xVelocity", "yVelocity")
_RECORDING = ("frameRate", "upperLaneMarkings", "lowerLaneMarkings")


def read(path: Path, source: Path) -> Iterator[tuple[str, list[Scenario]]]:
    """Read a recording, see `millrace.systems.traffic.formats.Adapter`."""
    name = path.name.split("_")[0]
    recording = read_columns(path.with_name(f"{name}_recordingMeta.csv"), _RECORDING).iloc[0]
    about = read_columns(path.with_name(f"{name}_tracksMeta.csv"), ("id", "drivingDirection"))
    direction = dict(zip(about["id"], about["drivingDirection"], strict=True))
    frame = read_columns(path, _TRACKS)
    if not frame["id"].isin(list(direction)).all():
        raise DataError(f"{path}: a track is not in {name}_tracksMeta.csv; copy both again")
    tracks = []
    for track, rows in frame.sort_values("frame").groupby("id"):
        length, width = rows[["width", "height"]].median().tolist()
        corner = rows[["x", "y"]].to_numpy(dtype=float)
        middle = (corner + rows[["width", "height"]].to_numpy() / 2) * [1, -1]
        heading = np.full(len(rows), np.pi if direction[track] == 1 else 0.0)
        time_N = rows["frame"].to_numpy(dtype=float) / float(recording["frameRate"])
        velocity = rows[["xVelocity", "yVelocity"]].to_numpy() * [1.0, -1.0]
        state_N5 = np.column_stack([middle, heading, velocity])
        tracks.append(Track(str(track), "vehicle", length, width, time_N, state_N5))
    reach = (frame["x"].min() - 20, (frame["x"] + frame["width"]).max() + 20)
    road: list[Polyline] = []
    for side in ("upper", "lower"):
        marks = str(recording[f"{side}LaneMarkings"]).split(";")
        y = np.sort([-float(mark) for mark in marks if mark.strip()])[::-1]
        road += _carriageway(side, y, reach)
    yield f"highd{name}", cut_scenarios(f"highd{name}", tracks, tuple(road))


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

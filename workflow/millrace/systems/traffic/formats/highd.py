"""highD (Krajewski et al. 2018): motorways from above.

``XX_tracks.csv`` gives the upper left corner of each box in an image, y downward, ``width`` along the road
and ``height`` across it, in metres at 25 Hz; ``XX_tracksMeta.csv`` the class and the direction (1: to the
left, on the upper carriageway); ``XX_recordingMeta.csv`` the rate and where the lane markings are.
"""

from pathlib import Path

import numpy as np

from millrace.errors import DataError
from millrace.systems.base import Progress
from millrace.systems.traffic.formats.recordings import Track, cut_scenes, files_like, read_columns
from millrace.systems.traffic.tracks import Polyline, write_recording

_TRACKS = ("frame", "id", "x", "y", "width", "height", "xVelocity", "yVelocity")


def convert(source: Path, output: Path, progress: Progress | None = None) -> int:
    """Convert all recordings of a directory; returns the number of scenarios."""
    files, count = files_like(source, "*_tracks.csv", "01_tracks.csv and so on of highD"), 0
    for number, path in enumerate(files):
        name = path.name.split("_")[0]
        recording = read_columns(
            path.with_name(f"{name}_recordingMeta.csv"),
            ("frameRate", "upperLaneMarkings", "lowerLaneMarkings"),
        ).iloc[0]
        about = read_columns(
            path.with_name(f"{name}_tracksMeta.csv"), ("id", "class", "drivingDirection")
        )
        direction = dict(zip(about["id"], about["drivingDirection"], strict=True))
        frame = read_columns(path, _TRACKS)
        if not frame["id"].isin(direction).all():
            raise DataError(f"{path}: a track is not in {name}_tracksMeta.csv; copy both again")
        tracks = []
        for track, rows in frame.sort_values("frame").groupby("id"):
            size = rows[["width", "height"]].median().to_numpy()
            corner = rows[["x", "y"]].to_numpy(dtype=float)
            middle = (corner + rows[["width", "height"]].to_numpy() / 2) * [1, -1]
            heading = np.pi if direction[track] == 1 else 0.0
            tracks.append(
                Track(
                    name=str(track),
                    kind="vehicle",
                    length=float(size[0]),
                    width=float(size[1]),
                    time_N=rows["frame"].to_numpy(dtype=float) / float(recording["frameRate"]),
                    pose_N3=np.column_stack([middle, np.full(len(rows), heading)]),
                    velocity_N2=rows[["xVelocity", "yVelocity"]].to_numpy() * [1.0, -1.0],
                )
            )
        reach = (frame["x"].min() - 20, (frame["x"] + frame["width"]).max() + 20)
        road: list[Polyline] = []
        for side, column in (("upper", "upperLaneMarkings"), ("lower", "lowerLaneMarkings")):
            marks = -np.array([float(y) for y in str(recording[column]).split(";") if y.strip()])
            road += _carriageway(side, np.sort(marks)[::-1], reach, leftward=side == "upper")
        scenes = cut_scenes(f"highd{name}", tracks, tuple(road))
        if scenes:
            write_recording(output, f"highd{name}", scenes)
        count += len(scenes)
        if progress is not None:
            progress(number + 1, len(files))
    return count


def _carriageway(
    side: str, mark: np.ndarray, reach: tuple[float, float], leftward: bool
) -> list[Polyline]:
    """Lines of one direction; ``mark`` are the y of the markings, from the top downward."""
    x = np.linspace(*reach, max(2, int((reach[1] - reach[0]) / 5)))

    def line(name: str, kind: str, y: float, backward: bool) -> Polyline:
        points = np.column_stack([x, np.full(len(x), y)])
        return Polyline(f"{side}_{name}", kind, points[::-1] if backward else points)

    lines = [line("top", "road_edge", mark[0], True), line("bottom", "road_edge", mark[-1], False)]
    lines += [line(f"mark{i}", "road_line", y, leftward) for i, y in enumerate(mark[1:-1])]
    middles = (mark[1:] + mark[:-1]) / 2
    return lines + [line(f"lane{i}", "lane", y, leftward) for i, y in enumerate(middles)]

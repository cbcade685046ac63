"""Files of recorded tracks, maps and traffic lights."""

import gzip

import motion_scenes
import numpy as np
import pytest
from motion_scenes import read

from millrace.errors import DataError
from millrace.systems.traffic.tracks import LIGHT_STATES, find_recordings, read_map, write_recording


@pytest.fixture
def base(tmp_path):
    scenario = motion_scenes.scenario("one", np.random.default_rng(0))
    write_recording(tmp_path, "place", [scenario])
    return tmp_path


def edit(path, line, column, value):
    lines = path.read_text().splitlines()
    cells = lines[line - 1].split(",")
    cells[lines[0].split(",").index(column)] = value
    lines[line - 1] = ",".join(cells)
    path.write_text("\n".join(lines) + "\n")


def test_a_written_recording_is_read_again(base):
    expected = motion_scenes.scenario("one", np.random.default_rng(0))
    (found,) = read(base)
    assert found.name == "one"
    assert found.track_A == expected.track_A
    np.testing.assert_array_equal(found.kind_A, expected.kind_A)
    np.testing.assert_allclose(found.pose_AT3, expected.pose_AT3, atol=1e-4)
    np.testing.assert_allclose(found.size_A2, expected.size_A2)
    assert not found.observed_AT[2, 40:52].any()
    np.testing.assert_array_equal(found.lights["lane_right"], expected.lights["lane_right"])
    for one, two in zip(found.road, expected.road, strict=True):
        assert (one.name, one.type) == (two.name, two.type)
        np.testing.assert_allclose(one.points_P2, two.points_P2, atol=1e-4)


def test_gzip_and_other_columns(base):
    path = base / "tracks" / "place.csv"
    before = read(base)[0]
    path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    np.testing.assert_array_equal(read(base)[0].pose_AT3, before.pose_AT3)


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("timestep", "91", r"place\.csv:4:\d+: timestep 91; expected an integer from 0 to 90"),
        ("timestep", "1.5", "expected an integer"),
        ("timestep", "0", "timestep 0; expected each step of a track only once"),
        ("length", "0", "length 0; expected metres above 0"),
        ("heading", "north", r"place\.csv:4:"),
    ],
)
def test_wrong_cells_are_refused_with_their_place(base, column, value, told):
    edit(base / "tracks" / "place.csv", 4, column, value)
    with pytest.raises(DataError, match=told):
        read(base)


def test_other_objects_are_left_out(base):
    path = base / "tracks" / "place.csv"
    path.write_text(path.read_text().replace(",pedestrian,", ",static,"))
    (scenario,) = read(base)
    assert 1 not in scenario.kind_A
    assert len(scenario.kind_A) == 4


@pytest.mark.parametrize(
    ("folder", "column", "value", "told"),
    [
        ("map", "type", "river", "'river'; expected one of lane"),
        ("map", "type", "road_line", "expected one type for a whole polyline"),
        ("map", "polyline_id", "alone", "expected two or more points of a polyline"),
        ("lights", "state", "blue", f"'blue'; expected one of {', '.join(LIGHT_STATES)}"),
        ("lights", "polyline_id", "nowhere", "'nowhere'; expected a polyline of the map"),
        ("lights", "timestep", "95", "integer from 0 to 90"),
    ],
)
def test_wrong_maps_and_lights(base, folder, column, value, told):
    edit(base / folder / "place.csv", 5, column, value)
    with pytest.raises(DataError, match=told):
        read(base)


def test_missing_files_and_columns(base):
    path = base / "map" / "place.csv"
    path.write_text(path.read_text().replace("polyline_id", "line", 1))
    with pytest.raises(DataError, match="no column 'polyline_id'"):
        read_map(path)
    path.unlink()
    with pytest.raises(DataError, match=r"map.place\.csv: no such file; expected the map of"):
        read(base)
    with pytest.raises(DataError, match="no files; expected tracks"):
        find_recordings(base / "map")

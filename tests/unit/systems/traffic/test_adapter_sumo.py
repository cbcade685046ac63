"""SUMO's files, written here as SUMO writes them: one intersection, four arms, a lane each way."""

import gzip

import motion_scenes
import numpy as np
import pytest

from millrace.data.account import Account
from millrace.errors import DataError
from millrace.systems.traffic.formats.sumo_network import offset, read_network
from millrace.systems.traffic.tracks import LIGHT_STATES

# Arm -> its direction; roads are 3 m lanes right and left of the axis, and a bicycle lane beside one.
ARMS = {"east": (1, 0), "north": (0, 1), "west": (-1, 0), "south": (0, -1)}
TYPES = """<routes><vType id="car" vClass="passenger" length="4" width="1.8"/>
<vTypeDistribution id="mix"><vType id="lorry" vClass="truck"/></vTypeDistribution>
<vType id="bike" vClass="bicycle"/><vType id="foot" vClass="pedestrian" length="0.6" width="0.5"/>
<vType id="metro" vClass="subway"/></routes>"""


def write_network(path):
    lines = ["<net>"]
    for name, way in ARMS.items():
        way, right = np.array(way), np.array([way[1], -way[0]])
        for edge, ends, side in ((f"to_{name}", (10, 90), 1), (f"from_{name}", (90, 10), -1)):
            lanes = [(4.0, 1.0, "bicycle"), (1.5, 3.0, "passenger truck")]
            begin, end = ("C", name) if side == 1 else (name, "C")
            lines.append(f'<edge id="{edge}" from="{begin}" to="{end}">')
            for i, (off, width, allow) in enumerate(lanes):
                points = [s * way + side * off * right for s in ends]
                shape = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
                lines.append(
                    f'<lane id="{edge}_{i}" index="{i}" allow="{allow}" width="{width}" shape="{shape}"/>'
                )
            lines.append("</edge>")
    lines += [
        '<edge id=":C_0" function="internal"><lane id=":C_0_0" index="0" shape="10,1.5 0,1.5"/></edge>',
        '<edge id=":C_1" function="internal"><lane id=":C_1_0" index="0" shape="0,1.5 -10,1.5"/></edge>',
        '<edge id=":C_c0" function="crossing">'
        '<lane id=":C_c0_0" index="0" allow="pedestrian" shape="12,-5 12,5"/></edge>',
        '<edge id=":C_w0" function="walkingarea">'
        '<lane id=":C_w0_0" index="0" allow="pedestrian" shape="12,5 13,5 13,6"/></edge>',
        '<junction id="C" type="traffic_light" x="0" y="0"/>',
        '<junction id=":C_1_0" type="internal" x="0" y="1.5"/>',
    ]
    for name, way in ARMS.items():
        x, y = 90 * np.array(way)
        lines.append(f'<junction id="{name}" type="dead_end" x="{x}" y="{y}"/>')
    lines += [
        *(
            f'<connection from="from_east" to="to_{to}" fromLane="1" toLane="1" via="{via}" tl="T" '
            f'linkIndex="{link}"/>'
            for link, (to, via) in enumerate([("west", ":C_0_0"), ("south", ":C_9_0")])
        ),
        '<connection from=":C_0" to="to_west" fromLane="0" toLane="1" via=":C_1_0"/>',
        '<connection from=":C_w0" to=":C_c0" fromLane="0" toLane="0" tl="T" linkIndex="2"/>',
        "</net>",
    ]
    path.write_text("\n".join(lines))


def agents(time):
    """All agents at a time: element, id, type, x and y of the front, angle (degrees), speed."""
    return [
        ("vehicle", "a", "car", 80 - 8 * time, 1.5, 270.0, 8.0),  # to the west
        ("vehicle", "b", "lorry", 1.5, -60 + 5 * time, 0.0, 5.0),  # to the north
        ("vehicle", "c", "bike", 40 + 3 * time, -4.0, 90.0, 3.0),
        ("vehicle", "u", "metro", 0.0, 0.0, 0.0, 0.0),
        ("person", "a", "foot", 12.0, 5 - time, 180.0, 1.0),
    ]


def write_fcd(path, step=0.1, seconds=10.0, change=lambda row: row, walks=' vehicle=""'):
    rows = ["<fcd-export>"]
    for n in range(round(seconds / step) + 1):
        rows.append(f'<timestep time="{100 + n * step:.2f}">')
        for element, name, kind, x, y, angle, speed in map(change, agents(n * step)):
            rows.append(
                f'<{element} id="{name}" x="{x:.4f}" y="{y:.4f}" angle="{angle}" type="{kind}" '
                f'speed="{speed}"{walks if element == "person" else ""}/>'
            )
        rows.append('<person id="rider" x="0" y="0" angle="0" type="foot" speed="9" vehicle="b"/>')
        rows.append("</timestep>")
    text = "\n".join([*rows, "</fcd-export>"]).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.fixture
def base(tmp_path):
    source = tmp_path / "runs"
    source.mkdir()
    write_network(source / "cross.net.xml")
    (source / "cross.rou.xml").write_text(TYPES)
    write_fcd(source / "cross.fcd.xml")
    states = [(100.0, "Gur"), (102.0, "yrr"), (104.95, "usg"), (107.0, "oog")]
    events = [f'<tlsState time="{t}" id="T" programID="0" state="{s}"/>' for t, s in states]
    (source / "cross.tls.xml").write_text(f"<tlsStates>{''.join(events)}</tlsStates>")
    return source


def converted(source):
    return motion_scenes.read(source, "sumo")


def agent(scenario, name):
    return scenario.track_A.index(name)


def test_front_and_compass_become_middle_and_heading(base):
    (scenario,) = converted(base)
    assert scenario.name == "cross_0_00000"
    west, north, east = (agent(scenario, name) for name in ("a (car)", "b", "c"))
    # The front is at x = 80 and moves 0.8 m in a step; the middle of the 4 m is 2 m behind, to the east.
    np.testing.assert_allclose(scenario.pose_AT3[west, 10, :2], [82 - 8, 1.5], atol=1e-3)
    assert abs(scenario.pose_AT3[west, 10, 2]) == pytest.approx(np.pi, abs=1e-3)
    np.testing.assert_allclose(scenario.velocity_AT2[west, 10], [-8, 0], atol=1e-3)
    expected = [1.5, -60 - 7.1 / 2, np.pi / 2]
    np.testing.assert_allclose(scenario.pose_AT3[north, 0], expected, atol=1e-3)
    np.testing.assert_allclose(scenario.velocity_AT2[north, 0], [0, 5], atol=1e-3)
    np.testing.assert_allclose(scenario.pose_AT3[east, 0], [40 - 0.8, -4, 0], atol=1e-3)
    walker = agent(scenario, "a (foot)")
    np.testing.assert_allclose(scenario.pose_AT3[walker, 0], [12, 5.3, -np.pi / 2], atol=1e-3)


def test_sizes_and_classes_are_those_of_the_types(base):
    (scenario,) = converted(base)
    assert scenario.track_A == ("a (car)", "a (foot)", "b", "c"), "no underground, no person in b"
    assert scenario.kind_A.tolist() == [0, 1, 0, 2]
    expected = [[4.0, 1.8], [0.6, 0.5], [7.1, 2.4], [1.6, 0.65]]
    np.testing.assert_allclose(scenario.size_A2, expected)


def test_types_in_files_of_the_simulation_replace_others(base):
    (base / "zoo.add.xml").write_text('<additional><vType id="car" length="9"/></additional>')
    (scenario,) = converted(base)
    assert scenario.size_A2[agent(scenario, "a (car)"), 0] == 4


def test_lights_stand_at_lanes_stop_lines_and_crossings(base):
    (scenario,) = converted(base)

    def shown(name, *steps):
        return [LIGHT_STATES[scenario.lights[name][step]] for step in steps]

    assert shown(":C_0_0", 0, 19, 20, 49, 50) == ["green", "green", "yellow", "yellow", "red"]
    assert shown(":C_1_0", 0, 20) == ["green", "yellow"], "behind the point of waiting"
    assert shown(":C_c0_0", 0, 49, 50, 80) == ["red", "red", "green", "green"]
    # The most that one of both links may do; red and yellow together, and the arrow, are still red.
    assert shown("from_east_1", 0, 20, 50, 70) == ["green", "yellow", "red", "unknown"]
    assert shown("from_east_1|stop", 0, 20, 50) == ["green", "yellow", "red"]
    names = [":C_0_0", ":C_1_0", ":C_c0_0", "from_east_1", "from_east_1|stop"]
    assert sorted(scenario.lights) == names


def test_map(base):
    road = {line.name: line for line in read_network(base / "cross.net.xml").road}
    kinds = {name: line.type for name, line in road.items()}
    assert kinds["to_east_0"] == "bike_lane"
    assert kinds["to_east_1"] == kinds[":C_0_0"] == "lane"
    assert kinds[":C_c0_0"] == "crosswalk"
    assert ":C_w0_0" not in kinds
    np.testing.assert_allclose(road["from_east_1|stop"].points_P2, [[10, 3], [10, 0]])
    # The axis of the road is no edge; the right side is, and has the road on its left.
    assert kinds["to_east|left"] == kinds["to_east_0|left"] == "road_line"
    np.testing.assert_allclose(road["to_east|right"].points_P2, [[10, -4.5], [90, -4.5]])
    assert kinds["to_east|right"] == "road_edge"
    corners = [line.points_P2 for name, line in road.items() if "|corner" in name]
    assert len(corners) == 4
    (corner,) = [c for c in corners if (c[0] > 0).all()]
    # From the eastern arm, inward, to the northern one, outward.
    np.testing.assert_allclose(corner[[0, -1]], [[10, 4.5], [4.5, 10]])
    along, to_middle = corner[5] - corner[4], -corner[4]
    assert along[0] * to_middle[1] - along[1] * to_middle[0] > 0, "the road is on its left"


def test_a_road_of_one_direction_has_two_edges(base):
    text = (base / "cross.net.xml").read_text()
    start = text.index('<edge id="from_west"')
    end = text.index("</edge>", start) + len("</edge>")
    (base / "cross.net.xml").write_text(text[:start] + text[end:])
    road = {line.name: line for line in read_network(base / "cross.net.xml").road}
    left = road["to_west|left"]
    assert left.type == "road_edge"
    np.testing.assert_allclose(left.points_P2, [[-90, 0], [-10, 0]])
    assert sum("|corner" in name for name in road) == 4


def test_offset_keeps_its_distance_around_a_bend():
    line = np.array([[0.0, 0], [10, 0], [10, 0], [10, 10]])
    np.testing.assert_allclose(offset(line, 1.0), [[0, 1], [9, 1], [9, 10]])


def test_another_rate_is_interpolated(base):
    write_fcd(base / "cross.fcd.xml", step=0.2)
    (scenario,) = converted(base)
    west = agent(scenario, "a (car)")
    np.testing.assert_allclose(scenario.pose_AT3[west, [0, 1, 2], 0], [82, 81.2, 80.4], atol=1e-3)


def test_table_and_compressed_files_hold_the_same(base):
    (expected,) = converted(base)
    write_fcd(base / "cross.fcd.xml.gz")
    (base / "cross.fcd.xml").unlink()
    (scenario,) = converted(base)
    np.testing.assert_array_equal(scenario.pose_AT3, expected.pose_AT3)
    (base / "cross.fcd.xml.gz").unlink()
    # SUMO's own tables call persons vehicles, and have a row for a step without agents.
    rows = ["timestep_time;vehicle_id;vehicle_x;vehicle_y;vehicle_angle;vehicle_type;vehicle_speed"]
    rows.append("99.90;;;;;;")
    for n in range(101):
        for _, name, kind, x, y, angle, speed in agents(0.1 * n):
            rows.append(f"{100 + 0.1 * n:.2f};{name};{x:.4f};{y:.4f};{angle};{kind};{speed}")
    (base / "cross.fcd.csv").write_text("\n".join(rows))
    (scenario,) = converted(base)
    assert scenario.track_A == expected.track_A
    np.testing.assert_array_equal(scenario.pose_AT3, expected.pose_AT3)
    (base / "cross.fcd.csv").write_text("\n".join([*rows[:40], "104.0;b;;0;0;lorry;1"]))
    with pytest.raises(DataError, match="an empty cell"):
        converted(base)


def test_a_jump_begins_another_track(base):
    def teleport(row):
        element, name, kind, x, y, angle, speed = row
        return (element, name, kind, x - 20 if name == "a" and x < 48 else x, y, angle, speed)

    write_fcd(base / "cross.fcd.xml", change=teleport)
    (scenario,) = converted(base)
    before, after = agent(scenario, "a (car)"), agent(scenario, "a (car)#1")
    assert np.flatnonzero(np.isfinite(scenario.pose_AT3[before, :, 0]))[-1] == 40
    assert np.flatnonzero(np.isfinite(scenario.pose_AT3[after, :, 0]))[0] == 41


def test_each_observation_belongs_to_the_nearest_intersection(base):
    # Another intersection 90 m to the east, of which only the position matters.
    text = (base / "cross.net.xml").read_text()
    text = text.replace('"east" type="dead_end', '"east" type="traffic_light')
    edge = '<edge id="{0}" from="east" to="{0}"><lane id="{0}_0" shape="90,{0} 190,{0}"/></edge>'
    more = edge.format(7) + edge.format(8)
    (base / "cross.net.xml").write_text(text.replace("</net>", more + "</net>"))
    first, second = converted(base)
    assert (first.name, second.name) == ("cross_0_00000", "cross_1_00000")
    one = np.isfinite(first.pose_AT3[agent(first, "a (car)"), :, 0])
    other = np.isfinite(second.pose_AT3[agent(second, "a (car)"), :, 0])
    assert (one != other).all()
    # The centre of its box is at 82 - 36.8 m then, nearer to 90 m than to 0.
    assert np.flatnonzero(other)[-1] == 46


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda row: (*row[:2], "ufo", *row[3:]), "no vType 'ufo'; put the file"),
        (lambda row: (*row[:3], row[3] / 1e5, row[4] / 1e5, *row[5:]), "without --fcd-output.geo"),
        (lambda row: (*row[:3], row[3] + 5e5, *row[4:]), "without --fcd-output.geo and --fcd-out"),
        (lambda row: (*row[:6], "fast"), "time 100.00, vehicle 'a': .*'fast'; expected the attrib"),
    ],
)
def test_data_that_do_not_fit_are_refused(base, change, told):
    write_fcd(base / "cross.fcd.xml", change=change)
    with pytest.raises(DataError, match=told):
        converted(base)


def test_persons_are_refused_where_those_in_vehicles_are_unknown(base):
    write_fcd(base / "cross.fcd.xml", walks="")
    with pytest.raises(DataError, match=r"person 'a': 'vehicle'; .* run sumo with --fcd-output.a"):
        converted(base)
    (base / "cross.fcd.xml").unlink()
    keys = ("id", "type", "x", "y", "angle", "speed")
    columns = [f"{role}_{key}" for role in ("vehicle", "person") for key in keys]
    columns.insert(0, "timestep_time")
    walks = [f"{100 + n / 10:.1f};;;;;;;a;foot;12;{5 - n / 10};180;1" for n in range(101)]
    (base / "cross.fcd.csv").write_text("\n".join([";".join(columns), *walks]))
    with pytest.raises(DataError, match=r"'person_vehicle'.*run sumo with --fcd-output.attributes"):
        converted(base)
    # A table of SUMO's own, where persons are called vehicles.
    rides = [f"{100 + n / 10:.1f};a;foot;{80 - 1.2 * n};1.5;270;12" for n in range(101)]
    (base / "cross.fcd.csv").write_text("\n".join([";".join(columns[:7]), *rides]))
    with pytest.raises(DataError, match=r"pedestrian 'a' moves at 12\.0 m/s.* write \.fcd\.xml"):
        converted(base)


def test_coarse_steps_are_refused(base):
    write_fcd(base / "cross.fcd.xml", step=1.0)
    with pytest.raises(DataError, match=r"steps of 1 s; expected 0\.1 s, run sumo with --step-len"):
        converted(base)


def test_a_file_that_ends_in_the_middle_is_refused(base):
    whole = (base / "cross.fcd.xml").read_bytes()
    (base / "cross.fcd.xml").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cross\.fcd\.xml: cannot be read as XML"):
        converted(base)
    (base / "cross.fcd.xml").unlink()
    (base / "cross.fcd.xml.gz").write_bytes(gzip.compress(whole)[:-20])
    with pytest.raises(DataError, match=r"cross\.fcd\.xml\.gz: the gzip data ends or is damaged"):
        converted(base)


def test_a_simulation_needs_its_network(base):
    (base / "cross.net.xml").rename(base / "other.net.xml")
    assert len(converted(base)) == 1, "the only one is meant"
    write_network(base / "third.net.xml")
    with pytest.raises(DataError, match=r"no network; expected cross\.net\.xml beside it"):
        converted(base)
    (base / "cross.net.xml").write_text("<net/>")
    with pytest.raises(DataError, match="no lanes"):
        converted(base)


@pytest.mark.parametrize("output", [True, False], ids=["with its output", "without it"])
def test_a_scenario_is_read_by_its_configuration_whatever_its_files_are_called(base, output):
    """As users have it: names of their own, types and network in other folders, a second network beside."""
    (expected,) = converted(base)
    for folder in ("nets", "demand"):
        (base / folder).mkdir()
    (base / "cross.net.xml").rename(base / "nets/town.xml")
    (base / "cross.rou.xml").rename(base / "demand/types.xml")
    (base / "cross.fcd.xml").rename(base / "trace.xml")
    (base / "cross.tls.xml").rename(base / "lights.xml")
    (base / "other.rou.xml").write_text('<routes><vType id="car" length="9"/></routes>')
    (base / "other.net.xml").write_text("<net/>")
    written = '<output><fcd-output value="trace.xml"/></output>' if output else ""
    (base / "town.sumocfg").write_text(
        '<configuration><input><net-file value="nets/town.xml"/>'
        f'<route-files value="demand/none.xml, demand/types.xml"/></input>{written}</configuration>'
    )
    (scenario,) = converted(base)
    assert scenario.name == "trace_0_00000"
    np.testing.assert_array_equal(scenario.pose_AT3, expected.pose_AT3)
    np.testing.assert_array_equal(scenario.size_A2, expected.size_A2)
    assert len(scenario.road) == len(expected.road)
    assert list(scenario.lights) == list(expected.lights)
    (base / "nets/town.xml").unlink()
    with pytest.raises(DataError, match=r"town\.sumocfg: no network .*town\.xml; copy it there"):
        converted(base)


def test_what_lies_far_from_intersections_and_off_roads_is_counted(base):
    def away(row):
        element, name, kind, x, *rest = row
        return (element, name, kind, x + 70, *rest) if name == "c" else row

    write_fcd(base / "cross.fcd.xml", change=away)
    account = Account()
    motion_scenes.read(base, "sumo", account)
    assert account.to_json()["tracks"]["left_out"] == {"of the type 'metro', not on roads": 1}
    assert account.to_json()["observations"]["left_out"] == {
        "100 m or more from each intersection": 101
    }

"""Variants of public formats, each as its data set or its users have it, and identifiers as they come."""

import struct

import h5py
import numpy as np
import pandas as pd
import pytest
from motion_scenes import read, record, waymo, write_highd

from millrace.data.account import Account
from millrace.errors import DataError
from millrace.systems.traffic.formats.interaction import read_map, utm
from millrace.systems.traffic.formats.sumo_network import offset, read_network
from millrace.systems.traffic.formats.waymo import masked_crc, message, read_records, read_scenario
from millrace.systems.traffic.preparation import prepare

FOOT = 0.3048
TOKENS = {"motion": 16, "road": 8, "tolerance": 0.2, "train": 0.9, "validation": 0.05, "block": 1}


def line_of(scenario, name):
    return next(line for line in scenario.road if line.name == name)


# NGSIM: the 25 columns of the download of data.transportation.gov

COLUMNS = (
    "Vehicle_ID,Frame_ID,Total_Frames,Global_Time,Local_X,Local_Y,Global_X,Global_Y,v_length,v_Width,"
    "v_Class,v_Vel,v_Acc,Lane_ID,O_Zone,D_Zone,Int_ID,Section_ID,Direction,Movement,Preceding,Following,"
    "Space_Headway,Time_Headway,Location"
)


def vehicles(*drives, steps=100):
    """Rows of vehicles: each has number, x and y at first (feet), feet a step along x and y, and others."""
    rows = []
    for number, x, y, along_x, along_y, others in drives:
        n = np.arange(steps)
        row = dict.fromkeys(COLUMNS.split(","), 0) | {"Vehicle_ID": number, "v_length": 15.0}
        row |= {"v_Width": 6.5, "v_Class": 2, "Lane_ID": 1, "Direction": 2, "Location": "us-101"}
        row |= {"Global_Time": 1118847000000 + 100 * n, "Local_X": x + along_x * n} | others
        rows.append(pd.DataFrame(row | {"Local_Y": y + along_y * n}))
    return pd.concat(rows)


def test_the_columns_of_ngsims_own_download_are_read(tmp_path):
    vehicles((1, 6.0, 0.0, 0.0, 4.0, {})).to_csv(tmp_path / "ngsim.csv", index=False)
    (scenario,) = read(tmp_path, "ngsim")
    np.testing.assert_allclose(scenario.size_A2, [[15 * FOOT, 6.5 * FOOT]], atol=1e-3)
    np.testing.assert_allclose(scenario.pose_AT3[0, 0], [-7.5 * FOOT, -6 * FOOT, 0], atol=1e-3)


@pytest.mark.parametrize("given", [True, False])
def test_two_directions_of_a_road_are_two_lanes(tmp_path, given):
    table = vehicles(
        (1, 20.0, 0.0, 0.0, 4.0, {"Direction": 2}), (2, -20.0, 400.0, 0.0, -4.0, {"Direction": 4})
    )
    if not given:
        table = table.drop(columns="Direction")
    table.to_csv(tmp_path / "ngsim.csv", index=False)
    (scenario,) = read(tmp_path, "ngsim")
    names = ("northbound", "southbound") if given else ("forward", "backward")
    for name, y, way in zip(names, (-20 * FOOT, 20 * FOOT), (1, -1), strict=True):
        points = line_of(scenario, f"lane1_{name}").points_P2
        np.testing.assert_allclose(points[:, 1], y, atol=1e-3)
        assert (np.sign(np.diff(points[:, 0])) == way).all()
    edges = {side: line_of(scenario, side).points_P2 for side in ("right", "left")}
    assert (edges["right"][:, 1] < -20 * FOOT).all()
    assert (edges["left"][:, 1] > 20 * FOOT).all()


def test_cross_streets_are_lanes_of_their_own_and_open_the_edges(tmp_path):
    across = ((n, -100.0, y, 2.0, 0.0, {"Direction": 1}) for n, y in ((3, 150.0), (4, 650.0)))
    main = (1, 20.0, 0.0, 0.0, 9.0, {})
    vehicles(main, *across).to_csv(tmp_path / "ngsim.csv", index=False)
    (scenario,) = read(tmp_path, "ngsim")
    for street, feet in enumerate((150, 650)):
        points = line_of(scenario, f"lane1_eastbound_{street}").points_P2
        np.testing.assert_allclose(points[:, 0], feet * FOOT, atol=1e-3)
        assert (np.diff(points[:, 1]) < 0).all(), "Local_X is to the right"
    edges = [line.points_P2 for line in scenario.road if line.name.startswith("left")]
    assert len(edges) == 3
    assert all(np.abs(edge[:, 0] - 150 * FOOT).min() > 3 for edge in edges)


def test_places_of_one_file_are_recordings_of_their_own(tmp_path):
    table = vehicles((1, 6.0, 0.0, 0.0, 4.0, {}), (1, 30.0, 0.0, 0.0, 2.0, {"Location": "i-80"}))
    table.to_csv(tmp_path / "ngsim.csv", index=False)
    found = {one.name: one for one in read(tmp_path, "ngsim")}
    assert set(found) == {"ngsim_i-80_00000", "ngsim_us-101_00000"}
    for one in found.values():
        assert len(one.track_A) == 1
    assert found["ngsim_i-80_00000"].pose_AT3[0, 0, 1] == pytest.approx(-30 * FOOT, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"v_Class": 4},
            r"ngsim\.csv:2: 4 in column 'v_Class'; expected 1 \(motorcycle\), 2 \(car\)",
        ),
        ({"v_length": 4.5}, r"a v_Length of 4\.5, probably metres; expected feet"),
        ({"Local_Y": "?"}, r"ngsim\.csv:2: '\?' in column 'Local_Y'; expected a finite number"),
        (
            {"Global_X": np.linspace(0, 2e5, 100)},
            r"Global_X reaches .* 61\.0 km; expected one place",
        ),
    ],
)
def test_what_ngsim_does_not_hold_is_refused(tmp_path, change, told):
    vehicles((1, 6.0, 0.0, 0.0, 4.0, {})).assign(**change).to_csv(
        tmp_path / "ngsim.csv", index=False
    )
    with pytest.raises(DataError, match=told):
        read(tmp_path, "ngsim")


def test_two_positions_of_a_vehicle_at_a_time_are_refused_and_equal_ones_counted(tmp_path):
    table = vehicles((1, 6.0, 0.0, 0.0, 4.0, {}))
    pd.concat([table, table]).to_csv(tmp_path / "ngsim.csv", index=False)
    account = Account()
    read(tmp_path, "ngsim", account)
    assert account.to_json()["observations"]["left_out"] == {"given twice": 100}
    other = vehicles((1, 40.0, 0.0, 0.0, 4.0, {}))
    pd.concat([table, other]).to_csv(tmp_path / "ngsim.csv", index=False)
    with pytest.raises(DataError, match=r"ngsim\.csv:102: .*one position of a vehicle at a time"):
        read(tmp_path, "ngsim")


def test_a_missing_observation_is_interpolated_and_counted(tmp_path):
    table = vehicles((1, 6.0, 0.0, 0.0, 4.0, {})).reset_index(drop=True)
    table.drop(index=50).to_csv(tmp_path / "ngsim.csv", index=False)
    account = Account()
    (scenario,) = read(tmp_path, "ngsim", account)
    assert scenario.observed_AT[0].all()
    assert account.to_json()["gaps of 0.25 s or less, interpolated"]["kept"] == 1


# INTERACTION 1.2


def write_map(path, x=0.0):
    metre = 1e-5 / (utm(0.0, 1e-5)[0] - utm(0.0, 0.0)[0])
    up = 1e-5 / (utm(1e-5, 0.0)[1] - utm(0.0, 0.0)[1])
    corners = enumerate([(x, 0), (x + 50, 0), (x, 4), (x + 50, 4)], 1)
    nodes = "".join(
        f'<node id="{i}" lat="{b * up!r}" lon="{a * metre!r}"/>' for i, (a, b) in corners
    )
    ways = "".join(
        f'<way id="{10 + i}"><nd ref="{2 * i + 1}"/><nd ref="{2 * i + 2}"/>'
        '<tag k="type" v="curbstone"/></way>'
        for i in range(2)
    )
    lanelet = (
        '<relation id="20"><member role="left" ref="11"/><member role="right" ref="10"/></relation>'
    )
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(f"<osm>{nodes}{ways}{lanelet}</osm>")


@pytest.fixture
def cases(tmp_path):
    """Two cases of 4 s of a car and a pedestrian, in the folders of version 1.2, and another map."""
    ms = 100 * np.arange(1, 41)
    common = {"frame_id": ms // 100, "timestamp_ms": ms, "y": 2.0, "vy": 0.0}
    frames = []
    for case in (1.0, 2.0):
        car = {"track_id": 1, "agent_type": "car", "x": 1 + ms / 200, "vx": 5.0, "psi_rad": 0.0}
        walker = {
            "track_id": "P2",
            "agent_type": "pedestrian/bicycle",
            "x": 9 + ms / 1000,
            "vx": 1.0,
        }
        for one in (car | {"length": 4.2, "width": 1.8}, walker):
            frames.append(pd.DataFrame({"case_id": case} | common | one))
    (tmp_path / "train").mkdir()
    pd.concat(frames).to_csv(tmp_path / "train/DR_USA_Intersection_MA_train.csv", index=False)
    write_map(tmp_path / "maps/DR_USA_Intersection_MA.osm")
    write_map(tmp_path / "maps/DR_USA_Intersection.osm", x=5000.0)
    (tmp_path / "maps/DR_USA_Intersection_MA.osm_xy").write_text("<osm/>")
    return tmp_path


def test_cases_of_interaction_1_2_are_read_on_the_map_of_their_place(cases):
    one, two = read(cases, "interaction")
    assert (one.name, two.name) == tuple(
        f"DR_USA_Intersection_MA_train_{case}_00000" for case in ("1.0", "2.0")
    )
    assert one.track_A == ("1", "P2")
    assert one.kind_A.tolist() == [0, 1]
    np.testing.assert_allclose(one.pose_AT3[0, 10], [1 + 0.5 * 11, 2, 0], atol=1e-3)
    np.testing.assert_allclose(one.pose_AT3[1, 10, 2], 0, atol=1e-3)
    np.testing.assert_allclose(
        line_of(one, "lane20").points_P2[[0, -1]], [[0, 2], [50, 2]], atol=0.02
    )


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (",car,", ",tram,", r"MA_train\.csv:2: 'tram' in column 'agent_type'; expected one of"),
        (",0.0,4.2", ",north,4.2", r"train\.csv:2: 'north' in column 'psi_rad'; expected a finite"),
        ("1.0,1,100,", "1.0,1,,", "an empty cell in column 'timestamp_ms'"),
    ],
)
def test_cells_of_interaction_that_are_wrong_are_refused(cases, old, new, told):
    path = cases / "train/DR_USA_Intersection_MA_train.csv"
    columns = ["case_id", "frame_id", "timestamp_ms", "agent_type", "x", "y", "vx", "vy", "psi_rad"]
    table = pd.read_csv(path)[[*columns, "length", "width", "track_id"]]
    text = table.to_csv(index=False)
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(DataError, match=told):
        read(cases, "interaction")


def test_a_map_of_another_place_is_refused(cases):
    (cases / "maps/DR_USA_Intersection_MA.osm").unlink()
    told = (
        r"scenario 'DR_USA_.*, track '\w+', step \d+: at .* km from the nearest line of .*tion\.osm"
    )
    with pytest.raises(DataError, match=told):
        read(cases, "interaction")


def test_a_lanelet_of_an_empty_way_is_refused(tmp_path):
    member = '<member role="{}" ref="3"/>'
    relation = member.format("left") + member.format("right")
    (tmp_path / "m.osm").write_text(
        f'<osm><way id="3"/><relation id="5">{relation}</relation></osm>'
    )
    with pytest.raises(DataError, match=r"m\.osm: not a Lanelet2 map.*way 3"):
        read_map(tmp_path / "m.osm")


# Waymo


def test_identifiers_of_scenarios_name_no_paths(tmp_path):
    source, mine = tmp_path / "src", tmp_path / "precious.csv"
    source.mkdir()
    (tmp_path / "x").mkdir()
    mine.write_text("mine\n")
    names = [str(tmp_path / "precious"), "../../../up", "..", "a.csv.b", "x" * 300]
    (source / "a.tfrecord").write_bytes(b"".join(record(waymo(name)) for name in names))
    prepare(source, tmp_path / "x", {"format": "waymo", "tokens": TOKENS}, {})
    with h5py.File(tmp_path / "x/scenarios.h5") as file:
        found = {name.decode() for name in file["name"][()]}
    assert found == set(names), "what is read is not renamed"
    assert mine.read_text() == "mine\n"
    made = {"vocabulary.h5", "scenarios.h5", "samples.json"}
    assert {path.name for path in (tmp_path / "x").rglob("*")} == made


def test_an_identifier_of_two_lines_is_refused(tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(record(waymo("two\nlines")))
    with pytest.raises(DataError, match=r"scenario 'two.nlines': expected a name without control"):
        read(tmp_path, "waymo")


def test_two_scenarios_of_one_identifier_are_refused_with_both_files(tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(record(waymo()))
    (tmp_path / "b.tfrecord").write_bytes(record(waymo(x=2.0)))
    told = r"b\.tfrecord: scenario 's' is in .*a\.tfrecord, too; expected different names"
    with pytest.raises(DataError, match=told):
        prepare(tmp_path, tmp_path, {"format": "waymo", "tokens": TOKENS}, {})
    assert not (tmp_path / "scenarios.h5").exists()


def test_records_of_other_messages_are_named(tmp_path):
    example = message("Example")
    for key in ("state/type", "scenario/id", "roadgraph_samples/xyz"):
        example.features.entry.add(key=key)
    path = tmp_path / "training_tfexample.tfrecord"
    for content, told in (
        (
            example.SerializeToString(),
            "holds tf.Example .features roadgraph_samples/xyz, scenario/id, .*",
        ),
        (b"\x12\x03abc", "not a Scenario of the Waymo Open Motion .*Perception Dataset.*"),
        (b"", "not a Scenario of the Waymo Open Motion.*"),
    ):
        path.write_bytes(record(content))
        with pytest.raises(DataError, match=rf"{told}; expected the files of the folder scenario"):
            read(tmp_path, "waymo")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"states": 200}, "200 states; expected 91"),
        ({"kind": 7}, "track 1: object_type 7; expected 1"),
    ],
)
def test_scenarios_that_contradict_themselves_are_refused(tmp_path, fields, told):
    with pytest.raises(DataError, match=told):
        read_scenario(waymo(**fields), tmp_path)


@pytest.mark.parametrize("length", [2**63, 2**44])
def test_a_record_longer_than_its_file_is_refused(tmp_path, length):
    head = struct.pack("<Q", length)
    path = tmp_path / "a.tfrecord"
    path.write_bytes(head + struct.pack("<I", masked_crc(head)) + b"x")
    with pytest.raises(DataError, match="the file ends in it"):
        list(read_records(path))


def test_objects_of_other_types_are_counted(tmp_path):
    scenario = message("Scenario")
    scenario.ParseFromString(waymo())
    other = scenario.tracks.add(id=2, object_type=4)
    other.states.extend(scenario.tracks[0].states)
    (tmp_path / "a.tfrecord").write_bytes(record(scenario.SerializeToString()))
    account = Account()
    read(tmp_path, "waymo", account)
    left = {"of the type other or unset": 1}
    assert account.to_json()["tracks"] == {"read": 2, "kept": 1, "left_out": left}


# SUMO: networks

BEND = [(0, 0), (60, 0), (90, 10), (105, 30), (112, 50), (120, 80)]


def network(path, mirrored=False):
    """A bent two-way road east of C; north of it one that is cut at M in one direction; a lone one west.

    Lane shapes lie 1.6 m from the axis, where the traffic drives; the road west has two lanes.
    """
    sign = -1 if mirrored else 1

    def shape(axis, right):
        return " ".join(f"{sign * x:.3f},{y:.3f}" for x, y in offset(np.array(axis, float), -right))

    roads = {
        ("CE", "C", "E"): BEND,
        ("EC", "E", "C"): BEND[::-1],
        ("CN", "C", "N"): [(0, 7), (0, 150)],
        ("NM", "N", "M"): [(0, 150), (0, 80)],
        ("MC", "M", "C"): [(0, 80), (0, 7)],
        ("CW", "C", "W"): [(-7, 0), (-150, 0)],
    }
    rows = []
    for (name, begin, end), axis in roads.items():
        offsets = (4.8, 1.6) if name == "CW" else (1.6,)
        lanes = "".join(
            f'<lane id="{name}_{i}" index="{i}" shape="{shape(axis, right)}"/>'
            for i, right in enumerate(offsets)
        )
        rows.append(f'<edge id="{name}" from="{begin}" to="{end}">{lanes}</edge>')
    places = {"C": (0, 0), "E": BEND[-1], "N": (0, 150), "M": (0, 80), "W": (-150, 0)}
    rows += [
        f'<junction id="{name}" type="priority" x="{sign * x}" y="{y}"/>'
        for name, (x, y) in places.items()
    ]
    side = ' lefthand="true"' if mirrored else ""
    path.write_text(f'<net version="1.20"{side}>{"".join(rows)}</net>')
    return read_network(path).road


def test_between_the_directions_of_a_road_is_no_edge_however_it_bends_and_is_cut(tmp_path):
    kinds = {line.name: line.type for line in network(tmp_path / "a.net.xml")}
    inner = {name: kinds[f"{name}|left"] for name in ("CE", "EC", "CN", "NM", "MC", "CW")}
    assert inner == dict.fromkeys(("CE", "EC", "CN", "NM", "MC"), "road_line") | {"CW": "road_edge"}
    assert {kinds[f"{name}|right"] for name in inner} == {"road_edge"}


def test_a_side_that_is_shared_in_part_is_divided(tmp_path):
    path = tmp_path / "a.net.xml"
    network(path)
    text = path.read_text()
    start = text.index('<edge id="NM"')
    path.write_text(text[:start] + text[text.index("</edge>", start) + len("</edge>") :])
    road = {line.name: line for line in read_network(path).road}
    shared, alone = road["CN|left0"], road["CN|left1"]
    assert (shared.type, alone.type) == ("road_line", "road_edge")
    np.testing.assert_allclose(shared.points_P2, [[0, 7], [0, 80]], atol=3)
    np.testing.assert_allclose(alone.points_P2, [[0, 150], [0, 80]], atol=3)


def test_where_traffic_drives_on_the_left_the_map_is_the_mirror_image(tmp_path):
    right, left = network(tmp_path / "a.net.xml"), network(tmp_path / "b.net.xml", mirrored=True)

    def lines(road, mirrored):
        found = []
        for line in road:
            points = line.points_P2 * [-1, 1] if mirrored else line.points_P2
            # The mirror image of an edge has the road on its right.
            turned = points[::-1] if mirrored and line.type == "road_edge" else points
            found.append((line.type, *np.round(turned, 2).ravel().tolist()))
        return sorted(found)

    for one, other in zip(lines(right, False), lines(left, True), strict=True):
        assert one[0] == other[0]
        np.testing.assert_allclose(one[1:], other[1:], atol=0.02)


# highD


def test_a_recording_of_highds_relatives_is_named(tmp_path):
    pd.DataFrame({"recordingId": [0], "trackId": 1, "frame": 0, "xCenter": 1.0}).to_csv(
        tmp_path / "01_tracks.csv", index=False
    )
    with pytest.raises(DataError, match="xCenter is a column of inD, rounD, exiD and uniD"):
        read(tmp_path, "highd")


@pytest.mark.parametrize(
    ("file", "column", "value", "told"),
    [
        ("01_tracks.csv", "x", -9999.0, r"01_tracks\.csv: track '1' moves \d+ m in 0\.04 s, to"),
        (
            "01_tracksMeta.csv",
            "class",
            "Boat",
            r"Meta\.csv:3: 'Boat' in column 'class'; expected one of",
        ),
        ("01_tracksMeta.csv", "drivingDirection", 3, r"Meta\.csv:3: 3 in .*; expected 1 \(upper"),
        (
            "01_recordingMeta.csv",
            "upperLaneMarkings",
            "2;6;9999",
            r"Meta\.csv:2: upperLaneMarkings",
        ),
        (
            "01_recordingMeta.csv",
            "upperLaneMarkings",
            None,
            "expected the y of two or more markings",
        ),
    ],
)
def test_cells_of_highd_that_cannot_be_are_refused(tmp_path, file, column, value, told):
    write_highd(tmp_path)
    table = pd.read_csv(tmp_path / file).astype(object)
    table.loc[min(1, len(table) - 1), column] = value
    table.to_csv(tmp_path / file, index=False)
    with pytest.raises(DataError, match=told):
        read(tmp_path, "highd")


def test_a_table_that_is_cut_in_its_last_line_is_refused(tmp_path):
    write_highd(tmp_path)
    path = tmp_path / "01_tracks.csv"
    path.write_text(path.read_text()[:-2])
    with pytest.raises(DataError, match=r"01_tracks\.csv: the last line does not end"):
        read(tmp_path, "highd")

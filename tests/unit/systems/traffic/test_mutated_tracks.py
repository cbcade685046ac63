"""Recordings with one mutation each: read as by pandas, by the names of columns, or refused.

Mutations are those of real files: columns in another order or renamed, rows shuffled, doubled, cut or
blanked, cells that stand for no value, other units, types and places. What is read is compared with what
pandas makes of the same table; nothing may differ without a message that names the file.
"""

import shutil

import motion_scenes
import numpy as np
import pandas as pd
import pytest
from mutations import NUMBER, try_mutations

from millrace.systems.traffic.plausibility import checked
from millrace.systems.traffic.tracks import find_recordings, read_recording, write_recording

CLASS = {"vehicle": 0, "pedestrian": 1, "cyclist": 2}
STATE = ["position_x", "position_y", "heading", "velocity_x", "velocity_y"]


def shuffled_columns(table, draw):
    return table[draw.sample(list(table.columns), len(table.columns))]


def shuffled_rows(table, draw):
    return table.sample(frac=1, random_state=draw.randrange(10**6))


def renamed(table, draw):
    name = draw.choice(list(table.columns))
    return table.rename(columns={name: draw.choice([name.upper(), f" {name}", f"{name}.1", "x"])})


def doubled(table, draw):
    row = draw.randrange(len(table))
    return pd.concat([table.iloc[: row + 1], table.iloc[row:]])


def blanked(table, draw):
    table = table.astype(object)
    table.iloc[draw.randrange(len(table)), draw.randrange(table.shape[1])] = draw.choice(
        ["", "NA", "?", " "]
    )
    return table


def sentinel(table, draw):
    table = table.astype(object)
    column = draw.choice([*STATE, "length", "width", "timestep"])
    rows = draw.sample(range(len(table)), draw.choice([1, 3, 40]))
    table.iloc[rows, table.columns.get_loc(column)] = draw.choice(
        [-9999, 1e30, 1e20, 9.96921e36, -99999]
    )
    return table


def other_unit(table, draw):
    columns, change = draw.choice(
        [
            (["heading"], np.degrees),
            (["heading"], lambda v: np.pi / 2 - v),
            (["velocity_x", "velocity_y"], lambda v: 3.6 * v),
            (["velocity_x", "velocity_y"], lambda v: 0.1 * v),
            (["position_x", "position_y"], lambda v: v / 0.3048),
            (["position_x", "position_y"], lambda v: 100 * v),
            (["length", "width"], lambda v: 100 * v),
            (["timestep"], lambda v: v / 10),
            (["timestep"], lambda v: v + 1),
        ]
    )
    return table.assign(**{name: change(table[name]) for name in columns})


def other_type(table, draw):
    name = draw.choice(["Car", "van", "VEHICLE", "static", "", "TYPE_VEHICLE", "Bicycle"])
    rows = table["track_id"] == draw.choice(table["track_id"].unique().tolist())
    return table.assign(object_type=table["object_type"].where(~rows, name))


def elsewhere(table, draw):
    rows = draw.choice([table["track_id"] == "track1", table["position_x"] > -1e9])
    away = draw.choice([1e3, 5e4, 5.6e6])
    return table.assign(position_y=table["position_y"].where(~rows, table["position_y"] + away))


TABLES = [
    shuffled_columns,
    shuffled_rows,
    renamed,
    doubled,
    blanked,
    sentinel,
    other_unit,
    other_type,
]
TABLES += [elsewhere]


def cut(text, draw):
    """Anywhere but at the end of a line, where nobody can tell."""
    return text[: draw.randrange(10, len(text))].removesuffix("\n")


def cell_more_or_less(text, draw):
    lines = text.split("\n")
    row = draw.randrange(1, len(lines) - 1)
    lines[row] = draw.choice([f"{lines[row]},1", lines[row].rpartition(",")[0], ""])
    return "\n".join(lines)


def other_dialect(text, draw):
    return draw.choice(
        [
            text.replace(",", ";"),
            text.replace(".", ","),
            text.replace("\n", "\r\n"),
            f"\ufeff{text}",
        ]
    )


TEXTS = [cut, cell_more_or_less, other_dialect]
MUTATIONS = TABLES + TEXTS
# What other types of a track become.
KNOWN = {"car": "vehicle", "bicycle": "cyclist"}


def by_pandas(path):
    """{(scenario, track): (class, size, states by step)}, by the names of the columns alone."""
    table = pd.read_csv(path, dtype={"track_id": str, "scenario_id": str}, encoding="utf-8-sig")
    found = {}
    for key, rows in table.groupby(["scenario_id", "track_id"]):
        kind = rows["object_type"].iloc[0].lower()
        if kind == "static":
            continue
        state = np.full((91, 5), np.nan)
        state[rows["timestep"].to_numpy()] = rows[STATE].to_numpy()
        found[key] = CLASS[KNOWN.get(kind, kind)], rows[["length", "width"]].iloc[0].tolist(), state
    return found


def by_millrace(base):
    (files,) = find_recordings(base)
    return {
        (one.name, track): (
            one.kind_A[a],
            one.size_A2[a].tolist(),
            np.concatenate([one.pose_AT3[a], one.velocity_AT2[a]], axis=1),
        )
        for one in checked(files.tracks, files.map, read_recording(files))
        for a, track in enumerate(one.track_A)
    }


def same(one, other):
    return one.keys() == other.keys() and all(
        one[key][:2] == other[key][:2]
        and np.array_equal(one[key][2], other[key][2], equal_nan=True)
        for key in one
    )


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    base = tmp_path_factory.mktemp("clean")
    source = np.random.default_rng(0)
    write_recording(base, "place", [motion_scenes.scenario(f"scene{i}", source) for i in range(2)])
    return base


@pytest.mark.slow
def test_mutated_recordings_are_read_rightly_or_refused_with_their_file(clean, tmp_path):
    whole = by_millrace(clean)
    path = tmp_path / "tracks/place.csv"
    text = (clean / "tracks/place.csv").read_text()
    table = pd.read_csv(clean / "tracks/place.csv")

    def write(mutation, draw):
        shutil.rmtree(tmp_path / "tracks", ignore_errors=True)
        shutil.copytree(clean, tmp_path, dirs_exist_ok=True)
        if mutation in TABLES:
            mutation(table, draw).to_csv(path, index=False)
        else:
            path.write_bytes(mutation(text, draw).encode())
        return path

    def fault(found, mutation):
        if not same(found, by_pandas(path)):
            return "not as pandas reads it"
        if mutation is not other_type and not same(found, whole):
            return "other samples without a message"
        return None

    refused = try_mutations(MUTATIONS, write, lambda: by_millrace(tmp_path), fault)
    assert NUMBER / 3 < refused < NUMBER

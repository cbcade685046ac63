import json

import h5py
import numpy as np
import pytest
import torch
from scipy.spatial import Delaunay

from millrace.data.hdf5 import create, create_dataset, strings
from millrace.data.split import SplitConfig
from millrace.errors import ConfigError, DataError
from millrace.systems.groundwater.hdf5_parts import group_names
from millrace.systems.groundwater.layered_mesh import LayeredMesh
from millrace.systems.groundwater.plane_dataset import PlaneDataset
from millrace.systems.groundwater.plane_folders import convert_plane_folders
from millrace.systems.groundwater.planes import PlaneConfig, extract_planes
from millrace.systems.groundwater.settings import PlaneWindowConfig

ORIGIN = np.array([334_600.0, 6_249_800.0])
TRANSECT = ((334_602.0, 6_249_830.0), (334_698.0, 6_249_830.0))


def _mesh(slices=4, same_plan=True, seed=0):
    """A sheared block, 100 m x 60 m: its top falls and its base rises towards X = 100 m."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 100, 11), np.linspace(0, 60, 7))
    outline = np.column_stack([x.ravel(), y.ravel()])
    outline = outline[(outline % [100, 60] == 0).any(axis=1)]
    plans = [np.concatenate([outline, random.uniform(0, 1, (80, 2)) * [100, 60]])]
    for _ in range(1, slices):
        fresh = np.concatenate([outline, random.uniform(0, 1, (70, 2)) * [100, 60]])
        plans.append(plans[0] if same_plan else fresh)
    coords = []
    for layer, plan in enumerate(plans):
        top, base = 2 - 0.02 * plan[:, 0], -20 + 0.05 * plan[:, 0]
        z = top + layer / (slices - 1) * (base - top)
        coords.append(np.column_stack([plan + ORIGIN, z]))
    number = np.repeat(np.arange(1, slices + 1), [len(c) for c in coords])
    return np.concatenate(coords), number


def _write_series(path, coords, number, *, steps=90, forcings=("head_bc", "mass_concentration_bc")):
    """Fields that are linear in X, Y, Z with coefficients that change in time."""
    time = np.arange(steps) * 0.476
    x, y = (coords[:, :2] - ORIGIN).T
    swing = np.sin(time)[:, None]
    head = 0.5 - 0.004 * x + swing * (0.01 * coords[:, 2] + 0.002 * y)
    salt = 200 * x - 30 * y + 500 * swing * coords[:, 2]
    obs = np.stack([head, salt], axis=2)
    fixed = (x < 1e-6) | (x > 100 - 1e-6)
    fixed |= (x < 4) & (number == 1)  # only these lie near the transect for certain
    forcing = np.stack([head + 1, salt + 1], axis=2) * fixed[:, None]
    mask = np.repeat(np.repeat(fixed[None, :, None], steps, 0), 2, 2)
    mask[: steps // 2, :, 1] = False
    with create(path) as file:
        file.attrs.update(schema="millrace.series/1", digest="source")
        create_dataset(file, "time", time)
        create_dataset(file, "split", np.array([[0, 40], [45, 65], [70, steps]]))
        create_dataset(file, "node", np.arange(len(coords)))
        create_dataset(file, "slice", number.astype(np.int32))
        create_dataset(file, "coords", coords)
        create_dataset(file, "obs", obs.astype(np.float32))
        create_dataset(file, "forcing", (forcing * mask)[..., : len(forcings)].astype(np.float32))
        given = mask[..., : len(forcings)].astype(np.uint8)
        create_dataset(file, "forcing_mask", given)
        file["obs"].attrs["variables"] = strings(["head", "mass_concentration"])
        file["obs"].attrs["units"] = strings(["m", "mg/L"])
        file["forcing"].attrs["variables"] = strings(forcings)
    return obs, forcing, fixed


@pytest.mark.parametrize("same_plan", [True, False])
def test_interpolation_is_exact_for_linear_fields(same_plan):
    coords, number = _mesh(same_plan=same_plan)
    columns = LayeredMesh(coords, number).columns(
        np.column_stack([np.linspace(1, 99, 15), np.linspace(5, 50, 15)]) + ORIGIN
    )
    z_W = np.linspace(-22, 3, 30)
    weights, inside = columns.interpolation(z_W)
    assert columns.inside_H.all()
    x, y = np.linspace(1, 99, 15)[:, None], np.linspace(5, 50, 15)[:, None]
    expected = 3 + 0.02 * x - 0.01 * y + 0.5 * z_W
    local = coords - [*ORIGIN, 0]
    field = (weights @ (3 + local @ [0.02, -0.01, 0.5])).reshape(15, 30)
    np.testing.assert_allclose(field[inside], expected[inside], atol=1e-9)
    assert not field[~inside].any()
    exact = (z_W <= 2 - 0.02 * x) & (z_W >= -20 + 0.05 * x)
    np.testing.assert_array_equal(inside, exact)


@pytest.mark.parametrize("same_plan", [True, False])
def test_slices_that_are_the_same_in_plan_view_share_their_triangles(same_plan, monkeypatch):
    coords, number = _mesh(same_plan=same_plan)
    made = []
    monkeypatch.setattr(
        "millrace.systems.groundwater.layered_mesh.Delaunay",
        lambda plan: made.append(len(plan)) or Delaunay(plan),
    )
    mesh = LayeredMesh(coords, number)
    assert len(made) == (1 if same_plan else 4)
    nodes = mesh.columns(ORIGIN + np.array([[50, 30]])).node_LH3[:, 0]
    assert number[nodes].tolist() == [[layer] * 3 for layer in (1, 2, 3, 4)]


def test_bays_are_no_part_of_the_mesh():
    x, y = np.meshgrid(np.arange(0, 101, 5.0), np.arange(0, 101, 5.0))
    plan = np.column_stack([x.ravel(), y.ravel()])
    plan = plan[(np.abs(plan[:, 0] - 50) > 25) | (plan[:, 1] < 40)]  # a bay 50 m wide
    coords = np.concatenate([np.column_stack([plan, np.full(len(plan), z)]) for z in (0.0, -5.0)])
    mesh = LayeredMesh(coords, np.repeat([1, 2], len(plan)))
    inside = mesh.covers(np.array([[50, 20], [50, 80], [10, 80], [50, 95.0]]))
    assert inside.tolist() == [True, False, True, False]


def test_planes_hold_fields_masks_and_boundary(tmp_path):
    coords, number = _mesh()
    _, forcing, fixed = _write_series(tmp_path / "series.h5", coords, number)
    calls = []
    config = PlaneConfig(transects=(TRANSECT,), shape=(12, 10))
    extract_planes(
        tmp_path / "series.h5", tmp_path / "planes.h5", config, lambda *a: calls.append(a)
    )
    assert calls[-1] == (90, 90)
    with h5py.File(tmp_path / "planes.h5") as file:
        assert group_names(file) == ["plane_00"]
        assert list(file.attrs["variables"]) == ["head", "mass_concentration"]
        assert file.attrs["source_digest"] == "source"
        plane = {name: data[()] for name, data in file["plane_00"].items()}
        stats = {name: data[()] for name, data in file["stats"].items()}
        time = file["time"][()]
    s_HW, z_HW = plane["coords"][..., 0], plane["coords"][..., 1]
    mask = plane["mask"].astype(bool)
    x, y = s_HW + 2, 30.0
    np.testing.assert_array_equal(
        mask, (z_HW <= 2.000001 - 0.02 * x) & (z_HW >= -20.000001 + 0.05 * x)
    )
    swing = np.sin(time)[:, None, None]
    head = 0.5 - 0.004 * x + swing * (0.01 * z_HW + 0.002 * y)
    salt = 200 * x - 30 * y + 500 * swing * z_HW
    exact = np.stack([head, salt], axis=3)
    np.testing.assert_allclose(plane["field"][:, mask], exact[:, mask], rtol=1e-5, atol=1e-5)
    assert not plane["field"][:, ~mask].any()
    assert np.isfinite(plane["field"]).all()

    local = coords - [*ORIGIN, 0]
    spacing = LayeredMesh(coords, number).spacing
    near = fixed & (np.abs(local[:, 1] - 30) <= spacing / 2) & (local[:, 0] >= 2 - spacing / 2)
    nodes = np.flatnonzero(near & (local[:, 0] <= 98 + spacing / 2))
    assert len(nodes) > 0
    np.testing.assert_allclose(plane["bc_coords"][:, 1], coords[nodes, 2])
    np.testing.assert_allclose(
        plane["bc_coords"][:, 0], (local[nodes, 0] - 2).clip(0, 96), atol=1e-6
    )
    assert plane["bc_mask"][:, :, 0].all()
    assert not plane["bc_mask"][:45, :, 1].any()
    np.testing.assert_allclose(plane["bc"][:, :, 0], forcing[:, nodes, 0], rtol=1e-5)
    assert not plane["bc"][:45, :, 1].any()

    np.testing.assert_allclose(stats["obs_mean"], exact[:40, mask].mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(stats["obs_std"], exact[:40, mask].std(axis=(0, 1)), rtol=1e-5)
    change = np.diff(exact[:40, mask], axis=0).reshape(-1, 2).std(axis=0)
    np.testing.assert_allclose(stats["increment_std"], change, rtol=1e-4)
    np.testing.assert_allclose(stats["bc_mean"][0], forcing[:40, nodes, 0].mean(), rtol=1e-5)
    assert stats["bc_mean"][1] == 0


def test_slabs_do_not_change_the_result(tmp_path, monkeypatch):
    coords, number = _mesh()
    _write_series(tmp_path / "series.h5", coords, number)
    config = PlaneConfig(count=3, shape=(8, 6))
    extract_planes(tmp_path / "series.h5", tmp_path / "whole.h5", config)
    monkeypatch.setattr("millrace.systems.groundwater.planes.SLAB_BYTES", 7 * 4 * 2 * len(coords))
    extract_planes(tmp_path / "series.h5", tmp_path / "slabs.h5", config)
    with h5py.File(tmp_path / "whole.h5") as whole, h5py.File(tmp_path / "slabs.h5") as slabs:
        assert slabs["plane_00/field"].chunks[0] == 7
        assert whole.attrs["digest"] == slabs.attrs["digest"]
        for name in ("field", "bc", "bc_mask"):
            for plane in group_names(whole):
                np.testing.assert_array_equal(whole[plane][name][()], slabs[plane][name][()])
        for name in whole["stats"]:
            np.testing.assert_allclose(
                whole["stats"][name][()], slabs["stats"][name][()], rtol=1e-9
            )


def test_sections_run_from_inland_to_the_sea(tmp_path):
    coords, number = _mesh()
    _write_series(tmp_path / "series.h5", coords, number)  # salt rises along X and falls along Y
    extract_planes(tmp_path / "series.h5", tmp_path / "p.h5", PlaneConfig(count=3, shape=(8, 6)))
    with h5py.File(tmp_path / "p.h5") as file:
        ends = np.stack([file[name]["endpoints"][()] for name in group_names(file)])
        masks = np.stack([file[name]["mask"][()] for name in group_names(file)])
    assert masks.any(axis=(1, 2)).all()
    direction = ends[:, 1] - ends[:, 0]
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    expected = np.array([200, -30]) / np.hypot(200, 30)
    np.testing.assert_allclose(direction, np.tile(expected, (3, 1)), atol=0.02)
    across = (ends[:, 0] - ends[0, 0]) @ [-direction[0, 1], direction[0, 0]]
    np.testing.assert_allclose(np.diff(across), np.diff(across).mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"transects": (((0.0, 0.0), (50.0, 0.0)),)}, "does not cross the aquifer"),
        (
            {"transects": (((334_640.0, 6_249_830.0), (334_660.0, 6_249_830.0)),)},
            "no node with a head or concentration boundary condition",
        ),
    ],
)
def test_sections_that_miss(tmp_path, config, message):
    coords, number = _mesh()
    _write_series(tmp_path / "series.h5", coords, number)
    with pytest.raises(ConfigError, match=message):
        extract_planes(
            tmp_path / "series.h5", tmp_path / "planes.h5", PlaneConfig.parse(config, "planes")
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["series.h5"]


def test_boundary_forcings_are_needed(tmp_path):
    coords, number = _mesh()
    _write_series(tmp_path / "series.h5", coords, number, forcings=("recharge_forcing",))
    with pytest.raises(ConfigError, match="none of head_bc, mass_concentration_bc"):
        extract_planes(tmp_path / "series.h5", tmp_path / "planes.h5", PlaneConfig(count=2))


def test_one_slice_is_no_mesh():
    coords, _ = _mesh()
    with pytest.raises(DataError, match="planes need at least 2"):
        LayeredMesh(coords, np.ones(len(coords), dtype=int))


# ---- folders of sequences


ALPHA, SPLIT = 4, SplitConfig(train=0.6, validation=0.2, gap=8)


def write_folders(base, *, planes=2, steps=64, channels=7, missing=-999.0, shape=(6, 5), points=3):
    """Sequences of a known field as the reference cuts them; returns the series."""
    random = np.random.default_rng(1)
    time = np.cumsum(random.uniform(0.4, 0.6, steps))
    truth = []
    for p in range(planes):
        s, z = np.meshgrid(
            np.linspace(0, 90, shape[0]), np.linspace(-20, 2, shape[1]), indexing="ij"
        )
        place = np.stack([1000 + 0.6 * s, 500 - 0.8 * s + 10 * p], axis=2)
        field = random.normal(size=(steps, *shape, 2))
        valid = z > -20 + 0.1 * s
        field[:, ~valid] = missing
        grid = np.concatenate([np.stack([s, z], 2), place], 2)
        full = np.concatenate([np.broadcast_to(grid, (steps, *grid.shape)), field], axis=3)
        times = np.broadcast_to(time[:, None, None, None], (*full.shape[:3], 1))
        full = np.concatenate([times, full], axis=3)  # T, S, Z, X, Y, head, mass concentration
        bc = random.normal(size=(steps, points, 2))
        bc[5, 1, 1] = missing
        bc_place = random.uniform(size=(points, 2)) * [90, -20]
        bc_geom = np.concatenate(
            [np.repeat(time[:, None, None], points, 1), np.tile(bc_place, (steps, 1, 1))], axis=2
        )
        starts = range(0, steps - 2 * ALPHA + 1, ALPHA // 2)
        past = [slice(i, i + ALPHA) for i in starts]
        future = [slice(i + ALPHA, i + 2 * ALPHA) for i in starts]
        folder = base / f"plane_{p:02d}"
        folder.mkdir(parents=True)
        for name, values in {
            "input_geom": [bc_geom[i].reshape(-1, 3) for i in past],
            "input_data": [bc[i].reshape(-1, 2) for i in past],
            "latent_geom": [full[i][..., :3] for i in past],
            "latent_features": [full[i][..., -channels:] for i in past],
            "output_latent_geom": [full[i][..., :3] for i in future],
            "output_latent_features": [full[i][..., -2:] for i in future],
        }.items():
            np.save(folder / f"{name}.npy", np.stack(values))
        truth.append((field, valid, bc, place))
    return time, truth


@pytest.mark.parametrize(("channels", "missing"), [(7, -999.0), (4, np.nan)])
def test_folders_become_series_again(tmp_path, channels, missing):
    time, truth = write_folders(tmp_path / "npy", channels=channels, missing=missing)
    convert_plane_folders(tmp_path / "npy", tmp_path / "planes.h5", None, SPLIT)
    with h5py.File(tmp_path / "planes.h5") as file:
        np.testing.assert_array_equal(file["time"][()], time)
        end = file["split"][0, 1]
        fields = []
        for name, (field, valid, bc, place) in zip(group_names(file), truth, strict=True):
            plane = file[name]
            np.testing.assert_array_equal(plane["mask"][()].astype(bool), valid)
            np.testing.assert_allclose(plane["field"][()][:, valid], field[:, valid], rtol=1e-6)
            assert not plane["field"][()][:, ~valid].any()
            fields.append(field[:end, valid].reshape(-1, 2))
            np.testing.assert_allclose(plane["endpoints"][()], place[[0, -1], 0], atol=1e-6)
            given = plane["bc_mask"][()].astype(bool)
            known = len(time) - ALPHA
            assert given[:known].sum() == known * 3 * 2 - 1
            assert not given[known:].any()
            assert not given[5, 1, 1]
            np.testing.assert_allclose(plane["bc"][()][given], bc[given], rtol=1e-6)
            assert plane["bc"][5, 1, 1] == 0
        np.testing.assert_allclose(
            file["stats/obs_mean"][()], np.concatenate(fields).mean(0), rtol=1e-5
        )


def _damage(name, change):
    def damage(base):
        path = base / "plane_01" / f"{name}.npy"
        np.save(path, change(np.load(path)))

    return damage


def _reversed_axes(values):
    return values[..., ::-1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda base: (base / "plane_01/input_data.npy").unlink(), r"input_data.npy: no such file"),
        (_damage("latent_features", lambda v: v[..., :5]), "the last of 4 or 7"),
        (_damage("latent_geom", lambda v: v.reshape(*v.shape[:2], -1, 3)), "with 5 axes"),
        (_damage("output_latent_features", lambda v: v[:, :, :-1]), "leading axes"),
        (_damage("input_geom", lambda v: v[:, :-1]), "leading axes"),
        (_damage("latent_geom", _reversed_axes), "T, S, Z order"),
        (_damage("output_latent_geom", lambda v: v + 0.01), "consecutive steps"),
        (_damage("latent_features", lambda v: v.astype(int)), "floating-point"),
        (_damage("latent_features", lambda v: np.full_like(v, -999)), "no cell has values"),
        (
            lambda base: (base / "plane_01/input_geom.npy").write_bytes(b"\x93NUMPY\x01"),
            "not a whole .npy file",
        ),
    ],
)
def test_damaged_folders_are_refused(tmp_path, damage, message):
    write_folders(tmp_path / "npy")
    damage(tmp_path / "npy")
    with pytest.raises(DataError, match=message):
        convert_plane_folders(tmp_path / "npy", tmp_path / "planes.h5", None, SPLIT)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["npy"]


@pytest.mark.parametrize(
    ("array", "at", "value", "words"),
    [
        ("output_latent_features", (-1, -1, 5, 4, -2), 1e30, "at cell 5, 4 .* in 'head'"),
        ("latent_features", (0, 0, 5, 4, -1), -9999, "at cell 5, 4 .* in 'mass_concentration'"),
        ("input_data", (0, 2, 1), 1e20, "at boundary point 2 .* in 'mass_concentration'"),
    ],
)
def test_no_data_values_besides_the_documented_ones_are_refused(tmp_path, array, at, value, words):
    time, _ = write_folders(tmp_path)
    path = tmp_path / "plane_01" / f"{array}.npy"
    values = np.load(path)
    values[at] = value
    np.save(path, values)
    when = f"{time[-1 if at[0] else 0]:g} d"
    with pytest.raises(DataError, match=rf"plane_01.*{words} looks like a no-data.*NaN") as caught:
        convert_plane_folders(tmp_path, tmp_path / "p.h5", None, SPLIT)
    assert when in str(caught.value)
    assert not (tmp_path / "p.h5").exists()


def test_missing_folders(tmp_path):
    with pytest.raises(DataError, match="one folder a plane"):
        convert_plane_folders(tmp_path, tmp_path / "planes.h5", None, SPLIT)


def test_what_becomes_of_planes_cells_and_points_is_counted(tmp_path):
    write_folders(tmp_path / "npy")
    path = tmp_path / "npy/plane_01/latent_features.npy"
    values = np.load(path)
    values[0, 1, 5, 4, -1] = np.nan  # at a time that no other sequence holds
    np.save(path, values)
    (tmp_path / "npy/notes").mkdir()
    convert_plane_folders(tmp_path / "npy", tmp_path / "planes.h5", None, SPLIT)
    found = json.loads((tmp_path / "samples.json").read_text())
    with h5py.File(tmp_path / "planes.h5") as file:
        kept = [int(file[name]["mask"][()].sum()) for name in group_names(file)]
    assert kept[1] == kept[0] - 1
    assert found["cells"]["kept"] == sum(kept)
    outside = 2 * (6 * 5 - kept[0])
    assert found["cells"]["left_out"] == {
        "without values at any time": outside, "without values at some times": 1
    }  # fmt: skip
    assert found["folders"] == {"read": 3, "kept": 2, "left_out": {"not named plane_XX": 1}}
    assert found["boundary points"] == {"read": 6, "kept": 6, "left_out": {}}
    assert found["time steps"]["kept"] == 64 - 2 * SPLIT.gap


def test_later_values_of_folders_change_no_training_sample_and_no_statistic(tmp_path):
    time, _ = write_folders(tmp_path / "npy")
    window = PlaneWindowConfig(input_steps=4, output_steps=4, stride=1, radius=0.6)
    made = []
    for name in ("before", "after"):
        for folder in (tmp_path / "npy").iterdir() if made else ():
            arrays = {path.stem: np.load(path) for path in folder.glob("*.npy")}
            for values, geometry in (
                ("latent_features", "latent_geom"),
                ("output_latent_features", "output_latent_geom"),
                ("input_data", "input_geom"),
            ):
                late = arrays[geometry][..., :1] >= time[len(made[0].starts("train")) + 7]
                states = arrays[values][..., -2:]
                states[...] = np.where(late & (states != -999), 3 * states + 1, states)
                np.save(folder / f"{values}.npy", arrays[values])
        convert_plane_folders(tmp_path / "npy", tmp_path / f"{name}.h5", None, SPLIT)
        made.append(PlaneDataset(tmp_path / f"{name}.h5", window))
    before, after = made
    assert before.digest != after.digest
    assert before.normalisation.to_json() == after.normalisation.to_json()
    windows = np.arange(len(before.starts("train")))
    for plane in (0, 1):
        one, other = (dataset.batch("train", plane, windows) for dataset in made)
        for name in ("x_NBC", "features_BFTHW", "y_KBTV"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    changed = [dataset.batch("test", 0, np.arange(2)).y_KBTV for dataset in made]
    assert not torch.equal(*changed)

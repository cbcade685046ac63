"""Patches cover the nodes once, and their halos reach sideways."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_info, threadpool_limits

from millrace.data.hdf5 import open_checked
from millrace.data.split import SplitConfig
from millrace.errors import ConfigError, DataError
from millrace.systems.groundwater.hdf5_parts import group_names
from millrace.systems.groundwater.patch_file import read_nodes
from millrace.systems.groundwater.patches import (
    SCHEMA,
    PatchConfig,
    extract_patches,
    length_scales,
    partition,
)
from millrace.systems.groundwater.series import preprocess

ORIGIN = (334_600, 6_249_800)


def layered_nodes(per_slice: int = 400, slices: int = 8, seed: int = 0):
    """Nodes of layers 3 m apart, some 25 m from their neighbours, in UTM coordinates."""
    random = np.random.default_rng(seed)
    plan = random.uniform(0, 50 * per_slice**0.5, (per_slice, 2)) + np.array(ORIGIN)
    top = 0.01 * (plan[:, 0] - 334_600)
    z = np.concatenate([top - 3 * layer for layer in range(slices)])
    coords = np.column_stack([np.tile(plan, (slices, 1)), z])
    return coords, np.repeat(np.arange(1, slices + 1), per_slice)


@pytest.fixture(scope="module")
def nodes():
    return layered_nodes()


@pytest.fixture(scope="module")
def patches(nodes):
    return partition(*nodes, PatchConfig())


def test_every_node_is_core_once(nodes, patches) -> None:
    assert len(patches) == 20
    core = np.concatenate([patch.core_node for patch in patches])
    assert np.array_equal(np.sort(core), np.arange(len(nodes[0])))
    assert core.dtype == patches[0].ghost_node.dtype == np.int64


def test_patches_lie_in_their_group_of_slices(nodes, patches) -> None:
    groups = np.array_split(np.arange(1, 9), 4)
    for number, patch in enumerate(patches):
        assert set(nodes[1][patch.core_node]) <= set(groups[number // 5])


def test_ghosts_are_others_and_few(nodes, patches) -> None:
    owner = np.empty(len(nodes[0]), dtype=int)
    for number, patch in enumerate(patches):
        owner[patch.core_node] = number
    for number, patch in enumerate(patches):
        assert len(np.unique(patch.ghost_node)) == len(patch.ghost_node) > 0
        owners = owner[patch.ghost_node]
        assert number not in owners
        limit = max(1, int(0.05 * len(patch.core_node)))
        assert np.bincount(owners).max() <= limit


def test_neighbourhood_is_symmetric(nodes, patches) -> None:
    owner = np.empty(len(nodes[0]), dtype=int)
    for number, patch in enumerate(patches):
        owner[patch.core_node] = number
    touches = np.zeros((20, 20), dtype=bool)
    for number, patch in enumerate(patches):
        touches[number, owner[patch.ghost_node]] = True
    np.testing.assert_array_equal(touches, touches.T)
    assert touches.any(axis=1).all()


def test_halos_reach_sideways_and_up_and_down(nodes, patches) -> None:
    """In metres, every ghost would lie above or below its patch."""
    sideways = vertical = 0
    for patch in patches:
        inside = np.isin(nodes[1][patch.ghost_node], nodes[1][patch.core_node])
        sideways += inside.sum()
        vertical += (~inside).sum()
    assert sideways > 0.2 * (sideways + vertical)
    assert vertical > 0.2 * (sideways + vertical)


def test_ghosts_are_the_nearest_of_their_patch(nodes) -> None:
    coords, slices = nodes
    few = partition(coords, slices, PatchConfig(ghost_fraction=0.02))
    many = partition(coords, slices, PatchConfig(ghost_fraction=1))
    scaled = coords / length_scales(coords, slices)
    owner = np.empty(len(coords), dtype=int)
    for number, patch in enumerate(many):
        owner[patch.core_node] = number
    for less, more in zip(few, many, strict=True):
        core = scaled[more.core_node]
        for neighbour in np.unique(owner[more.ghost_node]):
            ghosts = more.ghost_node[owner[more.ghost_node] == neighbour]
            chosen = less.ghost_node[owner[less.ghost_node] == neighbour]
            assert np.array_equal(chosen, ghosts[: len(chosen)])
            distance = np.linalg.norm(scaled[ghosts][:, None] - core, axis=2).min(axis=1)
            assert (np.diff(distance) > -1e-9).all()


def test_no_ghosts_on_request(nodes) -> None:
    assert all(len(p.ghost_node) == 0 for p in partition(*nodes, PatchConfig(ghost_fraction=0)))


def test_length_scales_are_the_typical_distances() -> None:
    x, y, layer = np.meshgrid(np.arange(5) * 20.0, np.arange(5) * 20.0, np.arange(3), indexing="ij")
    coords = np.stack([x, y, -3.0 * layer], -1).reshape(-1, 3)
    np.testing.assert_allclose(length_scales(coords, layer.ravel()), [20, 20, 3])
    one = layer.ravel() == 0
    np.testing.assert_allclose(length_scales(coords[one], layer.ravel()[one]), [20, 20, 20])


@pytest.mark.slow
def test_does_not_depend_on_threads_or_process(nodes, patches) -> None:
    code = """
        import sys, numpy as np
        sys.path.insert(0, sys.argv[1])
        from test_patches import layered_nodes
        from millrace.systems.groundwater.patches import PatchConfig, partition
        patches = partition(*layered_nodes(), PatchConfig())
        print([int(np.dot(p.core_node, np.arange(len(p.core_node)))) for p in patches])
        print([int(np.dot(p.ghost_node, np.arange(len(p.ghost_node)))) for p in patches])
    """
    answers = set()
    for threads in ("1", "3"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), os.path.dirname(__file__)],  # noqa: PTH120
            env={**os.environ, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        )
        answers.add(done.stdout)
    here = "".join(
        f"{[int(np.dot(nodes, np.arange(len(nodes)))) for nodes in group]}\n"
        for group in (
            [patch.core_node for patch in patches],
            [patch.ghost_node for patch in patches],
        )
    )
    assert answers == {here}


def test_clusters_are_sought_with_one_thread(monkeypatch) -> None:
    """Sums of several threads differ in the last digit, which seldom shows, but can."""
    threads = []

    class Spy(KMeans):
        def fit_predict(self, *args):
            threads.extend(pool["num_threads"] for pool in threadpool_info())
            return super().fit_predict(*args)

    monkeypatch.setattr("millrace.systems.groundwater.patches.KMeans", Spy)
    with threadpool_limits(2):
        partition(*layered_nodes(per_slice=50), PatchConfig())
    assert threads
    assert set(threads) == {1}


def test_neighbours_do_not_depend_on_how_many_are_sought_at_a_time(
    nodes, patches, monkeypatch
) -> None:
    monkeypatch.setattr("millrace.systems.groundwater.patches.TOGETHER", 700)
    for one, same in zip(patches, partition(*nodes, PatchConfig()), strict=True):
        np.testing.assert_array_equal(one.core_node, same.core_node)
        np.testing.assert_array_equal(one.ghost_node, same.ghost_node)


def test_clusters_of_many_nodes_are_sought_in_a_sample(nodes, monkeypatch) -> None:
    seen = []

    class Spy(KMeans):
        def fit(self, points, *args, **options):
            seen.append((len(points), self.n_init))
            return super().fit(points, *args, **options)

    monkeypatch.setattr("millrace.systems.groundwater.patches.KMeans", Spy)
    monkeypatch.setattr("millrace.systems.groundwater.patches.CLUSTERED", 300)
    made, again = (partition(*nodes, PatchConfig()) for _ in range(2))
    assert seen == [(300, 1)] * 8, "of 800 nodes in each group"
    core = np.concatenate([patch.core_node for patch in made])
    assert np.array_equal(np.sort(core), np.arange(len(nodes[0])))
    sizes = [len(patch.core_node) for patch in made]
    assert min(sizes) > 0.4 * max(sizes)
    for one, same in zip(made, again, strict=True):
        np.testing.assert_array_equal(one.core_node, same.core_node)
    other = partition(*nodes, PatchConfig(seed=1))
    assert any(len(a.core_node) != len(b.core_node) for a, b in zip(made, other, strict=True))


def test_another_seed_gives_other_patches(nodes, patches) -> None:
    others = partition(*nodes, PatchConfig(seed=1))
    assert any(
        not np.array_equal(a.core_node, b.core_node) for a, b in zip(patches, others, strict=True)
    )


@pytest.mark.parametrize(
    "values",
    [
        {"slice_groups": 0},
        {"clusters": 0},
        {"ghost_neighbours": 0},
        {"ghost_fraction": 1.5},
        {"ghost_fraction": float("nan")},
        {"seed": -1},
    ],
)
def test_meaningless_configurations_are_refused(values) -> None:
    with pytest.raises(ConfigError, match=rf"patches\.{next(iter(values))}: expected"):
        PatchConfig.parse(values, "patches")


def test_more_patches_than_there_is_room_for(nodes) -> None:
    coords, slices = layered_nodes(per_slice=2, slices=3)
    with pytest.raises(ConfigError, match="only 3 slices"):
        partition(coords, slices, PatchConfig(slice_groups=4))
    with pytest.raises(ConfigError, match="slices 1 to 1 have only 2 nodes"):
        partition(coords, slices, PatchConfig(slice_groups=3, clusters=5))


@pytest.fixture
def series(aquifer, tmp_path):
    path = tmp_path / "series.h5"
    preprocess(
        aquifer.base,
        path,
        variables=("mass_concentration", "head"),
        forcings=None,
        split=SplitConfig(train=0.6, validation=0.2, gap=1),
    )
    return path


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 3_000])
def test_patches_hold_the_rows_of_the_series(series, tmp_path, monkeypatch, chunk_bytes) -> None:
    """Also when the series is read in many slabs, the last of them not full."""
    monkeypatch.setattr("millrace.data.hdf5.CHUNK_BYTES", chunk_bytes)
    calls = []
    config = PatchConfig(slice_groups=2, clusters=2)
    extract_patches(series, tmp_path / "p.h5", config, lambda *step: calls.append(step))
    assert calls[-1] == (12, 12)
    assert (len(calls) > 2) == (chunk_bytes < 10_000)
    with (
        open_checked(series, "millrace.series/1") as source,
        open_checked(tmp_path / "p.h5", SCHEMA) as file,
    ):
        assert file.attrs["source_digest"] == source.attrs["digest"]
        assert list(file.attrs["variables"]) == ["mass_concentration", "head"]
        np.testing.assert_array_equal(file["node"][()], source["node"][()])
        assert list(file.attrs["forcings"])[3] == "sea_level_forcing"
        assert group_names(file) == [f"patch_{i:02d}" for i in range(4)]
        for name in ("time", "split", "stats/obs_mean", "stats/increment_std", "stats/forcing_std"):
            np.testing.assert_array_equal(file[name], source[name])
        for name in group_names(file):
            patch = file[name]
            rows = np.concatenate([patch["core_node"], patch["ghost_node"]])
            np.testing.assert_array_equal(patch["coords"], source["coords"][()][rows])
            for series_name in ("obs", "forcing", "forcing_mask"):
                expected = source[series_name][()][:, rows]
                np.testing.assert_array_equal(patch[series_name], expected)
                assert patch[series_name].dtype == expected.dtype
                assert patch[series_name].chunks[1:] == expected.shape[1:]
                assert patch[series_name].fletcher32


def test_slabs_fit_into_memory(series, tmp_path, monkeypatch) -> None:
    """Of 120 nodes, two fields and four forcings, whose states take 1,920 bytes a time."""
    config = PatchConfig(slice_groups=2, clusters=2)
    extract_patches(series, tmp_path / "whole.h5", config)
    monkeypatch.setattr("millrace.systems.groundwater.patches.SLAB_BYTES", 10_000)
    calls = []
    extract_patches(series, tmp_path / "slabs.h5", config, lambda *step: calls.append(step))
    assert calls == [(5, 12), (10, 12), (12, 12)]
    with (
        open_checked(tmp_path / "whole.h5", SCHEMA) as whole,
        open_checked(tmp_path / "slabs.h5", SCHEMA) as slabs,
    ):
        assert slabs["patch_00/obs"].chunks[0] == 5
        for name in group_names(whole):
            for one in ("obs", "forcing", "forcing_mask"):
                np.testing.assert_array_equal(whole[name][one], slabs[name][one])
    monkeypatch.setattr("millrace.systems.groundwater.patches.SLAB_BYTES", 10)
    extract_patches(series, tmp_path / "slabs.h5", config, lambda *step: calls.append(step))
    assert calls[3:] == [(step, 12) for step in range(1, 13)]


def test_digest_follows_series_and_configuration(series, tmp_path) -> None:
    digests = []
    for config in (
        PatchConfig(slice_groups=2, clusters=2),
        PatchConfig(slice_groups=2, clusters=2),
        PatchConfig(slice_groups=2, clusters=2, seed=1),
    ):
        extract_patches(series, tmp_path / "p.h5", config)
        with open_checked(tmp_path / "p.h5", SCHEMA) as file:
            digests.append(file.attrs["digest"])
    assert digests[0] == digests[1] != digests[2]


def test_a_damaged_series_leaves_nothing(series, tmp_path) -> None:
    data = bytearray(series.read_bytes())
    with open_checked(series, "millrace.series/1") as file:
        offset = file["obs"].id.get_chunk_info(5).byte_offset
    data[offset + 10] ^= 1
    series.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"series\.h5: truncated or damaged"):
        extract_patches(series, tmp_path / "p" / "p.h5", PatchConfig(slice_groups=2, clusters=2))
    assert list((tmp_path / "p").iterdir()) == []


def test_figures_call_nodes_by_their_ids_in_the_raw_files(aquifer, tmp_path) -> None:
    for path in [
        *(aquifer.base / "all").iterdir(),
        *(aquifer.base / "forcings_corrected_all").iterdir(),
    ]:
        header, *lines = path.read_text().splitlines()
        rows = [
            ",".join([str(7 * int(line.split(",")[0])), *line.split(",")[1:]]) for line in lines
        ]
        path.write_text("\n".join([header, *rows]) + "\n")
    split = SplitConfig(train=0.6, validation=0.2, gap=1)
    options = {"variables": ("head",), "forcings": None, "split": split}
    preprocess(aquifer.base, tmp_path / "series.h5", **options)
    extract_patches(tmp_path / "series.h5", tmp_path / "p.h5", PatchConfig(clusters=3))
    x, y, z = aquifer.coords[11]
    place = f"at X = {x:.1f}, Y = {y:.1f}, Z = {z:.1f} m"
    assert read_nodes(tmp_path / "p.h5").label(11) == f"node 84 {place}"

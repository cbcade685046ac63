"""Small samples that every part of the library can be tried on."""

import shutil
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest

from millrace.data.hdf5 import create, create_dataset, strings
from millrace.systems.groundwater.graph import radius_neighbours

pytest_plugins = ("times",)

# What a shell starts in the background ignores interrupts, and so would what the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

LATENT = (6, 6, 4)
RADIUS = 0.35


def pytest_addoption(parser):
    parser.addoption(
        "--regenerate-golden", action="store_true", help="write tests/golden/ anew from this code"
    )


# Lanes: tests that share something dear, or mostly wait for a scheduler, stay together on a worker. The
# longest come first, those that wait beside the busy ones.
_LONGEST = (
    *("slurm", "test_pbs_training", "test_parallel", "finished", "test_darcy"),
    *("test_launch", "test_reference_downscaler", "test_scaling_browser", "test_pbs_snakemake"),
    *("test_clusters", "test_systems_dag_downscaling", "test_systems_dag_weather"),
    *("test_systems_dag_traffic", "test_contract", "test_anywhere", "test_precision"),
    *("test_scaling_report", "test_watch", "test_checking", "test_scaling_measure"),
)


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items):
    """Other files are a group each: they have fixtures of their own."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    order = {group: number for number, group in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(_group(item), len(order)))


def _group(item):
    if item.path.parent.name == "slurm":  # there is only one on a machine
        return "slurm"
    if "finished" in item.fixturenames and not hasattr(item.module, "finished"):
        return "finished"
    given = getattr(item, "callspec", None)
    system = given.params.get("system") if given else None
    return f"{item.path.stem}_{system}" if system else item.path.stem


@pytest.fixture(autouse=True)
def disk_with_room(monkeypatch):
    """Whether a test finds room to keep something does not depend on the machine."""
    real = shutil.disk_usage

    def usage(path):
        found = real(path)
        return found._replace(free=found.total // 2)

    monkeypatch.setattr(shutil, "disk_usage", usage)


@pytest.fixture(scope="session")
def samples(tmp_path_factory):
    """Two patches of different sizes with a travelling wave: files of the dataset ``patches``."""
    directory = tmp_path_factory.mktemp("samples")
    files = {"patches": directory / "patches.h5", "graph": directory / "graph.h5"}
    write_samples(files["patches"], files["graph"])
    return files


@pytest.fixture(scope="session")
def other_samples(tmp_path_factory):
    """Another dataset, with patches of very different sizes."""
    directory = tmp_path_factory.mktemp("other_samples")
    files = {"patches": directory / "patches.h5", "graph": directory / "graph.h5"}
    write_samples(files["patches"], files["graph"], steps=100, sizes=((9, 3), (150, 12)))
    return files


def write_samples(patches: Path, graph: Path, steps: int = 90, sizes=((40, 8), (25, 5))) -> None:
    """Write `patches.h5` and its neighbour tables."""
    random = np.random.default_rng(7)
    n_core = sum(core for core, _ in sizes)
    coords = random.random((n_core, 3)) * [400.0, 300.0, 20.0] + [3e5, 6e6, -20.0]
    time = np.arange(steps) * 0.476
    obs, forcing = _wave(coords, time)
    obs_std = obs.reshape(-1, 2).std(axis=0)
    with create(patches) as file:
        file.attrs.update(schema="millrace.patches/1", digest=f"digest{steps}", source_digest="s")
        file.attrs["config"] = '{"clusters": 1}'
        file.attrs["variables"] = strings(["head", "mass_concentration"])
        file.attrs["forcings"] = strings(["sea_level_forcing"])
        create_dataset(file, "time", time)
        create_dataset(file, "split", np.array([[0, 50], [56, 72], [78, steps]]))
        stats = file.create_group("stats")
        stats["obs_mean"] = obs.reshape(-1, 2).mean(axis=0)
        stats["obs_std"] = obs_std
        stats["increment_std"] = np.diff(obs, axis=0).reshape(-1, 2).std(axis=0)
        stats["forcing_mean"], stats["forcing_std"] = [0.0], [0.5]
        first = 0
        for p, (core, ghost) in enumerate(sizes):
            core_node = np.arange(first, first + core)
            ghost_node = np.setdiff1d(np.arange(n_core), core_node)[:ghost]
            nodes = np.concatenate([core_node, ghost_node])
            group = file.create_group(f"patch_{p:02d}")
            group.attrs["slice_group"] = p
            values = {
                "core_node": core_node,
                "ghost_node": ghost_node,
                "coords": coords[nodes],
                "obs": obs[:, nodes].astype(np.float32),
                "forcing": forcing[:, nodes].astype(np.float32),
                "forcing_mask": (np.abs(forcing[:, nodes]) > 0).astype(np.uint8),
            }
            for name, value in values.items():
                create_dataset(group, name, value)
            first += core
    _write_graph(patches, graph, coords, sizes)


def _wave(coords, time):
    phase = 2 * np.pi * (time[:, None] / 5.3 - (coords[:, 0] - 3e5) / 900.0)
    head = 0.4 + 0.2 * np.sin(phase)
    salt = 17_000 + 9_000 * np.cos(phase / 2) * (coords[:, 2] / 40)
    forcing = np.where(coords[:, 0] < 3.001e5, np.sin(2 * np.pi * time / 5.3)[:, None], 0.0)
    return np.stack([head, salt], axis=2), forcing[:, :, None]


def _write_graph(patches, graph, coords, sizes) -> None:
    axes = [np.linspace(0, 1, n) for n in LATENT]
    latent = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    with create(graph) as file:
        file.attrs.update(schema="millrace.graph/1", digest="g", patches_digest="digest90")
        file.attrs.update(latent_shape=LATENT, radius=RADIUS)
        create_dataset(file, "latent", latent.astype(np.float32))
        with h5py.File(patches) as source:
            file.attrs["patches_digest"] = source.attrs["digest"]
            for p, (core, _) in enumerate(sizes):
                points = source[f"patch_{p:02d}/coords"][()]
                unit = (points - points.min(axis=0)) / np.ptp(points, axis=0)
                group = file.create_group(f"patch_{p:02d}")
                create_dataset(group, "unit_coords", unit.astype(np.float32))
                for side, of, at in (("in", unit, latent), ("out", latent, unit[:core])):
                    csr = radius_neighbours(of, at, RADIUS)
                    table = group.create_group(side)
                    create_dataset(table, "indptr", csr.indptr)
                    create_dataset(table, "index", csr.index)


@pytest.fixture(scope="session")
def definition():
    """Blocks of a small GINO experiment on `samples`."""
    return {
        "data": {
            "variables": ["head", "mass_concentration"],
            "forcings": ["sea_level_forcing"],
            "input_steps": 3,
            "output_steps": 2,
        },
        "model": {
            "name": "gino",
            "latent_shape": list(LATENT),
            "radius": RADIUS,
            "modes": [4, 4, 2],
            "hidden": 8,
            "layers": 2,
            "kernel_widths": [8],
        },
        "train": {"global_batch": 8, "learning_rate": 3e-3, "loss": {"kind": "mse"}},
    }

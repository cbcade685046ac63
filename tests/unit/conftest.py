"""Small planes that the windows and the model on planes are tried on; trainers, ranks and a browser."""

import copy
import os
import shutil
import subprocess
from pathlib import Path

import motion_scenes
import numpy as np
import pytest
import torch
from rank_worker import train
from travelling_waves import waves

from millrace.checking.ranks import on_ranks
from millrace.data.hdf5 import create
from millrace.data.recipe import recipe_of
from millrace.data.split import SplitConfig
from millrace.evaluation.trained_model import TrainedModel
from millrace.models import native
from millrace.systems import registry
from millrace.systems.downscaling.blocks import BlockConfig, extract_blocks
from millrace.systems.downscaling.simulator.climate import ClimateConfig, write_climate
from millrace.systems.groundwater.planes import PlaneWriter, Section
from millrace.systems.traffic.scenarios import TokenConfig, build_vocabulary, tokenise
from millrace.systems.weather.extract import WeatherConfig, extract_weather
from millrace.training.distributed import Ranks
from millrace.training.segment import build_trainer

STEPS = 74


@pytest.fixture(scope="session")
def alone():
    """This process as the only rank."""
    return Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="session")
def experiments(samples, definition, plane_samples, block_samples, motion_samples, weather_samples):
    """A small definition and the files of its samples, for every model."""
    planes = {
        "data": {"input_steps": 4, "output_steps": 4, "stride": 2, "radius": 0.4},
        "model": {
            "name": "gfno",
            "gno_channels": 4,
            "kernel_widths": [8],
            "modes": [3, 4, 4],
            "hidden": 8,
            "layers": 2,
        },
        "train": {"global_batch": 4, "learning_rate": 3e-3, "loss": {"kind": "mse"}},
    }
    blocks = {
        "data": {},
        "model": {"name": "downscaler", "channels": [8, 8, 8], "embedding": 8},
        "train": {"global_batch": 4, "learning_rate": 3e-3, "ema": 0.9},
    }
    flat = {**blocks, "model": {"name": "regression", "channels": [8, 8, 8]}}
    motion = {
        "data": {"buckets": 2},
        "model": {
            "name": "smart",
            "hidden": 8,
            "heads": 2,
            "map_layers": 1,
            "layers": 2,
            "bands": 4,
            "past": 3,
            "map_neighbours": 48,
        },
        "train": {"global_batch": 4, "learning_rate": 3e-3},
    }
    weather = {
        "data": {},
        "model": {
            "name": "aurora",
            "embed_dim": 16,
            "encoder_depths": [1, 2, 1],
            "decoder_depths": [1, 2, 1],
            "encoder_heads": [2, 2, 4],
            "decoder_heads": [4, 2, 2],
            "perceiver_heads": 2,
            "latent_levels": 3,
            "patch_size": 2,
            "window": [2, 4, 4],
        },
        "train": {"global_batch": 4, "learning_rate": 3e-3, "loss": {"kind": "mae"}},
    }
    return {
        "aurora": (weather, {"weather": str(weather_samples)}),
        "downscaler": (blocks, {"blocks": str(block_samples)}),
        "regression": (flat, {"blocks": str(block_samples)}),
        "smart": (motion, {"scenarios": str(motion_samples)}),
        "gino": (definition, {role: str(path) for role, path in samples.items()}),
        "gfno": (planes, {"planes": str(plane_samples)}),
    }


@pytest.fixture
def saved(experiments, tmp_path):
    """Checkpoint of an untrained model in a directory of its own, and the model with its samples."""

    def make(name, without=()):
        definition, files = copy.deepcopy(experiments[name])
        trainer, _ = build_trainer(definition, files, 0, Ranks(0, 1, torch.device("cpu")))
        recipe = recipe_of(registry.kind_of(name).name, definition, trainer.dataset)
        state = {**trainer.state(), "identity": "a run", "recipe": recipe}
        path = tmp_path / "alone/model.ckpt"
        path.parent.mkdir()
        torch.save({key: value for key, value in state.items() if key not in without}, path)
        return path, TrainedModel(trainer.spec, trainer.module.eval(), trainer.dataset), files

    return make


@pytest.fixture(scope="session")
def train_on_ranks(tmp_path_factory):
    """Run `rank_worker.train` on some ranks: (ranks, definition, files, steps, execution, parallel) ->
    result."""

    def run(ranks, definition, files, steps, execution=None, parallel=None):
        job = {"definition": definition, "files": files, "steps": steps}
        job |= {"execution": execution or {}, "parallel": parallel or {}}
        directory = tmp_path_factory.mktemp("ranks")
        return on_ranks(ranks, train, job, directory=directory)

    return run


@pytest.fixture(scope="session")
def weather_samples(tmp_path_factory):
    """A `weather.h5`: waves that travel east over a grid of 16 x 32 cells with three levels."""
    directory = tmp_path_factory.mktemp("weather")
    waves(STEPS).to_netcdf(directory / "weather.nc")
    config = WeatherConfig(surface=("2t", "msl"), air=("z", "u"), static=("lsm",))
    split = SplitConfig(train=0.5, validation=0.25, gap=4)
    extract_weather(directory / "weather.nc", directory / "weather.h5", config, split)
    return directory / "weather.h5"


@pytest.fixture(scope="session")
def block_samples(tmp_path_factory):
    """A `blocks.h5` of the demo climate: 80 blocks of 16 cells, 24 steps."""
    directory = tmp_path_factory.mktemp("blocks")
    write_climate(ClimateConfig(level=2, steps=24, steps_per_file=12), directory / "raw")
    split = SplitConfig(train=0.5, validation=0.25, gap=1)
    extract_blocks(directory / "raw", directory / "blocks.h5", BlockConfig(levels=2), split)
    return directory / "blocks.h5"


@pytest.fixture(scope="session")
def motion_tracks(tmp_path_factory):
    """Directory of tracks: twelve small scenes in two recordings."""
    base = tmp_path_factory.mktemp("tracks")
    motion_scenes.write(base)
    return base


@pytest.fixture(scope="session")
def motion_samples(motion_tracks, tmp_path_factory):
    """A `scenarios.h5`."""
    directory = tmp_path_factory.mktemp("scenarios")
    config = TokenConfig(
        motion=64, road=16, tolerance=0.2, train=0.6, validation=0.2, block=1, seed=25
    )
    build_vocabulary(motion_tracks, directory / "vocabulary.h5", config)
    tokenise(motion_tracks, directory / "vocabulary.h5", directory / "scenarios.h5", config)
    return directory / "scenarios.h5"


@pytest.fixture(scope="session")
def plane_samples(tmp_path_factory):
    """A `planes.h5`: two sections with a travelling wave, masked corners and gaps in the boundary."""
    path = tmp_path_factory.mktemp("planes") / "planes.h5"
    time = np.arange(STEPS) * 0.476
    split = np.array([[0, 30], [38, 50], [58, 74]])
    with create(path) as file:
        writer = PlaneWriter(file, time, split, ["head", "mass_concentration"])
        for number, points in enumerate((5, 7)):
            section = _section(number, points)
            writer.add_plane(section, slab=16)
            field = _wave(time[:, None, None], *np.moveaxis(section.coords_HW2, 2, 0))
            writer.write_field(number, 0, field)
            given = np.ones((STEPS, points, 2), dtype=bool)
            given[::3, 0, 1] = False
            values = _wave(time[:, None], *section.bc_coords_M2.T)
            writer.write_boundary(number, 0, values, given)
        writer.finish("source", {}, ["m", "mg/L"])
    return path


def _section(number, points):
    s, z = np.meshgrid(np.linspace(0, 90, 7), np.linspace(-20, 2, 6), indexing="ij")
    ends = np.array([[1000.0, 510.0], [1054.0, 438.0]]) - [0, 18 * number]
    share = np.linspace(0.03, 0.98, points)  # off the lattice of cells: no ties at the radius
    bc = np.column_stack([90 * share, -20 + 22 * share**0.8])
    return Section(ends, np.stack([s, z], axis=2), z > -20 + 0.1 * s + number, bc)


def _wave(time, s, z):
    phase = 2 * np.pi * (time / 5.3 - s / 300)
    head = 0.4 + 0.2 * np.sin(phase) + 0.002 * z
    return np.stack([head, 17_000 + 150 * s + 2_000 * np.cos(phase / 2)], axis=-1)


def installed(package, *programs):
    """Path of one of these programs; as root on Debian their package is installed."""
    found = next(filter(None, map(shutil.which, programs)), None)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (
            ["apt-get", "-qq", "update"],
            ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *package.split()],
        ):
            subprocess.run(command, env=environment, capture_output=True, check=False)
        found = next(filter(None, map(shutil.which, programs)), None)
    return found


@pytest.fixture(scope="session")
def compiler():
    """A C compiler, without which kernels are left to PyTorch."""
    found = installed("gcc libc6-dev", "gcc", "cc")
    if found is None:
        pytest.skip("there is no C compiler, and it cannot be installed here")
    return found


@pytest.fixture
def compile_for(compiler, monkeypatch):
    """Have kernels compiled for a kind of processor, as -march names it, and no others found."""

    def change(march):
        if march == "haswell" and "avx2" not in Path("/proc/cpuinfo").read_text():
            pytest.skip("this processor has no AVX2")
        flags = [flag.replace("-march=native", f"-march={march}") for flag in native.FLAGS]
        monkeypatch.setattr(native, "FLAGS", (*flags,))
        forget()

    def forget():
        native.has.cache_clear()
        native.library.cache_clear()

    yield change
    forget()


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium."""
    found = installed("chromium", "chromium", "chromium-browser")
    if found is None:
        pytest.skip("there is no Chromium, and it cannot be installed here")

    def run(*options):
        fixed = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
        command = [found, *fixed, *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    return run

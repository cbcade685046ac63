"""What is exported gives what the checkpoint gives, and runs where this library is not."""

import json
import subprocess
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from array_fields import independent, series
from safetensors.torch import load_file
from tiers import slow_for

from millrace.config import Settings
from millrace.errors import ConfigError
from millrace.evaluation.arrays import physical
from millrace.evaluation.export import main
from millrace.evaluation.export_formats import FORMATS
from millrace.evaluation.exporting import ExportError, export
from millrace.evaluation.loaded import load
from millrace.evaluation.program import Program, Scaling, Value
from millrace.models.spec import ModelSpec
from millrace.systems import registry
from millrace.systems.base import Model, System
from millrace.systems.traffic.program import next_token_program

NAMES = ["gino", "gfno", "regression", "downscaler", "aurora", "smart"]
ELSEWHERE = """
import sys
for name in ("millrace", "neuralop", "diffusers", "scipy", "xarray", "h5py"):
    sys.modules[name] = None  # as if it were not installed
import json, torch
kind, *paths = sys.argv[1:]
for path in paths:
    example = torch.load(path + ".example", weights_only=True)
    about = json.load(open(path.replace(".pt2", ".json")))
    if kind == "aoti":
        run = torch._inductor.aoti_load_package(path)
    else:
        run = torch.export.load(path).module()
    for samples in (1, 3):
        given = [example["input." + one["name"]] for one in about["inputs"]]
        given = [
            torch.cat([x, x])[:samples] if one["axes"][0] == "batch" else x
            for x, one in zip(given, about["inputs"], strict=True)
        ]
        made = run(*given)
        made = [made] if isinstance(made, torch.Tensor) else made
        for x, one in zip(made, about["outputs"], strict=True):
            expected = example["output." + one["name"]]
            expected = torch.cat([expected, expected])[:samples]
            assert x.shape == expected.shape, (path, x.shape, expected.shape)
            torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
"""


def run_elsewhere(kind, output, example):
    torch.save(load_file(example), f"{output}.example")
    run = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, kind, str(output)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "name",
    slow_for(
        NAMES,
        lambda name: name != "gfno",  # the others are traced for longer
    ),
)
def test_programs_run_elsewhere_with_any_number_of_samples(saved, tmp_path, name):
    path, trained, files = saved(name)
    output, example = tmp_path / "model.pt2", tmp_path / "example.safetensors"
    arguments = ["--checkpoint", str(path), "--output", str(output), "--device", "cpu"]
    assert main([*arguments, "--example", str(example)]) == 0
    about = json.loads(output.with_suffix(".json").read_text())
    assert about["difference"] < 1e-5
    assert about["model"] == name
    run_elsewhere("program", output, example)
    if name in OTHERS:
        OTHERS[name](torch.export.load(output).module(), about, trained, files)


def on_another_mesh(run, about, trained, files):
    """The smaller of the two patches, straight from the files."""
    config, start = trained.dataset.config, 5
    with h5py.File(files["patches"]) as file, h5py.File(files["graph"]) as graph:
        given = {name: values[()] for name, values in file["patch_01"].items()}
        columns = [list(file.attrs["variables"]).index(name) for name in config.variables]
        forced = [list(file.attrs["forcings"]).index(name) for name in config.forcings]
        sides = [graph["patch_01"][side] for side in ("in", "out")]
        tables = [side[name][()] for side in sides for name in ("indptr", "index")]
    now = start + config.input_steps
    states = given["obs"][None, start:now][..., columns]
    ahead = slice(now, now + config.output_steps)
    forcing = np.where(given["forcing_mask"], given["forcing"], np.nan)[None, ahead][..., forced]
    values = [states, given["coords"], *([forcing] if forced else []), *tables]
    dtypes = [getattr(torch, one["dtype"]) for one in about["inputs"]]
    made = run(*(torch.from_numpy(x).to(to) for x, to in zip(values, dtypes, strict=True)))
    batch = trained.dataset.at_times(1, np.array([start]))
    expected = trained.dataset.to_physical(trained(batch)).transpose(1, 2, 0, 3)
    assert made.shape[2] == 25
    np.testing.assert_allclose(made, expected, rtol=1e-5)


def after_more_tokens(run, about, trained, _):
    """Of more scenarios, with four tokens in place of two."""
    free, n = about["free_axes"], 4
    batch = trained.dataset.gather(np.arange(3), free["agent"] + 2, free["segment"] + 9)
    token, pose, valid, light = (
        getattr(batch, name)[:, :, :n].contiguous()
        for name in ("token_BAK", "pose_BAK3", "valid_BAK", "light_BMK")
    )
    agents = (batch.kind_BA, batch.size_BA2, token, pose, valid)
    road = (batch.road_token_BM, batch.road_type_BM, batch.road_pose_BM3, batch.road_valid_BM)
    probability, path = run(*agents, *road, light)
    with torch.no_grad():
        logits = trained.module.decode(trained.module.encode_map(batch), *agents)[:, :, -1]
    expected = logits.softmax(dim=-1) * valid[:, :, -1:]
    torch.testing.assert_close(probability, expected, rtol=1e-5, atol=1e-6)
    best = expected.argmax(dim=-1)
    poses = trained.module.token_poses(pose[:, :, -1], batch.kind_BA, best)[:, :, 1:]
    chosen = path.gather(2, best[:, :, None, None, None].expand(-1, -1, 1, *path.shape[3:]))[
        :, :, 0
    ]
    there = valid[:, :, -1]
    torch.testing.assert_close(chosen[there], poses[there])


OTHERS = {"gino": on_another_mesh, "smart": after_more_tokens}


@pytest.mark.nightly  # half a minute of compiling each
@pytest.mark.parametrize("name", NAMES)
def test_packages_run_elsewhere(saved, tmp_path, name):
    path, trained, _ = saved(name)
    output, example = tmp_path / "model.pt2", tmp_path / "example.safetensors"
    arguments = ["--checkpoint", str(path), "--output", str(output), "--device", "cpu"]
    assert main([*arguments, "--to", "aoti", "--example", str(example)]) == 0
    about = json.loads(output.with_suffix(".json").read_text())
    assert about["difference"] < 1e-5
    assert (about["model"], about["format"]) == (name, "aoti")
    assert "contiguous" in about["notes"][-1]
    run_elsewhere("aoti", output, example)
    if name == "smart":
        run = torch._inductor.aoti_load_package(str(output))
        sizes = [
            one["shape"][1] for one in about["inputs"] if one["name"] in ("kind", "road_token")
        ]
        after_more_tokens(
            run, {"free_axes": {"agent": sizes[0] - 2, "segment": sizes[1] - 9}}, trained, None
        )


def test_a_package_of_smart_takes_the_largest_scenario_and_any_history(saved):
    _, trained, files = saved("smart")
    with h5py.File(files["scenarios"]) as file:
        first = {kind: file["first"][kind][()] for kind in ("agent", "road")}
    most = {kind: int(np.diff(rows).max()) for kind, rows in first.items()}
    package = next_token_program(trained).package
    assert package.free == {"batch": 1, "token_step": 2}
    named = (zip(one.axes, one.tensor.shape, strict=True) for one in package.inputs)
    sizes = {axis: size for pairs in named for axis, size in pairs}
    assert most["agent"] < sizes["agent"] == trained.module.config.agent_neighbours + 1
    assert sizes["segment"] == most["road"] > trained.module.config.map_neighbours + 1
    assert "fill up" in package.notes[-1]


def test_a_program_of_the_weather_goes_on_from_states_in_physical_units(saved, weather_samples):
    path, trained, _ = saved("aurora")
    model = load(path, device="cpu")
    with xr.open_dataset(weather_samples.parent / "weather.nc") as file:
        states = file.load().isel(time=slice(3, 5))
    forecast = model.predict(states, days=trained.dataset.step_hours / 24)
    program = model.program(weather_samples.parent / "weather.nc")
    given = trained.dataset.to_physical(trained.dataset.core_states(0, np.array([[3, 4]])))
    physical = torch.from_numpy(given).permute(1, 2, 3, 0).unflatten(3, trained.dataset.shape)
    [time] = torch.from_numpy(trained.dataset.time[[4]])[None]
    made = program.module(physical.float(), time).detach()
    assert program.labels["channel"][0] == "2t"
    np.testing.assert_allclose(made[0, 0], forecast["t2m"][0, 0], rtol=1e-6)


def test_arrays_of_a_plug_in_are_exported(of_arrays, tmp_path):
    for samples, config in (
        (independent(), {}),
        (series(), {"input_steps": 2, "output_steps": 2, "future_inputs": True}),
    ):
        model, trained = of_arrays(samples, **config)
        about = model.export(tmp_path / "model.pt2")
        assert about["difference"] < 1e-5
        run = torch.export.load(tmp_path / "model.pt2").module()
        dataset = trained.dataset
        starts = dataset.starts("test")[:3]
        steps = starts[:, None] + np.arange(dataset.config.length)
        past, given = steps[:, : dataset.config.input_steps], steps[:, dataset.given]
        fields = [*np.moveaxis(dataset.values("targets", past), 2, 0)] if past.size else []
        fields += [*np.moveaxis(dataset.values("inputs", given), 2, 0)]
        is_scalar = [len(one["axes"]) == 2 for one in about["inputs"]]
        fields = [
            torch.from_numpy(x.reshape(*x.shape[:2], -1)[..., 0] if scalar else x).float()
            for x, scalar in zip(fields, is_scalar, strict=True)
        ]
        expected = physical(dataset, trained(dataset.at_times(0, starts)))
        for v, values in enumerate(run(*fields)):
            np.testing.assert_allclose(values.flatten(2), expected[:, :, v], rtol=1e-5)
    assert is_scalar == [False, False]
    with pytest.raises(ConfigError, match="steps"):
        model.export(tmp_path / "other.pt2", steps=3)


def test_weights_are_those_of_the_checkpoint(saved, tmp_path):
    path, trained, _ = saved("gino")
    assert main(["--checkpoint", str(path), "--output", str(tmp_path / "w.safetensors")]) == 0
    weights = load_file(tmp_path / "w.safetensors")
    own = {k: v for k, v in trained.module.state_dict().items() if isinstance(v, torch.Tensor)}
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[key], own[key]) for key in own)
    about = json.loads((tmp_path / "w.json").read_text())
    assert about["definition"]["model"]["name"] == "gino"
    assert about["normalisation"] == load(path, device="cpu").recipe["normalisation"]


@pytest.fixture
def of_a_plug_in(saved, monkeypatch):
    """Checkpoint of a model of traffic from outside, which has no program, and its weights."""
    path, *_ = saved("smart")
    spec = ModelSpec("mine", Settings, lambda *_: torch.nn.Linear(3, 2), None, None)
    system = System("mine", models=(Model("mine", "scenarios", spec),))
    monkeypatch.setattr(registry, "loaded_plugins", {"mine": system})
    state = torch.load(path, weights_only=True)
    state["recipe"]["definition"]["model"] = {"name": "mine"}
    state["model"] = torch.nn.Linear(3, 2).state_dict()
    state.pop("average", None)
    torch.save(state, path)
    return path, state["model"]


def test_weights_alone_where_there_is_no_program(of_a_plug_in, tmp_path, capsys):
    path, weights = of_a_plug_in
    output, example = tmp_path / "w.safetensors", tmp_path / "example.safetensors"
    arguments = ["--checkpoint", str(path), "--device", "cpu", "--output"]
    assert main([*arguments, str(output)]) == 0
    assert "SMART alone can be exported as a program" in capsys.readouterr().out
    loaded = load_file(output)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    about = json.loads(output.with_suffix(".json").read_text())
    assert about["difference"] == 0
    assert about["definition"]["model"] == {"name": "mine"}
    output.unlink()
    assert main([*arguments, str(output), "--example", str(example)]) == 2
    assert "nothing goes in or comes out of weights alone" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "model.pt2")]) == 2
    assert "`--to safetensors` writes the weights" in capsys.readouterr().err
    assert {one.name for one in tmp_path.iterdir()} == {"alone", "w.json"}


class Celsius(torch.nn.Module):
    def __init__(self, off):
        super().__init__()
        self.net, self.off = torch.nn.Identity(), off
        self.scale = Scaling([273.15], [1.0])

    def forward(self, x):
        return self.net(self.scale.normalised(x)) * self.off


def _model(module, expected):
    x = torch.tensor([[270.0], [280.0]])
    program = Program(
        module,
        [Value("x", x, ("batch", "t"), "K", "")],
        [Value("y", expected, ("batch", "t"), "degC", "")],
        own=lambda: expected,
    )
    return SimpleNamespace(
        program=lambda *_, **__: program,
        about={},
        device="cpu",
        recipe={"definition": {}, "normalisation": {}, "preparation": {}},
    )


def test_a_program_without_forcings_is_written(tmp_path):
    class Forecast(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.states, self.forcings = Scaling([1.0], [2.0]), Scaling(*np.zeros((2, 0)))

        def forward(self, x):
            return self.states.physical(x)

    program = torch.export.export(Forecast(), (torch.ones(3, 1),))
    torch.export.save(program, tmp_path / "program.pt2")
    found = torch.export.load(tmp_path / "program.pt2").module()(torch.ones(3, 1))
    torch.testing.assert_close(found, torch.full((3, 1), 3.0))


def test_what_differs_from_the_checkpoint_is_not_written(tmp_path):
    expected = torch.tensor([[-3.15], [6.85]])
    for to, (suffix, _) in FORMATS.items():
        if to == "aoti":  # the same check, after a minute of compiling
            continue
        wrong, example = _model(Celsius(1.001), expected), tmp_path / "example"
        with pytest.raises(ExportError, match="not written, because what was made"):
            export(wrong, tmp_path / f"wrong{suffix}", to, example=example)
    assert not [*tmp_path.iterdir()]
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError, match="taken"):  # and nothing else is left
        export(_model(Celsius(1.0), expected), tmp_path / "x.pt2", example=tmp_path / "taken")
    (tmp_path / "taken").rmdir()
    with pytest.raises(ConfigError, match="writes this file itself"):
        export(_model(Celsius(1.0), expected), tmp_path / "x.pt2", example=tmp_path / "x.json")
    assert not [*tmp_path.iterdir()]
    assert export(_model(Celsius(1.0), expected), tmp_path / "right.pt2")["difference"] < 1e-5
    assert {one.name for one in tmp_path.iterdir()} == {"right.pt2", "right.json"}
    with pytest.raises(ConfigError, match=r"expected the suffix \.safetensors for safetensors"):
        export(_model(Celsius(1.0), expected), tmp_path / "right.pt2", "safetensors")


def test_packages_take_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "")
    with pytest.raises(
        ConfigError, match=r"no C\+\+ compiler, which makes such packages; install one"
    ):
        export(_model(Celsius(1.0), torch.zeros(2, 1)), tmp_path / "x.pt2", "aoti")

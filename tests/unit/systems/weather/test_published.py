"""Weights of the published program of Aurora in ours: the same forecasts, and what is taken over."""

import copy
import json
import sys
from types import SimpleNamespace

import numpy as np
import published_weather as weather
import pytest
import torch
from published_weather import CASES, Case, changed

from millrace.errors import ConfigError, DataError
from millrace.systems.weather.aurora import conventions
from millrace.systems.weather.aurora.config import SMALL, AuroraConfig
from millrace.systems.weather.aurora.conventions import published_statistics
from millrace.systems.weather.aurora.published import adopt
from millrace.systems.weather.aurora.spec import SPEC
from millrace.systems.weather.aurora.swin import published_labels, window_labels
from millrace.systems.weather.dataset import WeatherBatch
from millrace.training import published
from millrace.training.deadline import Deadline, Stop
from millrace.training.request import Request
from millrace.training.segment import build_trainer, run_segment
from millrace.training.warm_start import read_published

CLOSE = 1e-4


@pytest.fixture(autouse=True)
def rounded_as_there(monkeypatch):
    """The published program resolves the rounding of areas, which is that of the processor."""
    here = conventions.root_areas

    def root_areas(*arguments):
        found, there = here(*arguments), torch.from_numpy(weather.root_areas())
        if found.shape != there.shape:
            return found
        torch.testing.assert_close(found, there, rtol=3e-7, atol=0)
        return there

    monkeypatch.setattr(conventions, "root_areas", root_areas)


def config(**changes):
    keys = {"conventions": "published", "head": "direct", "stabilise_level_agg": False}
    return AuroraConfig(**weather.NETWORK | keys | changes)


def samples(case, location, scale, steps=2, seed=3):
    """What a network knows of samples, which are normalised by statistics of their own."""
    random = np.random.default_rng(seed)
    _, static = weather.states(case)
    known = weather.static_statistics()[:, [Case().static.index(name) for name in case.static]]
    fields = static * known[1][:, None, None] + known[0][:, None, None]
    mean_F, std_F = fields.mean(axis=(1, 2)), fields.std(axis=(1, 2))
    return SimpleNamespace(
        surface=case.surface,
        air=case.air,
        levels=np.array(case.levels, dtype=float),
        variables=case.channels,
        static_names=case.static,
        static_mean=mean_F,
        static_std=std_F,
        static=((fields - mean_F[:, None, None]) / std_F[:, None, None]).astype(np.float32),
        mean=location + scale * random.standard_normal(len(scale)),
        std=scale * random.uniform(0.5, 2, len(scale)),
        increment_scale=np.ones(len(scale)),
        latitude=weather.LATITUDE,
        longitude=weather.LONGITUDE,
        shape=(weather.ROWS, weather.COLUMNS),
        step_hours=6.0,
        config=SimpleNamespace(input_steps=steps),
    )


def given(case):
    """Weights by the names of the published program."""
    made = weather.weights(weather.shapes(case.kind))
    return {name: torch.from_numpy(value) for name, value in made.items()}


def forecast(model, dataset, state, location, scale):
    """Forecast from states in units of published statistics, in the same units, at the cells kept."""
    columns = (slice(None), None, None)
    physical = state * scale[columns] + location[columns]
    own = torch.from_numpy((physical - dataset.mean[columns]) / dataset.std[columns]).float()
    hours = torch.tensor([t.timestamp() / 3600 for t in weather.TIMES], dtype=torch.float64)
    batch = WeatherBatch(own, hours, own[:, :1] * 0, torch.ones(1), torch.ones(len(own)))
    with torch.no_grad():
        made = model.eval()(batch)[:, 0].double().numpy()
    made = made * dataset.std[columns] + dataset.mean[columns]
    return ((made - location[columns]) / scale[columns])[weather.CELLS]


def loaded(settings, dataset, weights):
    """Network with the weights of a file, and what was taken of them."""
    torch.manual_seed(0)
    model = SPEC.build(settings, dataset)
    found = adopt(settings, model, dataset, weights)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in found.weights.items():
            own[name].copy_(value)
    return model, found


def made(name, rank=0, steps=2, case=None, weights=None, **changes):
    """(our forecast, the published one, what was taken) of a case."""
    of = CASES[name]
    case = case or of
    location, scale, expected = weather.expected(name)
    dataset = samples(case, location, scale, steps)
    settings = config(stabilise_level_agg=case.stabilised, lora_rank=rank, **changes)
    model, found = loaded(settings, dataset, weights or given(of))
    state, _ = weather.states(case)
    if steps == 3:
        state = np.concatenate([np.ones_like(state[:, :1]), state], axis=1)
    ours = forecast(model, dataset, state[:, -steps:], location, scale)
    return ours, expected, found


@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 2, 2), (0, 2, 0)])
def test_windows_that_divide_a_grid_are_labelled_as_ours(shift):
    arguments = ((4, 8, 16), (2, 4, 4), shift)
    theirs, ours = published_labels(*arguments), window_labels(*arguments)
    if not any(shift):
        assert theirs is ours is None
        return
    together = [one[:, :, None] == one[:, None] for one in (theirs, ours)]
    assert np.array_equal(*together)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain", {}),
        ("lora", {"rank": 8}),
        ("lora", {"rank": 0}),
        ("lora", {"rank": 2}),
        ("levels", {}),
        ("few", {}),
        ("still", {"steps": 1}),
        ("plain", {"steps": 3}),
    ],
)
def test_forecasts_are_those_of_the_published_program(name, options):
    ours, expected, _ = made(name, **options)
    assert expected.std() > 0.3, "the network does something"
    assert np.abs(ours - expected).max() <= CLOSE


def test_statistics_between_published_levels_are_interpolated():
    """In the logarithm of pressure; beyond them, and of other variables, there are none."""
    middle = float(np.sqrt(850 * 925))
    location, scale = published_statistics(["2m_temperature"], ["t", "w"], [10, 850, middle, 925])
    assert (location[0], scale[0]) == (278.514, 21.22036)
    assert np.isnan(location[[1, *range(5, 9)]]).all()
    assert location[2:5] == pytest.approx([274.56, (274.56 + 277.3572) / 2, 277.3572])
    assert scale[2:5] == pytest.approx([15.5888, (15.5888 + 16.08798) / 2, 16.08798])


def test_low_rank_updates_of_another_rank_become_part_of_the_weights():
    assert made("lora", rank=8)[2].changed == {}
    found = made("lora", rank=2)[2]
    assert found.changed == {"low-rank updates": "of rank 8: now part of the weights"}
    assert found.new == {"low-rank updates": "zero at first"}


def test_files_of_the_first_version_hold_the_same():
    """One kernel and one head for all variables, and a prefix."""
    named = given(CASES["plain"])
    old = {}
    orders = {"surf": Case().surface, "atmos": Case().air}
    for kind, inputs in (("surf", Case().surface + Case().static), ("atmos", Case().air)):
        kernels = [named.pop(f"encoder.{kind}_token_embeds.weights.{name}") for name in inputs]
        old[f"net.encoder.{kind}_token_embeds.weight"] = torch.cat(kernels, dim=1)
        for part in ("weight", "bias"):
            heads = [named.pop(f"decoder.{kind}_heads.{n}.{part}") for n in orders[kind]]
            old[f"net.decoder.{kind}_head.{part}"] = torch.stack(heads, dim=1).flatten(0, 1)
    old |= {f"net.{name}": value for name, value in named.items()}
    ours, expected, _ = made("plain", weights=old)
    assert np.abs(ours - expected).max() <= CLOSE


def test_new_variables_begin_anew_and_change_no_other():
    location, scale, expected = weather.expected("plain")
    case = changed(CASES["plain"], surface=("2t", "10u", "10v", "msl", "tp"))
    location, scale = (np.insert(x, 4, v) for x, v in ((location, 0.0), (scale, 1.0)))
    dataset = samples(case, location, scale)
    model, found = loaded(config(), dataset, given(CASES["plain"]))
    state, _ = weather.states(case)
    ours = np.delete(forecast(model, dataset, state, location, scale), 4, axis=1)
    assert np.abs(ours - expected).max() <= CLOSE
    assert found.new == {"decoder.surface_head: tp": "not in the file"}
    assert found.changed["encoder.surface_tokens"] == "zero for tp, which begin anew"
    assert found.changed["channels"] == "tp normalised as in these samples"


def test_what_samples_do_not_have_is_left_out():
    found = made("few")[2]
    assert found.new == found.changed == {}
    heads = [f"decoder.surf_heads.{name}.bias" for name in ("10u", "10v")]
    heads += [f"decoder.atmos_heads.{name}.bias" for name in ("q", "u", "v")]
    assert sorted(n for n in found.left_out if n.endswith(".bias")) == sorted(heads)
    kernels = {name.rpartition(".")[2] for name in found.left_out if "embeds" in name}
    assert kernels == {"10u", "10v", "slt", "q", "u", "v"}


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        (
            {"patch_size": 2},
            ["encoder.air_tokens", "encoder.surface_tokens", "decoder.surface_head"],
        ),
        ({"head": "residual"}, ["decoder.air_head", "decoder.surface_head"]),
    ],
)
def test_layers_of_other_patches_and_heads_begin_anew(changes, layers):
    found = made("plain", **changes)[2]
    assert {f"{layer}.weight" for layer in layers} <= found.new.keys()
    assert not {f"{layer}.bias" for layer in layers} & found.weights.keys()
    with pytest.raises(ConfigError, match=r"lora_rank: low-rank updates alone .* set it to 0"):
        made("plain", rank=4, **changes)


def test_all_other_weights_are_taken():
    found = made("plain")[2]
    location, scale, _ = weather.expected("plain")
    model = SPEC.build(config(), samples(CASES["plain"], location, scale))
    assert found.weights.keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conventions": "own"}, r"model\.conventions: .* set it to published"),
        (
            {"embed_dim": 32},
            r"does not fit the model: shape: encoder\.surface_tokens\.weight \(has \[",
        ),
        ({"encoder_depths": (2, 1, 1), "decoder_depths": (1, 1, 2)}, "unexpected: backbone"),
        ({"encoder_depths": (3, 2, 1)}, "missing: backbone"),
    ],
)
def test_weights_of_another_network_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        made("plain", **changes)


def test_normalised_keys_are_neither_invented_nor_dropped():
    plain, stabilised = given(CASES["plain"]), given(changed(Case(), stabilised=True, lora=True))
    with pytest.raises(ConfigError, match=r"missing: encoder\.level_agg\.layers\.0\.0\.ln_"):
        made("plain", case=changed(Case(), stabilised=True), weights=plain)
    with pytest.raises(ConfigError, match=r"unexpected: encoder\.level_agg\.layers\.0\.0\.ln_"):
        made("plain", weights=stabilised)


def test_heads_that_no_weight_shows_are_those_of_the_published_sizes():
    settings = SMALL.replaced(conventions="published", head="direct", perceiver_heads=16)
    with pytest.raises(ConfigError, match=r"model\.perceiver_heads: .* has 8; take these"):
        adopt(settings, None, None, {})


def test_updates_of_each_step_are_refused():
    weights = given(CASES["lora"])
    for name in [n for n in weights if ".loras.0." in n]:
        weights[name.replace(".loras.0.", ".loras.1.")] = weights[name]
    with pytest.raises(ConfigError, match="differ from step to step"):
        made("lora", weights=weights)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "aurora-tiny.ckpt"
    torch.save(given(CASES["plain"]), path)
    return path


@pytest.fixture
def tuning(experiments, file):
    """Blocks of an experiment that starts from published weights, and its files."""
    definition, files = copy.deepcopy(experiments["aurora"])
    definition["model"] = {"name": "aurora", **config().essentials()}
    definition["train"]["init_from"] = {"published": str(file)}
    return definition, files


def test_a_run_tells_what_it_started_from(tuning, file, alone, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(Deadline, "listen", lambda self: None)
    definition, files = tuning
    output = tmp_path / "epoch_1.ckpt"
    request = Request(
        experiment="tuned",
        layout="n1_gpu1",
        seed=0,
        target_epoch=1,
        definition=definition,
        files=files,
        runs=str(tmp_path / "runs"),
        checkpoint=str(output),
        receipt=str(output.with_suffix(".json")),
        save_every=1,
        previous=None,
    )
    assert run_segment(request, alone) is Stop.NO
    found = json.loads(output.with_suffix(".json").read_text())["started_from"]
    assert found["file"] == file.name
    assert found["sha256"] == published.file_digest(str(file))
    assert found["mapped"] > 100
    assert found["new"] == {}
    assert "decoder.atmos_heads.q.bias" in found["left_out"]
    said = capfd.readouterr().err
    assert (
        f"starts from {file.name} (sha256 {found['sha256'][:16]}): {found['mapped']} weights"
        in said
    )
    assert "left out: " in said


def test_the_run_depends_on_the_bytes_and_not_on_the_place(tuning, file, alone, tmp_path):
    definition, files = tuning

    def described(path):
        definition["train"]["init_from"] = {"published": str(path)}
        return build_trainer(definition, files, 0, alone)[1]["train"]["init_from"]

    (tmp_path / "weights.ckpt").write_bytes(file.read_bytes())
    assert described(file) == described(tmp_path) == {"published": published.file_digest(str(file))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [(4, {"tensor": 2, "dp_replicate": 2}), (2, {"pipeline": 2}), (2, {"dp_shard": 2})],
)
def test_tuning_on_many_processes_is_that_of_one(tuning, train_on_ranks, ranks, parallel):
    one = train_on_ranks(1, *tuning, 1)
    several = train_on_ranks(ranks, *tuning, 1, parallel=parallel)
    for key in ("losses", "norms", "validation"):
        np.testing.assert_allclose(several[key], one[key], rtol=1e-4)


def test_damage_and_other_content_is_refused(file, tmp_path):
    damaged = tmp_path / "damaged.ckpt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 64
    damaged.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged\.ckpt: damaged, a checksum"):
        published.file_digest(str(damaged))
    torch.save({"a": [1, 2]}, tmp_path / "other.ckpt")
    with pytest.raises(DataError, match="weights are no tensors"):
        read_published(str(tmp_path / "other.ckpt"))
    torch.save(SimpleNamespace(), tmp_path / "code.ckpt")
    with pytest.raises(DataError, match="not a readable checkpoint"):
        read_published(str(tmp_path / "code.ckpt"))
    with pytest.raises(
        DataError, match=r"train\.init_from\.published: .*gone\.ckpt: cannot be read"
    ):
        published.file_digest(str(tmp_path / "gone.ckpt"))


def test_a_folder_holds_one_file(file, tmp_path):
    assert published.published_file(str(file.parent)) == file
    with pytest.raises(ConfigError, match="holds none; expected a folder with one file"):
        published.published_file(str(tmp_path))
    for name in ("a.ckpt", "b.pt"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"holds a\.ckpt, b\.pt; expected"):
        published.published_file(str(tmp_path))


def test_files_of_the_hub_are_downloaded(file, monkeypatch):
    asked = []

    def download(**arguments):
        asked.append(arguments)
        if arguments["filename"] == "gone.ckpt":
            raise OSError("no network")
        return str(file)

    hub = SimpleNamespace(hf_hub_download=download, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert published.published_file("hf://microsoft/aurora/sub/a.ckpt@0be7e57c") == file
    assert published.published_file("hf://microsoft/aurora/a.ckpt") == file
    repository = {"repo_id": "microsoft/aurora"}
    assert asked == [
        repository | {"filename": "sub/a.ckpt", "revision": "0be7e57c"},
        repository | {"filename": "a.ckpt", "revision": None},
    ]
    with pytest.raises(
        DataError, match=r"cannot be had \(no network\).*`hf download microsoft/aurora gone"
    ):
        published.published_file("hf://microsoft/aurora/gone.ckpt")
    with pytest.raises(ConfigError, match="expected hf://owner/repository/file"):
        published.published_file("hf://microsoft/aurora")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ConfigError, match="needs the package huggingface_hub, which is not installed"
    ):
        published.published_file("hf://microsoft/aurora/a.ckpt")


def test_other_models_have_no_published_weights(experiments, alone, file):
    definition, files = copy.deepcopy(experiments["gino"])
    definition["train"]["init_from"] = {"published": str(file)}
    with pytest.raises(ConfigError, match="no weights of gino are published; give a checkpoint"):
        build_trainer(definition, files, 0, alone)

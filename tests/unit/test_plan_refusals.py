"""What planning refuses, each in a sentence with its key."""

import copy

import pytest
from plans import changed, changed_part, config, icon, small, traffic, weather

from millrace.config import Settings, option
from millrace.errors import ConfigError
from millrace.plan import Plan
from millrace.systems.base import resolve
from millrace.systems.registry import kinds, models


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("run/experiments", ["haed"], "no experiment named 'haed'; did you mean 'head'"),
        (
            "run/layouts",
            ["n0_gpu1"],
            "run.layouts[0]: expected a layout such as n1_gpu2, got 'n0_gpu1'",
        ),
        ("run/seeds", [], "run.seeds"),
        ("run/seeds", [*range(10_001)], "runs; expected 10,000 or fewer"),
        ("experiments/head/dataset", "cost", "no dataset named 'cost'; did you mean 'coast'?"),
        (
            "experiments/head/data/variables",
            ["heed"],
            "no column named 'heed'; did you mean 'head'?",
        ),
        ("experiments/head/data/forcings", ["head_cb"], "did you mean 'head_bc'?"),
        ("experiments/head/data/input_steps", 11, "21 steps is longer than the gap of 20"),
        (
            "experiments/head/data/input_steps",
            "ten",
            "data.input_steps: expected a whole number of 1 or more (steps), got 'ten'",
        ),
        (
            "experiments/head/data/output_steps",
            2.5,
            "data.output_steps: expected a whole number of 1 or more (steps), got",
        ),
        ("experiments/head/model/name", "gano", "experiments.head.model.name"),
        ("experiments/head/model/latent_shape", None, "model: key 'latent_shape' is missing"),
        (
            "experiments/head/model/latent_shape",
            "12",
            "model.latent_shape: expected a list of 3, each a whole number of 1 or",
        ),
        (
            "experiments/head/model/latent_shape",
            [12, 0, 6],
            "config: experiments.head.model.latent_shape[1]: expected a whole number of 1 or",
        ),
        ("experiments/head/model/radius", None, "model: key 'radius' is missing"),
        (
            "experiments/head/model/radius",
            "near",
            "model.radius: expected a number above 0 (patch box), got 'near'",
        ),
        ("experiments/head/model/radius", -0.1, "model.radius: expected a number above 0"),
        (
            "experiments/head/train/epochs",
            1e1,
            "train.epochs: expected a whole number from 1 to 10,000,000 (epochs)",
        ),
        (
            "experiments/head/train/learning_rate",
            float("nan"),
            "train.learning_rate: expected a number",
        ),
        (
            "experiments/head/train/epoch",
            3,
            "experiments.head.train: unknown key 'epoch': did you mean 'epochs'?",
        ),
    ],
)
def test_mistakes_are_named(path, value, message) -> None:
    with pytest.raises(ConfigError) as caught:
        Plan(changed(path, value))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../x", "a;b", "a b", "a$(x)", "a/b", "_a", "a__b", "1a", "a_", ""]
)
@pytest.mark.parametrize("block", ["experiments", "datasets"])
def test_names_that_a_path_or_shell_would_trip_over_are_refused(block, name) -> None:
    made = config()
    made[block][name] = copy.deepcopy(next(iter(made[block].values())))
    with pytest.raises(ConfigError, match=f"config: {block}: "):
        Plan(made)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("variables", ["speed"], "datasets.town: unknown key 'variables'"),
        ("split", {"train": 0.7, "validation": 0.1, "gap": 1}, "unknown key 'split'"),
        (
            "tokens",
            {"motion": 40000},
            "datasets.town.tokens.motion: expected a whole number from 1 to 32,767",
        ),
        ("format", "waymo", "there is no demo of waymo"),
    ],
)
def test_traffic_that_is_not_right_is_refused(key, value, message) -> None:
    made = traffic()
    made["datasets"]["town"][key] = value
    with pytest.raises(ConfigError) as caught:
        Plan(made)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("block", "key", "value", "message"),
    [
        (
            "experiments/fine",
            "dataset",
            "coast",
            "takes blocks, which cannot be made from the feflow",
        ),
        (
            "experiments/head",
            "dataset",
            "globe",
            "takes patches, which cannot be made from the icon",
        ),
        ("experiments/fine", "data", {"variables": ["tos"]}, "no column named 'tos'"),
        ("datasets/globe", "patches", {}, "datasets.globe: unknown key 'patches'"),
        ("datasets/globe", "format", "grib", "datasets.globe.format: no format named 'grib'"),
        (
            "datasets/globe",
            "blocks",
            {"levels": 0},
            "datasets.globe.blocks.levels: expected a whole number from 1 to 8",
        ),
        ("datasets/coast", "blocks", {}, "datasets.coast: unknown key 'blocks'"),
        ("datasets/coast", "format", "plane_folders", "there is no demo of plane_folders"),
    ],
)
def test_formats_and_models_that_do_not_fit_are_refused(block, key, value, message) -> None:
    made = icon()
    kind, name = block.split("/")
    made[kind][name][key] = value
    if value == "plane_folders":
        del made["experiments"]["head"]
    with pytest.raises(ConfigError) as caught:
        Plan(made)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("block", "key", "value", "message"),
    [
        ("experiments/globe", "data", {"output_steps": 4}, "a window of 6 steps reaches over"),
        (
            "datasets/planet",
            "split",
            {"train": 0.7, "validation": 0.1},
            "over the gap of 0 between",
        ),
        (
            "experiments/globe",
            "data",
            {"input_steps": 2.5},
            "data.input_steps: expected a whole number",
        ),
        (
            "experiments/globe",
            "data",
            {"output_steps": 0},
            "config: experiments.globe.data.output_steps: expected a whole number of 1 or more",
        ),
        (
            "experiments/globe/train",
            "replay",
            {"longest": 3},
            "train.replay.longest: expected 4 or more (twice",
        ),
        ("datasets/planet", "weather", {"air": []}, "datasets.planet.weather.air"),
        (
            "datasets/planet",
            "weather",
            {"surfaces": []},
            "datasets.planet.weather: unknown key 'surfaces': did you mean 'su",
        ),
        ("datasets/planet", "variables", ["2t"], "datasets.planet: unknown key 'variables'"),
    ],
)
def test_weather_that_does_not_fit_is_refused(block, key, value, message) -> None:
    made = weather()
    made["experiments"]["globe"]["data"] = {"output_steps": 2}
    changing = made
    for name in block.split("/"):
        changing = changing[name]
    changing[key] = value
    with pytest.raises(ConfigError) as caught:
        Plan(made)
    assert message in str(caught.value)


@pytest.mark.parametrize("section", ["data", "model"])
@pytest.mark.parametrize("name", models())
def test_a_mistyped_key_is_refused_with_the_nearest(name, section) -> None:
    model = models()[name]
    settings = resolve(model.settings if section == "model" else kinds()[model.kind].settings)
    key = next(iter(settings.model_fields))
    made = small(name)
    assert Plan(made)
    made["experiments"]["tiny"][section][f"{key}z"] = 3
    told = f"config: experiments.tiny.{section}: unknown key '{key}z': did you mean '{key}'?"
    with pytest.raises(ConfigError) as caught:
        Plan(made)
    assert str(caught.value) == told
    made["experiments"]["other"] = small(name)["experiments"]["tiny"]
    made["run"]["experiments"] = ["other"]
    with pytest.raises(ConfigError) as caught:
        Plan(made)
    assert str(caught.value) == told, "whether it runs or not"


@pytest.mark.parametrize(
    ("name", "section", "values", "told"),
    [
        (
            "gino",
            "model",
            {"hidden": "wide"},
            "model.hidden: expected a whole number of 1 or more, got 'wide'",
        ),
        ("smart", "model", {"heads": 3}, "model: hidden = 8: expected a multiple of heads = 3"),
        (
            "smart",
            "data",
            {"buckets": 0},
            "data.buckets: expected a whole number of 1 or more, got 0",
        ),
        (
            "downscaler",
            "model",
            {"channels": []},
            "model.channels: expected a list of 1 or more values",
        ),
        (
            "gfno",
            "model",
            {"layers": 0},
            "model.layers: expected a whole number of 1 or more, got 0",
        ),
        (
            "gino",
            "train",
            {"schedule": {"kind": "cosine"}},
            "train.schedule: horizon: 'cosine' needs the epoch",
        ),
        (
            "gino",
            "train",
            {"micro_batch": 2.5},
            "train.micro_batch: expected a whole number of 1 or more or null",
        ),
        (
            "gino",
            "train",
            {"learning_rate": "fast"},
            "train.learning_rate: expected a number above 0, got 'fast'",
        ),
        (
            "gino",
            "parallel",
            {"dp_shard": "two"},
            "parallel.dp_shard: expected a whole number of 1 or more (processes)",
        ),
    ],
)
def test_what_a_job_would_refuse_is_refused_in_one_sentence(name, section, values, told) -> None:
    made = small(name)
    block = made["experiments"]["tiny"].setdefault(section, {})
    block |= values
    with pytest.raises(ConfigError) as caught:
        Plan(made)
    assert str(caught.value).startswith(f"config: experiments.tiny.{told}")


def test_errors_of_a_plugins_settings_name_the_experiment(monkeypatch) -> None:
    class Own(Settings):
        width: int = option(1, ge=1)

        def model_post_init(self, _: object) -> None:
            if self.width == 7:
                raise ValueError("width: seven is not possible")

    changed_part(monkeypatch, "models", "gfno", settings=Own)
    made = small("gfno")
    for width, told in (
        (0, r"\.width: expected a whole number of 1 or more, got 0"),
        (7, ": width: seven"),
    ):
        made["experiments"]["tiny"]["model"] = {"name": "gfno", "width": width}
        with pytest.raises(ConfigError, match=rf"^config: experiments\.tiny\.model{told}"):
            Plan(made)


@pytest.mark.parametrize(
    ("split", "told"),
    [
        ({"train": 0.7, "validation": 0.15, "gap": 45}, "leave a period of 31 steps"),
        ({"train": 0.7, "validation": 0.15, "gap": 45}, "the largest gap that fits is 34"),
        ({"train": 0.9, "validation": 0.05, "gap": 20}, "no gap fits, shorten the window"),
        # 0.05 of 400 steps between two gaps of 20 are 20 steps.
        ({"train": 0.9, "validation": 0.05, "gap": 20}, "or use 440 steps or more"),
    ],
)
def test_periods_that_are_too_short_are_refused_with_the_largest_gap(split, told) -> None:
    with pytest.raises(ConfigError, match=f"datasets.coast.split .for experiments.head.: .*{told}"):
        Plan(changed("datasets/coast/split", split))


def test_states_that_are_not_written_are_not_rounded() -> None:
    made = weather()
    made["datasets"]["planet"] |= {"store": "reference", "compress": {"keep_bits": 10}}
    with pytest.raises(ConfigError, match=r"planet\.compress: states that stay where they are"):
        Plan(made)


def test_states_of_the_demo_are_copied() -> None:
    made = weather()
    made["datasets"]["planet"]["store"] = "reference"
    with pytest.raises(ConfigError, match=r"planet\.store: the demo writes NetCDF"):
        Plan(made)


def test_raw_files_are_counted_and_other_sources_are_left_alone(tmp_path) -> None:
    made = changed("datasets/coast/source", str(tmp_path))
    Plan(made)
    (tmp_path / "all").mkdir()
    for number in range(100):
        (tmp_path / f"all/{number:04}.csv").touch()
    with pytest.raises(ConfigError, match="100 steps in fractions"):
        Plan(made)


def test_the_gap_that_is_named_fits(tmp_path) -> None:
    def split(gap):
        return {"train": 0.7, "validation": 0.15, "gap": gap}

    Plan(changed("datasets/coast/split", split(34)))
    with pytest.raises(ConfigError):
        Plan(changed("datasets/coast/split", split(35)))


def test_a_radius_is_held_against_the_latent_grid() -> None:
    # Spacings 1/11, 1/7 and 1/5: half of the least is 0.0455, half of the diagonal 0.131.
    with pytest.raises(
        ConfigError, match=r"0\.045 reaches less than half way \(0\.04545\).* take 0\.1311"
    ):
        Plan(changed("experiments/head/model/radius", 0.045))
    [note] = Plan(changed("experiments/head/model/radius", 0.13)).advice()
    assert "less than half a diagonal (0.1311) of a cell of the latent grid" in note
    assert Plan(changed("experiments/head/model/radius", 0.132)).advice() == []

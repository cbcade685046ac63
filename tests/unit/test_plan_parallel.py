"""How the processes of a layout may be used, as a configuration asks for it."""

from types import SimpleNamespace

import pytest
from plans import changed, changed_part, config

from millrace.errors import ConfigError
from millrace.job_requests import segment_request
from millrace.plan import Plan
from millrace.systems.base import DivisionLimits
from millrace.systems.registry import get_model, models
from millrace.systems.weather.settings import WeatherWindowConfig


def divisible(monkeypatch, **parallel):
    """A configuration whose model could be divided: into 3 stages, its 4 heads by 2 and 4."""
    limits = DivisionLimits(
        heads=lambda _: (4,),
        stages=lambda _: 3,
        steps=lambda data: data["output_steps"],
    )
    changed_part(monkeypatch, "models", "gino", limits=limits)
    made = changed("run/layouts", ["n1_gpu4", "n2_gpu2"])
    made["experiments"]["head"]["parallel"] = parallel
    made["experiments"]["head"]["model"]["modes"] = [4, 4, 2]
    made["experiments"]["head"]["data"]["output_steps"] = 1
    return made


def test_how_processes_are_used_travels_but_decides_nothing(monkeypatch) -> None:
    made = divisible(monkeypatch, dp_shard=4)
    assert "parallel" not in str(Plan(made).definition("head"))
    assert Plan(made).advice() == []
    named = SimpleNamespace(experiment="head", layout="n1_gpu4", seed=0, epoch=10)
    outputs = {"checkpoint": "a.ckpt", "receipt": "a.json"}
    assert segment_request(made, named, {}, {}, outputs).parallel == {"dp_shard": 4}
    assert segment_request(config(), named, {}, {}, outputs).parallel == {}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("parallel", {"dp_shard": 3}, "head on n1_gpu4: parallel: dp_replicate 1 x dp_shard 3"),
        ("parallel", {"pipeline": 4}, "4 stages, but the model can have at most 3"),
        ("parallel", {"tensor": 8}, "= 8 processes, but the layout has 4"),
        ("parallel", {"pipeline": 2, "micro_batches": 1}, "at least the 2 stages"),
        ("parallel", {"stages": 2}, "experiments.head.parallel: unknown key 'stages'"),
        ("train/compile", True, "head on n1_gpu4: train.compile, train.gradient_compression"),
        ("model/modes", [99, 4, 2], "config: experiments.head.model: modes [99, 4, 2]: at most"),
        ("race", ["n1_gpu4", "n4_gpu2"], "head on n4_gpu2: parallel: dp_replicate 2 x dp_shard"),
    ],
)
def test_divisions_that_do_not_fit_are_refused(monkeypatch, path, value, message) -> None:
    made = divisible(monkeypatch, dp_replicate=2, dp_shard=2)
    *parents, key = path.split("/")
    block = made["experiments"]["head"]
    for parent in parents:
        block = block[parent]
    block[key] = value
    with pytest.raises(ConfigError) as caught:
        Plan(made)
    assert message in str(caught.value)


def test_a_pipeline_does_not_start_from_forecasts(monkeypatch) -> None:
    made = divisible(monkeypatch, pipeline=2, dp_shard=2)
    made["experiments"]["head"]["train"]["replay"] = {"longest": 4}
    changed_part(monkeypatch, "kinds", "patches", replay=True)
    with pytest.raises(
        ConfigError, match=r"head on n1_gpu4: train\.replay: forecasts leave a pipeline"
    ):
        Plan(made)


def test_a_model_that_cannot_be_divided_is_refused() -> None:
    made = changed("run/layouts", ["n1_gpu2"])
    made["experiments"]["head"]["parallel"] = {"dp_shard": 2}
    with pytest.raises(ConfigError, match="head on n1_gpu2: parallel: gino can only be replicated"):
        Plan(made)


def test_a_pipeline_that_waits_is_told(monkeypatch) -> None:
    made = divisible(monkeypatch, pipeline=2, dp_shard=2, micro_batches=4)
    first, second = Plan(made).advice()
    assert "experiments.head on n1_gpu4: parallel.micro_batches 4" in first
    assert "the pipeline bubble is at least 20% of the time; 8 or more" in first
    assert "n2_gpu2" in second
    made["experiments"]["head"]["data"]["output_steps"] = 2
    assert Plan(made).advice() == []


def test_the_micro_batches_of_a_rollout_fit_its_schedule(monkeypatch) -> None:
    made = divisible(monkeypatch, pipeline=2, dp_replicate=2)
    made["experiments"]["head"]["train"]["global_batch"] = 10
    assert Plan(made).advice()
    made["experiments"]["head"]["data"]["output_steps"] = 2
    with pytest.raises(ConfigError, match=r"head on n1_gpu4: parallel\.micro_batches 5: in a roll"):
        Plan(made)


def test_divided_models_are_measured_if_asked_for(monkeypatch) -> None:
    made = divisible(monkeypatch, dp_shard=4)
    assert Plan(made).scaling_runs() == []
    made["scaling"] = {"experiments": ["head"], "measure": ["n4_gpu1"], "repeats": 1}
    assert len(Plan(made).scaling_runs()) == 2
    made["scaling"]["measure"] = ["n1_gpu1"]
    with pytest.raises(ConfigError, match=r"head on n1_gpu1: parallel: .* the layout has 1"):
        Plan(made)


def test_models_that_can_be_divided_have_limits() -> None:
    for name, model in models().items():
        spec = get_model(name)
        assert (model.limits is None) == (spec.division is None), name
    for data in ({}, {"output_steps": 3}):
        dataset = SimpleNamespace(config=WeatherWindowConfig(**data))
        assert models()["aurora"].limits.steps(data) == get_model("aurora").division.steps(dataset)

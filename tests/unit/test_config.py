"""Every mistake in a configuration is one sentence that names its key."""

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest

from millrace.config import essentials, from_mapping, nearest, validate, with_numbers
from millrace.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    rate: float = 1.0
    name: str = "x"


@dataclass(frozen=True)
class Outer:
    steps: int
    shape: tuple[int, int] = (1, 1)
    names: tuple[str, ...] = ()
    limit: float | None = 1.0
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    parts: tuple[Inner, ...] = ()
    anything: Any = None


def test_values_become_dataclasses() -> None:
    values = {
        "steps": 3,
        "shape": [4, 5],
        "names": ["a", "b"],
        "limit": None,
        "inner": {"rate": 2},
        "parts": [{"name": "y"}, {}],
        "anything": {"k": [1]},
    }
    made = from_mapping(Outer, values, "block")
    assert made == Outer(
        3, (4, 5), ("a", "b"), None, False, Inner(2.0), (Inner(1.0, "y"), Inner()), {"k": [1]}
    )
    assert isinstance(made.inner.rate, float)
    assert from_mapping(Outer, {"steps": 3}, "block") == Outer(3)
    assert from_mapping(Outer, {"steps": 3, "limit": 2}, "block").limit == 2.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "block: key 'steps' is missing"),
        ({"steps": 1, "shap": 2}, "block: unknown key 'shap': did you mean 'shape'?"),
        ({"steps": 1, 7: 2}, "block: unknown key 7: known are anything, flag, inner, limit, names"),
        ({"steps": 1, "inner": {"ratio": 2}}, "block.inner: unknown key 'ratio'"),
        ({"steps": 1, "parts": [{}, {"nam": "y"}]}, "block.parts[1]: unknown key 'nam'"),
        ({"steps": "one"}, "block.steps: expected int, got 'one'"),
        ({"steps": "1.5"}, "block.steps: expected int, got 1.5"),
        ({"steps": "8.0"}, "block.steps: expected int, got 8.0"),
        ({"steps": 1.0}, "block.steps: expected int, got 1.0"),
        ({"steps": True}, "block.steps: expected int, got True"),
        ({"steps": None}, "block.steps: expected int, got None"),
        ({"steps": 1, "flag": 1}, "block.flag: expected bool, got 1"),
        ({"steps": 1, "limit": True}, "block.limit: expected float, got True"),
        ({"steps": 1, "limit": "1e-3 m"}, "block.limit: expected float, got '1e-3 m'"),
        ({"steps": 1, "limit": "1e999"}, "block.limit: expected float, got inf"),
        ({"steps": 1, "flag": "1"}, "block.flag: expected bool, got '1'"),
        ({"steps": 1, "limit": float("nan")}, "block.limit: expected float, got nan"),
        (
            {"steps": 1, "inner": {"rate": float("inf")}},
            "block.inner.rate: expected float, got inf",
        ),
        ({"steps": 1, "inner": {"rate": None}}, "block.inner.rate: expected float, got None"),
        ({"steps": 1, "inner": 5}, "block.inner: expected Inner, got 5"),
        ({"steps": 1, "shape": [1, 2, 3]}, "block.shape: expected 2 values, got [1, 2, 3]"),
        ({"steps": 1, "shape": [1, 2.5]}, "block.shape[1]: expected int, got 2.5"),
        ({"steps": 1, "names": "ab"}, "block.names: expected list, got 'ab'"),
    ],
)
def test_mistakes_are_named(values, message) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(Outer, values, "block")
    assert str(caught.value).startswith(message)


def test_texts_are_read_as_numbers_where_those_are_wanted() -> None:
    values = {
        "steps": "1e4",
        "shape": ["2", "+3"],
        "names": ["7", "1e3"],
        "limit": "5e-3",
        "inner": {"rate": "-.5E+1", "name": "1e3"},
        "parts": [{"rate": "2"}],
        "anything": "1e3",
    }
    before = copy.deepcopy(values)
    plain = with_numbers(Outer, values)
    assert plain == {
        "steps": 10000,
        "shape": [2, 3],
        "names": ["7", "1e3"],
        "limit": 0.005,
        "inner": {"rate": -5.0, "name": "1e3"},
        "parts": [{"rate": 2}],
        "anything": "1e3",
    }
    assert isinstance(plain["steps"], int)
    assert from_mapping(Outer, values, "block") == from_mapping(Outer, plain, "block")
    assert values == before
    left = {"steps": [1], "shape": ["1"], "inner": "x", "unknown": "1e3"}
    assert with_numbers(Outer, left) == left, "told by from_mapping"


def test_essentials_are_what_differs_from_the_defaults() -> None:
    assert essentials(Outer(3)) == {"steps": 3}
    made = from_mapping(Outer, {"steps": 3, "shape": [1, 1], "inner": {"rate": 1}}, "block")
    assert essentials(made) == {"steps": 3}
    changed = Outer(3, shape=(2, 1), limit=None, inner=Inner(name="y"))
    assert essentials(changed) == {
        "steps": 3,
        "shape": [2, 1],
        "limit": None,
        "inner": {"name": "y"},
    }


def test_the_nearest_name_or_all_of_them() -> None:
    assert nearest("layoutz", ["layouts", "seeds"]) == "did you mean 'layouts'?"
    assert nearest("qqq", ["seeds", "layouts"]) == "known are layouts, seeds"
    assert nearest(True, [2020, "b"]) == "known are 2020, b"


SCHEMA = {
    "type": "object",
    "required": ["run"],
    "additionalProperties": False,
    "properties": {
        "run": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "epochs": {"type": "integer", "minimum": 1},
                "rate": {"type": "number", "exclusiveMinimum": 0},
            },
        }
    },
}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config: the configuration: 'run' is a required property"),
        (
            {"run": {}, "rum": 1},
            "config: unknown key 'rum' in the configuration: did you mean 'run'?",
        ),
        ({"run": {"epoch": 1}}, "config: unknown key 'epoch' in run: did you mean 'epochs'?"),
        ({"run": {True: 1}}, "config: unknown key True in run: known are epochs, rate"),
        ({"run": {"epochs": 0}}, "config: run.epochs: 0 is less than the minimum of 1"),
        ({"run": {"epochs": 8.0}}, "config: run.epochs: 8.0 is not of type 'integer'"),
        ({"run": {"epochs": True}}, "config: run.epochs: True is not of type 'integer'"),
        ({"run": {"rate": float("nan")}}, "config: run.rate: nan is not of type 'number'"),
        ({"run": {"rate": float("inf")}}, "config: run.rate: inf is not of type 'number'"),
        ({"run": {"rate": "fast"}}, "config: run.rate: 'fast' is not of type 'number'"),
        ({"run": {"rate": "-5e-3"}}, "config: run.rate: -0.005 is less than or equal to the min"),
        ({"run": {"epochs": "8.0"}}, "config: run.epochs: 8.0 is not of type 'integer'"),
        ({"run": "1e3"}, "config: run: '1e3' is not of type 'object'"),
        ("1e3", "config: the configuration: '1e3' is not of type 'object'"),
    ],
)
def test_violations_of_a_schema_are_named(config, message) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(config, SCHEMA)
    assert str(caught.value).startswith(message)


def test_a_valid_configuration_passes() -> None:
    for config in ({"run": {"epochs": 1, "rate": 1}}, {"run": {"rate": 0.5}}):
        assert validate(config, SCHEMA) == config


def test_texts_are_read_as_numbers_where_a_schema_wants_those() -> None:
    schema = {
        "properties": {
            "run": SCHEMA["properties"]["run"],
            "name": {"type": "string"},
            "rate": {"type": ["number", "null"]},
            "either": {"anyOf": [{"type": "integer"}, {"type": "array"}]},
            "list": {"type": "array", "items": {"type": "number"}},
        }
    }
    config = {
        "run": {"epochs": "1e1", "rate": "5e-3"},
        "name": "1e3",
        "rate": "1e-3",
        "either": "4",
        "list": ["1e1", 2],
    }
    before = copy.deepcopy(config)
    made = validate(config, schema)
    assert made == {
        "run": {"epochs": 10, "rate": 0.005},
        "name": "1e3",
        "rate": 0.001,
        "either": 4,
        "list": [10.0, 2],
    }
    assert isinstance(made["run"]["epochs"], int)
    assert config == before, "a copy is returned"

"""Every mistake in a block is one sentence that names its key, and is found in bounded time."""

import copy
import datetime
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from millrace.config import (
    Count,
    LayoutName,
    Layouts,
    Name,
    Names,
    Seed,
    Settings,
    as_written,
    check_size,
    expected,
    nearest,
    option,
    schema_of,
)
from millrace.errors import ConfigError


class Inner(Settings):
    """A block in a block."""

    rate: float = option(1.0, gt=0, unit="m")
    """How fast."""
    kind: Literal["alpha", "beta"] = "alpha"
    """Which one."""


class Outer(Settings):
    """A block with keys of every type."""

    steps: int = option(ge=1)
    """How many, on
    two lines."""
    shape: tuple[int, int] = (1, 1)
    names: Names = ()
    limit: float | None = option(1.0, gt=0)
    flag: bool = False
    inner: Inner = Inner()
    other: Inner | None = None
    parts: tuple[Inner, ...] = ()
    named: dict[Name, Inner] = Field(default_factory=dict)
    waits: dict[LayoutName, float] = Field(default_factory=dict)
    layouts: Layouts = ("n1_gpu1",)
    either: str | Annotated[tuple[str, ...], Field(min_length=1)] = ""
    seed: Seed = 0
    count: Count = 1
    anything: Any = None

    def model_post_init(self, _: Any) -> None:
        """Two keys that do not fit each other."""
        if self.flag and self.count > 5:
            raise ValueError(f"count = {self.count}: expected at most 5 with flag")


def test_values_become_settings() -> None:
    values = {
        "steps": 3,
        "shape": [4, 5],
        "names": ["a", "b"],
        "limit": None,
        "inner": {"rate": 2},
        "parts": [{"kind": "beta"}, {}],
        "anything": {"k": [1]},
    }
    made = Outer.parse(values, "block")
    assert made == Outer(
        steps=3,
        shape=(4, 5),
        names=("a", "b"),
        limit=None,
        inner=Inner(rate=2.0),
        parts=(Inner(kind="beta"), Inner()),
        anything={"k": [1]},
    )
    assert isinstance(made.inner.rate, float)
    assert made.replaced(steps=4).steps == 4
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        made.replaced(steps=0)


MISTAKES = [
    ({}, ": key 'steps' is missing, a whole number of 1 or more"),
    ({"shap": 2}, ": unknown key 'shap': did you mean 'shape'?"),
    ({7: 2}, ": unknown key '7': known are anything, count, either"),
    ({"inner": {"ratio": 2}}, ".inner: unknown key 'ratio': did you mean 'rate'?"),
    ({"inner": {"rate": -1, "x": 1}}, ".inner: unknown key 'x'"),
    ({"parts": [{}, {"knd": "y"}]}, ".parts[1]: unknown key 'knd': did you mean 'kind'?"),
    ({"steps": "one"}, ".steps: expected a whole number of 1 or more, got 'one'"),
    ({"steps": "1.5"}, ".steps: expected a whole number of 1 or more, got 1.5"),
    ({"steps": "8.0"}, ".steps: expected a whole number of 1 or more, got 8.0"),
    ({"steps": "1_000"}, ".steps: expected a whole number of 1 or more, got '1_000'"),
    ({"steps": 1.0}, ".steps: expected a whole number of 1 or more, got 1.0"),
    ({"steps": True}, ".steps: expected a whole number of 1 or more, got true"),
    ({"steps": None}, ".steps: expected a whole number of 1 or more, got null"),
    (
        {"steps": -(10**400)},
        ".steps: expected a whole number of 1 or more, got a number of 402 digits",
    ),
    ({"flag": 1}, ".flag: expected true or false, got 1"),
    ({"flag": "1"}, ".flag: expected true or false, got '1'"),
    ({"limit": True}, ".limit: expected a number above 0 or null, got true"),
    ({"limit": "1e-3 m"}, ".limit: expected a number above 0 or null, got '1e-3 m'"),
    ({"limit": "1e999"}, ".limit: expected a number above 0 or null, got inf"),
    ({"limit": 10**400}, ".limit: expected a number above 0 or null, got a number of 401 digits"),
    ({"limit": float("nan")}, ".limit: expected a number above 0 or null, got nan"),
    ({"limit": datetime.date(2020, 1, 1)}, ".limit: expected a number above 0 or null, got"),
    ({"inner": {"rate": None}}, ".inner.rate: expected a number above 0 (m), got null"),
    (
        {"inner": {"kind": "alpa"}},
        ".inner.kind: expected one of alpha, beta, got 'alpa': did you mean 'al",
    ),
    ({"inner": 5}, ".inner: expected a block of keys, got 5"),
    ({"other": 4}, ".other: expected a block of keys or null, got 4"),
    ({"other": {"rate": "x"}}, ".other.rate: expected a number above 0 (m), got 'x'"),
    ({"shape": [1, 2, 3]}, ".shape: expected a list of 2, each a whole number, got [1, 2, 3]"),
    ({"shape": [1, 2.5]}, ".shape[1]: expected a whole number, got 2.5"),
    ({"names": "ab"}, ".names: expected a list of values, each text, got 'ab'"),
    ({"names": ["a", "a"]}, ".names: 'a' stands there twice"),
    ({"names": ["a\x07"]}, ".names[0]: expected text, got 'a\\x07'"),
    ({"names": [""]}, ".names[0]: expected text, got ''"),
    (
        {"layouts": []},
        ".layouts: expected a list of 1 or more different values, each a layout such",
    ),
    ({"layouts": ["n0_gpu1"]}, ".layouts[0]: expected a layout such as n1_gpu2, got 'n0_gpu1'"),
    (
        {"layouts": ["n1_gpu1\n"]},
        ".layouts[0]: expected a layout such as n1_gpu2, got 'n1_gpu1\\n'",
    ),
    ({"named": {"a b": {}}}, ".named: 'a b': expected a name of letters, digits, - and single _"),
    ({"named": {"ab\n": {}}}, ".named: 'ab\\n': expected a name"),
    ({"named": {"ab": {"rat": 3}}}, ".named.ab: unknown key 'rat': did you mean 'rate'?"),
    ({"waits": {"n1": 1}}, ".waits: 'n1': expected a layout such as n1_gpu2"),
    ({"either": 3}, ".either: expected text or a list of 1 or more values, each text, got 3"),
    (
        {"seed": 2**64},
        ".seed: expected a whole number of 0 or more, got a number of 20 digits",
    ),
    ({"flag": True, "count": 6}, ": count = 6: expected at most 5 with flag"),
    ({(1, 2): 3}, ": keys must be str"),
]


@pytest.mark.parametrize(("values", "message"), MISTAKES)
def test_mistakes_are_named(values, message) -> None:
    given = values if values in ({}, {"steps": None}) else {"steps": 1, **values}
    with pytest.raises(ConfigError) as caught:
        Outer.parse(given, "block")
    assert str(caught.value).startswith(f"block{message}")
    with pytest.raises(ConfigError) as caught:
        Outer.parse(given, "config:")
    assert str(caught.value).startswith("config: " + message.lstrip(".: "))


@pytest.mark.parametrize("values", [5, None, "text", [1]])
def test_a_block_is_a_block(values) -> None:
    with pytest.raises(ConfigError, match=r"^block: expected a block of keys, got"):
        Outer.parse(values, "block")


def test_texts_are_read_as_what_is_wanted() -> None:
    values = {
        "steps": "1e4",
        "shape": ["2", "+3"],
        "names": ["7", "1e3", "true"],
        "limit": "5e-3",
        "flag": "true",
        "inner": {"rate": ".5E+1", "kind": "beta"},
        "other": "null",
        "parts": [{"rate": "2"}],
        "waits": {"n1_gpu1": "1e-1"},
        "either": "1e3",
        "anything": "1e3",
    }
    before = copy.deepcopy(values)
    plain = as_written(Outer, values)
    assert plain == {
        "steps": 10000,
        "shape": [2, 3],
        "names": ["7", "1e3", "true"],
        "limit": 0.005,
        "flag": True,
        "inner": {"rate": 5.0, "kind": "beta"},
        "other": None,
        "parts": [{"rate": 2}],
        "waits": {"n1_gpu1": 0.1},
        "either": "1e3",
        "anything": "1e3",
    }
    assert isinstance(plain["steps"], int)
    assert Outer.parse(values, "block") == Outer.parse(plain, "block")
    assert values == before
    left = {"steps": [1], "shape": "1", "inner": "x", "unknown": "1e3"}
    assert as_written(Outer, left) == left, "told by parse"


def test_essentials_are_what_differs_from_the_defaults() -> None:
    assert Outer(steps=3).essentials() == {"steps": 3}
    same = {"steps": 3, "shape": [1, 1], "inner": {"rate": 1}, "waits": {}}
    assert Outer.parse(same, "block").essentials() == {"steps": 3}
    changed = Outer(steps=3, shape=(2, 1), limit=None, inner=Inner(kind="beta"))
    assert changed.essentials() == {
        "steps": 3,
        "shape": [2, 1],
        "limit": None,
        "inner": {"kind": "beta"},
    }


def test_one_declaration_is_schema_message_and_description() -> None:
    """A key that is added to a copy is everywhere at once."""

    class More(Outer):
        """The same block with one key more."""

        pace: float = option(2.0, ge=0.5, le=4, unit="m/s")
        """How fast they walk."""

    key = schema_of(More)["properties"]["pace"]
    assert (key["default"], key["minimum"], key["unit"]) == (2.0, 0.5, "m/s")
    assert key["description"] == "How fast they walk."
    assert expected(key) == "a number from 0.5 to 4 (m/s)"
    with pytest.raises(
        ConfigError, match=r"block.pace: expected a number from 0.5 to 4 \(m/s\), got 9"
    ):
        More.parse({"steps": 1, "pace": 9}, "block")
    with pytest.raises(ConfigError, match="did you mean 'pace'"):
        More.parse({"steps": 1, "pacw": 1}, "block")
    assert schema_of(More)["properties"]["steps"]["description"].startswith("How many")


def test_anchors_that_multiply_are_refused_without_following_them() -> None:
    loop: list[Any] = []
    loop.append(loop)
    many: Any = ["x"] * 10
    for _ in range(40):
        many = [many] * 10
    for values in ({"a": loop}, {"a": many}):
        with pytest.raises(ConfigError, match="config: more than 200,000 values; anchors"):
            check_size(values, "config:")
    check_size({"a": [1] * 1000, "b": {"c": 1}}, "config:")


def test_the_nearest_name_or_all_of_them() -> None:
    assert nearest("layoutz", ["layouts", "seeds"]) == "did you mean 'layouts'?"
    assert nearest("qqq", ["seeds", "layouts"]) == "known are layouts, seeds"
    assert nearest(True, [2020, "b"]) == "known are 2020, b"

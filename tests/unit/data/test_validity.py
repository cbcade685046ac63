"""No-data values are found among data, and physical limits are not."""

import numpy as np
import pytest

from millrace.data.validity import Screening, is_usual
from millrace.systems.settings import MissingConfig

RANDOM = np.random.default_rng(3)
HEADS = RANDOM.normal(1.5, 0.4, 400)
SALT = np.clip(RANDOM.normal(12_000, 9_000, 400), 0, 35_000)


def suspects(values, **options) -> list[float]:
    screening = Screening(**options)
    for piece in np.array_split(np.asarray(values, dtype=np.float32), 4):
        screening.add(piece)
    return [one.value for one in screening.suspects()]


def with_values(values, *strange, count=1):
    values = np.array(values)
    for number, value in enumerate(strange):
        values[number * 97 : number * 97 + count] = value
    return values


USUAL = [
    1e30,
    -1e30,
    1e20,
    9.96921e36,
    -3.4028235e38,
    1.70141e38,
    -999,
    -9999,
    -99,
    1e10,
    9999,
    -999.25,
    -888,
]


@pytest.mark.parametrize("value", USUAL)
def test_a_usual_no_data_value_is_found_where_it_stands_once(value) -> None:
    found = suspects(with_values(HEADS, value))
    assert found == pytest.approx([value], rel=1e-6)


@pytest.mark.parametrize("value", [-999, -9999, 1e30, 9.96921e36])
def test_a_usual_no_data_value_is_found_beside_a_wide_range(value) -> None:
    assert suspects(with_values(SALT, value)) == pytest.approx([value], rel=1e-6)


def test_another_number_is_found_if_it_is_repeated_and_far_outside() -> None:
    assert suspects(with_values(HEADS, -12345, count=3)) == [-12345]
    assert suspects(with_values(HEADS, -12345)) == []


def test_several_no_data_values_are_found_together() -> None:
    found = suspects([1e30, -1e30, -9999, *HEADS])
    assert sorted(found) == pytest.approx([-1e30, -9999, 1e30], rel=1e-6)


def test_pieces_without_any_value_are_judged_by_the_others() -> None:
    assert suspects(with_values(HEADS, -999, count=100)) == [-999]


def test_a_suspect_says_where_it_stands_first_and_among_what() -> None:
    screening = Screening()
    for piece in np.split(with_values(np.tile([1.0, 2.0, 3.0], 40), -99, count=1)[::-1], 4):
        screening.add(piece)
    [one] = screening.suspects()
    assert (one.piece, one.index, one.count, one.others) == (3, 29, 1, (1.0, 3.0))
    assert "-99 in 'head'" in one.sentence("head", "datasets.site.missing")


PHYSICAL = {
    "concentration clipped at zero": np.maximum(RANDOM.normal(0, 50, 400), 0),
    "fresh water beside sea water": with_values(np.abs(RANDOM.normal(0, 2, 400)), 35_000, count=90),
    "no recharge": with_values(np.zeros(400), 0.0123, count=50),
    "two boundary heads": np.repeat([98.0, 99.0], 200),
    "a constant boundary head": np.full(400, 999.0),
    "a pumped well": with_values(HEADS, -45.0, count=30),
    "integers through -999": np.arange(-1500.0, 500.0, 5.0) // 1,
    "nines inside of the range": with_values(RANDOM.normal(0, 5_000, 400), 999, -999, count=3),
    "surface pressure": RANDOM.normal(1e5, 1e3, 400),
    "round pressures": np.round(RANDOM.normal(99_999, 300, 400)),
    "saturation": np.minimum(RANDOM.normal(95, 10, 400), 100),
    "nothing but zero": np.zeros(400),
}


@pytest.mark.parametrize("data", PHYSICAL)
def test_what_is_physical_is_no_no_data_value(data) -> None:
    assert suspects(PHYSICAL[data], possible=(0, 400_000)) == []


def test_a_declared_value_is_found_anywhere_and_a_kept_one_nowhere() -> None:
    zeros = np.maximum(RANDOM.normal(0, 50, 400), 0)
    assert suspects(zeros, declared=[0.0]) == [0.0]
    assert suspects(with_values(HEADS, -999), kept=[-999]) == []


@pytest.mark.parametrize(("then", "found"), [("refuse", [0]), ("keep", [])])
def test_the_configuration_says_what_a_value_means(then, found) -> None:
    screening = Screening.of(MissingConfig(value=0, then=then))
    screening.add(np.array([0.0, 1.0, 2.0]))
    assert [one.value for one in screening.suspects()] == found


@pytest.mark.parametrize("value", [0, 1, 100, 35_000, 273.15, 1013.25, 98, -1, 77])
def test_ordinary_numbers_are_not_usual(value) -> None:
    assert not is_usual(value)

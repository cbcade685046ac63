"""The table of scores over runs and ensembles."""

import json

import pandas as pd
import pytest

from millrace.evaluation.summary import _cell, summarise
from millrace.systems.registry import kinds


def scores(rmse):
    persistence = {"rmse": 4.0}
    names = ("nmae", "relative_l2", "r2", "kge")
    made = {"rmse": rmse, "skill": 1 - rmse / 4.0, "persistence": persistence}
    return {"head": {**made, **dict.fromkeys(names, 0.5)}}


@pytest.fixture
def runs(tmp_path):
    for layout, seed, rmse in (("n1_gpu1", 0, 1.0), ("n1_gpu1", 1, 3.0), ("n1_gpu2", 0, 2.0)):
        run = {"experiment": "salt", "layout": layout, "seed": seed, "epoch": 8}
        run |= {"test": scores(rmse), "validation": scores(rmse)}
        run["rollout"] = {"variables": scores(rmse)}
        (tmp_path / f"{layout}_{seed}.json").write_text(json.dumps(run))
    ensemble = {"crps": 0.7, "crps_skill": 0.4, "spread": 0.9, "spread_skill": 0.66}
    ensemble["mean"] = {"skill": 0.6}
    together = {"experiment": "salt", "layout": "n1_gpu1", "test": {"head": ensemble}}
    (tmp_path / "ensemble.json").write_text(json.dumps(together))
    return sorted(tmp_path.glob("n1*.json")), [tmp_path / "ensemble.json"]


def test_ensembles_stand_beside_the_runs_they_are_made_of(runs, tmp_path) -> None:
    outputs = [tmp_path / name for name in ("t.html", "t.csv", "t.png")]
    summarise(*runs, *outputs)
    rows = pd.read_csv(outputs[1])
    assert list(rows["rmse"]) == [1.0, 3.0, 2.0]
    assert list(rows["ensemble_skill"][:2]) == [0.6, 0.6]
    assert pd.isna(rows["spread_skill"][2])
    html = outputs[0].read_text()
    assert "spread / error" in html
    assert "2.00 ± 1.41" in html
    assert "<td>0.700</td>" in html, "the CRPS, without a deviation over seeds"


def test_without_ensembles_there_are_no_such_columns(runs, tmp_path) -> None:
    outputs = [tmp_path / name for name in ("t.html", "t.csv", "t.png")]
    summarise(runs[0], [], *outputs)
    assert "crps" not in pd.read_csv(outputs[1])
    assert "<th>CRPS</th>" not in outputs[0].read_text()


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("min_ade", [1.0, 3.0], "2.00 ± 1.41"),
        ("baseline_min_ade", [2.771, 2.771], "2.77"),
        ("min_ade", [1e-6, 3e-6], "2.00e-6 ± 1.41e-6"),
        ("min_ade", [120.0, 130.0], "125 ± 7"),
        ("min_ade", [0.0, 0.0], "0.000"),
        ("min_ade", [None, None], "undefined"),
        ("collision_gain", [0.0131, -0.0162, 0.2], "-0.0162"),
    ],
)
def test_numbers_of_several_seeds(column, values, expected) -> None:
    """Means with deviations; of lower ends of intervals the lowest."""
    cell = _cell(pd.Series(values, name=column), kinds()["scenarios"].table)
    assert cell == f"<td>{expected}</td>"

"""The table of scores over runs and ensembles."""

import json
import re

import pandas as pd
import pytest

from millrace.data.account import Account
from millrace.evaluation.summary import FEWEST_MEMBERS, format_score, summarise
from millrace.planning.taken import Taken

CPU, GPU = {"device": "CPU", "ranks": 2}, {"device": "NVIDIA H200", "ranks": 4}


def scores(rmse, persistence=4.0):
    before = {"rmse": persistence, "r2": 0.5}
    names = ("nmae", "relative_l2", "r2", "kge")
    made = {"rmse": rmse, "skill": 1 - rmse / persistence, "persistence": before}
    return {"head": {**made, **dict.fromkeys(names, 0.5)}}


def write_run(root, layout="n1_gpu1", seed=0, rmse=1.0, session=CPU, rate=0.1, experiment="salt"):
    """Metrics and receipt of a run as earlier versions wrote them; the path of the metrics."""
    name = f"{experiment}/{layout}/seed{seed}"
    run = {"experiment": experiment, "layout": layout, "seed": seed, "epoch": 8}
    run |= {"test": scores(rmse), "validation": scores(rmse), "identity": f"{name} {rate}"}
    run["rollout"] = {"variables": scores(rmse)}
    epoch = {"seconds": 1800.0, "session": 1, "epoch": 1, "step": 9, "validation_loss": 1.0}
    receipt = {"identity": run["identity"], "epoch": 8, "history": [epoch] * 2}
    receipt |= {"sessions": [session | {"session": 1}], "definition": {"train": {"rate": rate}}}
    metrics = root / f"results/evaluate/{name}/metrics.json"
    for path, content in ((metrics, run), (root / f"results/train/{name}/epoch_9.json", receipt)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return metrics


def write_ensemble(root, members):
    ensemble = {"crps": 0.7, "crps_skill": 0.4, "spread": 0.9, "spread_skill": 0.66}
    together = {"experiment": "salt", "layout": "n1_gpu1", "seeds": list(range(members))}
    calibrated = {"crps": 0.6, "crps_skill": 0.5, "spread": 1.3, "spread_skill": 0.96}
    together["test"] = {"head": {**ensemble, "mean": {"skill": 0.6}, "calibrated": calibrated}}
    path = root / "ensemble.json"
    path.write_text(json.dumps(together))
    return path


@pytest.fixture
def table(tmp_path):
    """(metrics, ensembles, others) -> rows of the CSV file, and the page."""

    def make(metrics, ensembles=(), others=()):
        outputs = [tmp_path / name for name in ("t.html", "t.csv", "t.png")]
        summarise(metrics, ensembles, *outputs, others=others)
        assert outputs[2].stat().st_size > 1000
        return pd.read_csv(outputs[1], keep_default_na=False, na_values=[""]), outputs[
            0
        ].read_text()

    return make


def test_ensembles_stand_beside_the_runs_they_are_made_of(tmp_path, table):
    runs = [
        write_run(tmp_path, "n1_gpu1", seed, rmse) for seed, rmse in enumerate((1.0, 1.2, 1.4, 1.6))
    ]
    runs.append(write_run(tmp_path, "n1_gpu2"))
    rows, page = table(runs, [write_ensemble(tmp_path, FEWEST_MEMBERS)])
    assert list(rows["rmse"]) == [1.0, 1.2, 1.4, 1.6, 1.0]
    assert list(rows["ensemble_skill"][:4]) == [0.6] * 4
    assert list(rows["crps"][:4]) == [0.7] * 4
    assert list(rows["calibrated_spread_skill"][:4]) == [0.96] * 4
    assert rows[["ensemble_skill", "crps"]].iloc[4].isna().all()
    assert "1.30<small>± 0.26</small>" in page
    assert ">0.700</td>" in page, "the CRPS, without a deviation over seeds"
    assert "members are too few" not in page


def test_the_page_tells_what_became_of_the_raw_files(tmp_path):
    account = Account()
    account.keep("time steps", 1200)
    account.leave_out("time steps", "after a gap of 3 steps", 7)
    (tmp_path / "results/data/site_a").mkdir(parents=True)
    account.write(tmp_path / "results/data/site_a/samples.json")
    (tmp_path / "results/data/damaged").mkdir()
    (tmp_path / "results/data/damaged/samples.json").write_text('{"nodes": {"read')
    report = tmp_path / "results/report"
    report.mkdir()
    outputs = [report / name for name in ("skill.html", "skill.csv", "skill.png")]
    summarise([write_run(tmp_path)], [], *outputs)
    page = outputs[0].read_text()
    assert 'site_<wbr>a</td><td class="name">time steps</td><td>1,207</td><td>1,200</td>' in page
    assert "<div>7 after a gap of 3 steps</div>" in page
    assert "damaged/samples.json: damaged, it is not an account of samples" in page


def test_the_page_tells_what_reading_took_and_what_was_expected(tmp_path):
    outputs = [tmp_path / name for name in ("skill.html", "skill.csv", "skill.png")]
    for taken in ([], [Taken("site_a", "preprocess", 2, 3, 117.5, 4500.0, 4.3, 0.912, 1.0)]):
        summarise([write_run(tmp_path)], [], *outputs, taken=taken)
        assert ("What reading took" in outputs[0].read_text()) == bool(taken)
    cells = outputs[0].read_text().partition("What reading took")[2]
    found = re.findall(r"<td[^>]*>(.*?)</td>", cells.partition("</tbody>")[0])
    assert found == ["site_<wbr>a", "preprocess", "2 of 3", "118", "75 min", "4.3 s", "0.912", "1"]


def test_crps_and_spread_of_three_members_are_held_back_and_the_mean_is_not(tmp_path, table):
    runs = [write_run(tmp_path, "n1_gpu1", seed) for seed in range(3)]
    rows, page = table(runs, [write_ensemble(tmp_path, 3)])
    assert rows[["crps", "crps_skill", "spread", "spread_skill"]].isna().all(axis=None)
    assert list(rows["ensemble_skill"]) == [0.6] * 3
    assert page.count("3 members are too few: 4 or more are needed.") == 6


def test_a_red_number_says_which_seeds_make_it_so(tmp_path, table):
    runs = [write_run(tmp_path, seed=seed, rmse=rmse) for seed, rmse in enumerate((1.0, 2.0, 5.0))]
    rows, page = table(runs)
    assert rows["skill"].mean() > 0
    assert page.count("not above 0: seed 2<") == 3  # of test, validation and rollout
    worse = [write_run(tmp_path, seed=seed, rmse=5.0, rate=0.2) for seed in (0, 1)]
    _, page = table(worse)
    assert "not above 0: seed" not in page, "the number itself shows it"
    assert 'class="bad' in page.partition("<tbody>")[2]


def test_without_ensembles_there_are_no_such_columns(tmp_path, table):
    rows, page = table([write_run(tmp_path)])
    assert "crps" not in rows
    assert ">CRPS<" not in page


def test_hours_of_processors_are_not_hours_of_gpus(tmp_path, table):
    runs = [write_run(tmp_path, session=CPU), write_run(tmp_path, "n1_gpu4", session=GPU)]
    rows, page = table(runs)
    assert list(rows["training_s"]) == [3600.0] * 2
    assert list(rows["gpu_hours"].fillna(0)) == [0, 4]
    assert list(rows["cpu_hours"].fillna(0)) == [2, 0]
    assert list(rows["devices"]) == ["2 × CPU", "4 × NVIDIA H200"]
    assert page.count('title="It ran on CPUs."') == 1


def test_what_lies_in_results_is_in_the_table_asked_for_or_not(tmp_path, table):
    asked = [write_run(tmp_path, seed=0, rmse=1.0), write_run(tmp_path, seed=1, rmse=2.0)]
    others = [write_run(tmp_path, seed=2, rmse=3.0), write_run(tmp_path, experiment="old")]
    strange = tmp_path / "strange.json"
    strange.write_text('{"samples": "sand"}')
    rows, page = table(asked, others=[*others, strange])
    assert list(rows["asked"]) == [True, True, False, False]
    assert "2.00<small>± 1.00</small>" in page, "of three seeds"
    assert "1.50<small>± 0.71</small>" in page, "of the two that are asked for"
    assert page.count('<tr data-within="all"') == 2
    assert page.count('<tr data-within="asked"') == 1
    assert "strange.json: no kind of samples named" in page


def test_runs_with_other_settings_are_not_averaged(tmp_path, table):
    runs = [
        write_run(tmp_path, seed=seed, rmse=1 + seed, rate=0.1 + (seed > 1)) for seed in range(3)
    ]
    _, page = table(runs[2:], others=runs[:2])
    assert "1.50<small>± 0.71</small>" in page
    assert ">3.00</td>" in page


def test_a_dead_seed_is_named_by_its_forecasts_and_by_the_other_seeds(tmp_path, table):
    runs = [write_run(tmp_path, seed=seed, rmse=rmse) for seed, rmse in enumerate((3.99, 1.0, 1.1))]
    rows, page = table(runs)
    assert rows["problems"].str.contains("equal persistence").tolist() == [True, False, False]
    assert rows["problems"].str.contains("3.6 times those of the median").tolist() == [
        True,
        False,
        False,
    ]
    assert "salt, n1_gpu1, seed 0: does not learn: the forecasts equal persistence" in page
    assert "does not learn: seed 0</span>" in page


@pytest.mark.parametrize(
    ("mean", "deviation", "expected"),
    [
        (2.0, 1.414, "2.00 ± 1.41"),
        (2.771, None, "2.77"),
        (2e-6, 1.414e-6, "2.00e-6 ± 1.41e-6"),
        (125.0, 7.07, "125 ± 7"),
        (0.0, None, "0.000"),
        (-0.00481, 0.39592, "-0.005 ± 0.396"),
    ],
)
def test_scores_have_three_digits_and_deviations_as_many_decimals(mean, deviation, expected):
    assert format_score(mean, deviation) == expected

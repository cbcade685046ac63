"""Two runs beside each other on the command line and as a page of the report."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_runs import HISTORY, make_run

from millrace.errors import ExitCode
from millrace.evaluation.cases import case_record
from millrace.evaluation.compare import compare_results
from millrace.runs.command import main
from millrace.sealed import read_sealed, write_sealed

A, B = "salt/n1_gpu1/seed0", "salt/n1_gpu1/seed1"


def evaluate(base, family, store, errors=None, **keys):
    """Scores of a run; without errors by case if there are none."""
    metrics = {"identity": store.name, "samples": "patches", "epoch": 2, "seed": 0}
    if errors is not None:
        names = [str(n) for n in range(len(errors))]
        metrics["cases"] = case_record(
            names, np.arange(len(errors)), {"head": {"rmse": ("m", errors)}}
        )
    path = base / "results/evaluate" / family / "metrics.json"
    path.parent.mkdir(parents=True)
    write_sealed(path, metrics | keys)
    return path


@pytest.fixture
def stores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_run(tmp_path), make_run(tmp_path, seed=1, rate=0.3)


@pytest.fixture
def evaluated(stores, tmp_path):
    """Paths of the scores: B is worse by 1 m in each of 20 cases."""
    errors = np.linspace(1, 2, 20)
    return evaluate(tmp_path, A, stores[0], errors), evaluate(tmp_path, B, stores[1], errors + 1)


def test_differences_are_told(evaluated, capsys):
    assert main(["compare", A, B, "--output", "made/page.html"]) == ExitCode.OK
    said = capsys.readouterr().out
    assert [
        line.split() for line in said.splitlines() if "learning_rate" in line or "head" in line
    ] == [
        ["train.learning_rate", "0.1", "0.3"],
        ["head", "rmse", "(m)", "1.5", "2.5", "-1", "-1", "to", "-1", "A", "20", "20"],
    ]
    page = Path("made/page.html").read_text()
    assert page.count("<svg") == 2
    assert f"A: <code>{A}/" in page
    assert "<td>-1 to -1</td>" in page
    assert not list(Path("made").glob(".*"))


def test_numbers_for_scripts(evaluated, capsys):
    main(["compare", A, B, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["settings"] == {"seed": [0, 1], "train.learning_rate": [0.1, 0.3]}
    [row] = found["differences"]
    assert (row["difference"], row["better"], row["blocks"]) == (pytest.approx(-1.0), "A", 20)
    assert found["notes"] == []


def test_a_run_beside_itself(evaluated, capsys):
    main(["compare", A, A, "--json"])
    found = json.loads(capsys.readouterr().out)
    [row] = found["differences"]
    assert (row["difference"], row["low"], row["high"], row["better"]) == (0, 0, 0, "")
    assert found["settings"] == {}


@pytest.mark.parametrize(
    ("errors", "keys", "told"),
    [
        (
            None,
            {},
            "no errors by test case, as it is of an earlier version; delete it and run",
        ),
        ([1.0, 2.0], {"identity": "0" * 16}, "its scores are of other settings of this run"),
    ],
)
def test_why_there_are_no_tests(stores, tmp_path, capsys, errors, keys, told):
    evaluate(tmp_path, A, stores[0], [1.0, 2.0])
    evaluate(tmp_path, B, stores[1], errors, **keys)
    assert main(["compare", A, B]) == ExitCode.OK
    said = capsys.readouterr().out
    assert "B: results/evaluate/salt/n1_gpu1/seed1/metrics.json: " in said
    assert told in said
    assert "learning_rate" in said


def test_what_was_not_evaluated_has_settings_and_losses(stores, capsys):
    assert main(["compare", A, B]) == ExitCode.OK
    said = capsys.readouterr().out
    assert "metrics.json: no such file; run the evaluate stage first" in said
    best = f"{HISTORY[-1]['validation_loss']:.4g}"
    assert [line.split()[:3] for line in said.splitlines() if line.split()[:1] in (["A"], ["B"])][
        -2:
    ] == [
        ["A", "6", best],
        ["B", "6", best],
    ]


def test_few_blocks_and_cases_of_one_run_are_told(stores, tmp_path, capsys):
    evaluate(tmp_path, A, stores[0], [1.0, 2.0, 3.0])
    evaluate(tmp_path, B, stores[1], [1.0, 3.0])
    main(["compare", A, B, "--json"])
    assert json.loads(capsys.readouterr().out)["notes"] == [
        "1 test cases of A are left out: the other run has none of their names",
        "2 blocks are too few to tell which run is better",
    ]


def test_other_kinds_of_samples_are_refused(stores, tmp_path, capsys):
    evaluate(tmp_path, A, stores[0], [1.0])
    evaluate(tmp_path, B, stores[1], [1.0], samples="weather")
    assert main(["compare", A, B]) == ExitCode.DATA
    assert "is on samples of patches, salt/n1_gpu1/seed1" in capsys.readouterr().err
    assert main(["compare", A, B, "--output", "page.png"]) == ExitCode.DATA
    assert "expected a name that ends in .html" in capsys.readouterr().err


def test_the_page_of_the_report_needs_no_stores(evaluated, tmp_path):
    receipts = []
    for seed, (path, rate) in enumerate(zip(evaluated, (0.1, 0.3), strict=True)):
        receipt = tmp_path / f"{seed}.json"
        identity = json.loads(path.read_text())["identity"]
        definition = {"train": {"learning_rate": rate}}
        described = {"experiment": "salt", "layout": "n1_gpu1", "seed": seed, "history": HISTORY}
        write_sealed(receipt, described | {"identity": identity, "definition": definition})
        receipts.append(receipt)
    compare_results(evaluated, receipts, tmp_path / "out/page.html", tmp_path / "out/page.json")
    found = read_sealed(tmp_path / "out/page.json", "", "", "")
    assert found["a"] == A
    assert found["settings"] == {"seed": [0, 1], "train.learning_rate": [0.1, 0.3]}
    assert found["differences"][0]["better"] == "A"
    assert (tmp_path / "out/page.html").read_text().count("<svg") == 2

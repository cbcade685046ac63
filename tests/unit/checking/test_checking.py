"""`millrace check` on plug-ins: a good one passes, those that break a promise are told by its name."""

import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from plans import ROOT, changed_part

from millrace.checking import case as checked_case
from millrace.checking import pytest_plugin, sample_contracts
from millrace.checking.case import Case, ContractError
from millrace.checking.command import main
from millrace.checking.contracts import OF_MODELS
from millrace.checking.sample_contracts import OF_SAMPLES
from millrace.checking.subjects import find_subjects
from millrace.data.split import SPLITS
from millrace.systems import registry

PLUGIN = '''
import torch

from millrace.config import Settings
from millrace.models.spec import ModelSpec
from millrace.systems.base import Model, System
from millrace.systems.downscaling.dataset import as_fields
from millrace.systems.downscaling.diffusion import conditions, recentred


class Config(Settings):
    hidden: int = 4


class Cellwise(torch.nn.Module):
    """Sees one cell at a time."""

    def __init__(self, config, dataset):
        super().__init__()
        variables = len(dataset.config.variables)
        self.first = torch.nn.Linear(variables + dataset.n_features, config.hidden)
        self.last = torch.nn.Linear(config.hidden, variables, bias=False)
        {state}

    def forward(self, batch):
        made = self.last(torch.tanh(self.first(conditions(batch))))
        {forward}
        return recentred(made, batch)


def loss(module, batch, config):
    error = module(batch) - batch.y_BNV
    return error.square().mean(dim=(1, 2)){loss}


SPEC = ModelSpec(
    name="{name}",
    config=Config,
    build=Cellwise,
    predict=lambda module, batch: as_fields(module(batch)),
    loss=loss,
)
SYSTEM = System("{name}", models=(Model("{name}", "blocks", "{name}:SPEC"),))
'''


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(registry, "loaded_plugins", {})
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def plugin(tmp_path):
    """Write a plug-in; files of a test have names of their own."""

    def write(name, state="", forward="", loss=""):
        path = tmp_path / f"{name}.py"
        path.write_text(PLUGIN.format(name=name, state=state, forward=forward, loss=loss))
        return str(path)

    return write


def test_a_good_plugin_holds_to_all_contracts(plugin, capsys):
    assert main([plugin("cellwise_good")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("cellwise_good\n  ok      builds\n")
    assert f"{len(OF_MODELS)} contracts hold, 0 do not" in said


def test_what_is_not_tried_is_said(plugin, capsys):
    name = plugin("cellwise_unpredictable", forward="made = made if made.sum() > 1e9 else -made")
    assert main([name, "--only", "exports"]) == 0
    said = capsys.readouterr().out
    assert "  skipped exports: " in said
    assert "0 contracts hold, 0 do not, 1 was not tried" in said


BROKEN = {
    "hidden": (
        {"state": "self.calls = 0", "forward": "self.calls += 1; made = made * self.calls"},
        "no_hidden_state",
        "another second forecast of a batch",
    ),
    "spare": (
        {"state": "self.spare = torch.nn.Parameter(torch.ones(2))"},
        "every_parameter_learns",
        "no gradient: spare; the loss does not depend on it",
    ),
    "nan": ({"loss": " * float('nan')"}, "gives_a_loss_per_sample", "the loss is not finite: [nan"),
    "mean": ({"loss": ".mean()"}, "gives_a_loss_per_sample", "the loss has the shape (), expected"),
    "dropout": (
        {"forward": "made = torch.nn.functional.dropout(made, training=self.training)"},
        "ranks_agree",
        "on one rank and",
    ),
    "raises": (
        {"forward": "made = self.last(made)"},
        "builds",
        "cellwise_raises.py:27: RuntimeError: mat1 and mat2 shapes cannot be multiplied",
    ),
}


@pytest.mark.parametrize("which", BROKEN)
def test_a_broken_plugin_is_told_by_the_contract_it_breaks(plugin, capsys, which):
    changes, contract, told = BROKEN[which]
    name = "forecast_fits_the_target" if which == "raises" else contract
    assert main([plugin(f"cellwise_{which}", **changes), "--only", name]) == 1
    said = capsys.readouterr().out
    assert f"FAILED  {name}: " in said
    assert told in said
    assert f"failed: cellwise_{which} {name}" in said


def test_scripts_read_what_holds_and_why_not(plugin, capsys):
    own = plugin("cellwise_json", loss=".mean()")
    only = ("--only", "builds", "--only", "gives_a_loss_per_sample")
    assert main([own, *only, "--json"]) == 1
    found = {one["contract"]: one for one in json.loads(capsys.readouterr().out)}
    assert [found[name]["holds"] for name in only[1::2]] == [True, False]
    assert "the loss has the shape ()" in found[only[-1]]["reason"]


def test_what_cannot_be_checked_is_said_in_a_sentence(plugin, tmp_path, capsys):
    broken = tmp_path / "cellwise_import.py"
    broken.write_text("\n\nimport no_such_thing\n")
    for arguments, told in (
        (
            [str(broken)],
            "cellwise_import.py:3: ModuleNotFoundError: No module named 'no_such_thing'",
        ),
        (["ginos"], "no file, module, model or system named 'ginos'; did you mean 'gino'?"),
        (["nowhere.py"], "no file"),
        (
            ["gino", "--only", "resume_bitwise"],
            "no such experiment or contract; did you mean 'resumes_b",
        ),
        (["gino", "--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    ):
        assert main(arguments) == 2
        assert told in capsys.readouterr().err


def test_an_experiment_of_ones_own_is_taken_instead_of_the_example(plugin, tmp_path, capsys):
    example = registry.get_kind("blocks").example
    config = {
        "datasets": {"globe": {**example["dataset"], "source": str(tmp_path / "nowhere")}},
        "experiments": {
            "mine": {
                "dataset": "globe",
                "data": example["data"],
                "model": {"name": "cellwise_own", "hidden": 3},
                "train": {"epochs": 2, "global_batch": 2},
            },
            "other": {
                "dataset": "globe",
                "data": example["data"],
                "model": {"name": "regression"},
                "train": {"epochs": 2, "global_batch": 2},
            },
        },
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(config))
    [subject] = find_subjects([plugin("cellwise_own")], path)
    assert subject.name == "mine"
    assert main([plugin("cellwise_own"), "--config", str(path)]) == 1
    assert "mine\n  FAILED  samples: " in capsys.readouterr().out
    config["datasets"]["globe"] = example["dataset"]
    path.write_text(yaml.safe_dump(config))
    [subject] = find_subjects([plugin("cellwise_own")], path, ["builds"])
    assert subject.case.definition["model"]["hidden"] == 3
    assert subject.case.definition["train"] == {"global_batch": 2}
    assert [subject.failure(one) for one in subject.contracts] == [None]


@pytest.mark.slow
def test_samples_of_a_system_hold_to_all_contracts():
    subject, _ = find_subjects(["downscaling"], only=[one.__name__ for one in OF_SAMPLES])
    assert subject.contracts == list(OF_SAMPLES)
    assert [subject.failure(one) for one in OF_SAMPLES] == [None] * len(OF_SAMPLES)


class Batch:
    """One target of two steps and two variables."""

    def __init__(self, begin):
        self.y_BTV, self.weight_B = begin + torch.tensor([[[0.0, 0.5], [1.0, 1.5]]]), torch.ones(1)


class Few:
    """Two samples in each split, one after the other in time; arguments say what is wrong with them."""

    group_costs = np.ones(1)
    preparation = ()

    def __init__(self, digest="d", apart=4.0, size=2, opened=None, mean=0.0):
        self.definition = {"digest": digest, "opened": opened and id(self)}
        self.apart, self.size, self.mean, self.normalisation = apart, size, mean, self

    def to_json(self):
        return self.mean

    def groups(self, split):
        return np.array([self.size])

    def batch(self, split, group, index):
        return Batch(self.apart * SPLITS.index(split) + 2.0 * float(index[0]))


@pytest.mark.parametrize(
    ("contract", "changes", "told"),
    [
        ("samples_open", {}, None),
        ("samples_open", {"digest": ""}, "Few.definition has no digest of the samples"),
        ("samples_open", {"opened": True}, "definition is another one when the same files are op"),
        ("samples_open", {"size": 0}, "train: no samples; make the dataset of the example larger"),
        ("splits_are_disjoint", {}, None),
        (
            "splits_are_disjoint",
            {"apart": 2.0},
            "validation split has a target that is also in the",
        ),
    ],
)
def test_broken_samples_fail_the_contract_they_break(
    tmp_path, monkeypatch, contract, changes, told
):
    opened = []  # kept, so that no two have the same id
    monkeypatch.setattr(
        checked_case, "open_dataset", lambda *_: opened.append(Few(**changes)) or opened[-1]
    )
    hold = partial(
        getattr(sample_contracts, contract),
        Case({"model": {"name": "gino"}, "data": {}}, {}, tmp_path),
    )
    if told is None:
        assert hold() is None
    else:
        with pytest.raises(ContractError, match=told):
            hold()


@pytest.mark.parametrize(
    ("statistics", "told"),
    [
        (lambda split: split["train"], None),
        (lambda split: 1.0, "fewer training samples do not change the statistics"),
        (lambda split: split["train"] + split["validation"], "a longer validation split changes"),
    ],
)
def test_statistics_of_other_samples_are_found(tmp_path, monkeypatch, statistics, told):
    monkeypatch.setattr(
        checked_case, "open_dataset", lambda kind, files, *_: Few(mean=statistics(files["split"]))
    )
    case = Case(
        {"model": {"name": "gino"}, "data": {}},
        {},
        tmp_path,
        dataset={"split": {"train": 0.6, "validation": 0.2}},
        prepared=lambda block: block,
    )
    if told is None:
        assert sample_contracts.statistics_are_of_training(case) is None
    else:
        with pytest.raises(ContractError, match=told):
            sample_contracts.statistics_are_of_training(case)


@pytest.mark.parametrize(
    ("scores", "rows", "told"),
    [
        ({"test": {}}, [], "the scores have no validation"),
        ({"test": {}, "validation": {}}, [], "Table.rows gives no row"),
        ({"test": {}, "validation": {}}, [{"variable": "x"}], "has no `variable` or no `skill`"),
    ],
)
def test_an_evaluation_without_its_table_is_told(tmp_path, monkeypatch, scores, rows, told):
    monkeypatch.setattr(sample_contracts, "on_ranks", lambda *_, directory: None)
    monkeypatch.setattr(
        sample_contracts, "evaluate_run", lambda *given: given[3].write_text(json.dumps(scores))
    )
    table = replace(registry.get_kind("patches").table, rows=lambda _: rows)
    changed_part(monkeypatch, "kinds", "patches", table=table)
    with pytest.raises(ContractError, match=told):
        sample_contracts.evaluation_fills_the_table(Case({"model": {"name": "gino"}}, {}, tmp_path))


@pytest.mark.slow
def test_pytest_collects_a_test_for_each_contract(plugin, tmp_path):
    (tmp_path / "test_own.py").write_text("def test_own():\n    assert True\n")
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:millrace"]
    command += ["-p", "millrace.checking.pytest_plugin", "-k", "own or learns or builds"]
    path = plugin("cellwise_pytest", state="self.spare = torch.nn.Parameter(torch.ones(2))")
    done = subprocess.run(
        [*command, "--millrace-check", path], cwd=tmp_path, capture_output=True, text=True
    )
    assert "test_own.py::test_own PASSED" in done.stdout, done.stderr
    assert "cellwise_pytest[builds] PASSED" in done.stdout
    assert "cellwise_pytest[every_parameter_learns] FAILED" in done.stdout
    assert "no gradient: spare; the loss does not depend on it" in done.stdout
    assert f"2 passed, {len(OF_MODELS) - 2} deselected" in done.stdout.replace("1 failed, ", "")


def test_pytest_is_told_of_what_cannot_be_checked():
    config = SimpleNamespace(getoption=lambda _: ["nowhere.py"])
    with pytest.raises(pytest.UsageError, match="--millrace-check: plugins: no file"):
        pytest_plugin.pytest_collection_modifyitems(None, config, [])


def test_other_runs_of_pytest_load_nothing():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module = project["entry-points"]["pytest11"]["millrace"]
    program = (
        f"import sys, {module}; print([m for m in ('torch', 'numpy', 'h5py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr

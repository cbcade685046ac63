"""What docs/extending.md shows works: a model in one file from outside, or in one file and one line."""

import difflib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from plans import ROOT

from millrace.checking import contracts
from millrace.checking.case import Case
from millrace.checking.sample_contracts import evaluation_fills_the_table
from millrace.errors import ConfigError
from millrace.plan import Plan
from millrace.systems import registry

PAGE = (ROOT / "docs/extending.md").read_text()
FILE, EXPERIMENT, SMALL, SITE = re.findall(r"```(?:python|yaml)\n(.*?)```", PAGE, flags=re.S)
EXPERIMENT, SMALL, SITE = map(yaml.safe_load, (EXPERIMENT, SMALL, SITE))
LINE = re.findall(r"`(Model\(.*\),)`", PAGE)[0]


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The file of the page, loaded as a plug-in that other tests do not see."""
    monkeypatch.setattr(registry, "loaded_plugins", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    # Not my_gru: who follows the page has such a file in the checkout.
    monkeypatch.delitem(sys.modules, "gru_of_the_page", raising=False)
    path = tmp_path / "gru_of_the_page.py"
    path.write_text(FILE)
    return registry.load_plugins([str(path)])[0]


def merged(*files):
    """Configuration as Snakemake merges it."""
    made = {}
    for file in files:
        for key, block in file.items():
            made[key] = {**made.get(key, {}), **block} if isinstance(block, dict) else block
    return made


def test_the_experiment_of_the_page_needs_patches_alone(plugin):
    demo = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    plan = Plan(merged(demo, EXPERIMENT, SITE, {"plugins": [plugin]}))
    assert plan.samples("gru") == {"patches": "results/data/coast/patches.h5"}
    for path in (*plan.final_checkpoints(), *plan.metrics(), *plan.report()):
        assert path in PAGE.replace("skill.html`, `.csv`, `.png", " ".join(plan.report())), path
    spec, block = registry.get_model("my_gru"), EXPERIMENT["experiments"]["gru"]
    assert spec.config.parse({"hidden": block["model"]["hidden"]}, "model").hidden == 32
    mistyped = {"gru": block | {"model": block["model"] | {"hiden": 3}}}
    with pytest.raises(ConfigError, match=r"experiments\.gru\.model: unknown key 'hiden'"):
        Plan(merged(demo, EXPERIMENT, SITE, {"plugins": [plugin], "experiments": mistyped}))


def test_the_small_dataset_of_the_page_makes_a_folder_of_ones_own_complete(plugin):
    experiment = EXPERIMENT["experiments"]["gru"] | {"dataset": "islet"}
    own = {"experiments": {"gru": experiment}, "plugins": [plugin]}
    plan = Plan(merged(EXPERIMENT, SMALL, own))
    assert plan.samples("gru") == {"patches": "results/data/islet/patches.h5"}


@pytest.mark.slow
def test_the_model_of_the_page_trains_on_one_rank_and_two_and_is_scored(
    plugin, samples, definition, tmp_path
):
    blocks = {**definition, "model": {"name": "my_gru", "hidden": 8}}
    files = {"patches": str(samples["patches"])}
    case = Case(blocks, files, tmp_path, plugins=[plugin])
    for contract in (contracts.ranks_agree, contracts.loss_falls):
        assert contract(case) is None
    evaluation_fills_the_table(case)
    assert (tmp_path / "figures/head/error_map.png").is_file()
    scores = json.loads((tmp_path / "metrics.json").read_text())["test"]
    assert scores.keys() == {"head", "mass_concentration"}


@pytest.fixture
def checkout(tmp_path):
    """A copy of the library."""
    shutil.copytree(
        ROOT / "workflow", tmp_path / "workflow", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path / "workflow"


@pytest.mark.slow
def test_a_model_inside_the_checkout_is_one_file_and_one_line(checkout):
    """And it is known to the registry, planned, built and tried on samples of its kind."""
    room = checkout / "millrace/systems/groundwater"
    (room / "my_gru.py").write_text(FILE.replace("Model, ", "").split("SYSTEM = ")[0])
    before = (room / "system.py").read_text()
    (room / "system.py").write_text(
        before.replace("    models=(\n", f"    models=(\n        {LINE}\n")
    )
    changes = difflib.ndiff(before.splitlines(), (room / "system.py").read_text().splitlines())
    assert [line for line in changes if line[0] in "+-"] == [f"+         {LINE}"]
    done = subprocess.run(
        [sys.executable, "-m", "millrace.cli", "check", "my_gru", "--only", "builds"],
        env=os.environ | {"PYTHONPATH": str(checkout)},
        cwd=checkout.parent,
        capture_output=True,
        text=True,
    )
    assert "1 contracts hold, 0 do not" in done.stdout, done.stdout + done.stderr

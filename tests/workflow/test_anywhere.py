"""The workflow of this checkout, run from folders of users: by its path, and as a module of theirs."""

import copy
import json
import os
import sys

import pytest
import yaml
from forked_snakemake import snakemake
from project import CONFIG, REPOSITORY, Project

from millrace.planning import command, dry_run

SNAKEFILE = REPOSITORY / "Snakefile"
PROFILES = REPOSITORY / "profiles"
MODULE = f"""
configfile: "config/config.yaml"

module millrace:
    snakefile: "{SNAKEFILE}"
    config: config
    prefix: "surrogate"

use rule * from millrace as millrace_*
"""
TRAINED = "surrogate/results/train/tiny/n1_gpu1/seed0"


class Folder(Project):
    """A folder of a user that holds a configuration and nothing of the workflow."""

    def __init__(self, root, *options: str) -> None:
        self.root, self.options = root, options
        self.config = copy.deepcopy(CONFIG)
        self.config["experiments"]["tiny"]["train"] |= {"epochs": 2, "milestone_every": 1}
        root.mkdir()

    def command(self, *arguments: str) -> list[str]:
        self.path("config").mkdir(exist_ok=True)
        self.path("config/config.yaml").write_text(yaml.safe_dump(self.config))
        options = self.options
        if "--profile" not in arguments:
            options = (*options, "--profile", str(PROFILES / "local"))
        return [sys.executable, "-m", "snakemake", *options, *arguments]

    def holds(self, name: str = ".") -> set[str]:
        return {path.name for path in self.path(name).iterdir()} - {".snakemake"}


@pytest.fixture
def folder(tmp_path) -> Folder:
    """A folder from which the workflow is run by its path."""
    return Folder(tmp_path / "here", "-s", str(SNAKEFILE))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Folder:
    """A folder whose own Snakefile has run the workflow as a module to the end."""
    folder = Folder(
        tmp_path_factory.mktemp("module") / "user", "--workflow-profile", str(PROFILES / "default")
    )
    folder.path("Snakefile").write_text(MODULE)
    folder.path("config").mkdir()
    # Beside the Snakefile's configuration, not in the working directory.
    plugin = "from millrace.systems.base import System\n\nSYSTEM = System('mine')\n"
    folder.path("config/mine.py").write_text(plugin)
    folder.config["plugins"] = ["mine.py"]
    folder.run()
    return folder


@pytest.fixture
def module(trained, tmp_path) -> Folder:
    """A copy of that folder to change and plan again, times of all files kept."""
    copied = trained.copy(tmp_path / "user")
    copied.config = copy.deepcopy(trained.config)
    return copied


def test_an_empty_folder_is_told_what_to_write(folder):
    folder.config = {}
    refused = folder.run("-n", check=False)
    assert refused.returncode != 0
    wanted = f"no configuration: write {folder.path('config/config.yaml')}, or name a file with"
    assert wanted in refused.stdout + refused.stderr


@pytest.mark.slow
def test_the_workflow_runs_in_the_folder_that_is_named(folder):
    there = ("--directory", "../there", "--configfile", "config/config.yaml")
    folder.run("data", *there)
    assert folder.holds("../there") == {"results", "logs", "benchmarks"}
    assert folder.holds() == {"config"}, "nothing is made where the user stands"
    assert folder.planned("data", *there) == {}
    remaining = {"train_segment": 2, "evaluate_run": 1, "summarise_skill": 1}
    assert folder.planned(*there) == remaining
    assert folder.planned() == {
        **dict.fromkeys(("simulate_raw", "preprocess", "extract_patches", "build_graph"), 1),
        **remaining,
    }


@pytest.mark.slow
def test_what_a_module_makes_lies_below_its_prefix(trained):
    assert trained.holds() == {"Snakefile", "config", "surrogate"}
    assert trained.holds("surrogate") == {"results", "runs", "logs", "benchmarks"}
    receipt = json.loads(trained.path(f"{TRAINED}/epoch_2.json").read_text())
    assert len(receipt["history"]) == 2
    assert receipt["store"].startswith("surrogate/runs/tiny/n1_gpu1/seed0/")
    assert trained.path(receipt["store"]).is_dir()
    scored = trained.path("surrogate/results/evaluate/tiny/n1_gpu1/seed0/metrics.json")
    assert json.loads(scored.read_text())["test"]


@pytest.mark.slow
def test_a_module_has_nothing_left_to_do(trained):
    assert trained.planned() == {}


@pytest.mark.slow
def test_stages_of_a_module_are_forced_and_asked_for_by_their_names(trained):
    stages = [f"millrace_{name}" for name in ("train", "preflight", "scaling_report")]
    planned = trained.planned(*stages, "-R", "millrace_train")
    jobs = ("train_segment", "preflight_layout", "measure_throughput")
    assert [planned[f"millrace_{job}"] for job in jobs] == [2, 1, 6]


@pytest.mark.slow
def test_a_deleted_checkpoint_of_a_module_comes_back_from_its_store(module):
    checkpoint = module.path(f"{TRAINED}/epoch_2.ckpt")
    before = checkpoint.read_bytes()
    checkpoint.unlink()
    module.run(f"{TRAINED}/epoch_2.ckpt")
    assert checkpoint.read_bytes() == before
    log = module.path("surrogate/logs/train_segment/tiny/n1_gpu1/seed0/epoch_2.log").read_text()
    assert "epoch 2/2  step" not in log, "it was trained again"


@pytest.mark.slow
def test_paths_of_the_configuration_start_where_the_user_stands(module):
    """Raw files do, which may be archived once they are read; a checkpoint of the module does not."""
    module.path("surrogate/results/data/small/raw").rename(module.path("mine"))
    small, tiny = module.config["datasets"]["small"], module.config["experiments"]["tiny"]
    small["source"] = "mine"
    planned = module.run("-n").stdout
    assert "    input: mine\n" in planned
    module.path("mine").rename(module.path("archived"))
    init_from = {"checkpoint": "results/train/tiny/n1_gpu1/seed{seed}/epoch_2.ckpt"}
    tuned = {**tiny, "train": {**tiny["train"], "epochs": 1, "init_from": init_from}}
    module.config["experiments"]["tuned"] = tuned
    planned = module.run("surrogate/results/train/tuned/n1_gpu1/seed0/epoch_1.ckpt", "-n")
    assert f"graph_4x4x3_r0.6.h5, {TRAINED}/epoch_2.ckpt\n" in planned.stdout


@pytest.mark.slow
def test_a_module_is_reported(module):
    text = module.report()
    assert "Millrace trained and evaluated" in text
    assert "the model gino on small" in text
    # Whose configuration is not that of the Snakefile.
    snakefile = module.path("Snakefile")
    own = snakefile.read_text().replace("config: config", 'config: config["its"]')
    snakefile.write_text(own)
    module.config = {"its": module.config}
    assert "table of test skill" in module.report()


@pytest.mark.slow
def test_profiles_are_found_beside_the_users_snakefile_and_beside_the_workflow(module):
    def asked(profile: str) -> str:
        forced = ("millrace_train", "-n", "-R", "millrace_train")
        text = module.run(*forced, "--profile", profile).stdout
        lines = text[text.index("rule millrace_train_segment:") :].splitlines()
        return next(line for line in lines if line.strip().startswith("resources:"))

    of_workflow = asked(str(PROFILES / "gilbreth"))
    assert f"site={PROFILES / 'gilbreth'}" in of_workflow
    assert "runtime=1440, slurm_partition=a100-80gb" in of_workflow
    own = module.path("profiles/gilbreth")
    own.mkdir(parents=True)
    for name in ("config.yaml", "cluster.yaml"):
        text = (PROFILES / "gilbreth" / name).read_text()
        (own / name).write_text(text.replace("hours: 24 }", "hours: 12 }"))
    of_user = asked("profiles/gilbreth")
    assert f"site={own}" in of_user
    assert "runtime=720, slurm_partition=a100-80gb" in of_user


@pytest.mark.slow
def test_a_plan_of_a_module_knows_its_stages_and_what_is_done(module, monkeypatch, capsys):
    monkeypatch.chdir(module.root)
    module.config["run"]["seeds"] = [0, 1]
    module.command()  # writes the configuration
    monkeypatch.setattr(
        dry_run, "run_snakemake", lambda given: snakemake(given, module.root, dict(os.environ))
    )
    assert command.main(["--profile", "gilbreth", "--json"]) == 0
    rows = {row["rule"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    trained = rows["millrace_train_segment"]
    assert (trained["stage"], trained["jobs"], trained["left"]) == ("train", 4, 2)
    assert trained["request"]["slurm_partition"] == "a100-80gb"

"""What every rule asks for on every cluster, word for word: a change of facts shows as a diff."""

import json
import os
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from forked_snakemake import snakemake
from project import CONFIG
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string

from millrace.cluster import LAYOUTS, Cluster
from millrace.errors import ConfigError
from millrace.layout import Layout
from millrace.planning import command, dry_run
from millrace.schedulers.requests import qsub_arguments
from millrace.systems.registry import kinds

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests/golden/requests"
# Runs where Snakemake does.
LOCAL = {"summarise_skill", "compare_runs", "train_race", "analyse_scaling", "summarise_sweep"}
ON_LAYOUT = {"train_segment", "measure_throughput", "preflight_layout"}


class Resources(dict):
    __getattr__ = dict.__getitem__


def rules() -> list[str]:
    text = "".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
    names = [name for name in re.findall(r"^rule (\w+):", text, flags=re.M) if name not in LOCAL]
    for name in ("extract_samples", "extract_part"):
        names.remove(name)  # a cluster's facts name its jobs by the kind of samples
    names += [f"extract_{kind.name}" for kind in kinds().values() if kind.extraction]
    return list(dict.fromkeys(names))


def sbatch(resources: dict, rule: str) -> str:
    """The command line that Snakemake's plugin makes, without the job itself."""
    job = SimpleNamespace(resources=Resources(resources), threads=resources["cpus_per_task"])
    params = {
        "run_uuid": "RUN",
        "slurm_logfile": f"logs/slurm/rule_{rule}/%j.log",
        "comment_str": f"rule_{rule}",
        "account": f"-A {resources['slurm_account']}",
        "partition": f"-p {resources['slurm_partition']}",
        "workdir": None,
    }
    settings = SimpleNamespace(requeue=True, no_requeue=False, qos=None, reservation=None)
    return get_submit_command(job, params, settings) + set_gres_string(job)


def qsub(resources: dict, rule: str) -> str:
    return shlex.join(["qsub", *qsub_arguments(resources, rule, "logs/pbs")])


def requests(cluster: Cluster) -> str:
    """One paragraph a rule and layout."""
    made = []
    for rule in rules():
        for layout in LAYOUTS if rule in ON_LAYOUT else [None]:
            try:
                resources = cluster.place(layout and Layout.parse(layout), rule).resources()
                line = (sbatch if cluster.scheduler == "slurm" else qsub)(resources, rule)
            except ConfigError as error:
                line = f"refused: {error}"
            made.append(f"{rule} {layout or ''}".strip() + f"\n    {line}\n")
    return "\n".join(made)


@pytest.mark.parametrize("name", ["gilbreth", "levante", "katana"])
def test_requests(name, request, monkeypatch):
    monkeypatch.setenv("MILLRACE_ACCOUNT", "lab")
    monkeypatch.delenv("MILLRACE_QOS", raising=False)
    text = requests(Cluster.read(name))
    golden = GOLDEN / f"{name}.txt"
    if request.config.getoption("--regenerate-golden"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


def test_no_rule_is_forgotten():
    assert len(rules()) >= 10
    assert {"train_segment", "preprocess", "evaluate_run"} <= set(rules())


@pytest.mark.parametrize("name", ["gilbreth", "levante", "katana"])
def test_a_plan_asks_for_the_same_in_a_folder_without_the_workflow(
    name, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MILLRACE_ACCOUNT", "lab")
    monkeypatch.delenv("MILLRACE_QOS", raising=False)
    monkeypatch.setattr(
        dry_run, "run_snakemake", lambda given: snakemake(given, tmp_path, dict(os.environ))
    )
    layouts = [one for one in LAYOUTS if name != "katana" or one.startswith("n1_")]
    run = {**CONFIG["run"], "layouts": layouts}
    made = {**CONFIG, "run": run, "scaling": {"measure": layouts}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(made))
    monkeypatch.chdir(tmp_path)
    targets = ["all", "preflight", "scaling_report"]
    assert command.main([*targets, "--configfile", "mine.yaml", "--profile", name, "--json"]) == 0
    golden = (GOLDEN / f"{name}.txt").read_text().split("\n")
    expected = dict(zip(golden[::3], (line.strip() for line in golden[1::3]), strict=True))
    line = sbatch if Cluster.read(name).scheduler == "slurm" else qsub
    asked = {
        f"{row['rule']} {row['layout'] * (row['rule'] in ON_LAYOUT)}".strip(): line(
            row["request"], row["rule"]
        )
        for row in json.loads(capsys.readouterr().out)["rows"]
        if row["request"]
    }
    assert asked == {name: expected[name] for name in asked}
    assert len(asked) == 3 * len(layouts) + len({"simulate_raw", "preprocess"}) + 3

"""New project folders of users, outside of the checkout: from raw files to scores."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from forked_snakemake import snakemake
from project import REPOSITORY

from millrace.cli import main
from millrace.errors import ExitCode
from millrace.processes import die_with_parent
from millrace.systems.groundwater.simulator.aquifer import AquiferConfig, write_aquifer

ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "MILLRACE_ACCOUNT": "somebody",
}
CASES = [
    ("groundwater", "gilbreth", ["simulate_raw", "preprocess", "extract_patches", "build_graph"]),
    ("downscaling", "local", ["simulate_raw", "extract_samples"]),
    ("weather", "local", ["simulate_raw", "extract_samples"]),
    ("traffic", "katana", ["simulate_raw", "build_vocabulary", "tokenise"]),
]


@pytest.mark.parametrize(("system", "profile", "jobs"), CASES, ids=lambda value: str(value))
def test_a_new_project_is_planned_as_it_is(system, profile, jobs, tmp_path):
    folder = tmp_path / "mine"
    assert main(["init", str(folder), "--system", system, "--profile", profile]) == ExitCode.OK
    options = ["-n", "--quiet", "rules", "--profile", f"profiles/{profile}"]
    done = snakemake(options, folder, ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    planned = {line.split()[0] for line in done.stdout.splitlines() if re.search(r"\s\d+$", line)}
    assert {*jobs, "train_segment", "evaluate_run", "summarise_skill", "all"} <= planned


@pytest.mark.slow
def test_a_report_before_the_run_is_refused_in_one_sentence(tmp_path, monkeypatch, capfd):
    assert main(["init", str(tmp_path / "mine")]) == ExitCode.OK
    monkeypatch.chdir(tmp_path / "mine")
    assert main(["report"]) == ExitCode.DATA
    (said,) = capfd.readouterr().err.splitlines()
    assert re.match(r"error: results/\S+: not there yet; run the workflow to its end first", said)
    # Elsewhere it is the workflow's own, whose configuration is then to be named.
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--profile", "local"]) == ExitCode.USER
    assert "error: snakemake --report: " in (said := capfd.readouterr().err)
    assert "no configuration: write" in said
    assert {path.name for path in tmp_path.iterdir()} - {".snakemake"} == {"mine"}


@pytest.mark.slow
def test_four_commands_lead_from_csv_files_to_scores_and_a_report(tmp_path):
    small = AquiferConfig(slices=4, nodes_per_slice=60, steps=120, spin_up=5.0)
    write_aquifer(small, tmp_path / "site", lambda *_: None)
    section = (REPOSITORY / "docs/howto/own-data.md").read_text()
    (lines, *_) = re.findall(r"```\n(.*?)```", section, flags=re.DOTALL)
    commands = [line for line in lines.splitlines() if not line.startswith("cd ")]
    assert len(commands) == 4
    done = subprocess.run(
        ["bash", "-euxc", lines.replace("/data/site", str(tmp_path / "site"))],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=1800,
        preexec_fn=die_with_parent,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    folder = tmp_path / "my_project"
    with (folder / "results/report/skill.csv").open() as file:
        skill = {row["variable"]: float(row["skill"]) for row in csv.DictReader(file)}
    assert skill.keys() == {"head", "mass_concentration"}
    assert min(skill.values()) > 0.2, "no better than persistence"
    assert "gino" in (folder / "results/report.html").read_text()
    holds = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    made = {"results", "runs", "logs", "benchmarks"}
    assert holds == {"Snakefile", "README.md", "config", "profiles"} | made

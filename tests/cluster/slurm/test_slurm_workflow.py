"""`snakemake --profile profiles/gilbreth` on a real SLURM: all stages, short jobs, killed heads."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter

import h5py
import numpy as np
import pytest
import yaml
from images import Image, with_apptainer
from lab import ACCOUNT
from pausing import Gate, slowed, wait_between_questions
from project import FOLDER, REPOSITORY, Project
from slurm_jobs import same_state, trainers, wait

from millrace.cluster import Cluster
from millrace.layout import Layout
from millrace.processes import die_with_parent
from millrace.training.store import load_state

# Two ranks train in the other tests, on one node and on two.
LAYOUTS = ["n1_gpu1", "n2_gpu2", "n4_gpu1"]
# The plugin's own pauses are for clusters with thousands of jobs.
QUICK = [
    *("--slurm-init-seconds-before-status-checks", "1"),
    *("--seconds-between-status-checks", "1", "--latency-wait", "10"),
]


class SlurmProject(Project):
    """The tiny project with a profile of a cluster, and the heads that were started on it."""

    heads = ()

    def environment(self):
        return super().environment() | {"MILLRACE_ACCOUNT": ACCOUNT}

    def facts(self, **changes):
        """Change entries of `jobs` in the facts of the cluster."""
        file = self.path("profiles/gilbreth/cluster.yaml")
        values = yaml.safe_load(file.read_text())
        values["jobs"] |= changes
        file.write_text(yaml.safe_dump(values, sort_keys=False))

    def start(self, *arguments):
        log = self.path("head.log").open("a")
        head = subprocess.Popen(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self.heads = (*self.heads, head)
        return head

    def epochs(self, run):
        files = self.path(f"runs/{run}").glob("*/metrics.jsonl")
        return [json.loads(line)["epoch"] for f in files for line in f.read_text().splitlines()]

    def receipt(self, run, epoch):
        return json.loads(self.path(f"results/train/{run}/epoch_{epoch}.json").read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A project with its samples extracted, on this machine."""
    project = Project(tmp_path_factory.mktemp("data") / FOLDER)
    project.run("data")
    return project


@pytest.fixture
def project(data, jobs, tmp_path):
    copied = data.copy(tmp_path / FOLDER)
    copied.__class__ = SlurmProject
    copied.options = ("--profile", "profiles/gilbreth", *QUICK)
    yield copied
    for head in copied.heads:
        if head.poll() is None:  # it would submit more to what the next test uses
            head.kill()
        head.wait()


def long_training(project, layout="n1_gpu2", epochs=60):
    project.config["run"]["layouts"] = [layout]
    project.config["experiments"]["tiny"]["train"] |= {"epochs": epochs, "milestone_every": epochs}
    return f"tiny/{layout}/seed0"


@pytest.mark.slow
def test_layouts_from_raw_data_to_scores(tmp_path, jobs, slurm):
    project = SlurmProject(tmp_path / FOLDER, ("--profile", "profiles/gilbreth", *QUICK))
    project.config["run"]["layouts"] = LAYOUTS
    project.config["experiments"]["tiny"]["train"]["milestone_every"] = 4
    began = time.strftime("%Y-%m-%dT%H:%M:%S")
    # Of a place's jobs of evaluation one is as good as three.
    project.run("train", "results/evaluate/tiny/n4_gpu1/seed0/metrics.json")

    receipts = {name: project.receipt(f"tiny/{name}/seed0", 4) for name in LAYOUTS}
    for name, receipt in receipts.items():
        [session] = receipt["sessions"]
        assert session["ranks"] == Layout.parse(name).world_size
    # Means over all samples of an epoch: one that was left out or taken twice would show.
    losses = {n: [e["train_loss"] for e in r["history"]] for n, r in receipts.items()}
    for name in LAYOUTS:
        assert losses[name] == pytest.approx(losses["n1_gpu1"], rel=1e-5), name

    cluster = Cluster.read(str(project.path("profiles/gilbreth")))
    requests = accounting(slurm, began)
    trained = {}
    for comment, asked in requests.items():
        layout = next((name for name in LAYOUTS if name in comment), None)
        rule = next(r for r in sorted(rules(comment), key=len))
        on = Layout.parse(layout) if rule == "train_segment" and layout else None
        place = cluster.place(on, rule)
        assert asked["partition"] == place.node_type.partition, comment
        assert asked["qos"] == "normal"
        assert asked["nodes"] == place.nodes, comment
        assert asked["gpus"] == place.nodes * place.gpus_per_node, comment
        assert asked["cpus"] == place.nodes * place.cpus_per_node, comment
        assert asked["memory_mb"] == place.nodes * place.memory_mb, comment
        assert asked["minutes"] == place.minutes, comment
        assert asked["state"] == "COMPLETED", comment
        if on:
            trained[layout] = asked
    assert sorted(trained) == sorted(LAYOUTS)
    assert any("rule_evaluate_run" in comment for comment in requests)
    project.config["run"]["layouts"] = ["n4_gpu1"]
    project.run()
    assert "table of test skill" in project.report()


def rules(comment):
    names = ("simulate_raw", "preprocess", "extract_patches", "build_graph", "evaluate_run")
    return [name for name in (*names, "train_segment") if f"rule_{name}" in comment]


@pytest.mark.nightly  # on PBS, and one node, more often
def test_ranks_of_two_nodes_start_in_an_image_and_train_the_same_bits(project, monkeypatch):
    """By the stand-in of Apptainer; the weights are those of two processes on this machine without it."""
    monkeypatch.setenv("PATH", with_apptainer(os.environ["PATH"]))
    image = Image(project.path("millrace.sif"))
    project.config["container"] = "millrace.sif"
    project.config["experiments"]["tiny"]["train"] |= {"epochs": 2, "milestone_every": 2}
    project.config["run"]["layouts"] = ["n2_gpu1"]
    project.facts(train_segment={"cores": 1})
    with project.path("profiles/gilbreth/config.yaml").open("a") as profile:
        profile.write("software-deployment-method: apptainer\napptainer-args: --nv\n")
    project.run("train", "--rerun-triggers", "mtime", "params", "input")
    first, second = image.calls
    assert first["node"] != second["node"]
    for call in (first, second):
        assert {"millrace.launch.agent", "--nodes=2"} <= {*call["command"]}
        assert call["options"]["flags"] == ["--nv"]
    project.options = ("--profile", "profiles/local")
    project.config["run"]["layouts"] = ["n1_gpu2"]
    project.run("train")
    states = [
        load_state(project.path(f"results/train/tiny/{layout}/seed0/epoch_2.ckpt"))
        for layout in ("n2_gpu1", "n1_gpu2")
    ]
    same_state(*states)


@pytest.mark.nightly  # two minutes; on one node more often
def test_models_and_systems_from_outside_train_on_two_nodes(project, tmp_path):
    """Their folders are on no path: planner, jobs and ranks of both nodes import them all the same."""
    [code] = re.findall(
        r"### 1\. The model.*?```python\n(.*?)```",
        (REPOSITORY / "docs/extending.md").read_text(),
        flags=re.S,
    )
    model = tmp_path / "elsewhere" / "my_gru.py"
    model.parent.mkdir()
    model.write_text(code)
    darcy = REPOSITORY / "examples/darcy"
    described = yaml.safe_load((darcy / "config.yaml").read_text())
    square, fno = described["datasets"]["square"], described["experiments"]["fno"]
    square["demo"] = {"samples": 24, "cells": 8}
    fno["model"] |= {"modes": [2, 2], "hidden": 4, "layers": 1}
    fno["train"] |= {"epochs": 2, "global_batch": 4}
    project.config["plugins"] = [str(model), str(darcy / "millrace_darcy/system.py")]
    project.config["datasets"]["square"] = square
    tiny = project.config["experiments"]["tiny"] | {"model": {"name": "my_gru", "hidden": 4}}
    tiny["train"] = tiny["train"] | {"epochs": 2}
    project.config["experiments"] |= {"tiny": tiny, "fno": fno}
    project.config["run"] |= {"experiments": ["tiny", "fno"], "layouts": ["n2_gpu1"]}
    project.run("evaluate")
    for name, kind, variable in (("tiny", "patches", "head"), ("fno", "darcy", "pressure")):
        [session] = project.receipt(f"{name}/n2_gpu1/seed0", 2)["sessions"]
        assert session["ranks"] == 2
        metrics = json.loads(
            project.path(f"results/evaluate/{name}/n2_gpu1/seed0/metrics.json").read_text()
        )
        assert metrics["samples"] == kind
        assert metrics["test"][variable]["skill"] < 1


def accounting(slurm, began):
    """What the jobs since then asked for, as SLURM's accounting has it, by comment."""
    fields = "Comment,Partition,QOS,NNodes,ReqTRES,TimelimitRaw,State"
    lines = slurm.run("sacct", "-aXPn", "-S", began, "-o", fields).stdout.splitlines()
    jobs = {}
    for line in lines:
        comment, partition, qos, nodes, tres, minutes, state = line.split("|")
        counts = dict(pair.split("=") for pair in tres.split(","))
        unit = {"M": 1, "G": 1024, "T": 1024**2}[counts["mem"][-1]]
        jobs[comment] = {
            "partition": partition,
            "qos": qos,
            "nodes": int(nodes),
            "gpus": int(counts.get("gres/gpu", 0)),
            "cpus": int(counts["cpu"]),
            "memory_mb": round(float(counts["mem"][:-1]) * unit),
            "minutes": int(minutes),
            "state": state,
        }
    return jobs


@pytest.mark.nightly  # two minutes; the DAG suite makes a lost part again more often
def test_a_node_that_dies_costs_its_parts_alone(tmp_path, slurm, jobs, monkeypatch):
    """Twelve jobs on four nodes; those of the lost node run twice, the others once."""
    project = SlurmProject(tmp_path / FOLDER, ("--profile", "profiles/gilbreth", *QUICK))
    project.config["datasets"]["planet"] = {
        "source": "demo",
        "format": "weather",
        "demo": {"steps": 200, "spin_up": 0.5},
        "split": {"train": 0.5, "validation": 0.2, "gap": 3},
        "weather": {"surface": ["2t"], "air": ["z"], "levels": [500, 850]},
        "parts": 12,
    }
    samples = "results/data/planet/weather.h5"
    project.facts(extract_weather={"gpus": 1, "node_types": ["K"]})
    project.run("--profile", "profiles/local", "results/data/planet/raw")
    gate = Gate(tmp_path / "gate", of="extract_part", at="millrace.systems.weather.extract")
    for name, value in gate.environment.items():
        monkeypatch.setenv(name, value)
    began = time.strftime("%Y-%m-%dT%H:%M:%S")
    head = project.start(samples, "--jobs", "12")
    nodes = [f"gilbreth-k{number:03d}" for number in range(4)]

    def running():
        lines = slurm.run("squeue", "-h", "-t", "R", "-o", "%N").stdout.split()
        return {node: lines.count(node) for node in lines}

    gate.wait()
    wait(600, lambda: running() == dict.fromkeys(nodes, 2), "two jobs on each node")
    try:
        slurm.kill_node(nodes[2])
        gate.open()
        assert head.wait(900) == 0, project.path("head.log").read_text()[-5000:]
    finally:
        slurm.start_node(nodes[2])
        slurm.run("scontrol", "update", f"NodeName={nodes[2]}", "State=RESUME")
    fields = slurm.run("sacct", "-aXDPn", "-S", began, "-o", "Comment,State").stdout.splitlines()
    runs = Counter(line.partition("|")[0] for line in fields if "extract_part" in line)
    assert sorted(runs.values()) == [1] * 10 + [2] * 2, fields
    with h5py.File(project.path(samples)) as file:
        digest, states = file.attrs["digest"], file["state"][()]
    del project.config["datasets"]["planet"]["parts"]
    project.path(samples).unlink()
    shutil.rmtree(project.path("results/data/planet/parts"))
    project.run("--profile", "profiles/local", samples)
    with h5py.File(project.path(samples)) as file:
        assert file.attrs["digest"] == digest
        np.testing.assert_array_equal(file["state"][()], states)


@pytest.mark.nightly  # jobs of a minute, that end by themselves; on PBS more often
def test_short_jobs_run_to_the_end_from_one_command(project):
    """Jobs of a minute for epochs that take longer together, as Gilbreth's standby with its four hours."""
    run = long_training(project)
    project.facts(train_segment={"hours": 1 / 59})
    with slowed(lambda: len(project.epochs(run)), trainers, seconds=1.0):
        project.run("train")
    sessions = project.receipt(run, 60)["sessions"]
    assert len(sessions) >= 2
    assert len({session["job"] for session in sessions}) == 1, "queued again under another id"
    assert project.epochs(run) == list(range(1, 61)), "an epoch was computed twice"


@pytest.mark.nightly  # of a race, and on PBS, more often
def test_interrupted_head_takes_its_jobs_along(project, slurm):
    run = long_training(project)
    head = project.start("train", "--seconds-between-status-checks", "12")
    with slowed(lambda: len(project.epochs(run)), trainers):
        wait(600, lambda: max(project.epochs(run), default=0) >= 5, "training")
    # However long the head takes to cancel: what is left takes minutes.
    with slowed(lambda: len(project.epochs(run)), trainers, seconds=5.0):
        wait_between_questions(head, ["sacct", "squeue"])
        os.kill(head.pid, signal.SIGINT)
        head.wait(900)
        wait(600, lambda: not slurm.run("squeue", "-h").stdout, "the end of all jobs")
    assert max(project.epochs(run)) < 60
    project.run("train")
    assert project.epochs(run) == list(range(1, 61))


@pytest.mark.nightly  # the interrupted and the killed one run more often
def test_terminated_head_waits_for_its_jobs(project):
    run = long_training(project)
    head = project.start("train")
    with slowed(lambda: len(project.epochs(run)), trainers):
        wait(600, lambda: max(project.epochs(run), default=0) >= 5, "training")
        os.kill(head.pid, signal.SIGTERM)
        assert max(project.epochs(run)) < 60, "terminated too late to prove anything"
        time.sleep(3)  # in which it could cancel them
    head.wait(900)
    assert project.epochs(run) == list(range(1, 61))
    project.run("train")
    assert len(project.receipt(run, 60)["sessions"]) == 1


@pytest.mark.slow
def test_killed_head_and_a_new_one_do_not_train_twice(project, jobs, slurm):
    run = long_training(project)
    head = project.start("train")
    with slowed(lambda: len(project.epochs(run)), trainers, seconds=1.5):
        wait(600, lambda: max(project.epochs(run), default=0) >= 5, "training")
        os.kill(head.pid, signal.SIGKILL)
        head.wait()
        [first] = slurm.run("squeue", "-h", "-t", "R", "-o", "%i").stdout.split()
        project.run("--unlock")
        head = project.start("train")
        wait(600, lambda: jobs.jobs([first])[first].state.is_over, "the end of the first job")
    assert head.wait(900) == 0, project.path("head.log").read_text()[-5000:]
    assert not slurm.run("squeue", "-h").stdout
    receipt = project.receipt(run, 60)
    by = [session["job"] for session in receipt["sessions"]]
    assert len(by) == 2
    assert by[0] == first != by[1]
    assert project.epochs(run) == list(range(1, 61)), "both trained"
    state = load_state(project.path(f"results/train/{run}/epoch_60.ckpt"))
    assert state["step"] == receipt["step"]


def test_race_of_the_workflow(project, slurm):
    project.config["experiments"]["tiny"]["race"] = ["n1_gpu4", "n4_gpu1"]
    project.run("train")
    receipt = project.receipt("tiny/n1_gpu4-or-n4_gpu1/seed0", 4)
    assert {session["ranks"] for session in receipt["sessions"]} == {4}
    assert {s["layout"] for s in receipt["sessions"]} <= {"n1_gpu4", "n4_gpu1"}
    assert not slurm.run("squeue", "-h").stdout

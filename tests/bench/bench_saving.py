"""What checkpoints within epochs cost a training, on the demo and one core.

A run that saves every few steps takes turns with one that does not; the difference, over the number of
checkpoints, is the cost of one, and that over 19 s the share of a training that may lose 20 s (modelled: a
demo is too short to be measured so). The thread that writes has no core of its own here.

``saving-kills-gino`` kills such a training at random instants: what the newest checkpoint lacks is lost.
"""

import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rows import Row, run

from millrace.data.extraction import prepare, simulate
from millrace.plan import Plan
from millrace.systems.registry import raw_format
from millrace.training.distributed import Ranks
from millrace.training.engine import Trainer
from millrace.training.request import Request
from millrace.training.segment import run_segment
from millrace.training.store import Manifest
from millrace.yaml_files import DEFAULT, read_files

INTERVAL, BEGUN = 20.0, 19.0
"""What may be lost, and about when a checkpoint is begun, to be written in time."""
GOAL, MOST_LOST = 1.0, 20.0
DEMOS = {"gino": 10, "downscaler": 3, "aurora": 10, "smart": 5}
"""Steps between checkpoints, about a second."""


def train(request: Request) -> float:
    """Wall seconds of a run."""
    started = time.perf_counter()
    run_segment(request, Ranks(0, 1, torch.device("cpu")))
    return time.perf_counter() - started


def warm(config: Mapping[str, Any], experiment: str) -> bool:
    """Whether an experiment begins with the weights of another one."""
    return "init_from" in config["experiments"][experiment].get("train", {})


def requested(demo: str, folder: Path, name: str | None = None) -> Request:
    """A run of two epochs on the samples of a demo, by default of its first experiment that begins anew."""
    config: dict[str, Any]
    config = read_files([DEFAULT, Path(f"config/demo/{demo}.yaml")], [])
    plan = Plan(config)
    names = [*config["run"]["experiments"], *config["experiments"]]
    name = name or str(next(one for one in names if not warm(config, one)))
    experiment, kind = plan.experiments[name], plan.kind(name)
    dataset = plan.datasets[experiment["dataset"]]
    raw = raw_format(dataset)
    simulate(raw, dataset.get("demo", {}), folder / "raw")
    files = prepare(kind, folder / "raw", folder, dataset, experiment["model"])
    return Request(
        experiment=name,
        layout="n1_gpu1",
        seed=0,
        target_epoch=2,
        definition=plan.definition(name),
        files={role: str(path) for role, path in files.items()},
        runs="",
        checkpoint="",
        receipt="",
    )


def train_until_killed(request: Request, ends: Any) -> None:
    """Train, and note when each step has ended."""
    torch.set_num_threads(1)
    step = Trainer.train_step

    def noted(trainer: Trainer, batch: Any) -> torch.Tensor:
        loss = step(trainer, batch)
        ends[trainer.step] = time.monotonic()
        return loss

    with patch.object(Trainer, "train_step", noted):
        train(request)


def kill(demo: str, kills: int) -> Iterator[Row]:
    """What is lost of a training that is killed some time after its first step."""
    with tempfile.TemporaryDirectory() as made:
        lost = killed(demo, Path(made), kills)
    what = f"{demo}, killed at {kills} random instants: the most that was lost"
    yield Row(what, "s", [max(lost)], goal=MOST_LOST)


def killed(demo: str, folder: Path, kills: int) -> list[float]:
    """Seconds of work that each of these lost."""
    losses = []
    base, context = requested(demo, folder), multiprocessing.get_context("spawn")
    for number in range(kills):
        here = folder / str(number)
        paths = {key: str(here / key) for key in ("runs", "checkpoint", "receipt")}
        often = {"target_epoch": 10**6, "save_every": 10**6, "save_minutes": INTERVAL / 60}
        ends = context.Array("d", 10**6, lock=False)
        process = context.Process(
            target=train_until_killed, args=(replace(base, **paths, **often), ends)
        )
        process.start()
        while not ends[0]:
            if process.exitcode is not None:
                raise SystemExit(f"{demo}: the training ended before its first step")
            time.sleep(0.01)
        time.sleep(random.uniform(0.1, 3) * INTERVAL)
        process.kill()
        end = time.monotonic()
        process.join()
        steps = [
            found.step
            for path in here.glob("runs/**/step_*")
            if (found := Manifest.read(path)) and found.problem(path) is None
        ]
        losses.append(end - ends[max(steps) - 1 if steps else 0])
    return losses


def measure(demo: str, rounds: int) -> Iterator[Row]:
    """Share of a training, by the wall, that checkpoints of that interval take."""
    with tempfile.TemporaryDirectory() as made:
        base = requested(demo, Path(made))
        taken: dict[int | None, list[float]] = {None: [], DEMOS[demo]: []}
        for turn in range(rounds):
            for every, times in taken.items():
                here = Path(made, f"{turn}_{every}")
                paths = {key: str(here / key) for key in ("runs", "checkpoint", "receipt")}
                times.append(train(replace(base, save_steps=every, **paths)))
                steps = json.loads((here / "receipt").read_text())["step"]
    per_epoch = steps // base.target_epoch
    saved = sum(step % per_epoch > 0 for step in range(0, steps, DEMOS[demo]))
    pairs = zip(*taken.values(), strict=True)
    shares = [100 * (saving - plain) / saved / BEGUN for plain, saving in pairs]
    yield Row(
        f"{demo}, a checkpoint every {INTERVAL:g} s: share of a training", "%", shares, goal=GOAL
    )


MEASUREMENTS = {f"saving-{demo}": partial(measure, demo) for demo in DEMOS}
KILLS = {f"saving-kills-{demo}": partial(kill, demo) for demo in DEMOS}

if __name__ == "__main__":
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    run({**MEASUREMENTS, **KILLS}, __doc__, on_request=[*KILLS])

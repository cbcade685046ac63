"""The training step of each system on one GPU, in float32, in bfloat16, and compiled.

The settings are those of config/experiments (of GFNO, which has none there, those of the demo). Samples are
simulated, as large as configured but at fewer times. The variants of a system take turns, so that a change
of the clock rate meets all of them; figures are medians over the rounds. A step is all that the engine
does: taking the samples, forward and backward pass, clipping, optimiser. Memory is the most that a variant
held in its first steps, where it ran alone.

Run it as ``python tests/bench/gpu_training.py [SYSTEM ...]``; ``--device cpu --steps 2`` tries it out
without a GPU, on small settings.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from project import Project  # noqa: E402

from millrace.plan import Plan  # noqa: E402
from millrace.training.config import ExecutionConfig  # noqa: E402
from millrace.training.distributed import Ranks, peak_memory  # noqa: E402
from millrace.training.engine import Trainer  # noqa: E402
from millrace.training.request import EXECUTION  # noqa: E402
from millrace.training.segment import build_trainer  # noqa: E402

Setting = tuple[str, str, dict[str, Any]]
"""Configuration, experiment, and what is changed in its dataset: the number of times, above all."""
FEW: dict[str, Any] = {"demo": {"steps": 60}, "split": {"gap": 4}}
FULL: dict[str, Setting] = {
    "gino": ("experiments/groundwater.yaml", "gino_salt_full", {"demo": {"steps": 200}}),
    "gfno": ("config.yaml", "gfno_plane", {"demo": {"steps": 200}}),
    "downscaler": ("experiments/icon.yaml", "downscaler_full", FEW),
    "aurora": ("experiments/weather.yaml", "aurora_small", {"demo": {"steps": 500}}),
    "smart": ("experiments/traffic.yaml", "smart_full", {"demo": {"towns": 8, "scenes": 40}}),
}
COAST: dict[str, Any] = {"demo": {"slices": 4, "nodes_per_slice": 60, "steps": 200, "spin_up": 5.0}}
SMALL: dict[str, Setting] = {
    "gino": ("config.yaml", "gino_salt", COAST),
    "gfno": ("config.yaml", "gfno_plane", COAST),
    "downscaler": ("demo/downscaler.yaml", "downscaler_tas", FEW),
    "aurora": ("demo/aurora.yaml", "aurora_copies", FEW),
    "smart": ("demo/smart.yaml", "smart_traffic", {"demo": {"towns": 2, "scenes": 24}}),
}
VARIANTS: dict[str, tuple[str, bool]] = {
    "float32": ("float32", False),
    "bfloat16": ("bfloat16", False),
    "bfloat16, compiled": ("bfloat16", True),
}
"""Name -> precision, whether the model is compiled."""
BATCHES = 4  # that take turns; compiled models have seen the shapes of all before they are timed


@dataclass
class Subject:
    """A variant in training."""

    trainer: Trainer
    memory: float | None
    """Most bytes of the GPU that it held; None on a CPU."""
    seconds: list[float]
    rates: list[float]
    """Samples/s."""


def main(given: Sequence[str] | None = None) -> None:
    """Print a line for each variant of each system."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help=f"of {', '.join(FULL)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--steps", type=int, default=20, help="steps of each variant that are timed"
    )
    arguments = parser.parse_args(given)
    unknown = sorted(set(arguments.systems) - set(FULL))
    if unknown:
        parser.error(f"no system {unknown[0]!r}; expected one of {', '.join(FULL)}")
    if arguments.steps < 1:
        parser.error(f"--steps: expected 1 or more, got {arguments.steps}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "torch sees no CUDA device here: run this on a GPU node, or try it out with "
            "`--device cpu --steps 2`"
        )
    on_gpu = arguments.device == "cuda"
    device = torch.device("cuda:0" if on_gpu else "cpu")
    print(f"measured on {label(device)}, torch {torch.__version__}, medians of {arguments.steps}")
    print("system      variant             ms/step  samples/s  x float32  peak memory")
    for system in arguments.systems or FULL:
        setting = (FULL if on_gpu else SMALL)[system]
        with tempfile.TemporaryDirectory() as directory:
            definition, files, execution = made(setting, Path(directory) / "project")
            found = measure(definition, files, execution, device, arguments.steps)
        report(system, setting[1], definition["train"]["global_batch"], found)


def label(device: torch.device) -> str:
    """Name of a device; the CPU's says that it is no GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads, small settings)"


def configured(setting: Setting) -> tuple[dict[str, Any], Plan]:
    """The configuration with few times, and its plan."""
    source, experiment, changes = setting
    config = yaml.safe_load((ROOT / "config" / source).read_text())
    dataset = config["datasets"][config["experiments"][experiment]["dataset"]]
    for key, values in changes.items():
        dataset[key] = dataset.get(key, {}) | values
    return config, Plan(config)


def made(setting: Setting, root: Path) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Have the workflow make the samples: definition of the experiment, their files, execution."""
    experiment = setting[1]
    project = Project(root)
    project.config, plan = configured(setting)
    files = {role: str(path) for role, path in plan.samples(experiment).items()}
    project.run("--cores", str(os.cpu_count()), *files.values(), timeout=3600)
    train = plan.experiments[experiment]["train"]
    return (
        plan.definition(experiment),
        {role: str(project.path(path)) for role, path in files.items()},
        {key: train[key] for key in EXECUTION if key in train},
    )


def measure(
    definition: Mapping[str, Any],
    files: Mapping[str, str],
    execution: Mapping[str, Any],
    device: torch.device,
    steps: int,
) -> dict[str, Subject | str]:
    """Time the variants in turn; of one that cannot be measured the reason.

    On a CPU nothing is compiled: it would take minutes, and say nothing about GPUs.
    """
    found: dict[str, Subject | str] = {}
    for name, (precision, compiled) in VARIANTS.items():
        if compiled and device.type != "cuda":
            continue
        how = ExecutionConfig.parse(execution, "train").replaced(compile=compiled)
        train = {**definition["train"], "precision": precision}
        try:
            found[name] = warmed_up({**definition, "train": train}, files, how, device)
        except Exception as error:  # of the compiler, of any kind: the others are measured
            if not compiled:
                raise
            found[name] = (str(error).splitlines() or [type(error).__name__])[0]
    subjects = [subject for subject in found.values() if isinstance(subject, Subject)]
    batches = {id(one): itertools.cycle(first_batches(one.trainer)) for one in subjects}
    for _ in range(steps):
        for subject in subjects:
            batch = next(batches[id(subject)])
            seconds = timed(subject.trainer, batch, device)
            subject.seconds.append(seconds)
            subject.rates.append(batch.size / seconds)
    return found


def warmed_up(
    definition: Mapping[str, Any],
    files: Mapping[str, str],
    how: ExecutionConfig,
    device: torch.device,
) -> Subject:
    """A variant that has taken a step of each batch."""
    ranks = Ranks(0, 1, device)
    others = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    peak_memory(ranks)  # from here on
    with warnings.catch_warnings():
        # Else the engine goes on without a compiler, and what is timed is not what the line says.
        warnings.filterwarnings("error", message="train.compile")
        trainer, _ = build_trainer(definition, files, 0, ranks, how)
    trainer.module.train()
    for batch in first_batches(trainer):
        timed(trainer, batch, device)
    held = peak_memory(ranks).get("gpu_bytes_allocated")
    return Subject(trainer, None if held is None else held - others, [], [])


def first_batches(trainer: Trainer) -> list[Any]:
    """The same ones for every variant."""
    return list(itertools.islice(trainer.batches(0), BATCHES))


def timed(trainer: Trainer, batch: Any, device: torch.device) -> float:
    """Seconds of a step, until the GPU has done all of it."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    synchronise(device)
    begun = time.perf_counter()
    trainer.train_step(batch)
    trainer.step += 1
    synchronise(device)
    return time.perf_counter() - begun


def report(system: str, experiment: str, batch: int, found: Mapping[str, Subject | str]) -> None:
    """Print the lines of a system."""
    base = found["float32"]
    assert isinstance(base, Subject)
    print(f"{system}: {experiment}, {base.trainer.parameters:,} parameters, batches of {batch}")
    for name, subject in found.items():
        if isinstance(subject, str):
            print(f"{'':10}  {name:18}  not measured: {subject}")
            continue
        rate = statistics.median(subject.rates)
        memory = "-" if subject.memory is None else f"{subject.memory / 2**20:,.0f} MiB"
        print(
            f"{'':10}  {name:18}  {1e3 * statistics.median(subject.seconds):7.1f}  {rate:9.1f}  "
            f"{rate / statistics.median(base.rates):9.2f}  {memory:>11}",
            flush=True,
        )


if __name__ == "__main__":
    main()

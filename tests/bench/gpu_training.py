"""The training step of each system on one GPU: float32, bfloat16, compiled, and as CUDA graphs.

The settings are those of config/experiments (of GFNO, which has none there, those of the demo). Samples are
simulated, as large as configured but at fewer times. The variants of a system take turns, a few steps each,
so that a change of the clock rate meets all of them; figures are medians. A step is all that the engine
does: taking samples, which are gathered meanwhile, forward and backward pass, clipping, optimiser. On a GPU
the variants of GINO are measured with both `model.kernel_sums`; what follows says which to take.

TFLOP/s        of matrix products, convolutions and attention, counted in one pass in float32, with those
               that are recomputed where the experiment has activation_checkpointing
of the limit   that over the rate of a large matrix product of the same precision here
waiting        share of the step until its samples are there
memory         the most that a variant held in its first steps, where it ran alone
compiling      how much longer the first steps took than later ones

Run it as ``python tests/bench/gpu_training.py [SYSTEM ...]``; ``--device cpu --rounds 2`` tries it out
without a GPU, on small settings. ``--results FOLDER`` writes ``gpu-<model>-<date>-<commit>.json`` there.
"""

import argparse
import itertools
import os
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rows import commit, save
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from project import Project  # noqa: E402

from millrace.plan import Plan  # noqa: E402
from millrace.training.config import ExecutionConfig  # noqa: E402
from millrace.training.distributed import Ranks, peak_memory  # noqa: E402
from millrace.training.engine import Trainer  # noqa: E402
from millrace.training.phases import PhaseClock  # noqa: E402
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
VARIANTS: dict[str, tuple[str, bool | str]] = {
    "float32": ("float32", False),
    "bfloat16": ("bfloat16", False),
    "bfloat16, compiled": ("bfloat16", True),
    "bfloat16, CUDA graphs": ("bfloat16", "reduce-overhead"),
}
"""Name -> precision, how the model is compiled."""
CLEARLY = 0.97
"""Share of the time with bags below which kernel sums by Triton are worth a setting."""
STEPS = 5
"""Of a variant in a row, always of the same batches: compiled models have seen their shapes. The first is
not counted, as its samples were not gathered while another step ran."""
COLUMNS = (
    *("system", "variant", "ms/step", "samples/s", "x float32", "TFLOP/s", "of the limit"),
    *("waiting", "memory", "compiling"),
)


@dataclass
class Subject:
    """A variant in training."""

    trainer: Trainer
    clock: PhaseClock
    precision: str
    begun: float
    """Seconds of the first steps."""
    memory: float | None
    """Most bytes of the GPU that it held; None on a CPU."""
    rounds: int = 0

    def run(self, device: torch.device) -> float:
        """Seconds of some steps."""
        self.trainer.step = 0  # of the same samples, also where they are forecasts
        begun = time.perf_counter()
        self.clock.end_step()
        epochs = map(self.trainer.batches, itertools.count())
        for batch in itertools.islice(itertools.chain.from_iterable(epochs), STEPS):
            self.trainer.train_step(batch)
            self.trainer.step += 1
            self.clock.end_step()
        synchronise(device)
        self.rounds += 1
        return time.perf_counter() - begun

    def steps(self) -> list[dict[str, float]]:
        """Seconds of each phase and in total, of all steps that count."""
        times = self.clock.steps()
        # Between two rounds is what the other variants did.
        first = range(STEPS + 1, self.rounds * (STEPS + 1), STEPS + 1)
        return [one for begin in first for one in times[begin + 1 : begin + STEPS]]


def main(given: Sequence[str] | None = None) -> None:
    """Print a line for each variant of each system."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help=f"of {', '.join(FULL)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=7, help=f"of {STEPS} steps of each variant")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="write them there, too")
    arguments = parser.parse_args(given)
    unknown = sorted(set(arguments.systems) - set(FULL))
    if unknown:
        parser.error(f"no system {unknown[0]!r}; expected one of {', '.join(FULL)}")
    if arguments.rounds < 1:
        parser.error(f"--rounds: expected 1 or more, got {arguments.rounds}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "torch sees no CUDA device here: run this on a GPU node, or try it out with "
            "`--device cpu --rounds 2`"
        )
    on_gpu = arguments.device == "cuda"
    device = torch.device("cuda:0" if on_gpu else "cpu")
    limits = {name: product_rate(device, name) for name in ("float32", "bfloat16")}
    on = {
        "gpu" if on_gpu else "cpu": label(device),
        "torch": str(torch.__version__),
        "products_tflops": {name: round(rate / 1e12, 3) for name, rate in limits.items()},
        "copy_gb_s": round(copy_rate(device) / 1e9, 1),
    }
    rates = ", ".join(f"{rate / 1e12:.3g} TF/s in {name}" for name, rate in limits.items())
    print(
        f"measured on {label(device)}, torch {torch.__version__}: products {rates}, copies "
        f"{on['copy_gb_s']} GB/s; medians of {arguments.rounds * (STEPS - 1)} steps"
    )
    print(line(COLUMNS))
    rows = []
    for system in arguments.systems or FULL:
        setting = (FULL if on_gpu else SMALL)[system]
        with tempfile.TemporaryDirectory() as directory:
            definition, files, execution = made(setting, Path(directory) / "project")
            found, operations = measure(definition, files, execution, device, arguments.rounds)
        base = found["float32"]
        assert isinstance(base, Subject)
        batch = definition["train"]["global_batch"]
        print(f"{system}: {setting[1]}, {base.trainer.parameters:,} parameters, batches of {batch}")
        for name, subject in found.items():
            if isinstance(subject, str):
                print(f"{'':10}  {name:29}  not measured: {subject}")
                continue
            rows.append(row(system, name, subject, base, batch, operations, limits))
            print(line(["", *rows[-1]["cells"][1:]]), flush=True)
    for advice in better_sums(rows):
        print(advice)
    if arguments.results:
        model = re.sub(r"[^a-z0-9]+", "-", label(device).lower()).strip("-")
        name = f"{'gpu' if on_gpu else 'trial'}-{model}-{time.strftime('%Y-%m-%d')}-{commit()}.json"
        path = arguments.results / name
        save(path, rows, on, commit(), COLUMNS)
        print(f"written to {path}")


def line(cells: Sequence[str]) -> str:
    """Cells below each other."""
    widths = (10, 29, 9, 10, 9, 9, 12, 8, 12, 10)
    first, second, *others = zip(cells, widths, strict=True)
    texts = [f"{text:{width}}" for text, width in (first, second)]
    return "  ".join([*texts, *(f"{text:>{width}}" for text, width in others)])


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done all of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best(work: Callable[[], object], device: torch.device, times: int = 10) -> float:
    """Seconds of the fastest of some runs."""
    found = []
    for _ in range(times):
        synchronise(device)
        begun = time.perf_counter()
        work()
        synchronise(device)
        found.append(time.perf_counter() - begun)
    return min(found)


def product_rate(device: torch.device, precision: str) -> float:
    """Operations a second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 512
    a = torch.randn(size, size, device=device, dtype=getattr(torch, precision))
    return 2 * size**3 / best(lambda: a @ a, device)


def copy_rate(device: torch.device) -> float:
    """Bytes a second that a copy in the device's memory reads and writes."""
    a = torch.zeros(1 << (28 if device.type == "cuda" else 22), device=device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / best(lambda: b.copy_(a), device)


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


def variants(model: str, device: torch.device) -> dict[str, tuple[str, bool | str, dict[str, str]]]:
    """Name -> precision, how the model is compiled, and what is changed in its settings."""
    if device.type != "cuda":
        return {name: (*how, {}) for name, how in VARIANTS.items() if not how[1]}
    found: dict[str, tuple[str, bool | str, dict[str, str]]] = {}
    for name, how in VARIANTS.items():
        found[name] = *how, {}
        if model == "gino":
            found[f"{name}, Triton"] = *how, {"kernel_sums": "triton"}
    return found


def better_sums(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which kernel sums to take with which variant, where both were measured."""
    seconds = {one["name"]: statistics.median(one["seconds"]) for one in rows}
    advice = []
    for name, bags in seconds.items():
        if triton := seconds.get(f"{name}, Triton"):
            better = "triton" if triton < CLEARLY * bags else "bags"
            advice.append(
                f"{name}: with Triton a step takes {triton / bags:.2f} of the time; take "
                f"model.kernel_sums: {better}"
            )
    return advice


def measure(
    definition: Mapping[str, Any],
    files: Mapping[str, str],
    execution: Mapping[str, Any],
    device: torch.device,
    rounds: int,
) -> tuple[dict[str, Subject | str], float]:
    """Time the variants in turn, of one that cannot be measured the reason; operations of a step.

    On a CPU nothing is compiled: it would take minutes, and say nothing about GPUs.
    """
    found: dict[str, Subject | str] = {}
    operations = 0.0
    for name, (precision, compiled, sums) in variants(definition["model"]["name"], device).items():
        how = ExecutionConfig.parse(execution, "train").replaced(compile=compiled)
        train = {**definition["train"], "precision": precision}
        varied = {**definition, "model": {**definition["model"], **sums}, "train": train}
        try:
            subject = warmed_up(varied, files, how, device)
        except Exception as error:  # of a compiler, of any kind: the others are measured
            if not (compiled or sums):
                raise
            found[name] = (str(error).splitlines() or [type(error).__name__])[0]
            continue
        found[name] = subject
        operations = operations or counted(subject.trainer)
    for _ in range(rounds):
        for subject in found.values():
            if isinstance(subject, Subject):
                subject.run(device)
    return found, operations


def warmed_up(
    definition: Mapping[str, Any],
    files: Mapping[str, str],
    how: ExecutionConfig,
    device: torch.device,
) -> Subject:
    """A variant that has taken its steps once."""
    ranks, clock = Ranks(0, 1, device), PhaseClock(device)
    others = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    peak_memory(ranks)  # from here on
    with warnings.catch_warnings():
        # Else the engine goes on without a compiler, and what is timed is not what the line says.
        warnings.filterwarnings("error", message="train.compile")
        trainer, _ = build_trainer(definition, files, 0, ranks, how, mark=clock.mark)
    trainer.module.train()
    subject = Subject(trainer, clock, definition["train"]["precision"], 0.0, None)
    subject.begun = subject.run(device)
    if (held := peak_memory(ranks).get("gpu_bytes_allocated")) is not None:
        subject.memory = held - others
    return subject


def counted(trainer: Trainer) -> float:
    """Operations of the products in a step."""
    trainer.step = 0
    with FlopCounterMode(display=False) as counter:
        trainer.passes.backward(next(iter(trainer.batches(0))), trainer.position)
    trainer.clear_gradients()
    return float(counter.get_total_flops())


def row(
    system: str,
    name: str,
    subject: Subject,
    base: Subject,
    batch: int,
    operations: float,
    limits: Mapping[str, float],
) -> dict[str, Any]:
    """What a variant is, its figures, and its cells by `COLUMNS`."""
    steps = subject.steps()
    seconds, first = (statistics.median(one["total"] for one in of) for of in (steps, base.steps()))
    rate = operations / seconds
    waiting = sum(one["data"] for one in steps) / sum(one["total"] for one in steps)
    compiling = max(0.0, subject.begun - STEPS * seconds)
    cells = [
        *(system, name, f"{1e3 * seconds:.1f}", f"{batch / seconds:.1f}", f"{first / seconds:.2f}"),
        *(f"{rate / 1e12:.3g}", f"{rate / limits[subject.precision]:.0%}", f"{waiting:.1%}"),
        "-" if subject.memory is None else f"{subject.memory / 2**20:,.0f} MiB",
        f"{compiling:.0f} s" if subject.trainer.execution.compile else "-",
    ]
    return {
        "name": f"{system}, {name}",
        "parameters": subject.trainer.parameters,
        "batch": batch,
        "operations": operations,
        "seconds": [one["total"] for one in steps],
        "waiting": waiting,
        "memory": subject.memory,
        "compiling": compiling,
        "cells": cells,
    }


if __name__ == "__main__":
    main()

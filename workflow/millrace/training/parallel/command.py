"""Show how a model would be divided among GPUs. Nothing is trained, and no weights are made."""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from millrace.cluster import Cluster
from millrace.cluster.facts import FILE, PROFILES
from millrace.command_line import add_command, make_parser
from millrace.config import nearest
from millrace.errors import ConfigError, ExitCode, exits_with_code
from millrace.layout import Layout
from millrace.systems.base import dataset_names, resolve
from millrace.systems.registry import get_model, kind_of
from millrace.training.config import ExecutionConfig, TrainConfig
from millrace.training.parallel.config import ParallelConfig
from millrace.training.parallel.footprint import Footprint, Workload, footprints
from millrace.training.request import EXECUTION, decisive

CONFIG = Path("config/config.yaml")
# Of a GPU's memory: the rest is for the driver, the libraries and what fragmentation wastes.
USABLE = 0.9
_GB = 2**30


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code, that of a user's error if something does not fit together."""
    options = parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    _plan(options, console)
    return ExitCode.OK


def _plan(options: argparse.Namespace, console: Console) -> None:
    config = read_config(options.configfile)
    layout = Layout.parse(options.layout)
    workload, parallel, execution = described(
        config, options.experiment, layout, options.grid, options.levels, options.parallel
    )
    share = parallel.samples(workload.train.global_batch)
    console.print(
        f"[bold]{options.experiment}[/] on {layout}: dp_replicate {parallel.dp_replicate} x dp_shard "
        f"{parallel.dp_shard} x pipeline {parallel.pipeline} x tensor {parallel.tensor}; "
        f"{workload.dataset.shape[0]} x {workload.dataset.shape[1]} cells, "
        f"{workload.dataset.pressure_levels} levels; {share} of {workload.train.global_batch} samples a "
        f"share, {workload.train.precision}"
    )
    kept = {
        recompute: footprints(workload, parallel, execution.micro_batch, recompute)
        for recompute in (False, True)
    }
    console.print(memory_table(kept, execution.activation_checkpointing))
    console.print(sent_table(kept[False]))
    bubbles = [one.bubble for one in kept[False]]
    mean = sum(bubbles) / len(bubbles)
    if parallel.pipeline > 1:
        console.print(
            f"pipeline: {parallel.micro_batches} micro-batches, {parallel.schedule}; the pipeline "
            f"bubble is {mean:.0%} of the time ({', '.join(f'{one:.0%}' for one in bubbles)} by position)"
        )
    assert workload.spec.division is not None
    if advice := parallel.advice(workload.spec.division.steps(workload.dataset), mean):
        console.print(advice)
    names = [options.profile] if options.profile else _clusters()
    console.print(fit_table((Cluster.read(name) for name in names), layout, kept), soft_wrap=True)


def read_config(files: Sequence[Path]) -> dict[str, Any]:
    """Read `config/config.yaml` and merge files over it, mappings key by key, as Snakemake does."""
    config: dict[str, Any] = {}
    for path in (CONFIG, *files):
        try:
            config = _merged(config, yaml.safe_load(path.read_text()) or {})
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read ({error})") from None
    return config


def described(
    config: Mapping[str, Any],
    experiment: str,
    layout: Layout,
    grid: tuple[int, int],
    levels: int,
    parallel: Mapping[str, Any] | None,
) -> tuple[Workload, ParallelConfig, ExecutionConfig]:
    """Workload of an experiment, and how it is divided and executed on a layout.

    ``grid`` are the rows and columns of the samples, ``levels`` their pressure levels; ``parallel``
    replaces the experiment's own section. Raises `ConfigError` if the experiment does not exist or cannot
    be divided in this way.
    """
    known = config.get("experiments", {})
    if experiment not in known:
        raise ConfigError(
            f"--experiment {experiment}: no such experiment in the configuration; "
            f"{nearest(experiment, known)}; give the file that has it with --configfile"
        )
    block = known[experiment]
    model = dict(block["model"])
    spec = get_model(model.pop("name"))
    if spec.division is None:
        raise ConfigError(
            f"--experiment {experiment}: {spec.name} can only be replicated, not divided"
        )
    model_config: Any = spec.config.parse(model, "model")
    train: TrainConfig = TrainConfig.parse(decisive(block["train"]), "train")
    others = {k: v for k, v in block["train"].items() if k in EXECUTION}
    execution: ExecutionConfig = ExecutionConfig.parse(others, "train")
    raw = config["datasets"][dataset_names(block)[0]]
    dataset = resolve(kind_of(spec.name).outline)(raw, block["data"], grid, levels)
    asked = block.get("parallel", {}) if parallel is None else parallel
    resolved = ParallelConfig.parse(asked, "parallel").for_model(
        spec.name, model_config, layout.world_size, train.global_batch, spec.division.steps(dataset)
    )
    resolved.check_options(execution.compile, train.gradient_compression, train.replay is not None)
    return Workload(spec, model_config, dataset, dataset.batch, train), resolved, execution


def memory_table(kept: Mapping[bool, Sequence[Footprint]], chosen: bool) -> Table:
    """Memory of a GPU at each position of the pipeline, with activations kept and recomputed."""
    table = _table(
        "GPUs", "activations", ">parameters", ">gradients", ">optimiser", ">activations", ">in all"
    )
    several = len(kept[False]) > 1
    for recompute, found in kept.items():
        what = "recomputed" if recompute else "kept"
        what += " (configured)" if recompute == chosen else ""
        for number, one in enumerate(found, start=1):
            values = (one.parameters, one.gradients, one.optimiser, one.activations, one.total)
            who = f"position {number} of {len(found)} in a pipeline" if several else "each"
            table.add_row(who, what, *map(size, values))
    return table


def sent_table(found: Sequence[Footprint]) -> Table:
    """Bytes that a GPU sends in a step, by kind; the largest of all positions."""
    table = _table("sent by a GPU in a step", ">")
    kinds = dict.fromkeys(kind for one in found for kind in one.sent)
    for kind in kinds:
        table.add_row(kind, size(max(one.sent.get(kind, 0) for one in found)))
    if not kinds:
        table.add_row("nothing", "")
    return table


def fit_table(clusters: Any, layout: Layout, kept: Mapping[bool, Sequence[Footprint]]) -> Table:
    """Whether the training fits on the GPUs that each cluster has for the layout."""
    table = _table("cluster", "GPUs", "activations kept", "recomputed")
    for cluster in clusters:
        try:
            node = cluster.place(layout, "train_segment").node_type
        except ConfigError:
            table.add_row(cluster.name, f"does not have {layout}", "–", "–")
            continue
        memory = node.gpu_memory_gb * _GB
        verdicts = [_verdict(max(one.total for one in kept[r]), memory) for r in (False, True)]
        table.add_row(cluster.name, f"{node.gpu_model}, {node.gpu_memory_gb} GB", *verdicts)
    return table


def _verdict(needed: int, memory: int) -> str:
    if not memory:
        return "unknown"
    share = f"{needed / memory:.0%} of its memory"
    return f"fits, {share}" if needed <= USABLE * memory else f"does not fit, {share}"


def size(value: float) -> str:
    """Readable number of bytes, in powers of two like the memory of GPUs."""
    return f"{value / _GB:,.2f} GB" if value >= _GB / 10 else f"{value / 2**20:,.2f} MB"


def _merged(base: Any, over: Any) -> Any:
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return over
    return {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}


def _clusters() -> list[str]:
    return sorted(path.parent.name for path in PROFILES.glob(f"*/{FILE}"))


def _table(*headings: str) -> Table:
    table = Table()
    for heading in headings:
        table.add_column(
            heading.removeprefix(">"), justify="right" if heading[:1] == ">" else "left"
        )
    return table


def _grid(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected <rows>x<columns>, as 720x1440, got {text!r}")
    return int(match[1]), int(match[2])


def _block(text: str) -> Mapping[str, Any]:
    try:
        made = yaml.safe_load(text)
    except yaml.YAMLError:
        made = None
    if not isinstance(made, dict):
        raise argparse.ArgumentTypeError(f"expected a mapping, as '{{dp_shard: 2}}', got {text!r}")
    return made


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    example = "--experiment aurora_large --layout n1_gpu4"
    made = make_parser("parallel", __doc__, f"plan {example}")
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    text = "memory of each GPU, what it sends in a step, and where that fits"
    plan = add_command(commands, "plan", _plan, text, f"{example} --parallel '{{dp_shard: 4}}'")
    plan.add_argument("--experiment", required=True, metavar="NAME")
    plan.add_argument("--layout", required=True, metavar="LAYOUT", help="as n4_gpu4")
    text = f"on top of {CONFIG}"
    plan.add_argument("--configfile", type=Path, nargs="+", default=[], metavar="FILE", help=text)
    plan.add_argument("--profile", metavar="NAME", help="a cluster of profiles/; default: all")
    text = "default 720x1440: 0.25 degrees"
    plan.add_argument("--grid", type=_grid, default=(720, 1440), metavar="RxC", help=text)
    plan.add_argument("--levels", type=int, default=13, metavar="N", help="default 13")
    text = "replaces the section parallel of the experiment"
    plan.add_argument("--parallel", type=_block, metavar="YAML", help=text)
    return made

"""How a model is divided among GPUs: what each holds and sends in a step, and where that fits.

Nothing is trained, and no weights are made.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from millrace.cluster import Cluster
from millrace.config import nearest
from millrace.errors import ConfigError
from millrace.layout import Layout
from millrace.systems.base import dataset_names
from millrace.training.parallel.footprint import Footprint, footprints
from millrace.training.parallel.workload import described

_GB = 2**30


def show_division(
    console: Console,
    config: Mapping[str, Any],
    experiment: str,
    layout: str,
    clusters: Iterable[Cluster],
    *,
    parallel: Mapping[str, Any] | None = None,
    size: tuple[tuple[int, int] | None, int | None] = (None, None),
) -> None:
    """Print what each GPU of a layout would hold and send, and on which clusters that fits.

    ``config`` has the sections ``experiments`` and ``datasets``; ``parallel`` replaces the section of the
    experiment; ``size`` are rows and columns, and levels, of the samples, None: those of the raw files.
    Raises `ConfigError` if the experiment does not exist or cannot be divided in this way.
    """
    known = config.get("experiments", {})
    if experiment not in known:
        raise ConfigError(
            f"--parallel {experiment}: no such experiment in the configuration; "
            f"{nearest(experiment, known)}; give the file that has it with --configfile"
        )
    block = {**known[experiment], **({} if parallel is None else {"parallel": parallel})}
    names, on, found = dataset_names(block), Layout.parse(layout), []
    for name in names:
        try:
            workload, divided, execution = described(block, config["datasets"][name], on, *size)
        except ConfigError as error:
            raise ConfigError(f"--parallel {experiment}: {error}") from None
        kept = {
            recompute: footprints(workload, divided, execution.micro_batch, recompute)
            for recompute in (False, True)
        }
        found.append((name, workload, divided, execution, kept))
    # A batch comes from one dataset: the one with the largest samples decides.
    name, workload, divided, execution, kept = max(
        found, key=lambda one: max(part.total for part in one[-1][False])
    )
    share, outline = divided.samples(workload.train.global_batch), workload.dataset
    console.print(
        f"[bold]{experiment}[/] on {on}: dp_replicate {divided.dp_replicate} x dp_shard "
        f"{divided.dp_shard} x pipeline {divided.pipeline} x tensor {divided.tensor}; "
        f"{_size_of(outline)}{f' ({name}, the largest)' if len(names) > 1 else ''}; {share} of "
        f"{workload.train.global_batch} samples a share, {workload.train.precision}"
    )
    console.print(memory_table(kept, execution.activation_checkpointing))
    console.print(sent_table(kept[False]))
    bubbles = [one.bubble for one in kept[False]]
    mean = sum(bubbles) / len(bubbles)
    if divided.pipeline > 1:
        console.print(
            f"pipeline: {divided.micro_batches} micro-batches, {divided.schedule}; the pipeline "
            f"bubble is {mean:.0%} of the time ({', '.join(f'{one:.0%}' for one in bubbles)} by position)"
        )
    assert workload.spec.division is not None
    if advice := divided.advice(workload.spec.division.steps(outline), mean):
        console.print(advice)
    console.print(fit_table(clusters, on, kept), soft_wrap=True)


def _size_of(outline: Any) -> str:
    if said := getattr(outline, "said", None):
        return str(said)
    return f"{outline.shape[0]} x {outline.shape[1]} cells, {outline.pressure_levels} levels"


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
            who = f"pipeline, {number} of {len(found)}" if several else "each"
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


def fit_table(
    clusters: Iterable[Cluster], layout: Layout, kept: Mapping[bool, Sequence[Footprint]]
) -> Table:
    """Whether the training fits on the GPUs that each cluster has for the layout."""
    table = _table("cluster", "GPUs", "activations kept", "recomputed")
    for cluster in clusters:
        try:
            node = cluster.place(layout, "train_segment").node_type
        except ConfigError:
            table.add_row(cluster.name, f"does not have {layout}", "–", "–")
            continue
        memory = node.gpu_memory_gb * _GB
        needed = [max(one.total for one in kept[recompute]) for recompute in (False, True)]
        verdicts = [_verdict(one, memory, cluster.usable_gpu_memory) for one in needed]
        table.add_row(cluster.name, f"{node.gpu_model}, {node.gpu_memory_gb} GB", *verdicts)
    return table


def _verdict(needed: int, memory: int, usable: float) -> str:
    if not memory:
        return "unknown"
    share = f"{needed / memory:.0%} of its memory"
    return f"fits, {share}" if needed <= usable * memory else f"does not fit, {share}"


def size(value: float) -> str:
    """Readable number of bytes, in powers of two like the memory of GPUs."""
    return f"{value / _GB:,.2f} GB" if value >= _GB / 10 else f"{value / 2**20:,.2f} MB"


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in headings:
        table.add_column(
            heading.removeprefix(">"), justify="right" if heading[:1] == ">" else "left"
        )
    return table

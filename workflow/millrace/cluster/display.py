"""Tables of clusters for a terminal."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from millrace.cluster.facts import LAYOUTS, Cluster
from millrace.cluster.placement import MB_PER_GB, Placement
from millrace.errors import ConfigError
from millrace.layout import Layout

_TRAINING = "train_segment"
# Rules that represent the classes of jobs without a layout.
_OTHERS = ("preprocess", "extract_patches", "evaluate_run")


def clusters_table(clusters: Iterable[Cluster]) -> Table:
    """Return where training runs: one row for each layout, one column for each cluster."""
    clusters = list(clusters)
    table = make_table("layout", *(cluster.name for cluster in clusters))
    for layout in LAYOUTS:
        table.add_row(layout, *(_summary(cluster, layout) for cluster in clusters))
    return table


def record(cluster: Cluster) -> dict[str, Any]:
    """Return the facts of a cluster, and the node type of each layout, for scripts; None: it has none."""
    placed: dict[str, str | None] = {}
    for layout in LAYOUTS:
        try:
            placed[layout] = cluster.place(Layout.parse(layout), _TRAINING).node_type.name
        except ConfigError:
            placed[layout] = None
    facts = {key: getattr(cluster, key) for key in ("name", "scheduler", "account", "qos")}
    types = [one.model_dump() for one in cluster.node_types]
    return {**facts, "file": str(cluster.file), "node_types": types, "layouts": placed}


def nodes_table(cluster: Cluster) -> Table:
    """Return one row for each node type, in order of preference."""
    table = make_table(
        "type", ">nodes", ">cores", ">memory", ">GPUs", "model", ">GPU memory", "partition", "constraint",
        "QOS", ">limit", "",
    )  # fmt: skip
    for one in cluster.node_types:
        cells = (
            one.name, one.count, one.cores, f"{one.memory_gb} GB", one.gpus, one.gpu_model,
            f"{one.gpu_memory_gb} GB" if one.gpu_memory_gb else "", one.partition, one.constraint,
            one.qos, f"{one.max_hours:g} h" if one.max_hours else "",
        )  # fmt: skip
        table.add_row(*(str(c or "–") for c in cells), "" if one.enabled else "not enabled")
    return table


def placements_table(cluster: Cluster) -> Table:
    """Return what jobs get: one row for each layout, and for each class of jobs without a layout."""
    table = make_table("job", "node type", ">nodes", ">GPUs", ">cores", ">memory", ">hours", "")
    for layout in LAYOUTS:
        try:
            cells = _cells(cluster.place(Layout.parse(layout), _TRAINING))
        except ConfigError as error:
            cells = ("–", *[""] * 5, str(error).rpartition(": ")[2])
        table.add_row(layout, *cells)
    for rule in _OTHERS:
        table.add_row(rule, *_cells(cluster.place(None, rule)))
    return table


def _summary(cluster: Cluster, layout: str) -> str:
    try:
        placed = cluster.place(Layout.parse(layout), _TRAINING)
    except ConfigError:
        return "–"
    one = placed.node_type
    where = " ".join(name for name in (one.partition, one.constraint) if name)
    return f"{one.gpu_model}, {where}" if where else one.gpu_model


def _cells(placed: Placement) -> Sequence[str]:
    return (
        placed.node_type.name, str(placed.nodes), str(placed.gpus_per_node or "–"),
        str(placed.cpus_per_node), f"{placed.memory_mb / MB_PER_GB:.0f} GB",
        f"{placed.minutes / 60:g}", "whole nodes" if placed.exclusive else "",
    )  # fmt: skip


def make_table(*columns: str) -> Table:
    """Return an empty table without lines; columns whose name begins with ``>`` are aligned right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        right = name.startswith(">")
        table.add_column(name.lstrip(">"), justify="right" if right else "left", overflow="fold")
    return table

"""Tables of clusters for a terminal."""

from collections.abc import Iterable, Sequence

from rich.table import Table

from millrace.cluster.facts import LAYOUTS, Cluster
from millrace.cluster.nodes import MB_PER_GB
from millrace.cluster.placement import Placement
from millrace.errors import ConfigError
from millrace.layout import Layout

_TRAINING = "train_segment"
# Rules that stand for the classes of jobs without a layout.
_OTHERS = ("preprocess", "extract_patches", "evaluate_run")


def clusters_table(clusters: Iterable[Cluster]) -> Table:
    """One row a layout, one column a cluster: where training goes."""
    clusters = list(clusters)
    table = _table("layout", *(cluster.name for cluster in clusters))
    for layout in LAYOUTS:
        table.add_row(layout, *(_summary(cluster, layout) for cluster in clusters))
    return table


def nodes_table(cluster: Cluster) -> Table:
    """One row a node type, in order of preference."""
    table = _table(
        "type", ">nodes", ">cores", ">memory", ">GPUs", "model", ">GPU memory", "partition", "constraint",
        "QOS", ">limit", "",
    )  # fmt: skip
    for one in cluster.node_types:
        table.add_row(
            one.name,
            str(one.count or "–"),
            str(one.cores),
            f"{one.memory_gb} GB",
            str(one.gpus or "–"),
            one.gpu_model or "–",
            f"{one.gpu_memory_gb} GB" if one.gpu_memory_gb else "–",
            one.partition or "–",
            one.constraint or "–",
            one.qos or "–",
            f"{one.max_hours:g} h" if one.max_hours else "–",
            "" if one.enabled else "not enabled",
        )
    return table


def placements_table(cluster: Cluster) -> Table:
    """One row a layout, and one for each class of jobs without a layout: what they get."""
    table = _table("job", "node type", ">nodes", ">GPUs", ">cores", ">memory", ">hours", "")
    for layout in LAYOUTS:
        try:
            placed = cluster.place(Layout.parse(layout), _TRAINING)
        except ConfigError as error:
            table.add_row(layout, "–", *[""] * 5, str(error).rpartition(": ")[2])
            continue
        table.add_row(layout, *_cells(placed))
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
        placed.node_type.name,
        str(placed.nodes),
        str(placed.gpus_per_node or "–"),
        str(placed.cpus_per_node),
        f"{placed.memory_mb / MB_PER_GB:.0f} GB",
        f"{placed.minutes / 60:g}",
        "whole nodes" if placed.exclusive else "",
    )


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        right = name.startswith(">")
        table.add_column(name.lstrip(">"), justify="right" if right else "left", overflow="fold")
    return table

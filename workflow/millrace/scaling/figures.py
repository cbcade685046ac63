"""Figures of the scaling report, as wide as a column of a journal, so that they can be read on a phone too.

The marker shows the origin of a number: filled is measured, open is modelled, an open diamond is
extrapolated; bars of layouts that were not run are hatched. The colour shows the number of nodes.
``path`` is the file to write, and ``also`` names the suffixes of further files beside it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from millrace.figures.style import CATEGORIES, PREDICTION, REFERENCE_LINE, TRUTH, figure, log_ticks
from millrace.scaling.communication import all_reduce_seconds, bus_bandwidth
from millrace.scaling.fits import USL, evaluate
from millrace.scaling.quantity import (
    EXTRAPOLATED,
    LABELS,
    MEASURED,
    MODELLED,
    Quantity,
    format_scaled,
)
from millrace.scaling.results import LayoutResult, Study, wait_hours

_WIDTH = 4.2  # inches
_NODES = {1: PREDICTION, 2: "#D55E00", 4: "#009E73"}
_MORE_NODES = "#CC79A7"
_MARKERS: dict[str, dict[str, Any]] = {
    MEASURED: {"marker": "o"},
    MODELLED: {"marker": "o", "markerfacecolor": "white"},
    EXTRAPOLATED: {"marker": "D", "markerfacecolor": "white"},
}
_HATCH = {MEASURED: "", MODELLED: "////", EXTRAPOLATED: "xxxx"}
_PART_COLOURS = {
    "forward": "#0072B2", "backward": "#56B4E9", "optimiser": "#009E73", "computing": "#6BAED6",
    "other": "#BBBBBB", "imbalance": "#F0E442", "data": "#CC79A7", "communication": "#D55E00",
}  # fmt: skip


def throughput(study: Study, path: str | Path, also: Sequence[str] = ()) -> None:
    """Draw throughput by number of ranks, with the ideal line and the fitted law if there is one."""
    base = next(one for one in study.layouts if one.layout == study.base)
    with figure(path, _WIDTH, 3.4, also=also) as fig:
        axes = fig.add_subplot(xscale="log", yscale="log")
        ranks = sorted({one.ranks for one in study.layouts})
        ends = np.array([ranks[0], ranks[-1]])
        axes.plot(
            ends, base.throughput.value * ends / base.ranks, color=REFERENCE_LINE, linestyle="--",
            linewidth=1, label="ideal",
        )  # fmt: skip
        for law in study.fits:
            if law.law == USL:
                p = np.geomspace(law.ranks[0], min(2 * law.ranks[-1], ranks[-1]), 100)
                axes.plot(p, evaluate(law, p), color=TRUTH, linewidth=1, label="USL fit (modelled)")
        for one in study.layouts:
            # Layouts with the same number of ranks are drawn side by side.
            _point(axes, one.ranks * 1.03 ** (one.nodes.bit_length() - 1), one.throughput, one)
        axes.set(xlabel=study.units, ylabel="Throughput (samples/s)")
        axes.xaxis.set_major_locator(ticker.FixedLocator(ranks))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        values = [one.throughput.value for one in study.layouts]
        log_ticks(
            axes.yaxis, min(values), max(*values, base.throughput.value * ranks[-1] / base.ranks)
        )
        _legend(fig, study.layouts, axes)


def efficiency(study: Study, path: str | Path, also: Sequence[str] = ()) -> None:
    """Draw the efficiency of every layout with its interval, and the bands claimed for GPUs if tested."""
    with figure(path, _WIDTH, 3.2, also=also) as fig:
        axes = fig.add_subplot()
        label: str | None = "claimed"  # once in the legend
        for x, one in enumerate(study.layouts):
            if one.claim is not None:
                height = one.claim.high - one.claim.low
                axes.bar(
                    x, height, 0.7, one.claim.low, color="#F0E442", alpha=0.6, gid=f"claim_{one.layout}",
                    label=label,
                )  # fmt: skip
                label = None
            _point(axes, x, one.factors.efficiency, one)
        _efficiency_axis(axes, study.layouts, f"Efficiency against {study.base}")
        _legend(fig, study.layouts, axes)


def step_parts(study: Study, path: str | Path, also: Sequence[str] = ()) -> None:
    """Draw the parts of a step as stacked bars, one for each layout."""
    layouts = study.layouts
    used = [part for part in _PART_COLOURS if any(_share(one, part) > 0.002 for one in layouts)]
    with figure(path, _WIDTH, 1.5 + 0.33 * len(layouts), also=also) as fig:
        axes = fig.add_subplot()
        for y, one in enumerate(layouts):
            left = 0.0
            for part in used:
                seconds = one.parts[part].value * 1e3 if part in one.parts else 0.0
                axes.barh(
                    y, seconds, 0.7, left, color=_PART_COLOURS[part], hatch=_HATCH[one.label],
                    edgecolor="white", linewidth=0.4,
                )  # fmt: skip
                left += seconds
        names = [
            one.layout if one.label == MEASURED else f"{one.layout}\n{one.label}" for one in layouts
        ]
        axes.set_yticks(range(len(layouts)), names)
        axes.set(xlabel="Time of a step (ms)", ylim=(len(layouts) - 0.5, -0.5))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        renamed = {"data": "data wait"}
        handles = [Patch(color=_PART_COLOURS[p], label=renamed.get(p, p)) for p in used]
        handles += [
            Patch(facecolor="#888888", edgecolor="white", hatch=_HATCH[label], label=label)
            for label in _labels(layouts)
        ]
        fig.legend(
            handles=handles, loc="outside upper center", ncols=3, fontsize=8, handlelength=1.4
        )


def communication(study: Study, path: str | Path, also: Sequence[str] = ()) -> None:
    """Draw the bus bandwidth of measured all-reduces by message size, with the fitted model."""
    groups = sorted({(one.link, one.ranks) for one in study.bandwidth})
    with figure(path, _WIDTH, 3.2, also=also) as fig:
        axes = fig.add_subplot(xscale="log", yscale="log")
        for (link, ranks), colour in zip(groups, (*CATEGORIES[4:], *CATEGORIES[:4]), strict=False):
            mine = [one for one in study.bandwidth if (one.link, one.ranks) == (link, ranks)]
            size = np.array([one.bytes for one in mine])
            bus = np.array([one.bus.value for one in mine]) / 1e9
            axes.plot(
                size, bus, color=colour, linestyle="none", markersize=4, **_MARKERS[mine[0].bus.label],
                label=f"{link}-node, {ranks} ranks ({mine[0].bus.label})",
            )  # fmt: skip
            for model in study.links:
                if model.link == link:
                    n = np.geomspace(size.min(), size.max(), 100)
                    bus = bus_bandwidth(n, all_reduce_seconds(model, n, ranks), ranks) / 1e9
                    axes.plot(n, bus, color=colour, linewidth=1)
        axes.plot([], [], color=REFERENCE_LINE, linewidth=1, label="α-β model (modelled)")
        axes.set(xlabel="Size of the message", ylabel="Bus bandwidth (GB/s)")
        axes.xaxis.set_major_formatter(
            ticker.FuncFormatter(lambda value, _: format_scaled(value, "B"))
        )
        log_ticks(axes.yaxis, *axes.get_ylim())
        fig.legend(loc="outside upper center", ncols=1 if len(groups) > 3 else 2, fontsize=8)


def cost_and_time(study: Study, path: str | Path, also: Sequence[str] = ()) -> None:
    """Draw cost over time of every layout, waiting included, and the Pareto front of the layouts."""
    target = study.layouts[0].target is not None
    money = study.layouts[0].epoch.money
    wait = any(one.queue_hours is not None for one in study.layouts)
    with figure(path, _WIDTH, 3.3, also=also) as fig:
        axes = fig.add_subplot()
        at = {}
        for one in study.layouts:
            cost = one.target or one.epoch
            x = cost.seconds.value / 3600 + wait_hours(one, study.layouts)
            price = cost.money or cost.device_hours
            at[one.layout] = (x, price.value)
            axes.plot(x, price.value, color=_node_colour(one), markersize=5, **_MARKERS[one.label])
        front = np.array([at[name] for name in study.pareto])
        label = "no layout is cheaper and faster"
        axes.plot(*front.T, color=REFERENCE_LINE, linewidth=1, zorder=1, label=label)
        axes.margins(x=0.22, y=0.2)
        for name, offset in _placed(at, 0.75 * _WIDTH * 72, 0.6 * 3.3 * 72).items():
            axes.annotate(
                name, at[name], xytext=offset, textcoords="offset points", ha="center", va="center",
                fontsize=7.5,
            )  # fmt: skip
        what = "to the target" if target else "of an epoch"
        # Labels of small numbers are long.
        axes.xaxis.set_major_locator(ticker.MaxNLocator(4))
        axes.set_xlabel(f"Hours {what}" + (", queue included" if wait else ""))
        axes.set_ylabel(f"Cost {what} ({money.unit})" if money else f"Device-hours {what}")
        _legend(fig, study.layouts, axes)


def overall_efficiency(
    studies: Sequence[Study], path: str | Path, also: Sequence[str] = ()
) -> None:
    """Draw the efficiencies of several experiments on one kind of device side by side."""
    names = {one.layout: one for study in studies for one in study.layouts}
    order = sorted(names.values(), key=lambda one: (one.ranks, one.nodes))
    position = {one.layout: x for x, one in enumerate(order)}
    with figure(path, _WIDTH, 3.4, also=also) as fig:
        axes = fig.add_subplot()
        for i, study in enumerate(studies):
            shift = 0.5 * ((i + 0.5) / len(studies) - 0.5)
            colour = (*CATEGORIES[4:], *CATEGORIES[:4])[i % len(CATEGORIES)]
            for one in study.layouts:
                _point(axes, position[one.layout] + shift, one.factors.efficiency, one, colour)
            axes.plot([], [], color=colour, linewidth=3, label=f"{study.experiment} ({study.mode})")
        _efficiency_axis(axes, order, "Efficiency against one rank", named=False)
        _legend(fig, [one for study in studies for one in study.layouts], axes, nodes=False)


def _point(
    axes: Any, x: float, value: Quantity, one: LayoutResult, colour: str | None = None
) -> None:
    error = None
    if value.low is not None and value.high is not None and value.low < value.high:
        error = [[max(0.0, value.value - value.low)], [max(0.0, value.high - value.value)]]
    axes.errorbar(
        x, value.value, error, color=colour or _node_colour(one), markersize=5, capsize=2.5,
        linewidth=1, linestyle="none", **_MARKERS[one.label],
    )  # fmt: skip


def _share(one: LayoutResult, part: str) -> float:
    return one.parts[part].value / one.step.value if part in one.parts else 0.0


def _placed(
    at: Mapping[str, tuple[float, float]], width: float, height: float
) -> dict[str, tuple[float, float]]:
    """Offsets of names from their points, in typographic points, such that names do not overlap.

    Each name takes the first free place around its point, or the last one if none is free. ``width`` and
    ``height`` are the approximate size of the axes in typographic points.
    """
    xy = np.array(list(at.values()))
    span = np.where(np.ptp(xy, axis=0) > 0, np.ptp(xy, axis=0), 1)
    points = (xy - xy.min(axis=0)) / span * np.array([width, height]) / 1.4
    taken = [(*point, 6.0, 6.0) for point in points]
    offsets: dict[str, tuple[float, float]] = {}
    for name, point in zip(at, points, strict=True):
        size = (4.6 * len(name), 8.0)
        beside = size[0] / 2 + 6
        places = [(0, 9), (0, -9), (beside, 0), (-beside, 0), (beside, 10), (-beside, -10)]
        places += [(beside, -10), (-beside, 10), (0, 18), (0, -18)]
        for place in places:
            box = (*(point + np.array(place)), *size)
            if not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        offsets[name] = place
    return offsets


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two boxes (x and y of the centre, width, height) overlap."""
    return all(abs(one[i] - other[i]) < (one[i + 2] + other[i + 2]) / 2 for i in (0, 1))


def _efficiency_axis(
    axes: Any, layouts: Sequence[LayoutResult], label: str, named: bool = True
) -> None:
    axes.axhline(1, color=REFERENCE_LINE, linestyle="--", linewidth=1)
    axes.set_xticks(range(len(layouts)), [one.layout.replace("_", "\n") for one in layouts])
    axes.set_xlim(-0.6, len(layouts) - 0.4)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(0.0, min(bottom, 0.78)), max(top, 1.03))
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    axes.set_ylabel(label)
    axes.grid(axis="x", visible=False)
    if named:
        axes.tick_params(axis="x", length=0)


def _legend(fig: Any, layouts: Sequence[LayoutResult], axes: Any, nodes: bool = True) -> None:
    """Add a legend of the markers, of the colours of the nodes, and of what else has a label."""
    marker: dict[str, Any] = {"color": "#444444", "linestyle": "none", "markersize": 5}
    handles = [
        Line2D([], [], label=label, **marker, **_MARKERS[label]) for label in _labels(layouts)
    ]
    if nodes:
        by_nodes = {one.nodes: _node_colour(one) for one in layouts}
        handles += [
            Line2D([], [], color=colour, linewidth=3, label=f"{n} node{'s' * (n > 1)}")
            for n, colour in sorted(by_nodes.items())
        ]
    handles += axes.get_legend_handles_labels()[0]
    fig.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8, handlelength=1.6)


def _labels(layouts: Sequence[LayoutResult]) -> list[str]:
    return [label for label in LABELS if any(one.label == label for one in layouts)]


def _node_colour(one: LayoutResult) -> str:
    return _NODES.get(one.nodes, _MORE_NODES)

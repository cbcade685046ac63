"""Traffic: rollouts over the map, tokens, errors by time, collisions and realism."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL.Image import Dither

from millrace.errors import ConfigError
from millrace.figures.film import Film
from millrace.figures.style import (
    CATEGORIES,
    PAGE_WIDTH,
    PERSISTENCE,
    PREDICTION,
    REFERENCE_LINE,
    TRUTH,
    figure,
    style,
)
from millrace.files import atomic_write
from millrace.systems.traffic.geometry import Floats, box_corners
from millrace.systems.traffic.tracks import CLASSES, LINE_TYPES, STEP_S
from millrace.systems.traffic.vocabulary import Vocabulary

_LOOKS: Mapping[str, dict[str, Any]] = {
    "model": {"color": PREDICTION},
    "shuffled_map": {"color": "#CC79A7", "linestyle": "-."},
    "constant_velocity": {"color": PERSISTENCE, "linestyle": "--"},
    "noise": {"color": REFERENCE_LINE, "linestyle": ":"},
    "truth": {"color": TRUTH},
}
_NAMES = {"shuffled_map": "Model, shuffled map", "noise": "Random tokens", "truth": "Ground truth"}
_KIND_COLOURS = (PREDICTION, "#CC79A7", "#009E73")
_MAP_LINES = {
    "road_edge": ("#555555", 1.0),
    "lane": ("#D0D0D0", 0.8),
    "bike_lane": ("#BFE3D4", 0.8),
    "crosswalk": ("#E8C77A", 1.2),
    "stop_line": ("#B03A2E", 1.2),
}
_OTHER_LINE = ("#E0E0E0", 0.6)
_DPI = 100
_AROUND = 12.0  # m of the map shown around all observed positions


@dataclass(frozen=True, eq=False)
class Drawing:
    """A scenario to draw; shape suffixes as in `millrace.systems.traffic.scores`."""

    title: str
    line_M32: Floats
    """Road segments (m)."""
    type_M: NDArray[np.int_]
    """Index into `LINE_TYPES`."""
    kind_A: NDArray[np.int_]
    """Class of each agent."""
    size_A2: Floats
    """Length and width (m)."""
    past_AT3: Floats
    """True poses up to the current step; NaN where not observed."""
    true_AT3: Floats
    """True poses after it."""
    rollout_SAT3: Floats
    """Predicted poses after it."""


def rollout_maps(drawings: Sequence[Drawing], path: Path) -> None:
    """Draw all rollouts of some scenarios over their maps, with the ground truth, two in a row."""
    rows = -(-len(drawings) // 2)
    with figure(path, PAGE_WIDTH, 0.5 + 3.3 * rows) as fig:
        panels = fig.subplots(rows, 2, squeeze=False).ravel()
        for axes, one in zip(panels, drawings, strict=False):
            _draw_map(axes, one)
            for kind, colour in enumerate(_KIND_COLOURS):
                paths = one.rollout_SAT3[:, one.kind_A == kind, :, :2]
                look: dict[str, Any] = {
                    "colors": colour,
                    "linewidths": 0.9,
                    "alpha": 0.45,
                    "zorder": 3,
                }
                axes.add_collection(LineCollection([*paths.reshape(-1, *paths.shape[2:])], **look))
            look = {"colors": TRUTH, "linewidths": 1, "linestyles": [(0, (3, 2))], "zorder": 4}
            axes.add_collection(LineCollection([*one.true_AT3[..., :2]], **look))
            _draw_boxes(axes, one.past_AT3[:, -1], one)
            axes.set_title(one.title)
        for axes in panels[len(drawings) :]:
            axes.set_visible(False)
        lines = [
            Line2D([], [], color=colour, label=name.capitalize())
            for name, colour in zip(CLASSES, _KIND_COLOURS, strict=True)
        ]
        lines += [
            Line2D([], [], color=TRUTH, linewidth=1, linestyle=(0, (3, 2)), label="Ground truth"),
            Line2D([], [], color=_MAP_LINES["road_edge"][0], linewidth=1, label="Road edge"),
        ]
        fig.legend(handles=lines, loc="outside upper center", ncols=5, title="Rollouts by class")


def _draw_map(axes: Axes, drawing: Drawing) -> None:
    """Draw the map, and set the limits of the axes around all observed positions."""
    for kind, name in enumerate(LINE_TYPES):
        colour, width = _MAP_LINES.get(name, _OTHER_LINE)
        own = drawing.line_M32[drawing.type_M == kind]
        if len(own):
            axes.add_collection(LineCollection([*own], colors=colour, linewidths=width))
    seen = np.concatenate([drawing.past_AT3, drawing.true_AT3], axis=1)[..., :2].reshape(-1, 2)
    low, high = np.nanmin(seen, axis=0) - _AROUND, np.nanmax(seen, axis=0) + _AROUND
    middle, half = (low + high) / 2, float((high - low).max()) / 2
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
    axes.set_aspect("equal")
    axes.set(xlabel="x (m)", ylabel="y (m)")
    axes.grid(False)


def _draw_boxes(axes: Axes, pose_A3: Floats, drawing: Drawing) -> PolyCollection:
    """Draw the boxes of agents; those that are not observed have no area."""
    colours = [_KIND_COLOURS[kind] for kind in drawing.kind_A]
    look: dict[str, Any] = {
        "facecolors": colours,
        "edgecolors": "white",
        "linewidths": 0.4,
        "zorder": 5,
    }
    drawn = PolyCollection(_corners(pose_A3, drawing), **look)
    axes.add_collection(drawn)
    return drawn


def _corners(pose_A3: Floats, drawing: Drawing) -> list[Floats]:
    # Pedestrians of their real size would be too small to see.
    return [*np.nan_to_num(box_corners(pose_A3, np.maximum(drawing.size_A2, 1.8)), nan=1e6)]


def rollout_animation(drawing: Drawing, path: Path, fps: float = 5) -> None:
    """Write the ground truth and the first rollout side by side as an endless GIF, in real time.

    Both begin with the observed history. ``fps`` is at most 10 frames per second.

    Raises
    ------
    ConfigError
        The path does not end in ``.gif``.
    """
    if path.suffix != ".gif":
        raise ConfigError(f"{path}: an animation ends in .gif; rename it")
    every = max(1, round(1 / (fps * STEP_S)))
    future = {"Ground truth": drawing.true_AT3, "Rollout": drawing.rollout_SAT3[0]}
    current = drawing.past_AT3.shape[1] - 1
    frames = []
    with style():
        fig = Figure(figsize=(PAGE_WIDTH, 3.9), dpi=_DPI, layout="constrained")
        drawn, film = [], None
        for axes, (name, after) in zip(fig.subplots(1, 2), future.items(), strict=True):
            _draw_map(axes, drawing)
            axes.set_title(name)
            pose_AT3 = np.concatenate([drawing.past_AT3, after], axis=1)
            drawn.append((_draw_boxes(axes, pose_AT3[:, 0], drawing), pose_AT3))
        title = fig.suptitle("")
        for step in range(0, current + 1 + drawing.true_AT3.shape[1], every):
            for boxes, pose_AT3 in drawn:
                boxes.set_verts(_corners(pose_AT3[:, step], drawing))
            title.set_text(f"{drawing.title}, {STEP_S * (step - current):+.1f} s")
            film = film or Film(fig, [*(boxes for boxes, _ in drawn), title])
            frames.append(film.frame())
    palette = frames[-1].quantize(160)
    # One palette for all frames: colours do not flicker, and unchanged areas take no space.
    first, *rest = [f.quantize(palette=palette, dither=Dither.NONE) for f in frames]
    with atomic_write(path) as part:
        duration = round(1000 * every * STEP_S)
        first.save(part, "GIF", save_all=True, append_images=rest, duration=duration, loop=0)


def token_usage(coverage: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw how much of all motion the most frequent tokens make up.

    ``coverage`` is `TokenUsage.result` of ``truth`` and ``model``.
    """
    with figure(path, PAGE_WIDTH, 2.6) as fig:
        panels = fig.subplots(1, len(CLASSES), sharey=True)
        for axes, kind in zip(panels, CLASSES, strict=True):
            for name in ("truth", "model"):
                one = coverage[name][kind]
                axes.plot(one["tokens"], one["share"], label=_label(name), **_LOOKS[name])
            axes.set(xscale="log", ylim=(0, 1.02), title=kind.capitalize())
        panels[0].set_ylabel("Share of all that occur")
        fig.supxlabel("Number of tokens, the most frequent of training first", fontsize=9)
        handles, labels = panels[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper center", ncols=2)


def error_by_horizon(forecasts: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the displacement of the best rollouts over time.

    ``forecasts`` are scores by forecast, each with ``error_by_step`` (m; None where no agent is observed).
    """
    with figure(path, PAGE_WIDTH, 3.0) as fig:
        axes = fig.subplots()
        for name, scores in forecasts.items():
            error = np.array(scores["error_by_step"], dtype=float)
            time = STEP_S * np.arange(1, error.size + 1)
            axes.plot(time, error, label=_label(name), **_LOOKS[name])
        axes.set(
            xlabel="Time after the current step (s)", ylabel="Displacement of the best rollout (m)"
        )
        axes.set(xlim=(0, None), ylim=(0, None))
        axes.legend()


def event_rates(forecasts: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw collision rates, off-road rates and realism of all forecasts as bars.

    ``forecasts`` are scores by forecast, with ``collision_rate``, ``off_road_rate`` and ``realism``.
    """
    titles = {"collision_rate": "Collision rate", "off_road_rate": "Off-road rate"}
    titles["realism"] = "Realism"
    names = list(forecasts)
    with figure(path, PAGE_WIDTH, 1.2 + 0.28 * len(names)) as fig:
        panels = fig.subplots(1, len(titles), sharey=True)
        place = np.arange(len(names))
        for axes, (key, title) in zip(panels, titles.items(), strict=True):
            value = np.array([forecasts[name][key] for name in names], dtype=float)
            colours = [_LOOKS[name]["color"] for name in names]
            axes.barh(place, np.nan_to_num(value), color=colours, height=0.7)
            for at, one in zip(place, value, strict=True):
                text = f" {one:.3f}" if np.isfinite(one) else " unknown"
                axes.annotate(text, (np.nan_to_num(one), at), va="center", fontsize=8)
            axes.set(title=title, xlim=(0, 1.3 * max(np.nanmax(value, initial=0), 1e-3)))
            axes.set_xlabel("Likelihood" if key == "realism" else "Share of agents")
            axes.grid(axis="y", visible=False)
        panels[0].set_yticks(place, [_label(name) for name in names])
        panels[0].set_ylim(len(names) - 0.5, -0.5)


def vocabulary_plates(vocabulary: Vocabulary, path: Path) -> None:
    """Draw the motion tokens of each class, from the origin and facing along x, and the road tokens."""
    with figure(path, PAGE_WIDTH, 5.4) as fig:
        panels = fig.subplots(2, 2).ravel()
        for axes, (name, tokens) in zip(panels, vocabulary.tokens.items(), strict=True):
            if name == "road":
                axes.add_collection(LineCollection([*tokens], colors=CATEGORIES[0], linewidths=0.6))
                axes.scatter(*tokens[:, 1].T, color=PREDICTION, s=4, zorder=3)
            else:
                turn = np.clip(np.degrees(tokens[:, -1, 2]), -30, 30)
                look: dict[str, Any] = {"cmap": "coolwarm", "linewidths": 0.5, "alpha": 0.8}
                lines = LineCollection([*tokens[..., :2]], array=turn, **look)
                lines.set_clim(-30, 30)
                axes.add_collection(lines)
                look = {"cmap": "coolwarm", "vmin": -30, "vmax": 30, "s": 4, "zorder": 3}
                axes.scatter(*tokens[:, -1, :2].T, c=turn, **look)
            axes.autoscale_view()
            axes.margins(0.05)
            found = vocabulary.coverage[name]
            error = f"off by {100 * found.mean:.1f} cm (p99 {100 * found.p99:.1f})"
            axes.set_title(f"{name.capitalize()}: {len(tokens):,} tokens, {error}", fontsize=8)
            axes.set(xlabel="x (m)", ylabel="y (m)")
        bar = fig.colorbar(lines, ax=panels, extend="both", shrink=0.6, aspect=30)
        bar.set_label("Turn within the token (°)")


def _label(name: str) -> str:
    return _NAMES.get(name, name.replace("_", " ").capitalize())

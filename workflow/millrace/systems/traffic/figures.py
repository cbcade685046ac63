"""Traffic: rollouts over the map, tokens, errors by time, collisions and realism."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from millrace.errors import ConfigError
from millrace.figures.style import (
    CATEGORIES,
    PAGE_WIDTH,
    PERSISTENCE,
    PREDICTION,
    REFERENCE_LINE,
    TRUTH,
    figure,
    replacing,
    style,
)
from millrace.systems.traffic.boxes import box_corners
from millrace.systems.traffic.tracks import CLASSES, LINES, STEP_S

Floats = NDArray[np.float64]

_LOOKS: Mapping[str, dict[str, Any]] = {
    "model": {"color": PREDICTION},
    "shuffled_map": {"color": "#CC79A7", "linestyle": "-."},
    "constant_velocity": {"color": PERSISTENCE, "linestyle": "--"},
    "noise": {"color": REFERENCE_LINE, "linestyle": ":"},
    "truth": {"color": TRUTH},
}
_NAMES = {"shuffled_map": "Model, other map", "noise": "Random tokens"}
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
_AROUND = 12.0  # m of the map shown around what happens


@dataclass(frozen=True, eq=False)
class Traffic:
    """A scene to draw; shapes as in `millrace.systems.traffic.scores`."""

    title: str
    line_M32: Floats
    """Pieces of road (m)."""
    type_M: NDArray[np.int_]
    """Index into `LINES`."""
    kind_A: NDArray[np.int_]
    size_A2: Floats
    past_AT3: Floats
    """Up to the present; NaN where not seen."""
    true_AT3: Floats
    """After it."""
    rollout_SAT3: Floats


def rollout_maps(scenes: Sequence[Traffic], path: str | Path) -> None:
    """Draw all rollouts of some scenes over their maps, with the truth.

    Parameters
    ----------
    scenes
        Two in a row.
    path
        Where to write.
    """
    rows = -(-len(scenes) // 2)
    with figure(path, PAGE_WIDTH, 0.5 + 3.3 * rows) as fig:
        panels = fig.subplots(rows, 2, squeeze=False).ravel()
        for axes, scene in zip(panels, scenes, strict=False):
            _ground(axes, scene)
            for kind, colour in enumerate(_KIND_COLOURS):
                paths = scene.rollout_SAT3[:, scene.kind_A == kind, :, :2].reshape(
                    -1, scene.rollout_SAT3.shape[2], 2
                )
                axes.add_collection(
                    LineCollection(list(paths), colors=colour, linewidths=0.9, alpha=0.45, zorder=3)
                )
            _true_paths(axes, scene.true_AT3)
            _boxes(axes, scene.past_AT3[:, -1], scene)
            axes.set_title(scene.title)
        for axes in panels[len(scenes) :]:
            axes.set_visible(False)
        fig.legend(
            handles=_legend(),
            loc="outside upper center",
            ncols=5,
            title="Rollouts by class, and the truth",
        )


def _legend() -> list[Line2D]:
    kinds = [
        Line2D([], [], color=colour, label=name.capitalize())
        for name, colour in zip(CLASSES, _KIND_COLOURS, strict=True)
    ]
    return [
        *kinds,
        Line2D([], [], color=TRUTH, linewidth=1, linestyle=(0, (3, 2)), label="Truth"),
        Line2D([], [], color=_MAP_LINES["road_edge"][0], linewidth=1, label="Road edge"),
    ]


def _ground(axes: Axes, scene: Traffic) -> None:
    """Draw the map, and show what is around everything that happens."""
    for kind, name in enumerate(LINES):
        colour, width = _MAP_LINES.get(name, _OTHER_LINE)
        own = scene.line_M32[scene.type_M == kind]
        if len(own):
            axes.add_collection(LineCollection(list(own), colors=colour, linewidths=width))
    seen = np.concatenate(
        [part[..., :2].reshape(-1, 2) for part in (scene.past_AT3, scene.true_AT3)]
    )
    low, high = np.nanmin(seen, axis=0) - _AROUND, np.nanmax(seen, axis=0) + _AROUND
    middle, half = (low + high) / 2, float((high - low).max()) / 2
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
    axes.set_aspect("equal")
    axes.set(xlabel="x (m)", ylabel="y (m)")
    axes.grid(False)


def _true_paths(axes: Axes, true_AT3: Floats) -> None:
    axes.add_collection(
        LineCollection(
            list(true_AT3[..., :2]), colors=TRUTH, linewidths=1, linestyles=[(0, (3, 2))], zorder=4
        )
    )


def _boxes(axes: Axes, pose_A3: Floats, scene: Traffic) -> PolyCollection:
    """Draw the boxes of road users; those that are not seen have no area."""
    drawn = PolyCollection(
        _corners(pose_A3, scene),
        facecolors=[_KIND_COLOURS[kind] for kind in scene.kind_A],
        edgecolors="white",
        linewidths=0.4,
        zorder=5,
    )
    axes.add_collection(drawn)
    return drawn


def _corners(pose_A3: Floats, scene: Traffic) -> list[Floats]:
    # Pedestrians would be specks.
    return list(np.nan_to_num(box_corners(pose_A3, np.maximum(scene.size_A2, 1.8)), nan=1e6))


def rollout_animation(scene: Traffic, path: str | Path, fps: float = 5) -> None:
    """Write the truth and the first rollout side by side as an endless GIF, in real time.

    Parameters
    ----------
    scene
        The past is the same in both.
    path
        Ends in ``.gif``.
    fps
        Frames per second, at most 10.
    """
    path = Path(path)
    if path.suffix != ".gif":
        raise ConfigError(f"{path}: an animation ends in .gif; rename it")
    every = max(1, round(1 / (fps * STEP_S)))
    future = {"Truth": scene.true_AT3, "Rollout": scene.rollout_SAT3[0]}
    paths = {
        name: np.concatenate([scene.past_AT3, after], axis=1) for name, after in future.items()
    }
    present = scene.past_AT3.shape[1] - 1
    frames = []
    with style():
        fig = Figure(figsize=(PAGE_WIDTH, 3.9), dpi=_DPI, layout="constrained")
        canvas = FigureCanvasAgg(fig)
        drawn = []
        for axes, (name, pose_AT3) in zip(fig.subplots(1, 2), paths.items(), strict=True):
            _ground(axes, scene)
            axes.set_title(name)
            drawn.append((_boxes(axes, pose_AT3[:, 0], scene), pose_AT3))
        for step in range(0, present + 1 + scene.true_AT3.shape[1], every):
            for boxes, pose_AT3 in drawn:
                boxes.set_verts(_corners(pose_AT3[:, step], scene))
            fig.suptitle(f"{scene.title}, {STEP_S * (step - present):+.1f} s")
            canvas.draw()
            fig.set_layout_engine("none")  # once is enough: no label changes its size
            frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    palette = frames[-1].quantize(160)
    # One palette for all frames: colours do not flicker, and what does not change takes no space.
    first, *rest = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    with replacing(path) as part:
        duration = round(1000 * every * STEP_S)
        first.save(part, save_all=True, append_images=rest, duration=duration, loop=0)


def token_usage(coverage: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """Draw how much of all motion the most frequent tokens make up.

    Parameters
    ----------
    coverage
        `TokenUsage.result` of ``truth`` and ``model``.
    path
        Where to write.
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


def error_by_horizon(forecasts: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """Draw the displacement of the best rollouts over time.

    Parameters
    ----------
    forecasts
        Scores by forecast, each with ``error_by_step`` (m; None where nobody was seen); without the truth.
    path
        Where to write.
    """
    with figure(path, PAGE_WIDTH, 3.0) as fig:
        axes = fig.subplots()
        for name, scores in forecasts.items():
            error = np.array(scores["error_by_step"], dtype=float)
            time = STEP_S * np.arange(1, error.size + 1)
            axes.plot(time, error, label=_label(name), **_LOOKS[name])
        axes.set(xlabel="Time after the present (s)", ylabel="Displacement of the best rollout (m)")
        axes.set(xlim=(0, None), ylim=(0, None))
        axes.legend()


def event_rates(forecasts: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """Draw collisions, leaving the road and realism of all forecasts as bars.

    Parameters
    ----------
    forecasts
        Scores by forecast, with ``collision_rate``, ``off_road_rate`` and ``realism``; None is left out.
    path
        Where to write.
    """
    titles = {
        "collision_rate": "Road users that collide",
        "off_road_rate": "Vehicles off the road",
        "realism": "Realism",
    }
    names = list(forecasts)
    with figure(path, PAGE_WIDTH, 1.0 + 0.28 * len(names)) as fig:
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
            axes.grid(axis="y", visible=False)
        panels[0].set_yticks(place, [_label(name) for name in names])
        panels[0].set_ylim(len(names) - 0.5, -0.5)


def vocabulary_plates(
    motion: Sequence[Floats],
    road_V32: Floats,
    coverage: Mapping[str, Any],
    path: str | Path,
) -> None:
    """Draw where the tokens of each class lead, and the pieces of road.

    Parameters
    ----------
    motion, road_V32, coverage
        See `millrace.systems.traffic.vocabulary.Vocabulary`. Tokens begin at the origin, facing along x.
    path
        Where to write.
    """
    with figure(path, PAGE_WIDTH, 5.4) as fig:
        panels = fig.subplots(2, 2).ravel()
        for axes, kind, tokens in zip(panels, CLASSES, motion, strict=False):
            turn = np.clip(np.degrees(tokens[:, -1, 2]), -30, 30)
            lines = LineCollection(
                list(tokens[..., :2]), array=turn, cmap="coolwarm", linewidths=0.5, alpha=0.8
            )
            lines.set_clim(-30, 30)
            axes.add_collection(lines)
            axes.scatter(
                *tokens[:, -1, :2].T, c=turn, s=4, cmap="coolwarm", vmin=-30, vmax=30, zorder=3
            )
            _plate(axes, kind.capitalize(), len(tokens), coverage[kind])
        road = panels[len(CLASSES)]
        road.add_collection(LineCollection(list(road_V32), colors=CATEGORIES[0], linewidths=0.6))
        road.scatter(*road_V32[:, 1].T, color=PREDICTION, s=4, zorder=3)
        _plate(road, "Road", len(road_V32), coverage["road"])
        bar = fig.colorbar(lines, ax=panels, extend="both", shrink=0.6, aspect=30)
        bar.set_label("Turn within the token (°)")


def _plate(axes: Axes, name: str, count: int, coverage: Any) -> None:
    axes.autoscale_view()
    axes.margins(0.05)
    axes.set(xlabel="x (m)", ylabel="y (m)")
    axes.set_title(
        f"{name}: {count:,} tokens, off by {100 * coverage.mean:.1f} cm "
        f"(p99 {100 * coverage.p99:.1f})",
        fontsize=8,
    )


def _label(name: str) -> str:
    return _NAMES.get(name, name.replace("_", " ").capitalize())

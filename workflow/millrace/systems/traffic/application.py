"""How models of traffic are applied: to named tracks and a map, or to raw files of any format.

``states`` are ``x``, ``y`` (m) and ``heading`` (rad, counter-clockwise from +x) along ``agent`` and
``time``: 11 steps of 0.1 s up to the current one, and more if what followed is known; NaN where an agent is
not observed. Along ``agent`` there are ``type`` (`vehicle`, `pedestrian`, `cyclist`), ``length`` and
``width`` (m). ``forcings`` are the map: ``x``, ``y``, ``polyline`` and ``type`` along ``point``, and, where
there are traffic lights, ``state`` along ``light`` and ``time`` with the ``light_polyline`` of each. Lists
of states are several scenarios on one map.

Shape suffixes: B scenarios, S rollouts, A agents, T steps of 0.1 s.
"""

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from millrace.config import Count, Positive, Seed, Settings, SomeNames, option
from millrace.data.account import Account
from millrace.data.recipe import outline_in, restore
from millrace.errors import ConfigError, DataError, listed
from millrace.evaluation.application import (
    Application,
    Piece,
    Prepared,
    Recipe,
    dataset_of,
    values_of,
)
from millrace.evaluation.program import Program
from millrace.evaluation.trained_model import TrainedModel
from millrace.systems.base import Progress
from millrace.systems.traffic.dataset import ScenarioDataset
from millrace.systems.traffic.formats import Traffic
from millrace.systems.traffic.geometry import Floats
from millrace.systems.traffic.program import next_token_program
from millrace.systems.traffic.scenario_file import TOGETHER, Writer
from millrace.systems.traffic.scores import constant_velocity, velocity_of_tokens
from millrace.systems.traffic.settings import TokenConfig
from millrace.systems.traffic.smart.rollout import RolloutConfig, rollout
from millrace.systems.traffic.tokens import HISTORY, STRIDE, TOKENS, Tokeniser
from millrace.systems.traffic.tracks import (
    CLASS_OF,
    CLASSES,
    CURRENT_STEP,
    LIGHT_STATES,
    LINE_TYPES,
    STEP_S,
    STEPS,
    Polyline,
    Scenario,
)
from millrace.systems.traffic.vocabulary import Vocabulary

_BATCH = 8
TEST = 2
"""Split of all scenarios: nothing is trained."""


class TrafficForecasts(Settings):
    """Of which scenarios rollouts are drawn, and how."""

    scenarios: SomeNames | None = None
    """Names of those that are rolled out; null: all."""
    limit: Count | None = None
    """At most so many scenarios, the first ones."""
    members: Count = 32
    """Rollouts of each scenario."""
    seed: Seed = 0
    """Of the draws."""
    top_k: Count = 32
    """Most probable tokens among which one is drawn; 1: the best."""
    temperature: Positive = 1.0
    """Above 1 draws are more even, below 1 more like the best."""
    seconds: float = option((TOKENS - HISTORY) * STRIDE * STEP_S, gt=0, le=8.0, unit="s")
    """Length of a rollout, in steps of half a second."""


class TrafficApplication(Application):
    """Models of traffic."""

    options = TrafficForecasts
    spreads = False

    def calibrated_options(self, validation: Mapping[str, Any]) -> dict[str, Any]:
        """See `Application.calibrated_options`: the temperature."""
        fitted = validation.get("motion", {}).get("temperature")
        return {"temperature": fitted["value"]} if fitted else {}

    def write(
        self, recipe: Recipe, states: Any, forcings: xr.Dataset | None, directory: Path
    ) -> Prepared:
        """See `Application.write`."""
        several = states if isinstance(states, Sequence) else [states]
        if forcings is None:
            raise DataError(
                "forcings: expected the map, `x`, `y`, `polyline` and `type` along `point`"
            )
        about = dataset_of(forcings, "forcings")
        road = _road(about)
        scenarios = [
            _scenario(dataset_of(one, "states"), f"scenario_{number:03d}", road, _lights(about))
            for number, one in enumerate(several)
        ]

        def fill(tokeniser: Tokeniser, config: TokenConfig, writer: Writer) -> None:
            del config
            for one in scenarios:
                for tokenised in tokeniser([one]):
                    writer.add(tokenised, TEST)

        known = all(np.isfinite(one.pose_AT3[:, CURRENT_STEP + 1 :]).any() for one in scenarios)
        return Prepared(written(recipe, directory, fill), None if known else 0)

    def prepare(
        self,
        recipe: Recipe,
        source: Path,
        raw: str,
        directory: Path,
        workers: int,
        options: Any = None,
    ) -> Prepared:
        """See `Application.prepare`."""
        del workers
        traffic, chosen = Traffic(raw, source), options or TrafficForecasts()

        def fill(tokeniser: Tokeniser, config: TokenConfig, writer: Writer) -> None:
            del config
            found, most = _scenarios_of(traffic, chosen.scenarios), chosen.limit or TOGETHER
            together = iter(lambda: list(islice(found, min(most, TOGETHER))), [])
            tokenised = (one for some in together for one in tokeniser(some))
            for one in islice(tokenised, chosen.limit):
                writer.add(one, TEST)

        return Prepared(written(recipe, directory, fill))

    def pieces(
        self,
        model: TrainedModel,
        recipe: Recipe,
        prepared: Prepared,
        options: Any,
        progress: Progress | None = None,
    ) -> Iterator[Piece]:
        """See `Application.pieces`."""
        dataset: ScenarioDataset = model.dataset
        module: Any = model.module
        tokens = max(1, round(options.seconds / STEP_S / STRIDE))
        config = RolloutConfig(
            samples=options.members,
            steps=tokens,
            top_k=options.top_k,
            temperature=options.temperature,
            seed=options.seed,
        )
        with h5py.File(dataset.path, "r") as file:
            origin_B2, track = file["origin"][()], [one.decode() for one in file["track"][()]]
        counts = [len(dataset.rows("agent", n)["kind"]) for n in range(len(dataset.names))]
        chosen = _chosen(dataset, options)
        last, most = np.cumsum(counts), max(counts[n] for n in chosen)
        for begin in range(0, len(chosen), _BATCH):
            some = chosen[begin : begin + _BATCH]
            drawn = rollout(module, dataset.gather(some), config).pose_BSAT3.double().cpu().numpy()
            shape = (len(some), most, config.horizon, 3)
            forecast = np.full((len(some), config.samples, *shape[1:]), np.nan)
            truth, steady = np.full(shape, np.nan), np.full(shape, np.nan)
            names: NDArray[Any] = np.full((len(some), most), "", dtype=object)
            for row, number in enumerate(some):
                n, rows = counts[number], dataset.rows("agent", int(number))
                true = rows["true"].astype(np.float64)
                forecast[row, :, :n] = drawn[row, :, :n]
                truth[row, :n] = true[:, CURRENT_STEP + 1 : CURRENT_STEP + 1 + config.horizon]
                velocity = velocity_of_tokens(dataset, rows)
                steady[row, :n] = constant_velocity(true, config.horizon, velocity)[0]
                names[row, :n] = track[last[number] - n : last[number]]
                for values in (forecast[row], truth[row], steady[row]):
                    values[..., :2] += origin_B2[number]
            about = (np.array([dataset.names[n] for n in some], dtype=object), names)
            made = _named(forecast, *about, members=True)
            if prepared.steps == 0:
                yield Piece(made)
            else:
                # Differences of angles are no differences of numbers: places are scored.
                real, straight = (_named(values, *about)[["x", "y"]] for values in (truth, steady))
                yield Piece(made, real, {"constant_velocity": straight})
            if progress is not None:
                progress(begin + len(some), len(chosen))

    def example(self, recipe: Recipe, directory: Path) -> Prepared:
        """See `Application.example`: agents side by side on parallel lanes, straight on."""
        steps, lanes = STEP_S * np.arange(CURRENT_STEP + 1), 6
        lane = np.arange(lanes)
        along = np.arange(0.0, 101.0, 2.0)
        road = xr.Dataset(
            {
                "x": ("point", np.tile(along, lanes)),
                "y": ("point", np.repeat(4.0 * lane, len(along))),
                "polyline": ("point", np.repeat(lane.astype(str), len(along))),
                "type": ("point", np.repeat(["lane"], lanes * len(along))),
            }
        )
        scenes = []
        for speed in (2.0, 6.0):
            x = 20.0 + 5.0 * lane[:, None] + (speed + lane[:, None]) * steps
            pose = {"x": x, "y": np.broadcast_to(4.0 * lane[:, None], x.shape), "heading": 0 * x}
            kinds = np.array(CLASSES)[lane % len(CLASSES)]
            about = {"type": kinds, "length": np.full(lanes, 4.0), "width": np.full(lanes, 1.5)}
            scenes.append(
                xr.Dataset(
                    {key: (("agent", "time"), values) for key, values in pose.items()}
                    | {key: ("agent", values) for key, values in about.items()}
                )
            )
        return self.write(recipe, scenes, road, directory)

    def program(
        self, model: TrainedModel, recipe: Recipe, prepared: Prepared, options: Any
    ) -> Program:
        """See `Application.program`."""
        del recipe, prepared, options
        return next_token_program(model)


def written(
    recipe: Recipe,
    directory: Path,
    add: Callable[[Tokeniser, TokenConfig, Writer], None],
    max_agents: int | None = None,
) -> dict[str, Path]:
    """Sample file of scenarios that ``add`` gives to the writer, with the vocabulary of the training.

    ``max_agents`` are by default those of the training.
    """
    content = outline_in(recipe, "scenarios")
    kept = {
        **content,
        "rows": [],
        "values": {k: v for k, v in content["values"].items() if k.startswith("vocabulary/")},
    }
    kept["attributes"] = {
        k: v for k, v in content["attributes"].items() if not k or k.startswith("vocabulary")
    }
    config = TokenConfig.parse(json.loads(content["attributes"][""]["config"]), "tokens")

    def fill(file: h5py.File) -> None:
        most = config.max_agents if max_agents is None else max_agents
        tokeniser = Tokeniser(Vocabulary.read(file["vocabulary"]), config.margin, most)
        writer = Writer(file)
        add(tokeniser, config, writer)
        writer.finish()

    return {"scenarios": restore(kept, directory / "scenarios.h5", {}, fill)}


def _chosen(dataset: ScenarioDataset, options: TrafficForecasts) -> NDArray[np.int64]:
    """Numbers of the scenarios that are rolled out."""
    names = options.scenarios
    if unknown := sorted({*(names or ())} - {*dataset.names}):
        raise _unknown(unknown[0], dataset.names, "")
    chosen = [n for n, name in enumerate(dataset.names) if names is None or name in names]
    return np.array(chosen[: options.limit])


def _scenarios_of(traffic: Traffic, names: Sequence[str] | None) -> Iterator[Scenario]:
    """Scenarios of all files, or those of these names; raises `ConfigError` if one of them is not there."""
    seen: set[str] = set()
    left = set(names or ())

    def is_wanted(name: str) -> bool:
        if name in seen:
            raise DataError(
                f"{traffic.source}: two scenarios are named {name!r}; expected different names"
            )
        seen.add(name)
        return names is None or name in left

    for number in range(len(traffic.files)):
        for scenario in traffic.scenarios(number, Account(), is_wanted):
            left.discard(scenario.name)
            yield scenario
        if names is not None and not left:
            return
    if left:
        raise _unknown(min(left), seen, f" in {traffic.source}")


def _unknown(name: str, known: Iterable[str], where: str) -> ConfigError:
    close = difflib.get_close_matches(name, names := sorted(known), n=1)
    told = f"did you mean {close[0]!r}?" if close else f"there are {listed(names)}"
    return ConfigError(f"scenarios: no scenario {name!r}{where}; {told}")


def _scenario(
    data: xr.Dataset, name: str, road: tuple[Polyline, ...], lights: dict[str, NDArray[np.int8]]
) -> Scenario:
    """One scenario of named arrays."""
    missing = [axis for axis in ("agent", "time") if axis not in data.dims]
    if missing or not CURRENT_STEP < data.sizes["time"] <= STEPS:
        raise DataError(
            f"states: expected the axes agent and time, with {CURRENT_STEP + 1} to {STEPS} steps of "
            f"{STEP_S} s; got {dict(data.sizes)}"
        )
    pose = np.full((data.sizes["agent"], STEPS, 3), np.nan)
    for column, key in enumerate(("x", "y", "heading")):
        if key not in data:
            raise DataError(f"states: no variable {key!r}; expected x, y and heading")
        values = data[key].transpose("agent", "time").values
        pose[:, : values.shape[1], column] = values
    pose[np.isnan(pose).any(axis=2)] = np.nan
    velocity = np.full((*pose.shape[:2], 2), np.nan)
    velocity[:, 1:] = np.diff(pose[..., :2], axis=1) / STEP_S
    first = np.isnan(velocity[..., 0]) & np.isfinite(pose[..., 0])
    velocity[:, :-1] = np.where(first[:, :-1, None], velocity[:, 1:], velocity[:, :-1])
    velocity = np.where(np.isfinite(pose[..., :1]), np.nan_to_num(velocity), np.nan)
    kinds = (
        [CLASS_OF.get(str(one).lower()) for one in data["type"].values] if "type" in data else []
    )
    if len(kinds) != len(pose) or None in kinds:
        raise DataError(
            f"states: `type` of each agent is needed; expected one of {', '.join(CLASSES)}"
        )
    size = np.column_stack(
        [values_of(data, one, ("agent",), "m", "states") for one in ("length", "width")]
    )
    tracks = data["agent"].values if "agent" in data.coords else np.arange(len(pose))
    return Scenario(
        name=str(data.attrs.get("scenario", name)),
        track_A=tuple(map(str, tracks)),
        kind_A=np.array([CLASSES.index(str(one)) for one in kinds], dtype=np.int8),
        size_A2=size,
        pose_AT3=pose,
        velocity_AT2=velocity,
        road=road,
        lights=lights,
    )


def _road(data: xr.Dataset) -> tuple[Polyline, ...]:
    place = np.column_stack([values_of(data, axis, ("point",), "m", "forcings") for axis in "xy"])
    if missing := [name for name in ("polyline", "type") if name not in data]:
        raise DataError(
            f"forcings: no {missing[0]!r} along `point`; expected x, y, polyline and type"
        )
    names, types = (data[name].values.astype(str) for name in ("polyline", "type"))
    lines = []
    for name in dict.fromkeys(names.tolist()):
        rows = np.flatnonzero(names == name)
        kind = str(types[rows[0]])
        if kind not in LINE_TYPES or len(rows) < 2:
            raise DataError(
                f"forcings: polyline {name!r} has {len(rows)} point(s) of the type {kind!r}; expected 2 or "
                f"more of one of {', '.join(LINE_TYPES)}"
            )
        lines.append(Polyline(name, kind, place[rows]))
    return tuple(lines)


def _lights(data: xr.Dataset) -> dict[str, NDArray[np.int8]]:
    if "state" not in data:
        return {}
    names: Any = data["light_polyline"].values.astype(str) if "light_polyline" in data else []
    states = data["state"].transpose("light", "time").values.astype(str)
    if len(names) != len(states) or not np.isin(states, LIGHT_STATES).all():
        raise DataError(
            "forcings: expected a `light_polyline` for each light and states that are one of "
            f"{', '.join(LIGHT_STATES)}"
        )
    found = {}
    for name, row in zip(names, states, strict=True):
        series = np.zeros(STEPS, dtype=np.int8)
        series[: len(row)] = [LIGHT_STATES.index(one) for one in row]
        found[str(name)] = series
    return found


def _named(
    pose: Floats, names_B: NDArray[Any], track_BA: NDArray[Any], members: bool = False
) -> xr.Dataset:
    """Poses with names, units and coordinates; NaN for agents that a scenario does not have."""
    axes = (
        ("scenario", "member", "agent", "lead_time")
        if members
        else ("scenario", "agent", "lead_time")
    )
    about = (
        ("x", {"standard_name": "projection_x_coordinate", "units": "m"}),
        ("y", {"standard_name": "projection_y_coordinate", "units": "m"}),
        ("heading", {"long_name": "heading, counter-clockwise from +x", "units": "radian"}),
    )
    data = {name: (axes, pose[..., n].astype(np.float32), of) for n, (name, of) in enumerate(about)}
    seconds = STEP_S * np.arange(1, pose.shape[-2] + 1)
    period = {
        "standard_name": "forecast_period",
        "long_name": "time since the current step",
        "units": "s",
    }
    coordinates: dict[str, Any] = {
        "lead_time": ("lead_time", seconds.round(6), period),
        "scenario_name": ("scenario", names_B, {"long_name": "name of the scenario"}),
        "track": (("scenario", "agent"), track_BA, {"long_name": "name of the track"}),
    }
    if members:
        realization = {"standard_name": "realization", "long_name": "rollout", "units": "1"}
        coordinates["member"] = ("member", np.arange(pose.shape[1], dtype=np.int32), realization)
    return xr.Dataset(data, coordinates)


APPLICATION = TrafficApplication()

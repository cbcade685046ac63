"""Traffic: what road users do next, as tokens of half a second over a map."""

from typing import Any

from millrace.errors import ConfigError
from millrace.systems.base import Block, Model, RawFormat, SampleKind, System, Table

_HERE = "millrace.systems.traffic"

_SHARE = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
_KEYS: Block = {
    "properties": {
        "tokens": {
            "description": "Vocabularies, and what of a scenario is kept.",
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "motion": {"type": "integer", "minimum": 1, "maximum": 32767, "default": 2048},
                "road": {"type": "integer", "minimum": 1, "maximum": 32767, "default": 1024},
                "tolerance": {"type": "number", "exclusiveMinimum": 0, "default": 0.05},
                "margin": {"type": "number", "exclusiveMinimum": 0, "default": 80.0},
                "max_agents": {"type": "integer", "minimum": 1, "default": 64},
                "train": {**_SHARE, "default": 0.7},
                "validation": {**_SHARE, "default": 0.15},
                "block": {"type": "integer", "minimum": 1, "default": 5},
                "seed": {"type": "integer", "minimum": 0, "default": 0},
            },
        },
    },
}


def _format(name: str, holds: str, **simulator: str) -> RawFormat:
    return RawFormat(name, holds, "scenarios.h5", keys=_KEYS, **simulator)


FORMATS = (
    _format(
        "tracks",
        "the folders tracks/ and map/",
        simulate=f"{_HERE}.simulator.traffic:simulate",
        simulation=f"{_HERE}.simulator.traffic:TrafficConfig",
    ),
    _format("argoverse2", "one folder a scenario of Argoverse 2"),
    _format("highd", "XX_tracks.csv, XX_tracksMeta.csv and XX_recordingMeta.csv"),
    _format("interaction", "vehicle_tracks_XXX.csv and the maps"),
    _format("ngsim", "trajectories of NGSIM as CSV"),
    _format(
        "sumo",
        "<name>.net.xml and <name>.fcd.xml of SUMO",
        simulate=f"{_HERE}.simulator.sumo:simulate",
        simulation=f"{_HERE}.simulator.sumo:SumoConfig",
        environment="sumo",
    ),
    _format("waymo", "Waymo Open Motion TFRecords of scenarios"),
)
ADAPTED = tuple(one.name for one in FORMATS if one.name != "tracks")
"""Formats that are converted to tracks first."""


def _check(name: str, experiment: Block, dataset: Block) -> None:
    del dataset
    if not isinstance(experiment["dataset"], str) and len(experiment["dataset"]) > 1:
        raise ConfigError(
            f"config: experiments.{name}.dataset: datasets of traffic have vocabularies of their own; give "
            "one, and put all recordings into its directory"
        )


def _rows(run: Block) -> list[dict[str, Any]]:
    rows = []
    for variable, scores in run["test"].items():
        of, tokens = scores["forecasts"], scores["tokens"]["all"]
        model, steady = of["model"], of["constant_velocity"]
        shuffled, earlier = of["shuffled_map"], run["validation"][variable]["forecasts"]
        rows.append(
            {
                "variable": variable,
                "skill": _skill(model, steady),
                "min_ade": model["min_ade"],
                "baseline_min_ade": steady["min_ade"],
                "validation_skill": _skill(earlier["model"], earlier["constant_velocity"]),
                "miss_rate": model["miss_rate"],
                "baseline_miss_rate": steady["miss_rate"],
                "accuracy": tokens["accuracy"],
                "prior_accuracy": tokens["prior_accuracy"],
                "collision_rate": model["collision_rate"],
                "shuffled_collision_rate": shuffled["collision_rate"],
                "collision_gain": _least(shuffled.get("collision_above_model")),
                "off_road_rate": model["off_road_rate"],
                "shuffled_off_road_rate": shuffled["off_road_rate"],
                "off_road_gain": _least(shuffled.get("off_road_above_model")),
                "realism": model["realism"],
                "baseline_realism": steady["realism"],
                "true_realism": of["truth"]["realism"],
            }
        )
    return rows


def _least(interval: list[float] | None) -> float | None:
    """Lower end; None where nothing is known, as in metrics that were written before."""
    return interval[0] if interval else None


def _skill(model: Block, steady: Block) -> float | None:
    """None if nobody was seen after the present."""
    if not steady["min_ade"]:
        return None
    return float(1 - model["min_ade"] / steady["min_ade"])


_CAPTION = """\
*rollouts*: what may happen in the 8 s after the present, in scenes of the test split, with the truth
dashed.
*animation*: the truth and one rollout, in real time. *error_by_horizon*: displacement of each road user's
best rollout.
*rates*: collisions, vehicles off the road and realism, beside a model that is given the map of another
scene, constant velocity, random tokens, and the truth. *tokens*: how much the most frequent tokens make up
of all motion."""
_TABLE = Table(
    titles={
        "skill": "skill",
        "min_ade": "minADE",
        "baseline_min_ade": "minADE of constant velocity",
        "validation_skill": "skill (validation)",
        "miss_rate": "missed",
        "baseline_miss_rate": "missed by constant velocity",
        "accuracy": "tokens right",
        "prior_accuracy": "most frequent token right",
        "collision_rate": "collide",
        "shuffled_collision_rate": "collide, other map",
        "collision_gain": "more by at least",
        "off_road_rate": "off the road",
        "shuffled_off_road_rate": "off the road, other map",
        "off_road_gain": "more by at least",
        "realism": "realism",
        "baseline_realism": "realism of constant velocity",
        "true_realism": "realism of the truth",
    },
    caption="Skill is 1 − minADE / minADE of constant velocity. minADE is the mean displacement "
    "(m) of each road user's best rollout over the 8 s after the present; missed are those whose "
    "best rollout ends more than 2 m off. The rates are shares of road users and rollouts, without "
    "those that collide or are off the road at the present. <i>Other map</i>: the same model, "
    "given the map of another scene; <i>more by at least</i> is the lower end of the 95 % interval "
    "of the difference, from blocks of test scenes drawn with replacement, of the seed where it is "
    "lowest: above 0 the difference is more than chance for each seed. "
    "Realism is the likelihood of what happened, from 0 to 1 (Waymo Open Sim Agents); that of the "
    "truth, scored as if it were a forecast, is its ceiling.",
    baseline="constant velocity",
    rows=_rows,
    lowest=("collision_gain", "off_road_gain"),
)
SYSTEM = System(
    name="traffic",
    formats=FORMATS,
    kinds=(
        SampleKind(
            name="scenarios",
            formats=tuple(one.name for one in FORMATS),
            dataset=f"{_HERE}.dataset:ScenarioDataset",
            evaluation=f"{_HERE}.evaluation:EVALUATION",
            caption=_CAPTION,
            check=_check,
            example={
                "dataset": {
                    "source": "demo",
                    "format": "tracks",
                    "demo": {"towns": 1, "scenes": 12, "cars_per_minute": 3},
                    "tokens": {
                        "motion": 64,
                        "road": 16,
                        "tolerance": 0.2,
                        "train": 0.5,
                        "validation": 0.25,
                        "margin": 10.0,
                        "max_agents": 12,
                        "seed": 3,
                    },
                },
                "data": {"buckets": 2},
            },
            table=_TABLE,
        ),
    ),
    models=(
        Model(
            "smart",
            "scenarios",
            f"{_HERE}.smart.spec:SPEC",
            example={
                "hidden": 8,
                "heads": 2,
                "map_layers": 1,
                "layers": 1,
                "bands": 4,
                "road_neighbours": 8,
                "agent_neighbours": 4,
                "map_neighbours": 4,
            },
        ),
    ),
    rules=("convert_tracks", "build_vocabulary", "tokenise"),
)

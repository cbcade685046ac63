"""Traffic: the next motion of agents, as tokens of half a second over a map."""

from typing import Any

from millrace.errors import ConfigError
from millrace.systems.base import Block, Cost, Model, RawFormat, SampleKind, System, Table

_HERE = "millrace.systems.traffic"


def _format(name: str, holds: str, *files: str, **simulator: Any) -> RawFormat:
    settings = f"{_HERE}.settings:TrafficDataset"
    converted = None if name == "tracks" else "tracks"
    return RawFormat(
        name,
        holds,
        "scenarios.h5",
        settings=settings,
        files=files,
        converted=converted,
        still=f"{_HERE}.splits:are_still" if name == "tracks" else None,
        **simulator,
    )


_FORMATS = (
    _format(
        "tracks",
        "the folders tracks/ and map/",
        "tracks/*.csv*",
        simulate=f"{_HERE}.simulator.traffic:simulate",
        simulation=f"{_HERE}.settings:TrafficConfig",
    ),
    _format("argoverse2", "one folder a scenario of Argoverse 2", "**/scenario_*.parquet"),
    _format(
        "highd", "XX_tracks.csv, XX_tracksMeta.csv and XX_recordingMeta.csv", "**/*_tracksMeta.csv"
    ),
    _format("interaction", "vehicle_tracks_XXX.csv and the maps", "**/vehicle_tracks_*.csv"),
    _format("ngsim", "trajectories of NGSIM as CSV"),
    _format(
        "sumo",
        "<name>.net.xml and <name>.fcd.xml of SUMO",
        "**/*.net.xml*",
        simulate=f"{_HERE}.simulator.sumo:simulate",
        simulation=f"{_HERE}.settings:SumoConfig",
        environment="sumo",
    ),
    _format("waymo", "Waymo Open Motion TFRecords of scenarios", "**/*tfrecord*"),
)
FORMATS = tuple(one.name for one in _FORMATS)


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
        forecasts, tokens = scores["forecasts"], scores["tokens"]["all"]
        names = ("model", "shuffled_map", "constant_velocity", "truth")
        model, shuffled, baseline, truth = (forecasts[name] for name in names)
        row = {"skill": _skill(forecasts), "true_realism": truth["realism"], **tokens}
        row["validation_skill"] = _skill(run["validation"][variable]["forecasts"])
        for key in ("min_ade", "miss_rate", "realism"):
            row |= {key: model[key], f"baseline_{key}": baseline[key]}
        for event in ("collision", "off_road"):
            rate = f"{event}_rate"
            row |= {rate: model[rate], f"shuffled_{rate}": shuffled[rate]}
            # Metrics of earlier versions have no intervals.
            interval = shuffled.get(f"{event}_above_model")
            row[f"{event}_gain"] = interval[0] if interval else None
        rows.append({"variable": variable, **{key: row[key] for key in _TABLE.titles}})
    return rows


def _skill(forecasts: Block) -> float | None:
    """Skill over constant velocity; None if no agent is observed after the current step."""
    model, baseline = (forecasts[key]["min_ade"] for key in ("model", "constant_velocity"))
    return float(1 - model / baseline) if baseline else None


def _errors(run: Block) -> dict[str, list[float | None]]:
    made: dict[str, list[float | None]] = {
        "model": [],
        "constant velocity": [],
        "frequent tokens": [],
    }
    for split in ("validation", "test"):
        for scores in run[split].values():
            model, baseline = (scores["forecasts"][key] for key in ("model", "constant_velocity"))
            tokens = scores["tokens"]["all"]
            made["model"] += [model["ade"], model["min_ade"], tokens["log_loss"]]
            made["constant velocity"] += [baseline["ade"], baseline["min_ade"], None]
            made["frequent tokens"] += [None, None, tokens["prior_log_loss"]]
    return made


_CAPTION = """\
*rollouts*: possible futures, 8 s from the current step, in scenarios of the test split, with the ground
truth dashed. *animation*: the ground truth and one rollout, in real time. *error_by_horizon*: displacement
of each agent's best rollout. *rates*: collision rate, off-road rate and realism, beside the same model on
shuffled maps, constant velocity, random tokens, and the ground truth. *tokens*: how much of all motion the
most frequent tokens make up."""
_TABLE = Table(
    titles={
        "skill": "skill",
        "min_ade": "minADE",
        "baseline_min_ade": "minADE of constant velocity",
        "validation_skill": "skill (validation)",
        "miss_rate": "miss rate",
        "baseline_miss_rate": "miss rate of constant velocity",
        "accuracy": "token accuracy",
        "prior_accuracy": "accuracy of the most frequent token",
        "collision_rate": "collision rate",
        "shuffled_collision_rate": "collision rate, shuffled map",
        "collision_gain": "higher by at least",
        "off_road_rate": "off-road rate",
        "shuffled_off_road_rate": "off-road rate, shuffled map",
        "off_road_gain": "higher by at least",
        "realism": "realism",
        "baseline_realism": "realism of constant velocity",
        "true_realism": "realism of the ground truth",
    },
    caption="Skill is 1 − minADE / minADE of constant velocity. minADE is the mean displacement "
    "(m) of each agent's best rollout over the 8 s after the current step; the miss rate is the "
    "fraction of agents whose best rollout ends more than 2 m off. The other rates are fractions of "
    "agents and rollouts, without those that collide or are off the road at the current step. "
    "<i>Shuffled map</i>: the same model, given the map of another scenario; <i>higher by at least</i> "
    "is the lower end of the 95 % interval of the difference, from blocks of test scenarios drawn "
    "with replacement, of the seed where it is lowest: above 0 the difference is more than chance "
    "for each seed. Realism is the likelihood of the ground truth, from 0 to 1 (Waymo Open Sim "
    "Agents); that of the ground truth, scored as if it were a forecast, is its ceiling.",
    baseline="constant velocity",
    rows=_rows,
    first=(
        "skill",
        "min_ade",
        "baseline_min_ade",
        "validation_skill",
        "miss_rate",
        "collision_rate",
        "off_road_rate",
        "realism",
    ),
    errors=_errors,
    lowest=("collision_gain", "off_road_gain"),
)
SYSTEM = System(
    name="traffic",
    costs={
        "build_vocabulary": Cost(seconds=60, written=0.0, of_part=False),
        "sample_motion": Cost(seconds=60, written=0.0, of_part=True),
        "tokenise": Cost(seconds=68, written=0.11, of_part=False),
        "tokenise_part": Cost(seconds=68, written=0.11, of_part=True),
    },
    project=f"{_HERE}:project.yaml.j2",
    formats=_FORMATS,
    kinds=(
        SampleKind(
            name="scenarios",
            formats=FORMATS,
            dataset=f"{_HERE}.dataset:ScenarioDataset",
            settings=f"{_HERE}.settings:ScenarioConfig",
            evaluation=f"{_HERE}.evaluation:EVALUATION",
            application=f"{_HERE}.application:APPLICATION",
            caption=_CAPTION,
            in_parts=True,
            first_pass="motion",
            prepare=f"{_HERE}.preparation:prepare",
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
            f"{_HERE}.settings:SmartConfig",
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
    rules=(
        *("build_vocabulary", "sample_motion", "gather_vocabulary"),
        *("tokenise", "tokenise_part", "gather_scenarios"),
    ),
)

"""Groundwater: windows in time on patches of a mesh or on vertical sections."""

import math
from pathlib import Path
from typing import Any

from millrace.errors import ConfigError
from millrace.systems.base import (
    Block,
    Cost,
    Extraction,
    Model,
    RawFormat,
    SampleKind,
    System,
    Table,
    check_columns,
    known,
    resolve,
    steps_of_demo,
)
from millrace.systems.groundwater.settings import PlaneWindowConfig, WindowConfig
from millrace.systems.groundwater.units import UNITS

_HERE = "millrace.systems.groundwater"


_BOUNDARY = ("head_bc", "mass_concentration_bc")


def _check_columns(name: str, dataset: Block) -> None:
    """Check what can be known of columns before they are read."""
    key, units = f"datasets.{name}", dataset.get("units", {})
    for column in units:
        known(column, dataset["variables"], f"{key}.units", "column")
    if dataset["source"] == "demo":
        for column in dataset["variables"]:
            known(column, UNITS, f"{key}.variables", "column of the demo")
    else:
        check_header = resolve(f"{_HERE}.feflow_csv:check_header")
        check_header(
            Path(dataset["source"]), dataset["variables"], f"{key}.variables", {**UNITS, **units}
        )
    for column in dataset["variables"]:
        if column not in {**UNITS, **units}:
            raise ConfigError(
                f"config: {key}.units: expected the unit of {column!r}, which is none of "
                f"{', '.join(UNITS)}; add it, such as `units: {{{column}: degC}}`"
            )


def _steps(dataset: Block) -> int | None:
    """Output times: of the demo, or files of the directory; None: it is not there, or not readable."""
    if dataset["source"] == "demo":
        return steps_of_demo(dataset)
    count: int | None = resolve(f"{_HERE}.feflow_csv:count_times")(Path(dataset["source"]))
    return count


def _patch_files(model: Block) -> dict[str, str]:
    """Patches, and the neighbour tables of a model that has a latent grid."""
    if "latent_shape" not in model:
        return {"patches": "patches.h5"}
    shape = "x".join(str(n) for n in model["latent_shape"])
    return {"patches": "patches.h5", "graph": f"graph_{shape}_r{model['radius']}.h5"}


def _check_window(
    name: str, window: WindowConfig | PlaneWindowConfig, experiment: Block, dataset: Block
) -> None:
    length, gap = window.length, dataset["split"].get("gap", 0)
    if length > gap:
        raise ConfigError(
            f"config: experiments.{name}.data: a window of {length} steps is longer than the gap of {gap} "
            "between the splits, so test data would leak into training: raise split.gap of the dataset to "
            f"at least {length}"
        )
    chosen = {**experiment, "data": window.model_dump()}
    check_columns(("variables", "forcings"), name, chosen, dataset)


def _check_patches(name: str, experiment: Block, dataset: Block) -> str | None:
    window = WindowConfig.parse(experiment["data"], "data")
    _check_window(name, window, experiment, dataset)
    if "latent_shape" in experiment["model"]:
        return _check_graph(name, experiment["model"])
    return None


def _check_planes(name: str, experiment: Block, dataset: Block) -> None:
    window = PlaneWindowConfig.parse(experiment["data"], "data")
    _check_window(name, window, experiment, dataset)
    if dataset.get("format") == "plane_folders":
        return
    if not set(_BOUNDARY) & set(dataset.get("forcings", [])):
        raise ConfigError(
            f"config: experiments.{name}.dataset: planes take their boundary values from "
            f"{' and '.join(_BOUNDARY)}, whatever their variables are: add one or both to its forcings"
        )
    if not dataset.get("planes", {}).get("transects") and not (
        {"head", "mass_concentration"} & set(dataset["variables"])
    ):
        raise ConfigError(
            f"config: experiments.{name}.dataset: the shore is found from head or mass_concentration: add "
            "one to its variables, or give planes.transects"
        )


def _check_graph(name: str, model: Block) -> str | None:
    """Check what names the file of the neighbour tables, and how far nodes see; returns a warning.

    Latent points lie evenly on the unit box of a patch, both ends of each axis included. Within less than
    half of their least distance, neighbouring points have no node in common: nothing would pass between
    them. A node is at most half a diagonal of a cell of the latent grid away from the nearest latent point:
    from there on each node has one, below it depends on where the nodes are, which `build_graph` finds out.
    """
    for key in ("latent_shape", "radius"):
        if key not in model:
            raise ConfigError(
                f"config: experiments.{name}.model: key {key!r} is missing: it names the file of the "
                "neighbours and must be written out"
            )
    shape, radius = model["latent_shape"], model["radius"]
    # A single point of an axis lies at its beginning.
    spacings = [1 / (n - 1) if n > 1 else 2.0 for n in shape]
    least, sure = min(spacings) / 2, math.ceil(math.hypot(*spacings) / 2 * 1e4) / 1e4
    key = f"experiments.{name}.model.radius: {radius:g}"
    if radius < least:
        raise ConfigError(
            f"config: {key} reaches less than half way ({least:.4g}) from a latent point to the next, so "
            f"that neighbours share no nodes; take {sure:.4g} or more, or more points in latent_shape"
        )
    if radius < sure:
        return (
            f"{key} is less than half a diagonal ({sure:.4g}) of a cell of the latent grid: nodes in the "
            "middle of a cell would have no latent point, which is refused when the graph is built"
        )
    return None


def _rows(run: Block) -> list[dict[str, Any]]:
    units = {**UNITS, **run.get("units", {})}  # metrics of earlier versions have none
    return [
        {
            "variable": variable,
            "unit": units[variable],
            **{name: scores[name] for name in ("rmse", "nmae", "relative_l2", "r2", "kge")},
            "persistence_rmse": scores["persistence"]["rmse"],
            "skill": scores["skill"],
            "validation_skill": run["validation"][variable]["skill"],
            "rollout_skill": run["rollout"]["variables"][variable]["skill"],
        }
        for variable, scores in run["test"].items()
    ]


def _ensemble_rows(ensemble: Block) -> list[dict[str, Any]]:
    return [
        {
            "variable": variable,
            "ensemble_skill": scores["mean"]["skill"],
            **{name: scores[name] for name in ("crps", "crps_skill", "spread", "spread_skill")},
            # Metrics of earlier versions have none.
            **{
                f"calibrated_{name}": scores["calibrated"][name]
                for name in ("crps_skill", "spread_skill")
                if "calibrated" in scores
            },
        }
        for variable, scores in ensemble["test"].items()
    ]


def _errors(run: Block) -> dict[str, list[float | None]]:
    scores = [one for split in ("validation", "test") for one in run[split].values()]
    before = [one["persistence"] for one in scores]
    # R² is 0 for a forecast of the mean of the ground truth.
    mean = [
        one["rmse"] / (1 - one["r2"]) ** 0.5 if one.get("r2") is not None else None
        for one in before
    ]
    return {
        "model": [one["rmse"] for one in scores],
        "persistence": [one["rmse"] for one in before],
        "the mean": mean,
    }


_ENSEMBLE = {
    "ensemble_skill": "skill of the ensemble mean",
    "crps": "CRPS",
    "crps_skill": "CRPS skill",
    "spread": "spread",
    "spread_skill": "spread / error",
    "calibrated_crps_skill": "CRPS skill, calibrated",
    "calibrated_spread_skill": "spread / error, calibrated",
}


def _example(made: Block, data: Block) -> Block:
    """A small coastal aquifer, cut in some way."""
    dataset = {
        "source": "demo",
        "demo": {"slices": 3, "nodes_per_slice": 40, "steps": 60, "spin_up": 5.0},
        "variables": ["head", "mass_concentration"],
        "forcings": ["head_bc", "mass_concentration_bc", "sea_level_forcing"],
        "split": {"train": 0.6, "validation": 0.2, "gap": 4},
        **made,
    }
    return {"dataset": dataset, "data": data}


_CAPTION = """\
*scatter*: prediction against ground truth at all nodes. *time_series*: the nodes that vary most, in windows
of the test period that follow each other. *error_map*: RMSE of each column of nodes by group of slices.
*section* and *animation*: ground truth, prediction and difference on a vertical section.
*rollout_error_by_lead*: error when the model feeds on its own forecasts, against persistence."""
_TABLE = Table(
    titles={
        "skill": "skill",
        "rmse": "RMSE",
        "persistence_rmse": "RMSE of persistence",
        "validation_skill": "skill (validation)",
        "rollout_skill": "skill (rollout)",
        "nmae": "NMAE",
        "relative_l2": "rel. L2",
        "r2": "R²",
        "kge": "KGE",
        **_ENSEMBLE,
    },
    caption="Skill is 1 − RMSE / RMSE of persistence: 1 is perfect, 0 no better than assuming that "
    "nothing changes. RMSE, CRPS and spread are in the unit of the variable. NMAE is the mean absolute "
    "error in standard deviations of the ground truth, rel. L2 the norm of the errors over that of the "
    "ground truth, R² 1 − mean square error / variance of the ground truth, KGE the Kling-Gupta "
    "efficiency. In a rollout the model "
    "feeds on its own forecasts. The ensemble holds all seeds: CRPS is its continuous ranked probability "
    "score, and spread / error is 1 if its members differ as much as their mean errs, less if it is too "
    "sure of itself. Calibrated members are spread about their mean as the errors on validation data ask "
    "for.",
    baseline="persistence",
    rows=_rows,
    ensemble_rows=_ensemble_rows,
    pooled=tuple(_ENSEMBLE),
    first=(
        "skill",
        "rmse",
        "persistence_rmse",
        "validation_skill",
        "rollout_skill",
        "ensemble_skill",
    ),
    of_members=(
        "crps",
        "crps_skill",
        "spread",
        "spread_skill",
        "calibrated_crps_skill",
        "calibrated_spread_skill",
    ),
    errors=_errors,
)

_IN_TIME: dict[str, Any] = {
    "evaluation": f"{_HERE}.evaluation:EVALUATION",
    "table": _TABLE,
    "caption": _CAPTION,
    "ensembles": True,
    "replay": True,
    "prepare": f"{_HERE}.preparation:prepare",
    "application": f"{_HERE}.application:APPLICATION",
}
"""What both kinds of samples have in common."""
SYSTEM = System(
    name="groundwater",
    costs={
        "preprocess": Cost(seconds=37, written=0.32, of_part=False),
        "preprocess_part": Cost(seconds=37, written=0.32, of_part=True),
        "find_missing": Cost(seconds=37, written=0.0, of_part=True),
        "extract_patches": Cost(seconds=6, written=0.42),
        "extract_planes": Cost(seconds=9, written=0.5),
    },
    project=f"{_HERE}:project.yaml.j2",
    formats=(
        RawFormat(
            name="feflow_csv",
            holds="all/",
            read_into="series.h5",
            simulate=f"{_HERE}.simulator.aquifer:write_aquifer",
            simulation=f"{_HERE}.settings:AquiferConfig",
            settings=f"{_HERE}.settings:FeflowDataset",
            check=_check_columns,
            files=("all/*.csv", "all/*.csv.gz"),
            inspect=f"{_HERE}.feflow_csv:inspect",
            steps=_steps,
            in_parts=True,
            first_pass="missing",
        ),
        RawFormat(
            "plane_folders",
            "the folders plane_XX/",
            "planes.h5",
            settings=f"{_HERE}.settings:PlaneFoldersDataset",
            files=("plane_*/*.npy",),
        ),
    ),
    kinds=(
        SampleKind(
            name="patches",
            formats=("feflow_csv",),
            files=_patch_files,
            dataset=f"{_HERE}.patch_dataset:PatchDataset",
            settings=f"{_HERE}.settings:WindowConfig",
            check=_check_patches,
            window=lambda data: WindowConfig.parse(data, "data").length,
            **_IN_TIME,
            example=_example(
                {"patches": {"slice_groups": 1, "clusters": 2}},
                {
                    "variables": ["head", "mass_concentration"],
                    "forcings": ["sea_level_forcing"],
                    "input_steps": 2,
                    "output_steps": 1,
                },
            ),
        ),
        SampleKind(
            name="planes",
            formats=("feflow_csv", "plane_folders"),
            dataset=f"{_HERE}.plane_dataset:PlaneDataset",
            settings=f"{_HERE}.settings:PlaneWindowConfig",
            extraction=Extraction(
                f"{_HERE}.plane_folders:convert_plane_folders", formats=("plane_folders",)
            ),
            check=_check_planes,
            window=lambda data: PlaneWindowConfig.parse(data, "data").length,
            **_IN_TIME,
            example=_example(
                {"planes": {"count": 2, "shape": [8, 8]}}, {"input_steps": 2, "output_steps": 2}
            ),
        ),
    ),
    models=(
        Model(
            "gino",
            "patches",
            f"{_HERE}.gino:SPEC",
            f"{_HERE}.settings:GinoConfig",
            check=_check_graph,
            example={
                "latent_shape": [4, 4, 3],
                "radius": 0.6,
                "modes": [2, 2, 2],
                "hidden": 4,
                "layers": 1,
                "kernel_widths": [4],
            },
        ),
        Model(
            "gfno",
            "planes",
            f"{_HERE}.gfno:SPEC",
            f"{_HERE}.settings:GfnoConfig",
            example={"gno_channels": 4, "kernel_widths": [8], "modes": [2, 3, 3], "hidden": 8},
        ),
    ),
    rules=("preprocess", "find_missing", "gather_missing", "preprocess_part", "gather_series"),
)

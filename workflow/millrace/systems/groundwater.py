"""Groundwater: windows in time on patches of a mesh or on vertical sections."""

from typing import Any

from millrace.errors import ConfigError
from millrace.systems.base import Block, RawFormat, SampleKind, Table, check_columns, is_count

FORMATS = (
    RawFormat("feflow_csv", "all/", "series.h5", demo=True),
    RawFormat("plane_folders", "the folders plane_XX/", "planes.h5"),
)


def _patch_files(model: Block) -> dict[str, str]:
    shape = "x".join(str(n) for n in model["latent_shape"])
    return {"patches": "patches.h5", "graph": f"graph_{shape}_r{model['radius']}.h5"}


def _check_patches(name: str, experiment: Block, dataset: Block) -> None:
    _check_window(name, experiment, dataset)
    _check_graph(name, experiment["model"])


def _check_window(name: str, experiment: Block, dataset: Block) -> None:
    data = experiment["data"]
    steps = [data.get(key, 0) for key in ("input_steps", "output_steps")]
    if not all(is_count(n) for n in steps):
        raise ConfigError(
            f"config: experiments.{name}.data: expected whole numbers of input_steps and output_steps, "
            f"got {steps}"
        )
    length = sum(steps)
    gap = dataset["split"]["gap"]
    if length > gap:
        raise ConfigError(
            f"config: experiments.{name}.data: a window of {length} steps is longer than the gap of {gap} "
            "between the splits, so test data would leak into training: raise split.gap of the dataset"
        )
    check_columns(("variables", "forcings"), name, experiment, dataset)


def _check_graph(name: str, model: Block) -> None:
    """Check what names the file of the neighbour tables."""
    shape, radius = model.get("latent_shape"), model.get("radius")
    if not isinstance(shape, list) or not all(is_count(n) and n for n in shape):
        raise ConfigError(
            f"config: experiments.{name}.model.latent_shape: expected a list of whole numbers, "
            f"got {shape!r}"
        )
    if not isinstance(radius, int | float) or isinstance(radius, bool) or not radius > 0:
        raise ConfigError(
            f"config: experiments.{name}.model.radius: expected a positive number, got {radius!r}"
        )


def _rows(run: Block) -> list[dict[str, Any]]:
    return [
        {
            "variable": variable,
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
        }
        for variable, scores in ensemble["test"].items()
    ]


_ENSEMBLE = {
    "ensemble_skill": "skill of the ensemble mean",
    "crps": "CRPS",
    "crps_skill": "CRPS skill",
    "spread": "spread",
    "spread_skill": "spread / error",
}
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
    "nothing changes. RMSE, CRPS and spread in m (head) and mg/L (mass concentration). The ensemble "
    "holds all seeds: CRPS is its continuous ranked probability score, and spread / error is 1 if its "
    "members differ as much as their mean errs, less if it is too sure of itself.",
    baseline="persistence",
    rows=_rows,
    ensemble_rows=_ensemble_rows,
    pooled=tuple(_ENSEMBLE),
)

KINDS = (
    SampleKind(
        name="patches",
        formats=("feflow_csv",),
        files=_patch_files,
        table=_TABLE,
        check=_check_patches,
        ensembles=True,
        predictions=True,
    ),
    SampleKind(
        name="planes",
        formats=("feflow_csv", "plane_folders"),
        files=lambda _: {"planes": "planes.h5"},
        table=_TABLE,
        check=_check_window,
        ensembles=True,
        predictions=True,
    ),
)
MODELS = {"gino": "patches", "gfno": "planes"}

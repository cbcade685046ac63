"""Downscaling of ICON fields: block means to cells, whole grids or pieces at a time."""

from functools import partial
from typing import Any

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
)
from millrace.systems.settings import with_missing

_HERE = "millrace.systems.downscaling"


def best_baseline(forecasts: Block, score: str) -> tuple[str, float]:
    """Name and score of the baseline with the lowest error."""
    rivals = {name: scores[score] for name, scores in forecasts.items() if name != "model"}
    name = min(rivals, key=lambda one: rivals[one])
    return name, rivals[name]


def _rows(run: Block) -> list[dict[str, Any]]:
    rows = []
    for variable, forecasts in run["test"].items():
        model, earlier = forecasts["model"], run["validation"][variable]
        name, absolute = best_baseline(forecasts, "mae")
        _, before = best_baseline(earlier, "mae")
        rival, squared = best_baseline(forecasts, "rmse")
        rows.append(
            {
                "variable": variable,
                "skill": 1 - model["crps"] / absolute,
                "crps": model["crps"],
                "baseline_crps": absolute,
                "baseline": name.replace("_", " "),
                "validation_skill": 1 - earlier["model"]["crps"] / before,
                "rmse": model["rmse"],
                "baseline_rmse": squared,
                "rmse_skill": 1 - model["rmse"] / squared,
                "spread_skill": model.get("spread_skill"),
                "spectrum_low": min(model["spectrum_ratio"]),
                "spectrum_high": max(model["spectrum_ratio"]),
                **{key: model[key] for key in ("lag1", "lag1_truth", "seam_error", "seam_rmse")},
                "baseline_seam_rmse": forecasts[rival]["seam_rmse"],
                "members": len(model["rank_histogram"]) - 1,
            }
        )
    return rows


def _errors(run: Block) -> dict[str, list[float]]:
    scores = [one for split in ("validation", "test") for one in run[split].values()]
    names = {
        "model": "model",
        "block_mean": "the mean of the block",
        "interpolation": "interpolation",
    }
    return {
        name: [one[key][score] for one in scores for score in ("rmse", "mae")]
        for key, name in names.items()
    }


_CAPTION = """\
*maps*: one time of the test period. *spectra*: power by degree, the wave number round the globe; the means
of blocks resolve the lowest degrees only. *reliability*: a reliable ensemble has equal ranks and errs as
much as it spreads.
*regions*: errors by belt of latitude, at the seams between blocks and inside, over land and sea."""
_TABLE = Table(
    titles={
        "skill": "CRPS skill",
        "crps": "CRPS",
        "baseline_crps": "CRPS of the best baseline",
        "validation_skill": "CRPS skill (validation)",
        "rmse": "RMSE of the mean",
        "baseline_rmse": "RMSE of the best baseline",
        "rmse_skill": "RMSE skill",
        "spread_skill": "spread / error",
        "spectrum_low": "least power / ground truth",
        "spectrum_high": "most power / ground truth",
        "lag1": "neighbour correlation",
        "lag1_truth": "neighbour correlation (ground truth)",
        "seam_error": "error of steps across seams / inside",
        "seam_rmse": "RMSE at seams / inside",
        "baseline_seam_rmse": "the same, best baseline",
    },
    caption="Skill is 1 − score / score of the best baseline of three: mean of the block, "
    "interpolation between blocks, linear regression fitted to each cell. CRPS is the continuous "
    "ranked probability score of the model's own ensemble, for a baseline its mean absolute error; "
    "both in the unit of the variable. Spread / error is 1 for a reliable ensemble. Power is that "
    "of a member on all scales, neighbours are cells that share an edge, seams run between blocks.",
    baseline="the best baseline",
    rows=_rows,
    first=(
        "skill",
        "crps",
        "baseline_crps",
        "validation_skill",
        "rmse",
        "rmse_skill",
        "spread_skill",
        "seam_error",
    ),
    of_members=("skill", "crps", "validation_skill", "spread_skill"),
    errors=_errors,
)
SYSTEM = System(
    name="downscaling",
    costs={"extract_blocks": Cost(seconds=15, written=1.0)},
    project=f"{_HERE}:project.yaml.j2",
    formats=(
        RawFormat(
            name="icon",
            holds="ICON grid and output files",
            read_into="blocks.h5",
            simulate=f"{_HERE}.simulator.climate:write_climate",
            simulation=f"{_HERE}.settings:ClimateConfig",
            settings=f"{_HERE}.settings:IconDataset",
            files=("grid.csv", "**/*.nc"),
            inspect=f"{_HERE}.icon:inspect",
        ),
    ),
    kinds=(
        SampleKind(
            name="blocks",
            formats=("icon",),
            dataset=f"{_HERE}.dataset:BlockDataset",
            settings=f"{_HERE}.settings:BlockDatasetConfig",
            evaluation=f"{_HERE}.evaluation:EVALUATION",
            application=f"{_HERE}.application:APPLICATION",
            caption=_CAPTION,
            extraction=Extraction(
                f"{_HERE}.blocks:extract_blocks",
                section=lambda raw: with_missing(
                    raw, {**raw.get("blocks", {}), "variables": raw["variables"]}
                ),
                config=f"{_HERE}.settings:BlockConfig",
                run_part=f"{_HERE}.blocks:extract_part",
                gather=f"{_HERE}.blocks:gather",
            ),
            in_parts=True,
            outline=f"{_HERE}.outline:outline",
            smaller="set data.piece_blocks, or lower it",
            check=partial(check_columns, ("variables",)),
            example={
                "dataset": {
                    "source": "demo",
                    "format": "icon",
                    "demo": {"level": 2, "steps": 40, "steps_per_file": 20},
                    "variables": ["tas"],
                    "split": {"train": 0.6, "validation": 0.2, "gap": 2},
                    "blocks": {"levels": 2},
                },
                "data": {"variables": ["tas"]},
            },
            table=_TABLE,
        ),
    ),
    models=(
        Model(
            "downscaler",
            "blocks",
            f"{_HERE}.diffusion:SPEC",
            f"{_HERE}.settings:DownscalerConfig",
            example={"channels": [8, 8, 8], "embedding": 8},
        ),
        Model(
            "regression",
            "blocks",
            f"{_HERE}.regression:SPEC",
            f"{_HERE}.settings:RegressionConfig",
            example={"channels": [8, 8, 8]},
        ),
    ),
)

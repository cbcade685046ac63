"""Downscaling of ICON fields: block means to cells, whole grids at a time."""

from typing import Any

from millrace.systems.base import Block, RawFormat, SampleKind, Table, check_columns

FORMATS = (RawFormat("icon", "ICON grid and output files", "blocks.h5", demo=True),)


def _check(name: str, experiment: Block, dataset: Block) -> None:
    check_columns(("variables",), name, experiment, dataset)


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
        squared = best_baseline(forecasts, "rmse")[1]
        ratio = model["spectrum_ratio"]
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
                "spectrum_low": min(ratio),
                "spectrum_high": max(ratio),
                "lag1": model["lag1"],
                "lag1_truth": model["lag1_truth"],
                "seam_error": model["seam_error"],
                "seam_rmse": model["seam_rmse"],
                "baseline_seam_rmse": forecasts[best_baseline(forecasts, "rmse")[0]]["seam_rmse"],
            }
        )
    return rows


KINDS = (
    SampleKind(
        name="blocks",
        formats=("icon",),
        files=lambda _: {"blocks": "blocks.h5"},
        check=_check,
        table=Table(
            titles={
                "skill": "CRPS skill",
                "crps": "CRPS",
                "baseline_crps": "CRPS of the best baseline",
                "validation_skill": "CRPS skill (validation)",
                "rmse": "RMSE of the mean",
                "baseline_rmse": "RMSE of the best baseline",
                "rmse_skill": "RMSE skill",
                "spread_skill": "spread / error",
                "spectrum_low": "least power / truth",
                "spectrum_high": "most power / truth",
                "lag1": "neighbour correlation",
                "lag1_truth": "neighbour correlation (truth)",
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
        ),
    ),
)
MODELS = {"downscaler": "blocks", "regression": "blocks"}

"""Scores of all runs side by side: the table that says whether a model is worth having."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from millrace.plots import skill_summary

_SCORES = ("rmse", "nmae", "relative_l2", "r2", "kge", "skill")
_TITLES = {
    "skill": "skill",
    "rmse": "RMSE",
    "persistence_rmse": "RMSE of persistence",
    "validation_skill": "skill (validation)",
    "rollout_skill": "skill (rollout)",
    "nmae": "NMAE",
    "relative_l2": "rel. L2",
    "r2": "R²",
    "kge": "KGE",
}
_ENSEMBLE_TITLES = {
    "ensemble_skill": "skill of the ensemble mean",
    "crps": "CRPS",
    "crps_skill": "CRPS skill",
    "spread": "spread",
    "spread_skill": "spread / error",
}
_KEYS = ["experiment", "layout", "variable"]
_STYLE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Test skill</title><style>
body { font: 14px/1.45 system-ui, sans-serif; color: #222; margin: 1.2rem; }
table { border-collapse: collapse; } caption { text-align: left; margin-bottom: .6rem; max-width: 60rem; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd;
  font-variant-numeric: tabular-nums; }
th { border-bottom: 2px solid #888; } .head { text-align: left; } .bad { color: #b00020; font-weight: 600; }
</style>"""


def summarise(
    metrics: Sequence[Path], ensembles: Sequence[Path], table: Path, csv: Path, figure: Path
) -> None:
    """Put the test scores of all runs into an HTML table, a CSV file and a figure.

    Parameters
    ----------
    metrics : sequence of Path
        `metrics.json` of every run.
    ensembles : sequence of Path
        `metrics.json` of every ensemble over seeds.
    table, csv, figure : Path
        Files to write. The CSV has one row a run and variable, the table one row an experiment, layout
        and variable with mean ± standard deviation over seeds. Scores of the ensemble are the same in all
        rows of its seeds.
    """
    rows = pd.DataFrame([row for path in metrics for row in _rows(json.loads(path.read_text()))])
    together = [row for path in ensembles for row in _ensemble_rows(json.loads(path.read_text()))]
    if together:
        rows = rows.merge(pd.DataFrame(together), how="left", on=_KEYS, validate="many_to_one")
    rows.to_csv(csv, index=False)
    table.write_text(_html(rows))
    named = rows.assign(experiment=rows["experiment"] + " " + rows["layout"])
    skill_summary(named, figure)


def _rows(run: dict) -> list[dict]:
    key = {name: run[name] for name in ("experiment", "layout", "seed", "epoch")}
    return [
        {
            **key,
            "variable": variable,
            **{name: scores[name] for name in _SCORES[:-1]},
            "persistence_rmse": scores["persistence"]["rmse"],
            "skill": scores["skill"],
            "validation_skill": run["validation"][variable]["skill"],
            "rollout_skill": run["rollout"]["variables"][variable]["skill"],
        }
        for variable, scores in run["test"].items()
    ]


def _ensemble_rows(ensemble: dict) -> list[dict]:
    return [
        {
            "experiment": ensemble["experiment"],
            "layout": ensemble["layout"],
            "variable": variable,
            "ensemble_skill": scores["mean"]["skill"],
            **{name: scores[name] for name in ("crps", "crps_skill", "spread", "spread_skill")},
        }
        for variable, scores in ensemble["test"].items()
    ]


def _html(rows: pd.DataFrame) -> str:
    titles = {k: v for k, v in (_TITLES | _ENSEMBLE_TITLES).items() if k in rows}
    head = "".join(f'<th class="head">{key}</th>' for key in _KEYS) + "<th>seeds</th>"
    head += "".join(f"<th>{title}</th>" for title in titles.values())
    body = []
    for names, group in rows.groupby(_KEYS, sort=False):
        cells = "".join(f'<td class="head">{name}</td>' for name in names)
        cells += f"<td>{len(group)}</td>" + "".join(_cell(group[name]) for name in titles)
        body.append(f"<tr>{cells}</tr>")
    return (
        f"{_STYLE}<table><caption>Scores on the test period, mean ± standard deviation over seeds. "
        "Skill is 1 − RMSE / RMSE of persistence: 1 is perfect, 0 no better than assuming that "
        "nothing changes. RMSE, CRPS and spread in m (head) and mg/L (mass concentration). The ensemble "
        "holds all seeds: CRPS is its continuous ranked probability score, and spread / error is 1 if its "
        "members differ as much as their mean errs, less if it is too sure of itself.</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></html>\n"
    )


def _cell(values: pd.Series) -> str:
    mean, spread = values.mean(), values.std()
    if pd.isna(mean):
        return "<td>undefined</td>"
    # Three digits of the mean, and the spread to the same place.
    places = max(0, 2 - math.floor(math.log10(abs(mean)))) if mean else 3
    text = f"{mean:.{places}f}" + (
        f" ± {spread:.{places}f}" if len(values) > 1 and values.name not in _ENSEMBLE_TITLES else ""
    )
    worse = str(values.name).endswith("skill") and values.min() <= 0
    return f'<td class="bad">{text}</td>' if worse else f"<td>{text}</td>"

"""Scores of all runs side by side: the table that compares models with their baselines."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from millrace.data.account import read_accounts
from millrace.errors import UserError
from millrace.evaluation.training_record import problems, read_metrics
from millrace.figures.training import skill_summary
from millrace.files import atomic_write
from millrace.systems.base import Table
from millrace.systems.registry import get_kind, systems
from millrace.training.learning import far_seeds

FEWEST_MEMBERS = 4
"""Ensembles of fewer members have no CRPS and no spread in the table: a standard deviation of three members
is off by half of itself."""
_KEYS = ["experiment", "layout", "variable"]
_RUN = {
    "parameters": ("parameters", "Number of weights of the model."),
    "training_s": (
        "training time",
        "Of a run: training steps, without start, validation, and what a kill undid.",
    ),
    "gpu_hours": ("GPU-hours", "Of a run: training time × GPUs. Runs on CPUs have none."),
    "cpu_hours": (
        "CPU-process-hours",
        "Of a run: training time × processes, where they ran on CPUs.",
    ),
    "epochs": ("epochs", "Epochs that the scored weights were trained for."),
    "devices": ("devices", "Ranks and what they ran on."),
}
"""Columns of the training: title and explanation."""
_SHOWN_OF_RUN = ("parameters", "training_s", "gpu_hours")
_MOST_SHOWN = 6


@dataclass(frozen=True)
class _Cell:
    text: str
    value: Any = None
    """What the column is sorted by."""
    style: str = ""
    title: str = ""
    deviation: str = ""
    note: str = ""
    """Why it is red, where the number does not show it."""


def summarise(
    metrics: Sequence[Path],
    ensembles: Sequence[Path],
    table: Path,
    csv: Path,
    figure: Path,
    others: Iterable[Path] = (),
    taken: Sequence[Any] = (),
) -> None:
    """Put the test scores of all runs into an HTML table, a CSV file and a figure.

    ``metrics`` and ``ensembles`` are the `metrics.json` of every run and of every ensemble over seeds
    that the configuration asks for, ``others`` those that lie in ``results/`` besides; of these, what
    cannot be read is named in the table. The CSV has one row for each run and variable, the table one
    row for each experiment, layout and variable with mean ± standard deviation over seeds. Scores of the
    ensemble are repeated in all rows of its seeds. The figure shows what the configuration asks for.
    Under the table stands what became of the raw files of each dataset in the folder of results that holds
    the table's folder, see `millrace.data.account`, and what reading them took beside what was expected,
    ``taken`` (`millrace.planning.taken.Taken`).
    """
    found = [read_metrics(path) | {"asked": True} for path in (*metrics, *ensembles)]
    left_out = []
    for path in others:
        try:
            found.append(read_metrics(path) | {"asked": False})
        except UserError as error:
            left_out.append(f"{path}: {str(error).removeprefix(f'{path}: ')}")
    runs = [one for one in found if "seed" in one]
    parts = {
        name: _frame(name, runs, [one for one in found if "seed" not in one])
        for name in dict.fromkeys(map(_table, runs))
    }
    rows = pd.concat(parts.values(), ignore_index=True)
    with atomic_write(csv) as partial:
        rows.drop(columns=["settings", "identity"]).to_csv(partial, index=False)
    with atomic_write(table) as partial:
        accounts, damaged = read_accounts(table.parents[1])
        partial.write_text(_page(parts, left_out + damaged, accounts, taken))
    asked = rows[rows["asked"]]
    named = asked.assign(experiment=asked["experiment"] + "\n" + asked["layout"])
    baselines = {_table(one).baseline for one in runs if one["asked"]}
    skill_summary(named, figure, baselines.pop() if len(baselines) == 1 else "the best baseline")


def _table(scores: dict) -> Table:
    return get_kind(scores["samples"]).table


def _frame(table: Table, runs: list[dict], ensembles: list[dict]) -> pd.DataFrame:
    """Scores of the runs that belong to a table, one row for each run and variable."""
    mine = [one for one in runs if _table(one) is table]
    told = _told(table, mine)
    rows = pd.DataFrame(
        [
            {key: run[key] for key in ("experiment", "layout", "seed", "epoch")}
            | row
            | {
                "asked": run["asked"],
                "identity": run.get("identity"),
                "problems": "; ".join(problem),
            }
            | _of_training(run["training"])
            for run, problem in zip(mine, told, strict=True)
            for row in table.rows(run)
        ]
    )
    for ensemble in ensembles:
        if _table(ensemble) is table:
            rows = _with_ensemble(rows, ensemble, table.ensemble_rows)
    if "members" in rows:
        few = rows["members"].between(2, FEWEST_MEMBERS - 1)
        rows.loc[few, [name for name in table.of_members if name in rows]] = None
    return rows


def _of_training(record: dict[str, Any]) -> dict[str, Any]:
    hours = {key: record.get(key) or None for key in ("gpu_hours", "cpu_hours")}
    return {
        "parameters": record.get("parameters"),
        "training_s": record.get("seconds"),
        **hours,
        "epochs": record.get("epochs"),
        "devices": ", ".join(record.get("devices", [])),
        "settings": record.get("settings", ""),
    }


def _with_ensemble(rows: pd.DataFrame, ensemble: dict, rows_of: Callable) -> pd.DataFrame:
    """Add the scores of an ensemble to the rows of its members."""
    identities = ensemble.get("identities")
    here = (rows["experiment"] == ensemble["experiment"]) & (rows["layout"] == ensemble["layout"])
    if identities and rows["identity"].notna().any():
        here &= rows["identity"].isin(identities)
    for row in rows_of(ensemble):
        scores = {key: value for key, value in row.items() if key != "variable"}
        if "seeds" in ensemble:
            scores["members"] = len(ensemble["seeds"])
        for key, value in scores.items():
            rows.loc[here & (rows["variable"] == row["variable"]), key] = value
    return rows


def _told(table: Table, runs: list[dict]) -> list[list[str]]:
    """What is told of each run: that it does not learn, or that it is far from the other seeds."""
    told = [[f"does not learn: {problem}" for problem in problems(run)] for run in runs]
    groups: dict[tuple, dict[int, Any]] = {}
    for i, run in enumerate(runs):
        key = (run["experiment"], run["layout"], run["training"].get("settings"))
        if errors := table.errors(run):
            groups.setdefault(key, {})[i] = errors
    for group in groups.values():
        for i, problem in far_seeds(group).items():
            told[i].append(problem)
    return told


def _page(
    parts: dict[Table, pd.DataFrame],
    left_out: list[str],
    accounts: list[dict[str, Any]],
    taken: Sequence[Any],
) -> str:
    environment = Environment(
        loader=PackageLoader("millrace.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = _duration
    environment.filters["figure"] = lambda value: (
        f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    )
    environment.filters["breakable"] = lambda name: escape(name).replace("_", Markup("_<wbr>"))
    homes = {kind.table: system.name for system in systems().values() for kind in system.kinds}
    rows = pd.concat(parts.values(), ignore_index=True)
    marked = rows[rows["problems"] != ""].drop_duplicates(
        ["experiment", "layout", "seed", "problems"]
    )
    return environment.get_template("skill.html.j2").render(
        tables=[_section(homes[table], table, frame) for table, frame in parts.items()],
        systems=list(dict.fromkeys(homes[table] for table in parts)),
        **{f"{key}s": sorted(rows[key].unique()) for key in ("experiment", "layout")},
        problems=marked[["experiment", "layout", "seed", "problems"]].to_dict("records"),
        left_out=left_out,
        accounts=accounts,
        taken=taken,
        fewest_members=FEWEST_MEMBERS,
    )


def _section(system: str, table: Table, rows: pd.DataFrame) -> dict[str, Any]:
    titles = {name: (title, "") for name, title in table.titles.items() if name in rows} | _RUN
    shown = {*(table.first or list(table.titles)[:_MOST_SHOWN]), *_SHOWN_OF_RUN}
    columns = [
        {"title": title, "explanation": explanation, "more": name not in shown}
        for name, (title, explanation) in titles.items()
    ]
    body = []
    for _, group in rows.groupby([*_KEYS, "settings"], sort=False):
        asked = group[group["asked"]]
        if len(asked) in (0, len(group)):
            body.append(_row(group, table, titles, "both" if len(asked) else "all"))
        else:
            body += [_row(group, table, titles, "all"), _row(asked, table, titles, "asked")]
    return {"system": system, "caption": Markup(table.caption), "columns": columns, "rows": body}


def _row(group: pd.DataFrame, table: Table, titles: Iterable[str], within: str) -> dict[str, Any]:
    """One line of the table. ``within`` says where it stands: among all runs, those asked for, or both."""
    first = group.iloc[0]
    unit, asked = first.get("unit"), int(group["asked"].sum())
    told = group[group["problems"] != ""]
    words = {"does not learn": told["problems"].str.contains("does not learn")}
    words["far off"] = ~words["does not learn"]
    return {
        "experiment": first["experiment"],
        "layout": first["layout"],
        "variable": f"{first['variable']} ({unit})" if unit else str(first["variable"]),
        "seeds": len(group),
        "named_seeds": ", ".join(map(str, group["seed"])),
        "within": within,
        "asked": asked,
        "unasked": "" if asked == len(group) else "not all asked for" if asked else "not asked for",
        "marks": [
            {
                "text": f"{word}: seed {', '.join(map(str, told[which]['seed']))}",
                "title": "; ".join(
                    f"seed {one.seed}: {one.problems}" for one in told[which].itertuples()
                ),
            }
            for word, which in words.items()
            if which.any()
        ],
        "cells": [_cell(name, group, table) for name in titles],
    }


def _cell(name: str, group: pd.DataFrame, table: Table) -> _Cell:
    if name == "devices":
        text = "; ".join(dict.fromkeys(one for one in group[name] if one))
        return _Cell(text or "–", text, "text")
    values = pd.to_numeric(group[name])
    if name in _RUN:
        if values.isna().all():
            on_cpu = name == "gpu_hours" and group["cpu_hours"].notna().any()
            return (
                _Cell("CPU", style="none", title="It ran on CPUs.")
                if on_cpu
                else _Cell("–", style="none")
            )
        return _Cell(_of_run(name, values), float(values.mean()))
    if name in table.of_members and "members" in group:
        members = group["members"].iloc[0]
        if 1 < members < FEWEST_MEMBERS:
            title = f"{members:.0f} members are too few: {FEWEST_MEMBERS} or more are needed."
            return _Cell("held back", style="held", title=title)
    shown = values.min() if name in table.lowest else values.mean()
    if pd.isna(shown):
        if name in table.pooled:
            return _Cell("–", style="none", title="These seeds were not scored as an ensemble.")
        return _Cell("undefined", style="none")
    # Baselines are the same for all seeds.
    deviates = values.nunique() > 1 and name not in (*table.pooled, *table.lowest)
    worse = list(group.loc[values <= 0, "seed"]) if name.endswith("skill") else []
    some = 0 < len(worse) < len(group)
    text, _, deviation = format_score(
        float(shown), float(values.std()) if deviates else None
    ).partition(" ")
    note = f"not above 0: seed {', '.join(map(str, worse))}" if some else ""
    return _Cell(text, float(shown), "bad" if worse else "", deviation=deviation, note=note)


def _of_run(name: str, values: pd.Series) -> str:
    mean = float(values.mean())
    if name == "epochs":
        low, high = (f"{x:.0f}" for x in (values.min(), values.max()))
        return low if low == high else f"{low} to {high}"
    if name == "parameters":
        scale, unit = next(
            (s, u)
            for s, u in ((1e9, " G"), (1e6, " M"), (1e3, " k"), (1, ""))
            if mean >= s or s == 1
        )
        return f"{mean / scale:.3g}{unit}"
    if name == "training_s":
        return _duration(mean)
    return f"{mean:.2g}" if mean < 100 else f"{mean:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.3g} h"


def format_score(mean: float, deviation: float | None = None) -> str:
    """Write a score and its deviation with as many decimals; the larger of them has three digits."""
    largest = max(abs(mean), deviation or 0.0)
    exponent = math.floor(math.log10(largest)) if largest else 0
    power = exponent if exponent < -4 else 0
    places = max(0, 2 - exponent + power) if largest else 3
    suffix = f"e{power}" if power else ""
    parts = [mean] if deviation is None else [mean, deviation]
    return " ± ".join(f"{value / 10.0**power:.{places}f}{suffix}" for value in parts)

"""Scores of all runs side by side: the table that compares models with their baselines."""

import json
import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import pandas as pd

from millrace.figures.training import skill_summary
from millrace.systems.base import Table
from millrace.systems.registry import get_kind

# Kind of metrics files without one, from versions in which all models were on patches or planes, which
# share a table.
_FIRST = "patches"
_KEYS = ["experiment", "layout", "variable"]
_STYLE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Test skill</title><style>
body { font: 14px/1.45 system-ui, sans-serif; color: #222; margin: 1.2rem; }
table { border-collapse: collapse; } caption { text-align: left; margin-bottom: .6rem; max-width: 60rem; }
th, td { padding: .25rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd;
  font-variant-numeric: tabular-nums; }
th { border-bottom: 2px solid #888; white-space: normal; vertical-align: bottom; }
.head { text-align: left; } .bad { color: #b00020; font-weight: 600; }
</style>"""


def summarise(
    metrics: Sequence[Path], ensembles: Sequence[Path], table: Path, csv: Path, figure: Path
) -> None:
    """Put the test scores of all runs into an HTML table, a CSV file and a figure.

    ``metrics`` and ``ensembles`` are the `metrics.json` of every run and of every ensemble over seeds. The
    CSV has one row for each run and variable, the table one row for each experiment, layout and variable
    with mean ± standard deviation over seeds. Scores of the ensemble are repeated in all rows of its seeds.
    """
    runs = [json.loads(path.read_text()) for path in metrics]
    together = [json.loads(path.read_text()) for path in ensembles]
    parts = {table: _frame(table, runs, together) for table in dict.fromkeys(map(_table, runs))}
    rows = pd.concat(parts.values(), ignore_index=True)
    rows.to_csv(csv, index=False)
    table.write_text(_STYLE + "".join(_html(*part) for part in parts.items()) + "</html>\n")
    named = rows.assign(experiment=rows["experiment"] + " " + rows["layout"])
    baselines = {table.baseline for table in parts}
    skill_summary(named, figure, baselines.pop() if len(baselines) == 1 else "the best baseline")


def _table(scores: dict) -> Table:
    return get_kind(scores.get("samples", _FIRST)).table


def _frame(table: Table, runs: list[dict], ensembles: list[dict]) -> pd.DataFrame:
    """Scores of the runs that belong to a table, one row for each run and variable."""

    def rows_of(scores: list[dict], keys: Sequence[str], rows: Callable) -> list[dict]:
        mine = [one for one in scores if _table(one) is table]
        return [{key: one[key] for key in keys} | row for one in mine for row in rows(one)]

    keys = ("experiment", "layout", "seed", "epoch")
    rows = pd.DataFrame(rows_of(runs, keys, table.rows))
    together = rows_of(ensembles, keys[:2], table.ensemble_rows)
    if together:
        rows = rows.merge(pd.DataFrame(together), how="left", on=_KEYS, validate="many_to_one")
    return rows


def _html(table: Table, rows: pd.DataFrame) -> str:
    titles = {k: v for k, v in table.titles.items() if k in rows}
    head = "".join(f'<th class="head">{key}</th>' for key in _KEYS) + "<th>seeds</th>"
    head += "".join(f"<th>{title}</th>" for title in titles.values())
    body = []
    for names, group in rows.groupby(_KEYS, sort=False):
        *heads, variable = map(str, names)
        unit = group["unit"].iloc[0] if "unit" in group else ""
        heads.append(f"{variable} ({unit})" if unit else variable)
        cells = "".join(f'<td class="head">{escape(head)}</td>' for head in heads)
        cells += f"<td>{len(group)}</td>"
        cells += "".join(_cell(group[name], table) for name in titles)
        body.append(f"<tr>{cells}</tr>")
    return (
        "<table><caption>Scores on the test data, mean ± standard deviation over seeds. "
        f"{table.caption}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def _cell(values: pd.Series, table: Table) -> str:
    values = pd.to_numeric(values)
    shown = values.min() if values.name in table.lowest else values.mean()
    if pd.isna(shown):
        return "<td>undefined</td>"
    # Three digits, and as many decimals of the deviation.
    exponent = math.floor(math.log10(abs(shown))) if shown else 0
    power = exponent if exponent < -4 else 0
    places = max(0, 2 - exponent + power) if shown else 3
    suffix = f"e{power}" if power else ""

    def text_of(value: float) -> str:
        return f"{value / 10.0**power:.{places}f}{suffix}"

    text = text_of(shown)
    # Baselines are the same for all seeds.
    if values.nunique() > 1 and values.name not in (*table.pooled, *table.lowest):
        text += f" ± {text_of(values.std())}"
    worse = str(values.name).endswith("skill") and values.min() <= 0
    return f'<td class="bad">{text}</td>' if worse else f"<td>{text}</td>"

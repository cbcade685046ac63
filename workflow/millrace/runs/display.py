"""Tables and charts of runs for a terminal."""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from millrace.runs.inventory import Run, session_statistics, usage
from millrace.runs.maintenance import Removal

_COLOURS = {"training": "green", "idle": "", "empty": "yellow", "damaged": "bold red"}
_HEIGHT, _WIDTH = 9, 64


def runs_table(runs: Iterable[Run]) -> Table:
    """One row a run."""
    table = make_table(
        "experiment", "layout", "seed", "identity", ">epoch", ">step", ">train loss",
        ">validation loss", ">sessions", "state", ">size", "changed",
    )  # fmt: skip
    for run in runs:
        last = run.history[-1] if run.history else {}
        newest, state = run.newest, run.state
        table.add_row(
            *run.parts,
            str(newest.epoch) if newest else "–",
            str(newest.step) if newest else "–",
            number(last.get("train_loss")),
            number(last.get("validation_loss")),
            str(last.get("session", "–")),
            Text(state, style=_COLOURS[state]),
            size(run.size),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed)),
        )
    return table


def show(run: Run, console: Console) -> bool:
    """Print all about a run; False: something of it is damaged."""
    console.print(f"[bold]{run.name}[/]  {run.holder or run.state}", highlight=False)
    console.print(str(run.path), highlight=False, soft_wrap=True)
    console.print(_identity_table(run))
    checkpoint = run.store().latest()
    if checkpoint is not None:
        state = checkpoint.load()
        console.print("\n[bold]Sessions[/]")
        console.print(sessions_table(state["sessions"], state["history"], checkpoint.manifest.step))
    if run.history:
        console.print("\n[bold]Loss[/]  [blue]●[/] train  [yellow]○[/] validation  ┊ resumed")
        console.print(loss_chart(run.history), soft_wrap=True)
    console.print("\n[bold]Checkpoints[/]")
    table = make_table(">step", ">epoch", "kept as", ">size", "verification")
    problems = 0
    for step in run.steps:
        problem, record = step.problem(), step.manifest
        problems += problem is not None
        position = (
            f"{record.epoch}" + (f" + {record.batch} steps" if record.batch else "")
            if record
            else "?"
        )
        table.add_row(
            str(int(step.path.name.removeprefix("step_"))),
            position,
            "milestone" if step.milestone else "recent",
            size(usage([step.path])[0]),
            Text(problem, style="bold red") if problem else "intact",
        )
    console.print(table)
    return not problems


def sessions_table(
    sessions: Sequence[Mapping[str, Any]], history: Sequence[Mapping[str, Any]], step: int
) -> Table:
    """One row a session, see `session_statistics`."""
    table = make_table(
        "#", "started (UTC)", "host", "job", ">ranks", "device", ">from step", ">steps", ">epochs",
        ">time", ">samples/s", ">validation loss",
    )  # fmt: skip
    for one in session_statistics(sessions, history, step):
        rate = one["samples_per_second"]
        table.add_row(
            str(one["session"]),
            str(one.get("started", "–"))[:16].replace("T", " "),
            str(one.get("host", "–")),
            str(one.get("job") or "–"),
            str(one.get("ranks", "–")),
            str(one.get("device", "–")),
            str(one["step"]),
            str(one["steps"]),
            str(one["epochs"]),
            duration(one["seconds"]),
            "–" if rate is None else f"{rate:.0f}",
            number(one["validation_loss"]),
        )
    return table


def loss_chart(history: Sequence[Mapping[str, Any]]) -> Text:
    """Draw losses by epoch on a logarithmic axis, with a mark before each session but the first."""
    series = {key: [_positive(r.get(key)) for r in history] for key in _MARKS}
    known = [value for values in series.values() for value in values if value is not None]
    if not known:
        return Text("no losses")
    low, high = math.log(min(known)), math.log(max(known))
    columns = min(len(history), _WIDTH)
    wide = 2 if 2 * columns <= _WIDTH else 1
    cells = [[(" ", "")] * (columns * wide) for _ in range(_HEIGHT)]
    for i, record in enumerate(history):
        column = i * columns // len(history) * wide
        if i and record["session"] != history[i - 1]["session"]:
            mark = max(0, column - 1) if wide == 2 else column
            for row in cells:
                row[mark] = ("┊", "dim")
        for key, mark_style in _MARKS.items():
            value = series[key][i]
            if value is not None:
                share = (high - math.log(value)) / (high - low) if high > low else 0.5
                cells[round(share * (_HEIGHT - 1))][column] = mark_style
    text = Text()
    for number, row in enumerate(cells):
        label = {0: high, _HEIGHT - 1: low}.get(number)
        text.append(f"{'' if label is None else f'{math.exp(label):.3g}':>9} ")
        for character, style in row:
            text.append(character, style)
        text.append("\n")
    first, last = history[0]["epoch"], history[-1]["epoch"]
    return text.append(f"{'epoch':>9} {first}{str(last).rjust(columns * wide - len(str(first)))}")


_MARKS = {"train_loss": ("●", "blue"), "validation_loss": ("○", "yellow")}


def usage_table(runs: Sequence[Run]) -> Table:
    """One row a run: bytes in all, of milestones, of other steps, and shared with outputs."""
    table = make_table(
        "run", ">total", ">milestones", ">other steps", ">left behind", ">shared with outputs"
    )
    sums = [0] * 5
    for run in runs:
        total, freed = usage([run.path])
        milestones = usage([step.path for step in run.steps if step.milestone])[0]
        others = usage([step.path for step in run.steps if not step.milestone])[0]
        row = [total, milestones, others, usage(run.leftovers)[0], total - freed]
        sums = [a + b for a, b in zip(sums, row, strict=True)]
        table.add_row(run.name, *map(size, row))
    table.add_section()
    table.add_row("all", *map(size, sums))
    return table


def removals_table(removals: Iterable[Removal]) -> Table:
    """One row a file or directory that would go."""
    table = make_table("run", "what", "why", ">frees")
    for one in removals:
        what = "all of it" if one.path == one.run.path else one.path.name
        table.add_row(one.run.name, what, one.reason, size(one.freed))
    return table


def size(n: float) -> str:
    """Bytes for people, as ``12.3 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as ``h:mm:ss``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def _identity_table(run: Run) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    try:
        described = json.loads((run.path / "identity.json").read_text())
    except (OSError, ValueError):
        described = {"identity.json": "missing or not readable"}
    for key, value in described.items():
        pairs = value.items() if isinstance(value, Mapping) else [("", value)]
        text = ", ".join(f"{k}: {json.dumps(v)}" if k else json.dumps(v) for k, v in pairs)
        table.add_row(key, Text(text))
    return table


def make_table(*columns: str) -> Table:
    """Table without lines; columns that begin with ``>`` are set to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        right = name.startswith(">")
        table.add_column(name.lstrip(">"), justify="right" if right else "left", overflow="fold")
    return table


def number(value: float | None) -> str:
    """Four digits; a dash for what is not known."""
    return "–" if value is None else f"{value:.4g}"


def _positive(value: float | None) -> float | None:
    return value if value is not None and 0 < value < math.inf else None

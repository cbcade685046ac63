"""Tables and charts of runs for a terminal."""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from millrace.cluster.display import make_table
from millrace.errors import DataError
from millrace.runs.inventory import Run, disk_usage, session_statistics
from millrace.runs.maintenance import Removal
from millrace.training import run_hash
from millrace.training.learning import stalled_loss
from millrace.training.roll_back import told

_COLOURS = {"training": "green", "idle": "", "empty": "yellow", "damaged": "bold red"}
_HEIGHT, _WIDTH = 9, 64
_MARKS = {"train_loss": ("●", "blue"), "validation_loss": ("○", "yellow")}


def runs_table(runs: Iterable[Run]) -> Table:
    """Return one row for each run."""
    table = make_table(
        "experiment", "layout", "seed", "run hash", ">epoch", ">step", ">train loss",
        ">validation loss", ">sessions", "state", ">size", "changed",
    )  # fmt: skip
    for run in runs:
        last = run.history[-1] if run.history else {}
        newest, state = run.newest, run.state
        table.add_row(
            *run.parts,
            str(newest.epoch) if newest else "–",
            str(newest.step) if newest else "–",
            format_number(last.get("train_loss")),
            format_number(last.get("validation_loss")),
            str(last.get("session", "–")),
            Text(state, style=_COLOURS[state])
            + Text("\ndoes not learn" if stalled_loss(run.history) else "", style="bold red")
            + Text(f"\nroll-backs: {last['roll_backs']}" if "roll_backs" in last else "", "yellow"),
            format_bytes(run.size),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed)),
        )
    return table


def record(run: Run) -> dict[str, Any]:
    """Return what `runs_table` shows of a run, for scripts; None: not known, or not a finite number."""
    last = run.history[-1] if run.history else {}
    losses = {key: last.get(key) for key in ("train_loss", "validation_loss")}
    finite = {
        k: v if isinstance(v, int | float) and math.isfinite(v) else None for k, v in losses.items()
    }
    newest = run.newest
    return {
        "experiment": run.experiment,
        "layout": run.layout,
        "seed": int(run.seed.removeprefix("seed")),
        "run_hash": run.run_hash,
        "path": str(run.path),
        "state": run.state,
        "epoch": newest.epoch if newest else None,
        "step": newest.step if newest else None,
        **finite,
        "roll_backs": last.get("roll_backs", 0),
        "size_bytes": run.size,
        "changed_s": run.changed,
    }


def show(run: Run, console: Console) -> bool:
    """Print a run with its sessions, losses and checkpoints; False: a checkpoint is damaged."""
    console.print(f"[bold]{run.name}[/]  {run.holder or run.state}", highlight=False)
    console.print(str(run.path), highlight=False, soft_wrap=True)
    console.print(_configuration_table(run))
    checkpoint = run.store().latest()
    if checkpoint is not None:
        state = checkpoint.load()
        console.print("\n[bold]Sessions[/]")
        console.print(sessions_table(state["sessions"], state["history"], checkpoint.manifest.step))
        for roll_back in state.get("roll_backs", []):
            console.print(told(roll_back), style="yellow", highlight=False)
    if problem := stalled_loss(run.history):
        console.print(f"\n[bold red]does not learn[/]: {problem}", highlight=False)
    if run.history:
        console.print("\n[bold]Loss[/]  [blue]●[/] train  [yellow]○[/] validation  ┊ resumed")
        console.print(loss_chart(run.history), soft_wrap=True)
    console.print("\n[bold]Checkpoints[/]")
    table = make_table(">step", ">epoch", "kept as", ">size", "verification")
    problems = 0
    for step in run.steps:
        problem, record = step.problem(), step.manifest
        problems += problem is not None
        position = "?"
        if record:
            position = f"{record.epoch}" + (f" + {record.batch} steps" if record.batch else "")
        table.add_row(
            str(int(step.path.name.removeprefix("step_"))),
            position,
            "milestone" if step.milestone else "recent",
            format_bytes(disk_usage([step.path])[0]),
            Text(problem, style="bold red") if problem else "intact",
        )
    console.print(table)
    return not problems


def sessions_table(
    sessions: Sequence[Mapping[str, Any]], history: Sequence[Mapping[str, Any]], step: int
) -> Table:
    """Return one row for each session, see `session_statistics`."""
    table = make_table(
        "#", "started (UTC)", "host", "job", ">ranks", "device", ">from step", ">steps", ">epochs",
        ">time", ">samples/s", ">validation loss",
    )  # fmt: skip
    for one in session_statistics(sessions, history, step):
        rate = one["samples_per_second"]
        table.add_row(
            str(one["session"]),
            str(one.get("started", "–"))[:16].replace("T", " "),
            *(str(one.get(key) or "–") for key in ("host", "job", "ranks", "device")),
            *(str(one[key]) for key in ("step", "steps", "epochs")),
            format_duration(one["seconds"]),
            "–" if rate is None else f"{rate:.0f}",
            format_number(one["validation_loss"]),
        )
    return table


def loss_chart(history: Sequence[Mapping[str, Any]]) -> Text:
    """Draw the losses by epoch on a logarithmic axis, with a mark at the start of each later session."""
    losses = {
        key: [x if x and 0 < x < math.inf else None for x in (r.get(key) for r in history)]
        for key in _MARKS
    }
    known = [value for values in losses.values() for value in values if value is not None]
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
            value = losses[key][i]
            if value is not None:
                share = (high - math.log(value)) / (high - low) if high > low else 0.5
                cells[round(share * (_HEIGHT - 1))][column] = mark_style
    text = Text()
    for i, row in enumerate(cells):
        label = {0: high, _HEIGHT - 1: low}.get(i)
        text.append(f"{'' if label is None else f'{math.exp(label):.3g}':>9} ")
        for character, style in row:
            text.append(character, style)
        text.append("\n")
    first, last = history[0]["epoch"], history[-1]["epoch"]
    return text.append(f"{'epoch':>9} {first}{str(last).rjust(columns * wide - len(str(first)))}")


def compared(found: Any, console: Console) -> None:
    """Print what two runs differ in, a `millrace.evaluation.compare.Comparison`."""
    console.print(f"A  [bold]{found.a.name}[/]\nB  [bold]{found.b.name}[/]", highlight=False)
    for note in found.notes:
        console.print(note, style="yellow", soft_wrap=True, highlight=False)
    console.print("\n[bold]Settings that differ[/]" + ("" if found.settings else ": none"))
    if found.settings:
        table = make_table("key", "A", "B")
        for key, pair in found.settings.items():
            table.add_row(key, *map(str, pair))
        console.print(table)
    console.print("\n[bold]Validation loss[/]")
    table = make_table("", ">epochs", ">best", ">last")
    for side, one in (("A", found.a), ("B", found.b)):
        losses = [r["validation_loss"] for r in one.history if r.get("validation_loss") is not None]
        best = (min(losses), losses[-1]) if losses else (None, None)
        table.add_row(side, str(len(one.history)), *map(format_number, best))
    console.print(table)
    if not found.differences:
        return
    console.print("\n[bold]Errors on the test cases[/]")
    table = make_table(
        "variable", "score", ">A", ">B", ">A - B", ">95 % interval", "better", ">cases", ">blocks"
    )
    for row in found.differences:
        ends = "–" if row.low is None else f"{row.low:.3g} to {row.high:.3g}"
        score = f"{row.score} ({row.unit})" if row.unit else row.score
        means = (format_number(row.mean_a), format_number(row.mean_b), f"{row.difference:.3g}")
        counts = (str(row.cases), str(row.blocks))
        table.add_row(row.variable, score, *means, ends, row.better or "–", *counts)
    console.print(table)


def usage_table(runs: Sequence[Run]) -> Table:
    """Return the bytes of each run: total, by kind of file, and shared with outputs."""
    columns = (">total", ">milestones", ">other steps", ">left behind", ">shared with outputs")
    table = make_table("run", *columns)
    sums = [0] * 5
    for run in runs:
        total, freed = disk_usage([run.path])
        milestones = disk_usage(step.path for step in run.steps if step.milestone)[0]
        others = disk_usage(step.path for step in run.steps if not step.milestone)[0]
        row = [total, milestones, others, disk_usage(run.leftovers)[0], total - freed]
        sums = [a + b for a, b in zip(sums, row, strict=True)]
        table.add_row(run.name, *map(format_bytes, row))
    table.add_section()
    table.add_row("all", *map(format_bytes, sums))
    return table


def removals_table(removals: Iterable[Removal]) -> Table:
    """Return one row for each file or directory that would be removed."""
    table = make_table("run", "what", "why", ">frees")
    for one in removals:
        what = "all of it" if one.path == one.run.path else one.path.name
        table.add_row(one.run.name, what, one.reason, format_bytes(one.freed))
    return table


def format_bytes(size: float) -> str:
    """Return a size with its unit, such as ``12.3 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def format_duration(seconds: float | None) -> str:
    """Return a duration as ``h:mm:ss``; a dash for None."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def format_number(value: float | None) -> str:
    """Return a number with four significant digits; a dash for None."""
    return "–" if value is None else f"{value:.4g}"


def _configuration_table(run: Run) -> Table:
    """Content of ``identity.json``, which the run hash is the digest of."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    try:
        described = run_hash.read_definition(run.path)
    except DataError as error:
        described = {"identity.json": str(error).partition(": ")[2]}
    for key, value in described.items():
        pairs = value.items() if isinstance(value, Mapping) else [("", value)]
        text = ", ".join(f"{k}: {json.dumps(v)}" if k else json.dumps(v) for k, v in pairs)
        table.add_row(key, Text(text))
    return table

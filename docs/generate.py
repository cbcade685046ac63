"""Pages of the reference that are made from the code: commands, exit codes, messages, Python."""

import argparse
import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import millrace
from millrace.cli import COMMANDS
from millrace.errors import ExitCode
from millrace.systems.base import resolve

LIBRARY = Path(millrace.__file__).parent
NOTEBOOKS = Path(__file__).parent / "notebooks"
RESULTS = Path(__file__).parent / "results"
ERRORS = ("ConfigError", "DataError", "NotFiniteError", "DivergedError")
ERRORS += ("OutputError", "LockedError", "SchedulerError")
# What plug-ins use, then what reads and writes the files that others may want to read.
MODULES = {
    "Systems and models of your own": [
        "systems.base",
        "systems.arrays",
        "models.spec",
        "models.losses",
        "config",
        "evaluation.base",
        "evaluation.loaded",
        "data.samples",
        "checking.contracts",
        "checking.sample_contracts",
    ],
    "Files and runs": [
        "files",
        "data.hdf5",
        "training.store",
        "training.run_hash",
        "training.batches",
        "layout",
        "errors",
    ],
    "Scaling": ["scaling.factors", "scaling.fits", "scaling.communication"],
}


def write(folder: Path) -> None:
    """Write all pages into a folder; a page that would stay the same is not touched."""
    folder.mkdir(exist_ok=True)
    pages = {
        "commands.md": commands(),
        "exit-codes.md": exit_codes(),
        "messages.md": messages(),
        "notebooks.md": notebooks(),
        "speed.md": speed(),
        "python.rst": python(),
    }
    for name, text in pages.items():
        path = folder / name
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)


def commands() -> str:
    """All commands of ``millrace`` with their options and examples."""
    parts = [
        "# Commands",
        "`millrace COMMAND --help` says the same in the terminal. The workflow itself is run by "
        "`snakemake`, see [Run the workflow](../howto/run.md). What the exit codes mean: "
        "[Exit codes](exit-codes.md).",
    ]
    for name, (module, _) in COMMANDS.items():
        parts += _command(f"millrace {name}", resolve(f"{module}:parser")(), level=2)
    return "\n\n".join(parts) + "\n"


def _command(name: str, parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    """Parts of the page that tell of a command and of the commands below it."""
    told, _, examples = (parser.epilog or "").partition("examples:\n")
    yield f"{'#' * level} `{name}`"
    # As the docstring of a module begins, which is the description.
    about = re.sub(r"^The command ``millrace [\w-]+``: ", "", parser.description or "")
    yield _plain(_sentence(about))
    if told.strip():
        yield _plain(told)
    rows = [_row(action) for action in parser._actions if _shown(action)]
    if rows:
        yield "\n".join(["| option | meaning |", "|---|---|", *rows])
    if examples:
        lines, _, after = examples.partition("\n\n")
        yield "```\n" + "\n".join(line.strip() for line in lines.splitlines()) + "\n```"
        if after.strip():
            yield _plain(after)
    for below, one in _subparsers(parser):
        yield from _command(f"{name} {below}", one, level + 1)


def _subparsers(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return list(action.choices.items())
    return []


def _shown(action: argparse.Action) -> bool:
    kinds = (argparse._HelpAction, argparse._SubParsersAction)
    return not isinstance(action, kinds) and action.help != argparse.SUPPRESS


def _row(action: argparse.Action) -> str:
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    value = value if isinstance(value, str) else " ".join(value)
    if action.choices and not action.metavar:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    name = ", ".join(action.option_strings) or value
    shown = f"{name} {value}" if action.option_strings and value else name
    needed = " *Required.*" if action.required and action.option_strings else ""
    text = " ".join((action.help or "").split()).replace("%(default)s", str(action.default))
    return f"| `{shown}` | {_cell(_sentence(text.replace('%%', '%')))}{needed} |"


def _sentence(text: str) -> str:
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}" if text else ""


def exit_codes() -> str:
    """The table of exit codes."""
    rows = [f"| `{int(code)}` | {code.meaning} |" for code in ExitCode]
    return "\n".join(
        [
            "# Exit codes",
            "",
            "Of all commands of `millrace`, and of the processes of a job. `snakemake` itself ends "
            "with 0 or 1; the code of a job stands in its log.",
            "",
            "| code | meaning |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def notebooks() -> str:
    """All notebooks, to read and to download."""
    parts = [
        "# Notebooks",
        "Load a checkpoint, predict, plot, for each system. Tests execute all of them.",
    ]
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            text = "".join(cell["source"]).strip()
            is_code = cell["cell_type"] == "code"
            parts.append(f"```python\n{text}\n```" if is_code else re.sub("^#", "##", text))
        parts.append(f"The notebook: {{download}}`{path.name} <../notebooks/{path.name}>`")
    return "\n\n".join(parts) + "\n"


def speed() -> str:
    """Tables of `make bench` and `make bench-gpu`, the newest first."""
    parts = [
        "# Speed",
        "What `make bench` measured, by commit and machine, and `make bench-gpu` where a GPU is named. Of "
        "CPUs: medians of CPU time on one thread, of "
        "variants that take turns; in brackets the interval in which the median of the ratio lies with "
        "95 %, or all ratios where there are few rounds. The limit is what the core does in large "
        "products and copies, measured in the same run. `make bench-compare OLD=… NEW=…` tells "
        "what changed beyond noise between two of the files `docs/results/cpu-…`.",
    ]
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("[cg]pu-*.json"))]
    for one in sorted(found, key=lambda one: one["date"], reverse=True):
        on = one["machine"]
        lines = [one["columns"], ["---"] * len(one["columns"])]
        lines += [row["cells"] for row in one["rows"]]
        if "gpu" in on:
            single, half = (on["products_tflops"][name] for name in ("float32", "bfloat16"))
            about = (
                f"`make bench-gpu`, medians by the wall, torch {on['torch']}: products {single} TF/s in "
                f"float32 and {half} in bfloat16, copies {on['copy_gb_s']} GB/s."
            )
        else:
            about = (
                f"{on['cores']} cores, 1 thread, Python {on['python']}, torch {on['torch']}, "
                f"neuraloperator {on['neuraloperator']}: products {on['gemm_gflops']} GF/s, copies "
                f"{on['copy_gb_s']} GB/s."
            )
        parts += [
            f"## {on.get('gpu') or on['cpu']}, commit {one['commit']}, {one['date']}",
            about,
            "\n".join(f"| {' | '.join(line)} |" for line in lines),
        ]
    if not found:
        parts.append("There are no results yet.")
    return "\n\n".join(parts) + "\n"


def messages() -> str:
    """All sentences with which something is refused, by the part of Millrace that says them."""
    parts = [
        "# Messages",
        "Sentences with which Millrace refuses something, so that the search finds them. … stands "
        "for what differs: a file, a line, a key, a number. A `ConfigError` is a mistake in the "
        "command or configuration (exit code 2), a `DataError` one in the data (65). Each names what "
        "was expected and what to do.",
    ]
    for path in sorted(LIBRARY.rglob("*.py")):
        found = list(dict.fromkeys(_messages(path)))
        if found:
            module = ".".join(path.relative_to(LIBRARY).with_suffix("").parts)
            rows = [f"- {kind}: {text}" for kind, text in found]
            parts += [f"## `millrace.{module}`", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _messages(path: Path) -> Iterator[tuple[str, str]]:
    """Kinds and sentences of the errors that a file raises."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
            continue
        if node.func.id in ERRORS:
            text = " ".join(_template(node.args[0]).split())
            if len(re.findall(r"[a-z]{2,}", text)) > 2:  # more than a variable
                yield node.func.id, _plain(text)


def _template(node: ast.expr) -> str:
    """A string with … for what is put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_template, node.values))
    if isinstance(node, ast.BinOp):
        return _template(node.left) + _template(node.right)
    return "…"


def python() -> str:
    """Modules that others may import."""
    head = "Python"
    about = (
        "What plug-ins use, and what helps to read the files of Millrace. Everything else is "
        "internal and may change; all modules are documented in their source."
    )
    parts = [f"{head}\n{'=' * len(head)}", about]
    for title, names in MODULES.items():
        parts.append(f"{title}\n{'-' * len(title)}")
        for name in names:
            full = f"``millrace.{name}``"
            parts += [f"{full}\n{'~' * len(full)}", f".. automodule:: millrace.{name}"]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Text of a docstring as Markdown: nothing in it is markup but code in backticks."""
    text = text.strip().replace("``", "`")
    pieces = re.split(r"(`[^`\n]*`)", text)
    pieces[::2] = [re.sub(r"([\\*_<>\[\]|#~$])", r"\\\1", piece) for piece in pieces[::2]]
    return "".join(pieces)


def _cell(text: str) -> str:
    return _plain(text).replace("\n", " ")

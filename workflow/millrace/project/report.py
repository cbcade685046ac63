"""Write the report: figures, scores and settings of all that there is in results/, in one HTML file.

It is Snakemake's report of the Snakefile in this folder, or else of the workflow itself. Nothing is run or
opened.
"""

import argparse
import contextlib
import re
import subprocess
import sys
from pathlib import Path

from millrace.cluster.facts import find_profile
from millrace.command_line import make_parser
from millrace.errors import ConfigError, DataError, ExitCode, UserError, exits_with_code
from millrace.files import output_errors
from millrace.home import snakefile
from millrace.processes import dying_with_this

_OWN = ("Snakefile", "snakefile", "workflow/Snakefile", "workflow/snakefile")


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Write the report; returns the exit code, that of a user's error if Snakemake refuses."""
    options = parser().parse_args(arguments)
    if options.output.suffix not in (".html", ".zip"):
        raise ConfigError(f"--output {options.output}: expected a name that ends in .html or .zip")
    command = [sys.executable, "-m", "snakemake", "--report", str(options.output)]
    if not any(Path(name).is_file() for name in _OWN):
        command += ["--snakefile", str(snakefile())]
    for key in ("profile", "configfile"):
        if given := getattr(options, key):
            command += [f"--{key}", *map(str, given if isinstance(given, list) else [given])]
    with output_errors(options.output):
        options.output.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=dying_with_this(),
    )
    if done.returncode:
        with contextlib.suppress(OSError):  # not empty
            options.output.parent.rmdir()
        raise _error(done.stdout)
    print(options.output)
    return ExitCode.OK


def _error(said: str) -> UserError:
    """What Snakemake said, as one sentence."""
    if missing := re.search(r"File (.*) marked for report but does not exist", said):
        return DataError(
            f"{missing[1]}: not there yet; run the workflow to its end first, or change `run` of the "
            "configuration to what is there"
        )
    # What comes before is about the progress.
    reason = " ".join(said.rpartition("Error:")[2].split())
    return ConfigError(f"snakemake --report: {reason or 'ended without a reason'}")


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    examples = ("", "--configfile my_site.yaml", "--output results/report.zip")
    made = make_parser("report", __doc__, *examples)
    add = made.add_argument
    text = "default: results/report.html; .zip keeps large figures in files of their own"
    add("--output", type=Path, default=Path("results/report.html"), metavar="FILE", help=text)
    text = "as for the run that is reported"
    add("--configfile", type=Path, nargs="+", metavar="FILE", help=text)
    add("--profile", type=find_profile, metavar="PROFILE", help="that of the run")
    return made

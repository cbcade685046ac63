"""The commands by which Snakemake's plugin ``cluster-generic`` uses PBS.

- ``python -m millrace.schedulers.pbs submit [option of qsub ...] JOBSCRIPT`` prints the id of the job.
- ``python -m millrace.schedulers.pbs status ID`` prints running, success or failed.
- ``python -m millrace.schedulers.pbs cancel ID...`` prints nothing.
"""

import argparse
import sys
from pathlib import Path

from millrace.errors import exits_with_code
from millrace.schedulers.pbs.records import Records


@exits_with_code
def main(arguments: list[str]) -> int:
    """Run one command, and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m millrace.schedulers.pbs", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    submit = commands.add_parser("submit", help="submit a job script of Snakemake")
    submit.add_argument("script", type=Path, metavar="JOBSCRIPT")
    commands.add_parser("status", help="print the state of a job").add_argument("id", metavar="ID")
    commands.add_parser("cancel", help="delete jobs").add_argument("ids", nargs="+", metavar="ID")
    options: list[str] = []
    if arguments[:1] == ["submit"]:  # options before the script are for qsub
        arguments, options = [arguments[0], *arguments[1:][-1:]], arguments[1:-1]
    known = parser.parse_args(arguments)
    records = Records()
    if known.command == "submit":
        print(records.submit(known.script, options))
    elif known.command == "status":
        print(records.status(known.id))
    else:
        records.cancel(known.ids)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Logger plugin of Snakemake: the jobs of a run as JSON, one a line, for ``millrace plan``."""

import json
from dataclasses import dataclass, field
from logging import LogRecord
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase


@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):
    """Options of the command line, with the prefix ``--logger-millrace-``."""

    path: str = field(default="", metadata={"help": "File that jobs are added to."})


class LogHandler(LogHandlerBase):
    """Adds each job that is to run to a file; what Snakemake says on the terminal stays as it is."""

    writes_to_stream = False
    writes_to_file = False
    has_filter = True  # whatever is to be quiet on the terminal
    has_formatter = True
    needs_rulegraph = False

    def emit(self, record: LogRecord) -> None:
        """Write rule, wildcards, files, threads and resources of a job."""
        path = getattr(self.settings, "path", None)
        if getattr(record, "event", None) != LogEvent.JOB_INFO or not path:
            return
        said = vars(record)
        job = {
            "rule": said["rule_name"],
            "wildcards": dict(said["wildcards"]),
            "input": list(said["input"]),
            "output": list(said["output"]),
            "benchmark": said["benchmark"],
            "threads": said["threads"],
            "resources": dict(said["resources"].items()),
        }
        with Path(path).open("a") as file:
            file.write(json.dumps(job, default=str) + "\n")

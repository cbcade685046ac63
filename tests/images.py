"""An image for the stand-in of Apptainer in tests/apptainer, which runs commands on this machine."""

import json
import os
import sys
from pathlib import Path

BIN = Path(__file__).parent / "apptainer"


class Image:
    """A file that stands for an image, and what was run in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text(json.dumps({"programs": [str(Path(sys.executable).parent)]}))

    @property
    def calls(self) -> list[dict]:
        """Options, command, node and directory of each `apptainer exec`."""
        calls = Path(f"{self.path}.calls")
        return [json.loads(line) for line in calls.read_text().splitlines()]

    @property
    def agents(self) -> list[dict]:
        """Those calls that started the ranks of a node."""
        return [call for call in self.calls if "millrace.launch.agent" in call["command"]]


def with_apptainer(path: str) -> str:
    """A PATH on which the stand-in is found."""
    return f"{BIN}{os.pathsep}{path}"

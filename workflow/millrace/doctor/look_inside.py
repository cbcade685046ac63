"""What Python finds in an image, as JSON.

The doctor passes the text of this file to the Python of the image, which may not see this library.
"""

import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def look(packages: list[str], paths: list[str]) -> dict[str, Any]:
    """Return versions of Python, packages and torch's CUDA, and which of the paths do not exist."""
    found = {
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in packages},
        "missing": [path for path in paths if not Path(path).exists()],
    }
    try:
        import torch

        return found | {"cuda": torch.version.cuda, "gpus": torch.cuda.device_count()}
    except (ImportError, OSError, RuntimeError) as error:  # libraries that do not fit the system
        return found | {"problem": f"torch cannot be imported: {error}"}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(look(*json.loads(sys.argv[1]))))

"""Where the workflow is that this library belongs to."""

from pathlib import Path

import millrace
from millrace.errors import ConfigError


def snakefile() -> Path:
    """The Snakefile of the checkout; raises `ConfigError` if the library was copied out of it."""
    found = Path(millrace.__file__).resolve().parents[2] / "Snakefile"
    if not found.is_file():
        raise ConfigError(
            f"{found}: no such file, so Millrace is installed without its workflow; install it from a "
            "checkout with `make setup`, or `pip install -e .` there"
        )
    return found

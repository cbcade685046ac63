"""Where the workflow lies that this library belongs to: rules, profiles, environments."""

from pathlib import Path

from millrace.errors import ConfigError

_LIBRARY = Path(__file__).parent
# A wheel brings what it needs of the checkout along, see setup.py.
_INSTALLED = _LIBRARY / "installed"
HOME = _INSTALLED if _INSTALLED.is_dir() else _LIBRARY.parents[1]
"""The folder of the Snakefile: the checkout, or its copy in an installed package."""


def snakefile() -> Path:
    """Return the Snakefile; raises `ConfigError` if the library was copied without its workflow."""
    found = HOME.resolve() / "Snakefile"
    if not found.is_file():
        raise ConfigError(
            f"{found}: no such file, so Millrace is installed without its workflow; install it with "
            "`pip install millrace-workflow`, or with `make setup` in a checkout"
        )
    return found

"""The image that jobs run in: what Snakemake and the launcher put before a command.

Snakemake runs the scripts of rules in the image. Those that start ranks stay outside, because ``srun`` and
``pbsdsh`` cannot be reached from inside: the launcher starts the agent of each node in the image, with the
same options.
"""

import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from millrace.errors import ConfigError
from millrace.files import output_errors

DEFINITION = "envs/millrace.def"
_BUILD = f"apptainer build millrace.sif {DEFINITION}"
# Without the variables of the host, ranks know neither their job nor its GPUs and deadline; in a process
# namespace of their own, nobody can tell who holds a run.
_HIDING = {"-e", "--cleanenv", "-C", "--containall", "-p", "--pid"}
_HOME = Path(".snakemake/millrace/home")
_LIBRARY = Path(__file__).parents[2]


def image_of(config: Mapping[str, Any]) -> str:
    """Return the path of the image that a configuration names.

    Raises `ConfigError` if it names none, there is no such file, or Snakemake cannot pass the path on.
    """
    image = config.get("container")
    if not image:
        raise ConfigError(
            "config: container: the profile says `software-deployment-method: apptainer`, and no image is "
            f"named; make one (`{_BUILD}`) and write `container: millrace.sif`"
        )
    image = str(image)
    if "://" in image or not re.fullmatch(r"[\w./+@=][\w./+@=-]*", image):
        raise ConfigError(
            f"config: container: {image!r}: expected the path of a file, of letters, digits and ./+@=-_; "
            f"make one of an image that is elsewhere: `apptainer build millrace.sif {image}`"
        )
    if not Path(image).exists():
        raise ConfigError(f"config: container: no file {image}; make one: `{_BUILD}`")
    return image


def shown(arguments: str, paths: Iterable[Path]) -> str:
    """Return options of ``apptainer exec``, as text for a shell: ``arguments``, and what jobs must see.

    That is the library, folders of ``PYTHONPATH`` and of plug-ins, the temporary directory of each node,
    the working directory, those of ``paths`` that exist outside of it, and where links in all these lead.
    Raises `ConfigError` if Apptainer cannot show one, or an argument hides what jobs need; `OutputError` if
    no home can be made.
    """
    try:
        words = shlex.split(arguments)
    except ValueError as error:
        raise ConfigError(f"apptainer-args: {error}, in {arguments!r}") from None
    if hiding := [word for word in words if word in _HIDING]:
        raise ConfigError(
            f"apptainer-args: {hiding[0]} hides the variables or processes of a job from its ranks; "
            "leave it out"
        )
    # Snakemake says that the working directory is the home, where libraries would leave their caches.
    home = _HOME.absolute()
    with output_errors(home):
        home.mkdir(parents=True, exist_ok=True)
    bound = [f"--bind {shlex.quote(str(path))}" for path in (Path.cwd(), *visible(paths))]
    return (
        f'--home {shlex.quote(str(home))} {arguments} {" ".join(bound)} --bind "${{TMPDIR:-/tmp}}"'
    )


def visible(paths: Iterable[Path]) -> list[Path]:
    """Return what to show in the image besides the working directory, each folder once, see `shown`."""
    here = Path.cwd()
    imported = [Path(entry) for entry in sys.path if Path(entry).is_dir()]
    own = [p for p in imported if not any(map(p.is_relative_to, (sys.prefix, sys.base_prefix)))]
    # The revision of the code is that of its repository.
    code = _LIBRARY.parent if (_LIBRARY.parent / ".git").exists() else _LIBRARY
    paths = [Path(path) for path in paths]
    links = [here.glob("*"), *(p.glob(below) for p in paths for below in ("*", "*/*"))]
    led_to = (_led_to(path) for path in chain.from_iterable(links) if path.is_symlink())
    given = [path for path in (code, *own, *paths, *led_to) if path.exists()]
    wanted = {place for path in given for place in (path.absolute(), path.resolve())}
    for path in (here, *wanted):
        if re.search("[:,]", str(path)):
            raise ConfigError(
                f"{path}: Apptainer cannot show a path with ':' or ',' to jobs in an image; rename it"
            )
    found: list[Path] = []
    for path in sorted(wanted):
        if not any(map(path.is_relative_to, (here, *found))):
            found.append(path)
    return found


def _led_to(link: Path) -> Path:
    """The folder to which a link leads, or that of the file; there may be thousands of files."""
    target = link.resolve()
    is_file = target.is_file() and len(target.parents) > 1
    return target.parent if is_file else target


def command(image: str, options: str) -> str:
    """Return what runs another command in the image, as text for a shell; ``options`` are of `shown`."""
    return f"apptainer exec {options} {image}"

"""Checks of the image that jobs run in: Apptainer, the file, and what is seen from inside."""

import json
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from millrace.cluster import Cluster
from millrace.doctor import look_inside
from millrace.doctor.checks import Answer, Check, ask
from millrace.doctor.environment import compare_with_lock, dependencies, oldest_python
from millrace.errors import ConfigError, UserError
from millrace.home import HOME
from millrace.launch.container import DEFINITION, command, image_of, shown
from millrace.plan import Plan
from millrace.schedulers.base import run_command
from millrace.yaml_files import read_files, read_yaml

_METHODS = ("software-deployment-method", "deployment-method", "deployment", "sdm")
_OLDEST = 1
# The first start on a parallel file system reads all of torch.
_PATIENCE_S = 300.0
_REBUILD = f"Make it anew: `apptainer build --force {{}} {DEFINITION}`."


def check_container(
    profile: Path, configfile: Path, cluster: Cluster | None
) -> tuple[list[Check], str | None]:
    """Check the image of a configuration from this machine, as jobs under the profile use it.

    Returns the checks, and what runs a command in the image, see `millrace.launch.container.command`: empty
    if jobs under the profile run on the host, None if the image cannot be used.
    """
    arguments = arguments_of(profile)
    if arguments is None:
        return [], ""
    checks = [_program()]
    try:
        described = read_files([configfile] if configfile.is_file() else [])
        image, outside = image_of(described), _outside(described)
        run = command(image, shown(arguments, outside))
    except UserError as error:
        remedy = "Until then, no job of the workflow starts; see profiles/README.md."
        return [*checks, Check.failed("image", str(error), remedy)], None
    checks.append(Check.ok("image", image))
    if not shutil.which("apptainer"):
        return checks, None
    there = [path for path in (Path.cwd(), HOME / "workflow", *outside) if path.exists()]
    answer = _look(run, there)
    try:
        seen: dict[str, Any] = json.loads(answer.out.splitlines()[-1])
    except (IndexError, ValueError):
        remedy = f"Try `{run} python -V`. {_REBUILD.format(image)}"
        return [*checks, Check.failed("Python in the image", answer.last_line, remedy)], None
    checks += [_packages(image, seen), _project(profile, seen)]
    return [*checks, _gpus(profile, arguments, cluster, seen)], run


def arguments_of(profile: Path) -> str | None:
    """Return the options of Apptainer in a profile whose jobs run in an image; None: on the host."""
    values: dict[str, Any] = {}
    for folder in (profile, profile.parent / "default"):  # whose keys win
        with suppress(OSError, ConfigError):  # Snakemake will say what is wrong
            values |= read_yaml(folder / "config.yaml")
    methods = [word for key in _METHODS for word in _words(values.get(key))]
    if "apptainer" in methods or values.get("use-apptainer") or values.get("use-singularity"):
        return str(values.get("apptainer-args") or values.get("singularity-args") or "")
    return None


def _words(value: Any) -> list[str]:
    return value.split() if isinstance(value, str) else list(value or [])


def _outside(described: dict[str, Any]) -> list[Path]:
    try:
        return Plan(described).outside()
    except ConfigError:
        return []  # Snakemake will say what is wrong


def _program() -> Check:
    name, said = "apptainer", ask("apptainer", "--version")
    version = re.search(r"(\d+)\.\d\S*", said.out)
    if said.code or version is None:
        remedy = "Load its module before Snakemake starts, or ask the cluster's support for it."
        return Check.failed(name, said.last_line, remedy)
    if int(version[1]) < _OLDEST:
        remedy = "Ask the cluster's support for a newer one: Snakemake refuses it."
        return Check.failed(name, f"{said.last_line}, older than {_OLDEST}.0", remedy)
    return Check.ok(name, said.last_line)


def _look(run: str, paths: Sequence[Path]) -> Answer:
    asked = json.dumps([dependencies(HOME), [*map(str, paths)]])
    words = ("/bin/bash", "-c", f'exec {run} python - "$1"', "bash", asked)
    text = Path(look_inside.__file__).read_text()
    done = run_command(*words, timeout_s=_PATIENCE_S, stdin=text)
    return Answer(done.returncode, done.stdout, done.stderr)


def _packages(image: str, seen: dict[str, Any]) -> Check:
    name, rebuild = "packages in the image", _REBUILD.format(image)
    if "problem" in seen:
        return Check.failed(name, seen["problem"], rebuild)
    python = tuple(int(part) for part in seen["python"].split(".")[:2])
    if python < (oldest := oldest_python(HOME)):
        expected = ".".join(map(str, oldest))
        return Check.failed(name, f"Python {seen['python']}, expected {expected} or newer", rebuild)
    missing, other = compare_with_lock(HOME, seen["versions"])
    if missing:
        return Check.failed(name, f"not installed: {', '.join(missing)}", rebuild)
    if other:
        judge = Check.failed if "torch" in other else Check.warning
        return judge(name, "; ".join(other.values()), rebuild)
    return Check.ok(name, f"Python {seen['python']}, {len(seen['versions'])} packages as locked")


def _project(profile: Path, seen: dict[str, Any]) -> Check:
    name = "files in the image"
    if seen["missing"]:
        remedy = (
            "Add `--bind` with their file system to `apptainer-args` in "
            f"{profile / 'config.yaml'}, or ask the cluster's support whether users may bind folders."
        )
        return Check.failed(name, f"not seen from inside: {', '.join(seen['missing'])}", remedy)
    return Check.ok(name, "the project, the code and the raw files are seen from inside")


def _gpus(profile: Path, arguments: str, cluster: Cluster | None, seen: dict[str, Any]) -> Check:
    name, here = "GPUs in the image", ask("nvidia-smi", "-L").code == 0
    given = {"--nv", "--nvccli", "--rocm"} & {*arguments.split()}
    wanted = here or (cluster is not None and any(one.gpus for one in cluster.node_types))
    if wanted and not given:
        remedy = f"Write `apptainer-args: --nv` in {profile / 'config.yaml'}."
        return Check.failed(name, "jobs have none there without --nv", remedy)
    if not here:
        return Check.not_applicable(
            name, "no GPU on this machine; checks inside jobs look at theirs"
        )
    if not seen.get("gpus"):
        detail = f"torch for CUDA {seen['cuda']} sees none, and nvidia-smi outside does"
        remedy = (
            "Make the image with a torch for the driver: `--build-arg TORCH_PIP_ARGS=...`, see "
            f"{DEFINITION}."
        )
        return Check.failed(name, detail, remedy)
    return Check.ok(name, f"{seen['gpus']}, by torch for CUDA {seen['cuda']}")

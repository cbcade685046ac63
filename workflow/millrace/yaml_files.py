"""YAML files as users write them: what YAML would read silently as something else is refused."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from millrace.errors import ConfigError, DataError, first_line
from millrace.input_files import check_file

DEFAULT = Path("config/config.yaml")
"""The configuration that Snakemake reads by itself."""
LARGEST = 1_000_000
"""Bytes of a configuration file."""
# YAML 1.1 reads 010 as 8, 1:30 as 90 and 1_0 as 10.
_ODD = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|[0-9]+(_[0-9_]+)+)")


def check_yaml(path: Path) -> None:
    """Refuse what a YAML file says twice, or says in a way that means something else than it seems.

    Raises `ConfigError` with file and line: a key that stands there twice in one block, a number such as
    010, 1:30 or 1_000, or a file that is no YAML or larger than `LARGEST`. Takes time and memory in
    proportion to the file, whatever its anchors stand for.
    """
    text = _text(path)
    compose = partial(yaml.compose, Loader=yaml.SafeLoader)
    nodes = [] if path.suffix == ".json" else [_made(path, compose, text)]  # JSON has none of it
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                name = str(key.value)
                if name in lines and name != "<<":
                    raise ConfigError(
                        f"{_place(path, key)}: the key {name!r} stands there twice, first in line "
                        f"{lines[name]}; the first would be dropped: remove one"
                    )
                lines[name] = key.start_mark.line + 1
                nodes += [key, value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif node.tag.endswith((":int", ":float")) and _ODD.fullmatch(node.value):
            number = _made(path, yaml.safe_load, node.value)
            raise ConfigError(
                f"{_place(path, node)}: YAML reads {node.value} as {number}: write {number} if that is "
                f"meant, or '{node.value}' in quotes for the text"
            )


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file; raises `ConfigError` as `check_yaml` does, or if it has no keys."""
    check_yaml(path)
    made = load_yaml(path)
    if not isinstance(made, dict):
        raise ConfigError(f"{path}: expected keys and values at its top level")
    return made


def load_yaml(path: Path) -> Any:
    """Content of a YAML file; raises `ConfigError` if it cannot be read, is none, or is too large."""
    return _made(path, yaml.safe_load, _text(path))


def read_files(files: Sequence[Path], values: Sequence[str] = ()) -> dict[str, Any]:
    """Read ``config/config.yaml``, if it is there, files laid over it, and last ``key=value`` pairs.

    Raises `ConfigError` if there is none, one cannot be read, or `check_yaml` refuses it.
    """
    found = [*([DEFAULT] if DEFAULT.is_file() else []), *files]
    if not found:
        raise ConfigError(f"no configuration: there is no {DEFAULT} here, and no file was named")
    made: dict[str, Any] = {}
    for file in found:
        made = merged(made, read_yaml(file))
    for pair in values:
        key, _, text = pair.partition("=")
        try:
            made = merged(made, {key: yaml.safe_load(text)})
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"--config {pair}: {first_line(error)}") from None
    return made


def merged(base: Any, over: Any) -> Any:
    """A configuration laid over another as Snakemake does: mappings key by key, all else replaced."""
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return over
    return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}


def _text(path: Path) -> str:
    try:
        check_file(path)
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path}: more than {LARGEST:,} bytes; is this a configuration?")
        return path.read_text(encoding="utf-8")
    except DataError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None


def _made(path: Path, make: Callable[[str], Any], text: str) -> Any:
    try:
        return make(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise ConfigError(f"{path}: not YAML: {told[:300]}") from None


def _place(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"

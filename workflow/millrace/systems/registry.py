"""The only registry: all systems, and by name their raw formats, kinds of samples and models.

Built-in systems are known from the start, those of installed packages by the entry points
``millrace.systems``, and those of the configuration's ``plugins:`` once `load_plugins` has read them. The
planner, the jobs and every rank load them alike.
"""

import importlib
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from millrace.config import nearest
from millrace.errors import ConfigError
from millrace.systems.base import Model, RawFormat, SampleKind, System, resolve

BUILT_IN = ("groundwater", "downscaling", "weather", "traffic")
ENTRY_POINTS = "millrace.systems"

loaded_plugins: dict[str, System] = {}
"""By file or module, as it was loaded."""


@cache
def installed_systems() -> dict[str, System]:
    """Systems of Millrace and of installed packages by name."""
    found: dict[str, System] = {}
    for name in BUILT_IN:
        _add(found, importlib.import_module(f"millrace.systems.{name}.system").SYSTEM, name)
    for point in sorted(entry_points(group=ENTRY_POINTS)):
        origin = f"entry point {point.name} = {point.value}"
        try:
            loaded = point.load()
        except Exception as error:
            raise ConfigError(f"{origin}: {_where(error)}") from error
        _add(found, loaded, origin)
    return found


def systems() -> dict[str, System]:
    """All systems by name."""
    return {**installed_systems(), **{system.name: system for system in loaded_plugins.values()}}


def formats() -> dict[str, RawFormat]:
    """Raw formats by name; the first is the default of a dataset."""
    return {one.name: one for system in systems().values() for one in system.formats}


def kinds() -> dict[str, SampleKind]:
    """Kinds of samples by name."""
    return {one.name: one for system in systems().values() for one in system.kinds}


def models() -> dict[str, Model]:
    """Models by name."""
    return {one.name: one for system in systems().values() for one in system.models}


def kind_of(model: str) -> SampleKind:
    """Kind of samples that a model takes; raises `ConfigError` with the nearest name for an unknown one."""
    return get_kind(_get(models(), model, "model").kind)


def get_kind(name: str) -> SampleKind:
    """Look up a kind of samples; raises `ConfigError` with the nearest name."""
    return _get(kinds(), name, "kind of samples")


def get_model(name: str) -> Any:
    """Look up the `ModelSpec` of a model; raises `ConfigError` with the nearest name."""
    return resolve(_get(models(), name, "model").spec)


def import_ahead(definition: Mapping[str, Any]) -> None:
    """Import what the built-in model of an experiment needs, if it has one, for processes forked later."""
    found = models().get(definition.get("model", {}).get("name"))
    if found is not None:
        resolve(found.spec)
        resolve(get_kind(found.kind).dataset)


def raw_format(dataset: Mapping[str, Any]) -> RawFormat:
    """Format of a dataset's raw files, by its block in the configuration."""
    known = formats()
    return known[dataset.get("format", next(iter(known)))]


def recognised(names: Sequence[str], source: Path, option: str) -> str:
    """Name of the only format among some whose files are in a directory, by their names.

    Raises `ConfigError` that says which ``option`` names the format, if there are several or none.
    """
    if len(names) == 1:
        return names[0]
    known = formats()
    found = [name for name in names if any(any(source.glob(p)) for p in known[name].files)]
    if len(found) != 1:
        what = f"files of {' and of '.join(found)}" if found else "no files of a known format"
        raise ConfigError(
            f"--source: {source} holds {what}; name one with {option}: {', '.join(found or names)}"
        )
    return found[0]


def load_plugins(plugins: Iterable[str], folders: Iterable[Path] = ()) -> list[str]:
    """Import systems from outside; returns their names with absolute paths, for jobs in other folders.

    Plug-ins are files (``my_system.py``) or modules (``my_package.system``), each with one `System` under
    the name ``SYSTEM``. The folder of a file, or of its package, is added to the end of the path for
    imports, so that it can import what lies beside it. Files that are not in the working directory are
    looked for in ``folders``. Raises `ConfigError` if one cannot be found or imported, with its file and
    line, or takes a name that is taken.
    """
    names = [_absolute(name, [Path(), *folders]) for name in plugins]
    for name in names:
        if name not in loaded_plugins:
            system = getattr(_import(name), "SYSTEM", None)
            if not isinstance(system, System):
                raise ConfigError(
                    f"plugins: {name}: expected a millrace.systems.base.System under the name SYSTEM"
                )
            if systems().get(system.name) is not system:  # its package may be installed as well
                _add(systems(), system, name)
            loaded_plugins[name] = system
    return names


def plugin(name: str) -> System:
    """System of a plug-in, by its name as `load_plugins` returned it."""
    return loaded_plugins[name]


def _absolute(name: str, folders: Sequence[Path]) -> str:
    if not name.endswith(".py"):
        return name
    found = [path for folder in folders if (path := folder / name).is_file()]
    return str([*found, Path(name)][0].absolute())


def _import(name: str) -> ModuleType:
    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            raise ConfigError(
                f"plugins: no file {name}; give its path from the working directory, or from the "
                "folder of the Snakefile or of the configuration"
            )
        folder, name = path.parent, path.stem
        while (folder / "__init__.py").is_file():  # a file of a package is imported as such
            folder, name = folder.parent, f"{folder.name}.{name}"
        # At the end: nothing that the workflow itself imports may come from there.
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    try:
        module = importlib.import_module(name)
    except Exception as error:
        raise ConfigError(f"plugins: {name}: {_where(error)}") from error
    if path.suffix == ".py" and Path(str(module.__file__)).resolve() != path.resolve():
        raise ConfigError(
            f"plugins: {path}: there is another module {name!r}, {module.__file__}; rename the file"
        )
    return module


def _where(error: Exception) -> str:
    """An error in somebody else's file: what it is, and the file and line that caused it."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_theirs(f.filename)]
    place = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
    return f"{place}{type(error).__name__}: {error}"


def _is_theirs(filename: str) -> bool:
    return (
        not filename.startswith("<")
        and Path(filename) != Path(__file__)
        and ("importlib" not in Path(filename).parts)
    )


def _add(found: dict[str, System], system: System, origin: str) -> None:
    """Add a system; names of its parts must be new."""
    for part in ("formats", "kinds", "models"):
        taken = {one.name: other for other in found.values() for one in getattr(other, part)}
        for one in getattr(system, part):
            if one.name in taken:
                raise ConfigError(
                    f"plugins: {origin}: the name {one.name!r} of its {part} is taken by the system "
                    f"{taken[one.name].name!r}; choose another"
                )
    if system.name in found:
        raise ConfigError(f"plugins: {origin}: there is a system named {system.name!r} already")
    found[system.name] = system


def _get(known: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in known:
        raise ConfigError(f"no {what} named {name!r}; {nearest(name, known)}")
    return known[name]

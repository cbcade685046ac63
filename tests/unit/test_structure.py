"""Each file has its room: import contracts name every module, and no two files import each other."""

import ast
import functools
import re
import tomllib
from graphlib import TopologicalSorter

from plans import ROOT

LIBRARY = ROOT / "workflow/millrace"
ROOMS = ("groundwater", "downscaling", "weather", "traffic")


def module_of(path):
    parts = path.relative_to(LIBRARY.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path, modules):
    """Modules of the library that a file imports."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module


@functools.cache
def imports():
    paths = {module_of(path): path for path in LIBRARY.rglob("*.py")}
    return {name: set(imports_of(path, paths)) for name, path in paths.items()}


def layers():
    [contract] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    return [name.strip() for line in contract["layers"] for name in line.split("|")]


def test_every_module_is_in_one_layer() -> None:
    packages = {"millrace", "millrace.systems"}  # which import nothing of the library
    for name in imports():
        within = [one for one in layers() if name == one or name.startswith(f"{one}.")]
        assert len(within) == (name not in packages), f"{name}: name it once in pyproject.toml"
    for name in packages:
        assert not imports().get(name), name


def test_every_layer_is_there() -> None:
    assert all(any(f"{n}.".startswith(f"{one}.") for n in imports()) for one in layers())


def test_no_files_import_each_other() -> None:
    graph = {name: found - {name} for name, found in imports().items()}
    # Raises CycleError, which names the files of a circle.
    assert set(TopologicalSorter(graph).static_order()) == graph.keys()


def test_what_belongs_to_one_field_is_in_its_room() -> None:
    """A file that only files of one room use belongs into that room."""
    found = imports()
    users = {name: {user for user in found if name in found[user]} for name in found}
    misplaced = {}
    for name, by in users.items():
        if name.startswith("millrace.systems") or not by:
            continue
        rooms = {user.split(".")[2] if user.startswith("millrace.systems.") else "" for user in by}
        if len(rooms) == 1 and "" not in rooms:
            misplaced[name] = rooms.pop()
    assert not misplaced


def test_systems_do_not_name_each_other() -> None:
    for room in ROOMS:
        for path in (LIBRARY / "systems" / room).rglob("*.py"):
            others = [
                other for other in ROOMS if other != room and f"systems.{other}" in path.read_text()
            ]
            assert not others, f"{path} names {others}"


def test_tests_use_public_names_alone() -> None:
    """What tests need is public, or injected: a private name can be changed without a look at them."""
    library = "\n".join(path.read_text() for path in LIBRARY.rglob("*.py"))
    private = set(re.findall(r"(?:\bdef |\bself\.|^)(_[A-Za-z]\w+)", library, flags=re.M))
    used = {}
    # Those under fixtures made files with the version that they are named after.
    for path in {*(ROOT / "tests").rglob("*.py")} - {*(ROOT / "tests/fixtures").rglob("*.py")}:
        text = path.read_text()
        names = re.findall(r"(?<!self)\.(_[A-Za-z]\w*)", text)
        names += re.findall(r"setattr\(.*[\".](_[A-Za-z]\w*)\"", text)
        if found := private & {*names}:
            used[path.name] = found
    assert not used

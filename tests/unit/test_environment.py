"""The lock, pyproject.toml, the conda files, the rules and the running environment agree."""

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import grimp
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from millrace.systems.registry import formats, kinds, models

ROOT = Path(__file__).parents[2]
ENVS = sorted((ROOT / "envs").glob("*.yaml"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Installed by those who need them; the others by `make setup`.
NOT_IN_LOCK = {"grib", "remote"}
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}
CUDA = re.compile(r"nvidia-|cuda-|triton$")
# The launcher starts this module in a process of its own, which no import shows.
STARTED_BY = {
    "millrace.launch.launcher": "millrace.launch.train",
    "millrace.doctor.inside": "millrace.doctor.worker",
}


def read_lock(name: str = "requirements.lock") -> dict[str, str]:
    lines = (ROOT / "envs" / name).read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", pin) for pin in pins), "exact pins only"
    names = [canonicalize_name(pin.split("==")[0]) for pin in pins]
    assert len(set(names)) == len(names), "a package is pinned twice"
    return dict(zip(names, (pin.split("==")[1] for pin in pins), strict=True))


LOCK = read_lock()
# Installed by `make demo-sumo` alone, beside the others.
SUMO = read_lock("sumo.lock")


def conda_pins(path: Path) -> dict[str, str]:
    """Distribution name -> version, of the conda and the pip part; pip and python left out."""
    pins = {}
    for entry in yaml.safe_load(path.read_text())["dependencies"]:
        for pin in entry["pip"] if isinstance(entry, dict) else [entry]:
            name, _, version = re.sub(r"\s", "", pin).partition("=")
            pins[canonicalize_name(CONDA_NAMES.get(name, name))] = version.lstrip("=")
    pins.pop("pip", None)
    return {name: version for name, version in pins.items() if name != "python"}


@pytest.mark.parametrize(
    "line",
    [
        *PROJECT["dependencies"],
        *(line for name in sorted(EXTRAS.keys() - NOT_IN_LOCK) for line in EXTRAS[name]),
        *PYPROJECT["build-system"]["requires"],
    ],
)
def test_lock_admits_requirement(line: str):
    requirement = Requirement(line)
    assert LOCK[canonicalize_name(requirement.name)] in requirement.specifier


def test_lock_holds_nothing_of_extras_that_users_install():
    names = {
        canonicalize_name(Requirement(line).name) for name in NOT_IN_LOCK for line in EXTRAS[name]
    }
    assert not names & LOCK.keys()


def test_lock_is_complete():
    missing = set()
    for name in LOCK:
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # test_running_environment_is_the_lock reports it
        for need in map(Requirement, lines):
            if (need.marker and not need.marker.evaluate()) or CUDA.match(need.name):
                continue
            version = LOCK.get(canonicalize_name(need.name))
            if version is None or not need.specifier.contains(version, prereleases=True):
                missing.add(f"{name} needs {need}")
    assert not missing


def test_lock_leaves_the_cuda_build_to_the_machine():
    assert [name for name in LOCK if CUDA.match(name)] == []


@pytest.mark.skipif(
    Path(sys.prefix).resolve() != ROOT / ".venv",
    reason="runs outside the environment of make setup",
)
def test_running_environment_is_the_lock():
    installed = {
        canonicalize_name(d.name): d.version.partition("+")[0]
        for d in importlib.metadata.distributions()
    }
    assert {name: installed.get(name) for name in LOCK} == LOCK


@pytest.mark.parametrize("path", ENVS, ids=lambda path: path.name)
def test_conda_pins_agree_with_lock(path: Path):
    pins, lock = conda_pins(path), LOCK | (SUMO if path.name == "sumo.yaml" else {})
    assert pins == {name: lock.get(name) for name in pins}


IMAGES = (ROOT / "envs/Containerfile", ROOT / "envs/millrace.def")


def installed_by(text: str) -> list[str]:
    """What pip is told, step by step, with the same words for the same things."""
    text = re.sub(r"/opt/millrace/requirements[.]lock|[$][(]LOCK[)]", "LOCK", text)
    text = re.sub(r"[$]TORCH_PIP_ARGS|{{ TORCH_PIP_ARGS }}|[$][(]TORCH_PIP_ARGS[)]", "ARGS", text)
    text = text.replace('"$(TORCH)"', "TORCH").replace("\"$(grep '^torch==' LOCK)\"", "TORCH")
    return re.findall(r"(?:pip install --no-cache-dir|@[$][(]PIP[)]) (.*)", text)


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_image_installs_the_lock_as_make_setup_does(path: Path):
    makefile, text = (ROOT / "Makefile").read_text(), path.read_text()
    assert "TORCH ?= $(shell grep '^torch==' $(LOCK))" in makefile
    by_make = installed_by(makefile.partition("\n$(STAMP):")[2])
    assert installed_by(text) == by_make[:2] == ["ARGS TORCH", "-r LOCK"]
    assert re.search(r"requirements\.lock /opt/millrace/", text)
    [base] = re.findall("^from:? (.*)$", text, re.MULTILINE | re.IGNORECASE)
    pythons = {re.search("python =(.*)", env.read_text())[1] for env in ENVS}
    assert {f"python:{version}-slim" for version in pythons} == {base}


def test_sumo_is_installed_by_its_own_target_alone():
    assert not SUMO.keys() & LOCK.keys()
    assert SUMO.items() <= conda_pins(ROOT / "envs/sumo.yaml").items()
    # Its data come in a package of the same version.
    assert SUMO["eclipse-sumo"] == SUMO["sumo-data"]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^SUMO_LOCK := envs/sumo\.lock$", makefile, flags=re.MULTILINE)
    assert makefile.count("-r $(SUMO_LOCK)") == 1


@pytest.mark.skipif(
    importlib.util.find_spec("sumo") is None, reason="SUMO is not installed: make demo-sumo does it"
)
def test_sumo_needs_no_more_than_its_lock():
    for name in SUMO:
        for need in map(Requirement, importlib.metadata.requires(name) or []):
            if need.marker is None or need.marker.evaluate():
                assert (SUMO | LOCK)[canonicalize_name(need.name)] in need.specifier, need


@pytest.mark.parametrize("path", ENVS, ids=lambda path: path.name)
def test_conda_file_is_reproducible(path: Path):
    content = yaml.safe_load(path.read_text())
    assert content["channels"] == ["conda-forge", "nodefaults"]
    (python,) = [d for d in content["dependencies"] if str(d).startswith("python ")]
    assert python.split("=")[1] in SpecifierSet(PROJECT["requires-python"])


@cache
def import_graph() -> grimp.ImportGraph:
    return grimp.build_graph(
        "millrace",
        include_external_packages=True,
        exclude_type_checking_imports=True,
        cache_dir=None,
    )


def third_party(modules: set[str]) -> set[str]:
    """Distributions that the modules import, directly and through millrace."""
    reached = set()
    while modules - reached:
        new = modules - reached
        reached |= new
        for module in new & import_graph().modules:
            modules = modules | import_graph().find_modules_directly_imported_by(module)
            modules = modules | {module.rpartition(".")[0], STARTED_BY.get(module, "")} - {""}
    packages = {name.partition(".")[0] for name in reached} - sys.stdlib_module_names
    owners = importlib.metadata.packages_distributions()
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}

    def owner(package: str) -> str:
        # A wheel that is one compiled module does not say which; it has the name of its module. A
        # namespace, such as `google`, has several.
        names = sorted(canonicalize_name(one) for one in owners.get(package, [package]))
        return next((one for one in names if one in declared), names[0])

    # What a CUDA build of torch brings along is imported where that is.
    found = {owner(name) for name in packages - {"millrace", "snakemake"}}
    return {name for name in found if not CUDA.match(name)}


def script_imports(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= {node.module} | (names & import_graph().modules)
    return modules


def named_by_systems(rule: str, env: str) -> set[str]:
    """Modules that a rule imports because a system names them."""
    samples = [kind.dataset for kind in kinds().values()]
    trained = samples + [model.spec for model in models().values()]
    references = {
        "simulate_raw": [
            one.simulate for one in formats().values() if f"{one.environment}.yaml" == env
        ],
        "extract_samples": [one.extraction.run for one in kinds().values() if one.extraction],
        "extract_part": [one.extraction.run_part for one in kinds().values() if one.extraction],
        "gather_samples": [one.extraction.gather for one in kinds().values() if one.extraction],
        "train_segment": trained,
        "train_race": trained,
        "measure_throughput": trained,
        "evaluate_run": trained + [kind.evaluation for kind in kinds().values()],
        "evaluate_ensemble": trained + [kind.evaluation for kind in kinds().values()],
        "predict": trained + [kind.application for kind in kinds().values()],
    }
    return {one.split(":")[0] for one in references.get(rule, []) if one is not None}


def rule_imports(env: str) -> dict[str, set[str]]:
    """Rule name -> modules it starts from, for the rules that name this conda file."""
    rules = {}
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        for name, body in re.findall(
            r"^(?:rule|checkpoint) (\w+):\n((?:[ \t].*\n|\n)+)", path.read_text(), re.MULTILINE
        ):
            conda = re.search(r"\bconda:\s*.*?([\w.-]+)\.yaml|\bconda:\s*lambda", body)
            # The environment of a simulator is its format's.
            if conda is None or (conda[1] and f"{conda[1]}.yaml" != env):
                continue
            named = named_by_systems(name, env)
            if conda[1] is None and not named:
                continue
            rules[name] = named
            for script in re.findall(r"\bscript:\s*\"(.*?)\"", body):
                rules[name] |= script_imports(path.parent / script)
    return rules


@pytest.mark.parametrize("path", ENVS, ids=lambda path: path.name)
def test_conda_file_has_what_its_rules_import(path: Path):
    rules = rule_imports(path.name)
    assert rules, f"no rule uses envs/{path.name}"
    pins = conda_pins(path)
    missing = {name: third_party(modules) - pins.keys() for name, modules in rules.items()}
    assert missing == {name: set() for name in rules}


def test_what_starts_ranks_outside_of_the_image_needs_no_torch():
    rules = ("train_segment", "measure_throughput", "preflight_layout")
    scripts = [ROOT / f"workflow/scripts/{rule}.py" for rule in rules]
    modules = sorted(set().union(*map(script_imports, scripts)))
    code = f"import sys; sys.modules.update(torch=None, neuralop=None); import {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_library_declares_what_it_imports():
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    loaded_by_pytest = {"millrace.checking.pytest_plugin"}
    used = third_party(
        {m for m in import_graph().modules if m.startswith("millrace")} - loaded_by_pytest
    )
    assert used - declared == set()

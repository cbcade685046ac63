"""What is checked: models of systems in small experiments, with samples that are made for it."""

import importlib.util
import shutil
import sysconfig
import tempfile
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import millrace
from millrace.checking.case import Case, ContractError, NotTried
from millrace.checking.contracts import OF_MODELS
from millrace.checking.ranks import RanksError
from millrace.checking.sample_contracts import OF_SAMPLES
from millrace.config import nearest
from millrace.data.extraction import prepare, simulate
from millrace.errors import ConfigError, UserError
from millrace.plan import Plan
from millrace.systems import registry
from millrace.systems.base import Block, dataset_names
from millrace.yaml_files import read_yaml

Contract = Callable[[Case], None]

_LIBRARY = Path(millrace.__file__).parent
_TRAIN = {"epochs": 1, "global_batch": 4, "learning_rate": 3e-3}


class Subject:
    """An experiment and the contracts that it is held to."""

    def __init__(self, plan: Plan, name: str, contracts: Sequence[Contract]) -> None:
        self.name, self.contracts = name, contracts
        self._plan = plan

    @cached_property
    def case(self) -> Case:
        """The experiment with its samples, which are made at the first use."""
        directory = Path(tempfile.mkdtemp(prefix="millrace_check_"))
        weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        plan, kind = self._plan, self._plan.kind(self.name)
        experiment = plan.experiments[self.name]
        names, several = dataset_names(experiment), not isinstance(experiment["dataset"], str)

        def made(source: Path, block: Block, folder: str) -> dict[str, str]:
            (directory / folder).mkdir(exist_ok=True)
            files = prepare(kind, source, directory / folder, block, experiment["model"])
            return {role: str(path) for role, path in files.items()}

        blocks = [plan.datasets[name] for name in names]
        sources = [_raw_files(plan.datasets[name], directory / f"{name}_raw") for name in names]
        parts = list(map(made, sources, blocks, names))
        files = {role: [part[role] for part in parts] for role in parts[0]}
        once_more = kind.extracts(registry.raw_format(blocks[0]))
        return Case(
            plan.definition(self.name),
            files if several else parts[0],
            directory,
            plan.plugins,
            blocks[0],
            (lambda block: made(sources[0], block, "again")) if once_more else None,
        )

    def failure(self, contract: Contract) -> str | None:
        """How a contract does not hold, in a sentence; None: it holds.

        Raises `NotTried` if the model is not held to it.
        """
        try:
            contract(self.case)
        except NotTried:
            raise
        except (ContractError, RanksError, UserError) as error:
            return str(error)
        except Exception as error:  # whatever somebody else's code raises
            return f"{_place(error)}: {type(error).__name__}: {error}"
        return None


def find_subjects(
    names: Sequence[str], config: Path | None = None, only: Sequence[str] = ()
) -> list[Subject]:
    """List what is checked; samples are made later.

    ``names`` are files or modules of plug-ins, or known models or systems. Experiments are those of the
    configuration ``config``, or else the examples of the systems, which have the names of their models;
    ``only`` limits the check to some experiments and contracts. Raises `ConfigError` if a name is unknown,
    a plug-in cannot be imported, or an experiment or example is wrong.
    """
    plugins: list[str] = []
    models: list[str] = []
    kinds: list[str] = []
    for name in names:
        if name in registry.models():
            models.append(name)
            continue
        if name not in registry.systems():
            plugins += _loaded(name)
        system = registry.systems().get(name) or registry.plugin(plugins[-1])
        models += [model.name for model in system.models]
        kinds += [kind.name for kind in system.kinds]
    blocks = _examples(models) if config is None else _read(config)
    experiments = blocks["experiments"]
    blocks["run"] = {"experiments": list(experiments), "layouts": ["n1_gpu1"], "seeds": [0]}
    blocks["plugins"] = [*blocks.get("plugins", []), *plugins]
    plan = Plan(blocks)
    contracts: dict[str, list[Contract]] = {}
    for name, experiment in experiments.items():
        if experiment["model"]["name"] in models:
            kind = plan.kind(name).name
            contracts[name] = [*(OF_SAMPLES if kind in kinds else ()), *OF_MODELS]
            kinds = [one for one in kinds if one != kind]  # its samples are checked once
    if not contracts:
        raise ConfigError(
            f"{' '.join(names)}: there is no model, or no experiment with one, to check"
        )
    functions = {one.__name__ for several in contracts.values() for one in several}
    if unknown := [name for name in only if name not in {*contracts, *functions}]:
        raise ConfigError(
            f"--only {unknown[0]}: no such experiment or contract; "
            f"{nearest(unknown[0], [*contracts, *functions])}"
        )
    wanted = functions & {*only} or functions
    return [
        Subject(plan, name, [one for one in several if one.__name__ in wanted])
        for name, several in contracts.items()
        if name in only or not contracts.keys() & {*only}
    ]


def _loaded(name: str) -> list[str]:
    module = name.partition(".")[0]
    if not name.endswith(".py") and importlib.util.find_spec(module) is None:
        known = [*registry.models(), *registry.systems()]
        raise ConfigError(
            f"no file, module, model or system named {name!r}; {nearest(name, known)}"
        )
    return registry.load_plugins([name])


def _examples(models: Sequence[str]) -> dict[str, Any]:
    """Configuration of the examples of models and of their kinds of samples."""
    made: dict[str, Any] = {"datasets": {}, "experiments": {}}
    for name in models:
        model, kind = registry.models()[name], registry.kind_of(name)
        if not kind.example:
            raise ConfigError(
                f"samples of {kind.name} have no example to check {name} on: give their SampleKind an "
                "`example` with the blocks `dataset` and `data`, or your own experiment by --config FILE"
            )
        made["datasets"][kind.name] = kind.example["dataset"]
        made["experiments"][name] = {
            "dataset": kind.name,
            "data": kind.example["data"],
            "model": {"name": name, **model.example},
            "train": _TRAIN,
        }
    return made


def _read(path: Path) -> dict[str, Any]:
    config = read_yaml(path)
    if not isinstance(config.get("experiments"), dict):
        raise ConfigError(f"--config {path}: expected a mapping with `datasets` and `experiments`")
    return config


def _raw_files(dataset: Mapping[str, Any], directory: Path) -> Path:
    if dataset["source"] != "demo":
        return Path(dataset["source"])
    simulate(registry.raw_format(dataset), dataset.get("demo", {}), directory)
    return directory


def _place(error: Exception) -> str:
    """File and line of an error: the innermost of somebody's own code, not of a library that it calls."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_own(Path(frame.filename))]
    return "{0.filename}:{0.lineno}".format((own or frames)[-1])


def _is_own(path: Path) -> bool:
    if path.is_relative_to(_LIBRARY):
        return path.is_relative_to(_LIBRARY / "systems") and path.parent != _LIBRARY / "systems"
    return not any(path.is_relative_to(sysconfig.get_path(key)) for key in ("stdlib", "purelib"))

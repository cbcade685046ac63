"""Opening the samples of an experiment: files by role, a kind of samples, one dataset or several."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from millrace.config import Settings
from millrace.data.joint import open_joint
from millrace.data.normalisation import Normalisation
from millrace.systems.base import resolve
from millrace.systems.registry import get_kind


class DatasetClass(Protocol):
    """A class that opens samples of one kind."""

    config_type: type[Settings]
    """Of the experiment's section ``data``."""

    roles: tuple[str, ...]
    """Roles of its sample files, in the order of its arguments."""

    def __call__(
        self, *files: Path, config: Any, device: torch.device, statistics: Normalisation | None
    ) -> Any:
        """Open the files of the roles; files of the last roles may be missing."""


Files = Mapping[str, str | Path | Sequence[str | Path]]
"""Sample files by role; a list holds the files of several datasets, in the same order for each role."""


LOCAL_COPIES = "MILLRACE_LOCAL_COPIES"
"""Environment variable: a JSON file of sample files and their copies on this node."""


def open_dataset(
    kind: str,
    files: Files,
    config: Mapping[str, Any],
    device: torch.device,
    statistics: Normalisation | None = None,
) -> Any:
    """Open samples of a kind with an experiment's section ``data``.

    ``statistics`` are those of other data, on which a model was trained; by default the statistics of the
    files are used. Files of several datasets make one `JointDataset`. Copies on this node, see
    `millrace.launch.local_copies`, are opened instead of the files. Raises `ConfigError` if the kind is
    unknown or the section does not fit it.
    """
    opened = dataset_class(kind)
    section: Any = opened.config_type.parse(config, "data")

    def open_one(part: Mapping[str, Path], normalisation: Normalisation | None) -> Any:
        given = (_nearest(part[role]) for role in opened.roles if role in part)
        return opened(*given, config=section, device=device, statistics=normalisation)

    parts = datasets_of(files)
    return open_one(parts[0], statistics) if len(parts) == 1 else open_joint(open_one, parts)


def _nearest(path: Path) -> Path:
    """The copy of a sample file on this node, or the file itself."""
    if LOCAL_COPIES not in os.environ:
        return path
    return Path(json.loads(Path(os.environ[LOCAL_COPIES]).read_text()).get(str(path), path))


def dataset_class(kind: str) -> DatasetClass:
    """Class that opens samples of a kind; raises `ConfigError` for an unknown one."""
    found: DatasetClass = resolve(get_kind(kind).dataset)
    return found


def datasets_of(files: Files) -> list[dict[str, Path]]:
    """Sample files of each dataset, by role."""
    columns = [[value] if isinstance(value, str | Path) else value for value in files.values()]
    return [dict(zip(files, map(Path, paths), strict=True)) for paths in zip(*columns, strict=True)]

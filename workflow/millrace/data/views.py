"""Kinds of samples by name: what each reads, and how it is opened."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from millrace.config import from_mapping
from millrace.data.joint import open_joint
from millrace.data.normalisation import Normalisation
from millrace.errors import ConfigError
from millrace.imported import Imported


class ViewClass(Protocol):
    """A view as it is opened by name."""

    config_type: type
    """Dataclass of the experiment's ``data:`` block."""

    roles: tuple[str, ...]
    """Of its sample files, in the order in which it takes them."""

    def __call__(self, *arguments: Any, statistics: Normalisation | None) -> Any:
        """Open (files by role, config, device)."""


VIEWS: Imported[ViewClass] = Imported(
    {
        "patches": "millrace.data.windows:PatchView",
        "planes": "millrace.data.plane_windows:PlaneView",
        "blocks": "millrace.data.block_view:BlockView",
        "weather": "millrace.data.weather_view:WeatherView",
        "scenarios": "millrace.data.scenario_view:ScenarioView",
    }
)

Files = Mapping[str, str | Path | Sequence[str | Path]]
"""Sample files by role; several of a role are those of several datasets, in one order."""


def open_view(
    kind: str,
    files: Files,
    config: Mapping[str, Any],
    device: torch.device,
    statistics: Normalisation | None = None,
) -> Any:
    """Open samples of a kind with an experiment's ``data:`` block.

    ``statistics`` are those of other data, which a model was trained on; by default those of the files.
    Files of several datasets give one `JointView`.

    Raises
    ------
    ConfigError
        Unknown kind, or the block does not fit it.
    """
    if kind not in VIEWS:
        raise ConfigError(f"view {kind!r}: expected one of {', '.join(VIEWS)}")
    view = VIEWS[kind]
    block: Any = from_mapping(view.config_type, config, "data")

    def open_one(part: Mapping[str, Path], normalisation: Normalisation | None) -> Any:
        given = (part[role] for role in view.roles)
        return view(*given, block, device, statistics=normalisation)

    parts = datasets_of(files)
    return open_one(parts[0], statistics) if len(parts) == 1 else open_joint(open_one, parts)


def datasets_of(files: Files) -> list[dict[str, Path]]:
    """Sample files of each dataset, by role."""
    columns = [[value] if isinstance(value, str | Path) else value for value in files.values()]
    return [dict(zip(files, map(Path, paths), strict=True)) for paths in zip(*columns, strict=True)]

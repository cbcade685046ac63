"""Kinds of samples by name: what each reads, and how it is opened."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from millrace.config import from_mapping
from millrace.data.block_view import BlockView, BlockViewConfig
from millrace.data.joint import open_joint
from millrace.data.normalisation import Normalisation
from millrace.data.plane_windows import PlaneView, PlaneWindowConfig
from millrace.data.scenario_view import ScenarioConfig, ScenarioView
from millrace.data.weather_view import WeatherView, WeatherWindowConfig
from millrace.data.windows import PatchView, WindowConfig
from millrace.errors import ConfigError


@dataclass(frozen=True)
class ViewKind:
    """How samples of one kind are opened."""

    config: type
    """Dataclass of the experiment's ``data:`` block."""
    open: Callable[[Mapping[str, Path], Any, torch.device, Normalisation | None], Any]
    """(files by role, config, device, statistics) -> view."""


def _open_patches(
    files: Mapping[str, Path],
    config: WindowConfig,
    device: torch.device,
    statistics: Normalisation | None,
) -> PatchView:
    return PatchView(files["patches"], files["graph"], config, device, statistics=statistics)


def _open_planes(
    files: Mapping[str, Path],
    config: PlaneWindowConfig,
    device: torch.device,
    statistics: Normalisation | None,
) -> PlaneView:
    return PlaneView(files["planes"], config, device, statistics=statistics)


def _open_blocks(
    files: Mapping[str, Path],
    config: BlockViewConfig,
    device: torch.device,
    statistics: Normalisation | None,
) -> BlockView:
    return BlockView(files["blocks"], config, device, statistics=statistics)


def _open_scenarios(
    files: Mapping[str, Path],
    config: ScenarioConfig,
    device: torch.device,
    statistics: Normalisation | None,
) -> ScenarioView:
    del statistics  # metres are metres; what has to agree is the vocabulary
    return ScenarioView(files["scenarios"], config, device)


def _open_weather(
    files: Mapping[str, Path],
    config: WeatherWindowConfig,
    device: torch.device,
    statistics: Normalisation | None,
) -> WeatherView:
    return WeatherView(files["weather"], config, device, statistics=statistics)


VIEWS = {
    "patches": ViewKind(WindowConfig, _open_patches),
    "planes": ViewKind(PlaneWindowConfig, _open_planes),
    "blocks": ViewKind(BlockViewConfig, _open_blocks),
    "weather": ViewKind(WeatherWindowConfig, _open_weather),
    "scenarios": ViewKind(ScenarioConfig, _open_scenarios),
}


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
    block: Any = from_mapping(view.config, config, "data")

    def open_one(part: Mapping[str, Path], normalisation: Normalisation | None) -> Any:
        return view.open(part, block, device, normalisation)

    parts = datasets_of(files)
    return open_one(parts[0], statistics) if len(parts) == 1 else open_joint(open_one, parts)


def datasets_of(files: Files) -> list[dict[str, Path]]:
    """Sample files of each dataset, by role."""
    columns = [[value] if isinstance(value, str | Path) else value for value in files.values()]
    return [dict(zip(files, map(Path, paths), strict=True)) for paths in zip(*columns, strict=True)]

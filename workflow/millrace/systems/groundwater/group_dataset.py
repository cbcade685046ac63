"""Windows in time over the groups of an HDF5 file: patches or planes, each with a geometry of its own.

A sample is ``input_steps`` states of one group and the ``output_steps`` states that follow. Windows are
slices of series that are read once; all windows of a batch come from one group and share its geometry.
Everything that a batch holds is normalised with statistics of the training period.

Shape suffixes: N points of the group (core first, then ghost), K core points, B samples, T time steps,
V variables, F forcings, C input channels, D dimensions of space.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import torch
from torch import Tensor

from millrace.data.device import to_device
from millrace.data.hdf5 import open_checked
from millrace.data.normalisation import Normalisation
from millrace.data.window_dataset import CACHE_BYTES, WindowDataset
from millrace.errors import ConfigError
from millrace.systems.groundwater.hdf5_parts import group_names
from millrace.systems.groundwater.units import UNITS
from millrace.systems.groundwater.variance import WEIGHTED, variance_weights


@dataclass(frozen=True)
class WindowBatch(ABC):
    """Windows of one group, normalised."""

    x_NBC: Tensor
    """Input channels."""
    last_KBV: Tensor
    """Last given state of the core points: the persistence forecast."""
    y_KBTV: Tensor
    """States to predict on the core points."""
    scale_V: Tensor
    """Typical one-step change of each variable."""
    variance_weight_KV: Tensor
    """Weights of the core points in the loss, see `millrace.systems.groundwater.variance`."""
    weight_B: Tensor
    """1 for a sample that counts, 0 for one that only keeps the ranks in step."""
    geometry: Any

    @property
    @abstractmethod
    def past_NBTV(self) -> Tensor:
        """Past states, which are part of the input; core points come first."""


@dataclass(frozen=True)
class GroupSeries:
    """The whole series of a group, normalised; a window of it is one piece of memory."""

    state_TVN: Tensor
    forcing_TFN: Tensor
    """Values (0 where none is given), then masks: F is twice the number of forcings."""
    constant: Tensor
    """Input channels that do not change in time, which come first."""
    variance_weight_KV: Tensor
    geometry: Any


class GroupDataset(WindowDataset):
    """Windows over the groups of an HDF5 file.

    Parameters
    ----------
    source : Path
        The file.
    config : dataclass
        What a sample holds.
    device : torch.device
        Where batches are made; groups stay there once read.
    cache_bytes : int
        Groups used least recently are dropped beyond this.
    statistics : Normalisation, optional
        Of the data that a model was trained on, to predict other data with it; by default those of the
        training period in ``source``. With it there is no training, and splits may be closer than a
        window is long.

    Raises
    ------
    ConfigError
        A variable or forcing is not in the file, or a window is longer than the gap between the splits,
        which would let it straddle two of them.
    """

    schema: ClassVar[str]
    forcing_keys: ClassVar[tuple[str, str]]
    """Attribute that names the forcings of the file, and their prefix among its statistics."""
    batch_type: ClassVar[type[WindowBatch]]

    def __init__(
        self,
        source: Path,
        config: Any,
        device: torch.device | None = None,
        cache_bytes: int = CACHE_BYTES,
        statistics: Normalisation | None = None,
    ) -> None:
        self._path = source
        attribute, prefix = self.forcing_keys
        with open_checked(source, self.schema) as file:
            self._group_names = group_names(file)
            names = list(file.attrs["variables"])
            # Files of earlier versions have no units: theirs are those of `UNITS`.
            units = list(file.attrs.get("units", [])) or [UNITS[name] for name in names]
            self.units = dict(zip(names, units, strict=True))
            self._columns = _columns(config.variables, names, "variables", source)
            present = list(file.attrs[attribute])
            forcings = getattr(config, "forcings", tuple(present))
            self._forcing_columns = _columns(forcings, present, "forcings", source)
            stats = {name: values[()] for name, values in file["stats"].items()}
            time, split = file["time"][()], file["split"][()]
            self.digest = str(file.attrs["digest"])
            corners_ND, cut = self._outline(file, config)
            self.preparation = {
                **cut,
                "clip_negative_concentration": bool(file.attrs.get("clip_negative_concentration")),
                "units": self.units,
            }
            if "missing" in file.attrs:
                self.preparation["missing"] = json.loads(file.attrs["missing"])
            """How the file was made of raw files; with ``normalisation`` all that other data takes."""
        self.weighted_variable = WEIGHTED if WEIGHTED in config.variables else None
        normalisation = statistics or Normalisation(
            variables=config.variables,
            mean_V=stats["obs_mean"][self._columns],
            std_V=stats["obs_std"][self._columns],
            increment_std_V=stats["increment_std"][self._columns],
            forcings=forcings,
            forcing_mean_F=stats[f"{prefix}_mean"][self._forcing_columns],
            forcing_std_F=stats[f"{prefix}_std"][self._forcing_columns],
            low_D=corners_ND.min(axis=0),
            high_D=corners_ND.max(axis=0),
        )
        is_foreign = statistics is not None
        super().__init__(
            source, config, time, split, normalisation, is_foreign, device, cache_bytes
        )

    @abstractmethod
    def _outline(self, file: h5py.File, config: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Set ``core_nodes`` and ``ghost_nodes``.

        Returns points that span the domain, and, by kind of samples, how groups were cut from raw files.
        """

    @abstractmethod
    def _inputs(self, series: GroupSeries, starts: np.ndarray) -> tuple[dict[str, Any], Tensor]:
        """Inputs of windows by their names in the batch, and their past states, [N, B, T, V]."""

    def at_times(self, group: int, starts: np.ndarray) -> Any:
        """Windows of a group that begin at the given time indices, whatever their split."""
        series, config = self._series(group), self.config
        starts, n_core = np.asarray(starts), len(self.core_nodes[group])
        inputs, past_NBTV = self._inputs(series, starts)
        ends = starts + config.input_steps
        return self.batch_type(
            **inputs,
            last_KBV=past_NBTV[:n_core, :, -1],
            y_KBTV=windows(series.state_TVN[:, :, :n_core], ends, config.output_steps),
            scale_V=self._scale_V,
            variance_weight_KV=series.variance_weight_KV,
            weight_B=torch.ones(len(starts), device=self.device),
            geometry=series.geometry,
        )

    def replace_past(self, batch: Any, rows: np.ndarray, past_RKTV: Tensor) -> None:
        """Replace the past states of the core points in the samples ``rows``, int64[R], of `at_times`.

        Ghost points keep theirs: what other groups forecast in the same training is not known here.
        """
        row_R, past_RKTV = to_device(rows, self.device), to_device(past_RKTV, self.device)
        batch.last_KBV[:, row_R] = past_RKTV[:, :, -1].swapaxes(0, 1)
        self._replace_inputs(batch, row_R, past_RKTV)

    @abstractmethod
    def _replace_inputs(self, batch: Any, row_R: Tensor, past_RKTV: Tensor) -> None:
        """Replace past states of the core points among the input channels."""

    def core_states(self, group: int, steps: np.ndarray) -> Tensor:
        """States of a group's core points at time indices of any shape S, [K, *S, V]."""
        index = to_device(np.asarray(steps), self.device)
        core_TVK = self._series(group).state_TVN[:, :, : len(self.core_nodes[group])]
        return core_TVK[index].movedim(-1, 0)

    def _normalised(
        self,
        group: int,
        value_TNV: np.ndarray,
        forcing_TNF: np.ndarray,
        mask_TNF: np.ndarray,
        constant: np.ndarray,
        geometry: Any,
    ) -> GroupSeries:
        state_TVN = self._tensor(((value_TNV - self.mean) / self.std).swapaxes(1, 2))
        core_TVK = state_TVN[slice(*self.split_ranges[0]), :, : len(self.core_nodes[group])]
        # Where no boundary condition is given, the value is the mean (0 after normalisation) and the
        # mask says so: 0 m would be a head like any other.
        stats, mask_TNF = self.normalisation, mask_TNF.astype(np.float32)
        forcing_TNF = (forcing_TNF - stats.forcing_mean_F) / stats.forcing_std_F * mask_TNF
        return GroupSeries(
            state_TVN=state_TVN,
            forcing_TFN=self._tensor(np.concatenate([forcing_TNF, mask_TNF], 2).swapaxes(1, 2)),
            constant=self._tensor(constant),
            variance_weight_KV=variance_weights(core_TVK.permute(2, 0, 1), self.config.variables),
            geometry=geometry,
        )


def windows(
    series_TCN: Tensor, first_B: np.ndarray, steps: int, out_BRN: Tensor | None = None
) -> Tensor:
    """Cut ``steps`` states from a series, beginning with each first one, [N, B, steps, C].

    ``out_BRN``, with R = steps C, is where to put them, such as a slice of channels. Samples lie one after
    the other, and the points of a channel side by side.
    """
    from_WTCN = series_TCN.unfold(0, steps, 1).movedim(-1, 1)
    if out_BRN is None:
        out_BRN = series_TCN.new_empty(len(first_B), *from_WTCN.shape[1:]).flatten(1, 2)
    to_BTCN = out_BRN.unflatten(1, from_WTCN.shape[1:3])
    if series_TCN.device.type == "cpu":
        # Piece by piece, as NumPy does it in half the time of indexing in torch.
        pieces, to = from_WTCN.numpy(), to_BTCN.numpy()
        for sample, first in enumerate(first_B.tolist()):
            to[sample] = pieces[first]
    else:
        to_BTCN.copy_(from_WTCN[to_device(first_B, series_TCN.device)])
    return to_BTCN.permute(3, 0, 1, 2)


def _columns(wanted: Sequence[str], present: Sequence[str], key: str, path: Path) -> list[int]:
    for name in wanted:
        if name not in present:
            raise ConfigError(f"data.{key}: {path} has no {name!r}; it has {', '.join(present)}")
    return [present.index(name) for name in wanted]

"""Reader of planes that were cut into sequences: one folder a plane, one NumPy file an array.

    <base>/plane_00/input_geom.npy               [Q, A * M, 3]     T, S, Z of the boundary points
                    input_data.npy               [Q, A * M, 2]     head, mass concentration
                    latent_geom.npy              [Q, A, H, W, 3]   T, S, Z of the cells
                    latent_features.npy          [Q, A, H, W, F]   F = 4: X, Y, head, mass concentration;
                                                                   F = 7: T, S, Z before them
                    output_latent_geom.npy       [Q, A, H, W, 3]   the same for the A steps that follow
                    output_latent_features.npy   [Q, A, H, W, F]   F = 2: head, mass concentration; 4; 7

Sequences overlap, so most values are stored four times; here they are put together to series again. NaN
or -999 stands for "no value". Arrays are mapped, not loaded.

Shape suffixes: Q sequences, A steps of an input or output (alpha), H x W cells, M boundary points.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from millrace.data.hdf5 import create
from millrace.data.split import SplitConfig, time_split
from millrace.data.validity import Screening
from millrace.errors import DataError
from millrace.systems.base import Progress
from millrace.systems.groundwater.planes import BOUNDARY, PlaneWriter, Section
from millrace.systems.groundwater.units import POSSIBLE

MISSING = -999.0
"""What the folders hold where there is no value."""

_FILES = {  # axes, and how many values the last may have
    "input_geom": (3, (3,)),
    "input_data": (3, (2,)),
    "latent_geom": (5, (3,)),
    "latent_features": (5, (4, 7)),
    "output_latent_geom": (5, (3,)),
    "output_latent_features": (5, (2, 4, 7)),
}
_SLAB = 64  # steps of a chunk


def convert_plane_folders(
    base: Path, output: Path, section: None, split: SplitConfig, progress: Progress | None = None
) -> None:
    """Write ``planes.h5``, which appears when it is complete, from folders ``plane_00`` ... in ``base``.

    Boundary values exist for input steps only, so the last ones of the series have none. There are no
    settings in ``section``: all is as in the folders. ``split`` divides the time steps; ``progress`` is
    called with (planes done, all). Raises `DataError` if a file is missing or of another shape, sequences
    do not join, or planes differ in time.
    """
    folders = sorted(path for path in Path(base).glob("plane_*") if path.is_dir())
    if not folders:
        raise DataError(f"{base}: no plane_00, plane_01, ...; expected one folder a plane")
    planes = [_Plane.open(folder) for folder in folders]
    time = planes[0].time
    for plane in planes:
        if not np.array_equal(plane.time, time):
            raise DataError(f"{plane.folder}: its times are not those of {folders[0].name}")
    ranges = time_split(len(time), split)
    digest = hashlib.sha256()
    with create(output) as file:
        writer = PlaneWriter(file, time, ranges, list(BOUNDARY))
        for number, plane in enumerate(planes):
            section_of_plane = plane.section()
            writer.add_plane(section_of_plane, _SLAB)
            plane.write(writer, number, digest.update, section_of_plane.mask_HW)
            if progress is not None:
                progress(number + 1, len(planes))
        writer.finish(digest.hexdigest(), {"split": split.model_dump()}, ["m", "mg/L"])


@dataclass(frozen=True, eq=False)
class _Plane:
    folder: Path
    arrays: dict[str, NDArray]
    time: NDArray[np.float64]
    start_Q: NDArray[np.int64]
    """Time index at which each sequence begins."""

    @classmethod
    def open(cls, folder: Path) -> "_Plane":
        arrays = {name: _map(folder / f"{name}.npy", *what) for name, what in _FILES.items()}
        shape, points = arrays["latent_geom"].shape[:4], arrays["input_geom"].shape[:2]
        for name, array in arrays.items():
            expected = points if name.startswith("input") else shape
            if array.shape[:-1] != expected:
                raise DataError(
                    f"{folder / name}.npy: leading axes {list(array.shape[:-1])}; expected "
                    f"{list(expected)} as in the others"
                )
        if points[0] != shape[0] or points[1] % shape[1] or not points[1]:
            raise DataError(
                f"{folder / 'input_geom.npy'}: shape {list(arrays['input_geom'].shape)} does not fit "
                f"{shape[0]} sequences of {shape[1]} steps; expected [{shape[0]}, {shape[1]} * points, 3]"
            )
        steps = [arrays[name][:, :, 0, 0, 0] for name in ("latent_geom", "output_latent_geom")]
        time_QT = np.concatenate(steps, axis=1).astype(np.float64)
        return cls(folder, arrays, *_join(folder, time_QT))

    @property
    def alpha(self) -> int:
        return self.arrays["latent_geom"].shape[1]

    def section(self) -> Section:
        """Geometry, with the cells that have a value at all times as the valid ones."""
        coords_HW2 = np.asarray(self.arrays["latent_geom"][0, 0, ..., 1:], dtype=np.float64)
        if not _given(coords_HW2).all():
            raise DataError(
                f"{self.folder / 'latent_geom.npy'}: cells without coordinates; expected S and Z everywhere"
            )
        mask_HW = np.ones(coords_HW2.shape[:2], dtype=bool)
        for name in ("latent_features", "output_latent_features"):
            for values_AHWF in self.arrays[name]:
                mask_HW &= _given(values_AHWF[..., -2:]).all(axis=(0, 3))
        if not mask_HW.any():
            raise DataError(f"{self.folder}: no cell has values at all times")
        n_points = self.arrays["input_geom"].shape[1] // self.alpha
        bc_coords_M2 = np.asarray(self.arrays["input_geom"][0, :n_points, 1:], dtype=np.float64)
        return Section(
            self._endpoints(coords_HW2[..., 0], mask_HW), coords_HW2, mask_HW, bc_coords_M2
        )

    def _endpoints(self, s_HW: NDArray, mask_HW: NDArray) -> NDArray[np.float64]:
        """X, Y at both ends: X and Y are linear in S."""
        xy_HW2 = np.asarray(self.arrays["latent_features"][0, 0, ..., -4:-2], dtype=np.float64)
        known = mask_HW & _given(xy_HW2).all(axis=2)
        slope, *_ = np.linalg.lstsq(
            np.c_[s_HW[known], np.ones(known.sum())], xy_HW2[known], rcond=None
        )
        return np.array([[0.0, 1.0], [s_HW.max(), 1.0]]) @ slope

    def write(
        self,
        writer: PlaneWriter,
        number: int,
        digest: Callable[[bytes], None],
        mask_HW: NDArray[np.bool_],
    ) -> None:
        """Write each step once; raises `DataError` if there are no-data values other than `MISSING`."""
        fields = {name: Screening(possible=POSSIBLE.get(name)) for name in BOUNDARY}
        given = {name: Screening(possible=POSSIBLE.get(name)) for name in BOUNDARY}
        pieces, bc_pieces = [], []
        alpha, written, bc_written = self.alpha, 0, 0
        for name in ("latent_geom", "input_geom"):
            digest(np.ascontiguousarray(self.arrays[name][0]).tobytes())
        for q in np.argsort(self.start_Q, kind="stable"):
            start = int(self.start_Q[q])
            states = [
                self.arrays[f"{side}latent_features"][q][..., -2:] for side in ("", "output_")
            ]
            field_THWV = np.concatenate(states)[written - start :]
            value_AMC = self.arrays["input_data"][q].reshape(alpha, -1, len(BOUNDARY))
            skipped = max(0, bc_written - start)
            for values in (field_THWV, value_AMC):
                digest(np.ascontiguousarray(values).tobytes())
            if len(field_THWV):
                writer.write_field(number, written, field_THWV)
                pieces.append(written)
                for v, screening in enumerate(fields.values()):
                    screening.add(np.where(mask_HW, field_THWV[..., v], np.nan))
            if skipped < alpha:
                values = value_AMC[skipped:]
                writer.write_boundary(number, start + skipped, values, _given(values))
                bc_pieces.append(start + skipped)
                for v, screening in enumerate(given.values()):
                    screening.add(np.where(_given(values[..., v]), values[..., v], np.nan))
            written, bc_written = max(written, start + 2 * alpha), max(bc_written, start + alpha)
        self._refuse(fields, pieces, mask_HW.shape, "latent_features", "cell")
        n_points = (self.arrays["input_data"].shape[1] // alpha,)
        self._refuse(given, bc_pieces, n_points, "input_data", "boundary point")

    def _refuse(
        self,
        screenings: Mapping[str, Screening],
        pieces: Sequence[int],
        shape: tuple[int, ...],
        array: str,
        place: str,
    ) -> None:
        """Refuse no-data values of a series whose pieces begin at some steps, with ``shape`` at a step."""
        for name, screening in screenings.items():
            for suspect in screening.suspects():
                step, *at = np.unravel_index(suspect.index, (len(self.time), *shape))
                when = self.time[pieces[suspect.piece] + step]
                here = f" at {place} {', '.join(map(str, at))} (from 0) at {when:g} d"
                raise DataError(
                    f"{self.folder / array}.npy: {suspect.sentence(name, '', here)}; NaN and {MISSING:g} "
                    "stand for no value"
                )


def _map(path: Path, n_axes: int, last: tuple[int, ...]) -> NDArray:
    try:
        array = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; expected {', '.join(_FILES)} in the folder"
        ) from None
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a whole .npy file ({error}); copy it again") from error
    numeric = np.issubdtype(array.dtype, np.floating)
    if array.ndim != n_axes or array.shape[-1] not in last or not array.size or not numeric:
        sizes = " or ".join(map(str, last))
        raise DataError(
            f"{path}: {array.dtype} of shape {list(array.shape)}; expected floating-point numbers with "
            f"{n_axes} axes, the last of {sizes}"
        )
    return array


def _join(
    folder: Path, time_QT: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Times of the series, and the index at which each sequence begins."""
    if not _given(time_QT).all():
        raise DataError(f"{folder / 'latent_geom.npy'}: sequences without times")
    time = np.unique(time_QT)
    start_Q = np.searchsorted(time, time_QT[:, 0])
    length = time_QT.shape[1]
    apart = np.diff(np.sort(start_Q))
    following = np.minimum(start_Q[:, None] + np.arange(length), len(time) - 1)
    if (time[following] != time_QT).any() or (apart > length).any():
        raise DataError(
            f"{folder / 'latent_geom.npy'}: expected sequences of consecutive steps, in T, S, Z order, "
            "that join to one series"
        )
    return time, start_Q


def _given(values: NDArray) -> NDArray[np.bool_]:
    return np.isfinite(values) & (values != MISSING)

"""Reader of planes that were cut into sequences: one folder a plane, one NumPy file an array.

    <base>/plane_00/input_geom.npy               [Q, A * M, 3]     T, S, Z of the boundary points
                    input_data.npy               [Q, A * M, 2]     head, mass concentration
                    latent_geom.npy              [Q, A, H, W, 3]   T, S, Z of the cells
                    latent_features.npy          [Q, A, H, W, F]   F = 4: X, Y, head, mass concentration;
                                                                   F = 7: T, S, Z before them
                    output_latent_geom.npy       [Q, A, H, W, 3]   the same for the A steps that follow
                    output_latent_features.npy   [Q, A, H, W, F]   F = 2: head, mass concentration; 4; 7

Sequences overlap, so most values are stored four times; here they are put together to series again, if all
copies of a value are the same and all arrays tell the same times and places. NaN or -999 stands for "no
value". Arrays are mapped, not loaded.

Shape suffixes: Q sequences, A steps of an input or output (alpha), H x W cells, M boundary points.
"""

import hashlib
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from millrace.data.account import Account, count_steps
from millrace.data.hdf5 import create
from millrace.data.split import SplitConfig, time_split
from millrace.data.validity import Screening
from millrace.errors import DataError, first_line
from millrace.input_files import check_file
from millrace.systems.base import Progress
from millrace.systems.groundwater.planes import BOUNDARY, PlaneWriter, Section
from millrace.systems.groundwater.screening import odd_concentrations, odd_heads, other_unit
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
_SAME = 1e-6  # relative: what single precision makes of a number
_SAME_LABEL = 1e-3  # m or d
_STRAIGHT = 0.01  # of the length of a section


def convert_plane_folders(
    base: Path, output: Path, section: None, split: SplitConfig, progress: Progress | None = None
) -> None:
    """Write ``planes.h5``, which appears when it is complete, from folders ``plane_00`` ... in ``base``.

    Boundary values exist for input steps only, so the last ones of the series have none. There are no
    settings in ``section``: all is as in the folders. ``split`` divides the time steps; ``progress`` is
    called with (planes done, all). `samples.json` beside ``output`` says what was read, kept and left out.
    Raises `DataError` if a file is missing or of another shape, sequences do not join, arrays contradict
    each other, or planes differ in time or shape.
    """
    folders = sorted(path for path in Path(base).glob("plane_*") if path.is_dir())
    if not folders:
        raise DataError(f"{base}: no plane_00, plane_01, ...; expected one folder a plane")
    planes = [_Plane.open(folder) for folder in folders]
    time = planes[0].time
    for plane in planes:
        if not np.array_equal(plane.time, time):
            raise DataError(f"{plane.folder}: its times are not those of {folders[0]}")
        if plane.shape != planes[0].shape:
            raise DataError(
                f"{plane.folder}: {list(plane.shape)} cells; expected {list(planes[0].shape)} as in "
                f"{folders[0]}"
            )
    ranges, account = time_split(len(time), split), Account()
    count_steps(account, "time steps", ranges)
    others = [path for path in Path(base).iterdir() if path not in folders]
    account.keep("folders", len(folders))
    account.leave_out("folders", "not named plane_XX", sum(path.is_dir() for path in others))
    digest = hashlib.sha256()
    with create(output) as file:
        writer = PlaneWriter(file, time, ranges, list(BOUNDARY))
        for number, plane in enumerate(planes):
            section_of_plane = plane.section(account)
            writer.add_plane(section_of_plane, _SLAB)
            plane.write(writer, number, digest.update, section_of_plane.mask_HW)
            if progress is not None:
                progress(number + 1, len(planes))
        writer.finish(digest.hexdigest(), {"split": split.model_dump()}, ["m", "mg/L"])
    account.write(output.with_name("samples.json"))


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

    @property
    def shape(self) -> tuple[int, int]:
        """Cells along S and Z."""
        height, width = self.arrays["latent_geom"].shape[2:4]
        return height, width

    def section(self, account: Account) -> Section:
        """Geometry, with the cells that have a value at all times as the valid ones.

        Raises `DataError` if arrays contradict each other, or it is no grid along S and Z.
        """
        coords_HW2 = np.asarray(self.arrays["latent_geom"][0, 0, ..., 1:], dtype=np.float64)
        if not _given(coords_HW2).all():
            raise self._error(
                "latent_geom", "cells without coordinates; expected S and Z everywhere"
            )
        for axis in (0, 1):
            steps = np.diff(coords_HW2[..., axis], axis=axis)
            if not ((steps > 0).all() or (steps < 0).all()):
                raise self._error(
                    "latent_geom",
                    f"{'SZ'[axis]} does not grow or fall along axis {axis + 2} (from 0); expected cells "
                    "along S, then along Z, in order",
                )
        ever_HW, mask_HW = np.zeros(self.shape, dtype=bool), np.ones(self.shape, dtype=bool)
        for q in range(len(self.start_Q)):
            self._check_labels(q, coords_HW2)
            for name in ("latent_features", "output_latent_features"):
                given_AHW = _given(self.arrays[name][q][..., -2:]).all(axis=3)
                mask_HW &= given_AHW.all(axis=0)
                ever_HW |= given_AHW.any(axis=0)
        if not mask_HW.any():
            raise DataError(f"{self.folder}: no cell has values at all times")
        account.keep("cells", mask_HW.sum())
        account.leave_out("cells", "without values at any time", (~ever_HW).sum())
        account.leave_out("cells", "without values at some times", (ever_HW & ~mask_HW).sum())
        return Section(
            self._endpoints(coords_HW2[..., 0], mask_HW),
            coords_HW2,
            mask_HW,
            self._boundary(coords_HW2, account),
        )

    def _error(self, array: str, message: str) -> DataError:
        return DataError(f"{self.folder / array}.npy: {message}")

    def _check_labels(self, q: int, coords_HW2: NDArray[np.float64]) -> None:
        """Refuse a sequence if the times and places of its arrays are not those of the plane."""
        first = self.arrays["latent_features"][0, 0, ..., -4:-2]
        points = self.arrays["input_geom"].shape[1] // self.alpha
        labels: list[tuple[str, NDArray, str, NDArray]] = []
        for side, start in (("", self.start_Q[q]), ("output_", self.start_Q[q] + self.alpha)):
            time_A11 = self.time[start : start + self.alpha, None, None]
            parts = {f"{side}latent_geom": slice(0, 3), f"{side}latent_features": slice(-7, -4)}
            for name, columns in parts.items():
                values = self.arrays[name][q]
                if (geometry := values[..., columns]).shape[-1] == 3:
                    for axis, expected in enumerate((time_A11, *np.moveaxis(coords_HW2, 2, 0))):
                        labels.append((name, geometry[..., axis], "TSZ"[axis], expected))
                if name.endswith("features") and values.shape[-1] >= 4:
                    labels += [
                        (name, values[..., axis - 4], "XY"[axis], first[..., axis])
                        for axis in (0, 1)
                    ]
        place = self.arrays["input_geom"][0, :points]
        boundary_AM3 = self.arrays["input_geom"][q].reshape(self.alpha, points, 3)
        time_A1 = self.time[self.start_Q[q] :][: self.alpha, None]
        for axis, expected in enumerate((time_A1, place[:, 1], place[:, 2])):
            labels.append(("input_geom", boundary_AM3[..., axis], "TSZ"[axis], expected))
        for name, found, label, wanted in labels:
            expected = np.broadcast_to(wanted, found.shape)
            # Points may be filled up to one number of all sections, features where there is no value.
            either = np.logical_or if name.endswith("features") else np.logical_and
            free: NDArray[np.bool_] = either(~_given(expected), ~_given(found))
            same = np.isclose(found, expected, rtol=_SAME, atol=_SAME_LABEL) | free
            if not same.all():
                step, *at = (int(i) for i in np.unravel_index(np.argmin(same), same.shape))
                raise self._error(
                    name,
                    f"{label} is {found[step, *at]:.10g} in sequence {q}, step {step}, at {at} (from 0), "
                    f"but {expected[step, *at]:.10g} elsewhere in the folder; expected one time of a step "
                    "and one place of a cell or boundary point",
                )

    @property
    def is_point_M(self) -> NDArray[np.bool_]:
        """Which boundary points have a place: others fill up the arrays."""
        n_points = self.arrays["input_geom"].shape[1] // self.alpha
        is_given_M2 = _given(self.arrays["input_geom"][0, :n_points, 1:])
        return is_given_M2[:, 0] & is_given_M2[:, 1]

    def _boundary(self, coords_HW2: NDArray[np.float64], account: Account) -> NDArray[np.float64]:
        """S, Z of the boundary points, which have to lie about the section."""
        n_points, is_point_M = len(self.is_point_M), self.is_point_M
        account.keep("boundary points", is_point_M.sum())
        account.leave_out(
            "boundary points", "without a place, and without values", (~is_point_M).sum()
        )
        place_M2 = np.asarray(self.arrays["input_geom"][0, :n_points, 1:], dtype=np.float64)
        low, high = coords_HW2.min(axis=(0, 1)), coords_HW2.max(axis=(0, 1))
        margin = high - low
        away_M = is_point_M & ((place_M2 < low - margin) | (place_M2 > high + margin)).any(axis=1)
        if away_M.any():
            point = int(np.argmax(away_M))
            s, z = place_M2[point]
            raise self._error(
                "input_geom",
                f"boundary point {point} (from 0) at S = {s:g}, Z = {z:g} m; expected it at the section, "
                f"S {low[0]:g} to {high[0]:g} m, Z {low[1]:g} to {high[1]:g} m",
            )
        for q, value_AMC in enumerate(self.arrays["input_data"]):
            given_AM = _given(value_AMC).any(axis=1).reshape(self.alpha, n_points)
            if (given_AM & ~is_point_M).any():
                point = int(np.argmax(given_AM.any(axis=0) & ~is_point_M))
                raise self._error(
                    "input_geom",
                    f"boundary point {point} (from 0) has no S and Z, but a value in sequence {q} of "
                    "input_data.npy; expected its place",
                )
        return place_M2[is_point_M]

    def _endpoints(self, s_HW: NDArray, mask_HW: NDArray) -> NDArray[np.float64]:
        """X, Y at both ends: X and Y are linear in S."""
        xy_HW2 = np.asarray(self.arrays["latent_features"][0, 0, ..., -4:-2], dtype=np.float64)
        known = mask_HW & _given(xy_HW2).all(axis=2)
        if not known.any():
            raise self._error("latent_features", "no X and Y where there are values; expected them")
        terms = np.c_[s_HW[known], np.ones(known.sum())]
        slope, *_ = np.linalg.lstsq(terms, xy_HW2[known], rcond=None)
        off = np.abs(terms @ slope - xy_HW2[known]).max()
        length = np.hypot(*slope[0]) * np.ptp(s_HW[known])
        if off > _STRAIGHT * length + _SAME * np.abs(xy_HW2[known]).max():
            raise self._error(
                "latent_features",
                f"X and Y are up to {off:.3g} m beside a straight line along S; expected X, Y, head and "
                "mass concentration as the last values, and a straight section",
            )
        if abs(np.hypot(*slope[0]) - 1) > _STRAIGHT:
            print(
                f"WARNING: {self.folder}: X and Y change by {np.hypot(*slope[0]):.3g} m for each m of S; "
                "expected S as the distance along the section in m",
                file=sys.stderr,
            )
        return np.array([[0.0, 1.0], [s_HW.max(), 1.0]]) @ slope

    def write(
        self,
        writer: PlaneWriter,
        number: int,
        digest: Callable[[bytes], None],
        mask_HW: NDArray[np.bool_],
    ) -> None:
        """Write each step once.

        Raises `DataError` if copies of a step differ, or there are no-data values other than `MISSING`.
        """
        fields = {name: Screening(possible=POSSIBLE.get(name)) for name in BOUNDARY}
        given = {name: Screening(possible=POSSIBLE.get(name)) for name in BOUNDARY}
        states = _Steps(self, "latent_features", "output_latent_features")
        boundary = _Steps(self, "input_data")
        alpha, last_HWV, is_point_M = self.alpha, None, self.is_point_M
        for name in ("latent_geom", "input_geom"):
            digest(np.ascontiguousarray(self.arrays[name][0]).tobytes())
        for q in np.argsort(self.start_Q, kind="stable"):
            start = int(self.start_Q[q])
            state_THWV = np.concatenate(
                [self.arrays[f"{side}latent_features"][q][..., -2:] for side in ("", "output_")]
            )
            value_AMC = self.arrays["input_data"][q].reshape(alpha, -1, len(BOUNDARY))
            field_THWV, bc_TMC = states.new(q, start, state_THWV), boundary.new(q, start, value_AMC)
            for values in (field_THWV, value_AMC):
                digest(np.ascontiguousarray(values).tobytes())
            if len(field_THWV):
                self._check_units(states.pieces[-1], field_THWV, last_HWV)
                last_HWV = field_THWV[-1]
                writer.write_field(number, states.pieces[-1], field_THWV)
                for v, screening in enumerate(fields.values()):
                    screening.add(np.where(mask_HW, field_THWV[..., v], np.nan))
            if len(bc_TMC):
                placed_TMC = bc_TMC[:, is_point_M]
                writer.write_boundary(number, boundary.pieces[-1], placed_TMC, _given(placed_TMC))
                for v, screening in enumerate(given.values()):
                    screening.add(np.where(_given(bc_TMC[..., v]), bc_TMC[..., v], np.nan))
        self._refuse(fields, states.pieces, mask_HW.shape, "latent_features", "cell")
        n_points = (len(is_point_M),)
        self._refuse(given, boundary.pieces, n_points, "input_data", "boundary point")
        z_K = np.asarray(self.arrays["latent_geom"][0, 0, ..., 2], dtype=np.float64)[mask_HW]
        for array, screenings in (("latent_features", fields), ("input_data", given)):
            spans = {name: one.span for name, one in screenings.items() if one.span}
            told = [odd_heads(spans["head"], z_K)] if "head" in spans else []
            if "mass_concentration" in spans:
                told.append(odd_concentrations(spans["mass_concentration"]))
            for sentence in filter(None, told):
                print(f"WARNING: {self.folder / array}.npy: {sentence}", file=sys.stderr)

    def _check_units(self, start: int, field_THWV: NDArray, last_HWV: NDArray | None) -> None:
        """Refuse steps, the first at ``start``, in another unit than those before, or tell of it."""
        steps = field_THWV if last_HWV is None else np.concatenate([last_HWV[None], field_THWV])
        values = np.where(_given(steps), steps, np.nan).astype(np.float64)
        for number, (before, now) in enumerate(
            itertools.pairwise(values), len(field_THWV) - len(steps)
        ):
            for v, name in enumerate(BOUNDARY):
                change, certain = other_unit(now[..., v].ravel(), before[..., v].ravel(), False)
                if change:
                    arrays = "latent_features.npy and output_latent_features.npy"
                    when = f"{self.time[start + number + 1]:g} d"
                    error = DataError(
                        f"{self.folder}: {arrays}: {name} at {when} is {change} that of the step "
                        "before in nearly all cells, as if in another unit; expected one unit in all arrays"
                    )
                    if certain:
                        raise error
                    print(f"WARNING: {error}", file=sys.stderr)

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


class _Steps:
    """Takes the steps of sequences in order of time, and gives those that were not there before."""

    def __init__(self, plane: _Plane, *arrays: str) -> None:
        self._plane, self._arrays = plane, " and ".join(f"{name}.npy" for name in arrays)
        self._first = 0
        self._last: NDArray | None = None
        """Steps from ``_first`` on that are known and may come again."""
        self.pieces: list[int] = []
        """Step at which each of the parts begins that were new."""

    def new(self, q: int, start: int, values: NDArray) -> NDArray:
        """Steps of a sequence ``q`` that are new, [T, ...]; raises `DataError` if the others differ."""
        if self._last is None:
            self._last = values[:0]
        before = self._last[start - self._first :]
        known = min(len(before), len(values))
        missing = ~_given(before[:known]) & ~_given(values[:known])
        same = np.isclose(values[:known], before[:known], rtol=_SAME, atol=0) | missing
        if not same.all():
            step, *at = (int(i) for i in np.unravel_index(np.argmin(same), same.shape))
            raise DataError(
                f"{self._plane.folder}: {self._arrays}: {values[step, *at]:.8g} in sequence {q} at "
                f"{self._plane.time[start + step]:g} d at {at} (from 0), but {before[step, *at]:.8g} in "
                "another sequence; expected the same values of a time"
            )
        fresh = values[known:]
        if len(fresh):
            self.pieces.append(start + known)
        self._first, self._last = start, np.concatenate([before, fresh])
        return fresh


def _map(path: Path, n_axes: int, last: tuple[int, ...]) -> NDArray:
    check_file(path)
    try:
        array = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; expected {', '.join(_FILES)} in the folder"
        ) from None
    except Exception as error:  # of many kinds, by what stands in its header
        raise DataError(
            f"{path}: not a whole .npy file ({first_line(error)}); copy it again"
        ) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: an archive of arrays; expected a .npy file of one: unpack it")
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
    screening = Screening()
    screening.add(time)
    for suspect in screening.suspects():
        raise DataError(f"{folder / 'latent_geom.npy'}: {suspect.sentence('T', '')}")
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

"""Scores of an ensemble of fine fields against the ground truth, gathered time by time.

Shape suffixes: N fine cells (in nested order), M blocks, E members, V variables.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import scoringrules
from numpy.typing import NDArray

from millrace.systems.downscaling.icon_source import Floats, Ints
from millrace.systems.downscaling.spectrum import largest_degree, power_spectrum
from millrace.systems.downscaling.triangles import slices

SPREAD_BINS = np.geomspace(0.02, 5, 13)
"""Edges of the bins of spread for the reliability, in deviations of the target."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
LARGEST_DEGREE = 60
AT_ONCE = 1 << 18
"""Cells whose members are compared with each other at once."""
_MEANS = ("energy_score", "quantile_error", "lag1", "lag1_truth", "seam_error")


@dataclass(frozen=True, eq=False)
class Sphere:
    """What scores need to know of a grid."""

    centres_N3: Floats
    area_N: Floats
    neighbours_N3: Ints
    n_blocks: int
    land_N: Floats | None = None

    @cached_property
    def pairs_P2(self) -> Ints:
        """Cells that share an edge, each pair once."""
        own = np.repeat(np.arange(len(self.neighbours_N3)), 3)
        other = self.neighbours_N3.ravel()
        return np.column_stack([own, other])[other > own]

    @cached_property
    def is_seam_N(self) -> NDArray[np.bool_]:
        """Cells with a neighbour in another block."""
        block = np.repeat(np.arange(self.n_blocks), len(self.area_N) // self.n_blocks)
        known = self.neighbours_N3 >= 0
        return ((block[self.neighbours_N3] != block[:, None]) & known).any(axis=1)

    @property
    def regions(self) -> dict[str, NDArray[np.bool_]]:
        """Belts of latitude, land and sea, seams and the inside of blocks."""
        sine = self.centres_N3[:, 2]
        found = {
            "north": sine > 0.5,
            "tropics": np.abs(sine) <= 0.5,
            "south": sine < -0.5,
            "seams": self.is_seam_N,
            "interior": ~self.is_seam_N,
        }
        if self.land_N is not None:
            found |= {"land": self.land_N > 0.5, "sea": self.land_N <= 0.5}
        return found


@dataclass
class DownscalingScores:
    """Scores of one variable over any number of times.

    All means are weighted with the area. Ensembles of one member are deterministic: their CRPS is the
    mean absolute error, and they have no spread.
    """

    sphere: Sphere
    std: float
    """Deviation of the target in the training period, the unit of the conservation error."""
    _sums: dict[str, Floats] = field(default_factory=dict)
    _scalars: dict[str, list[float | None]] = field(default_factory=dict)
    _spectra: list[tuple[Floats, Floats]] = field(default_factory=list)
    _ranks: NDArray[np.int64] | None = None
    _reliability: Floats = field(default_factory=lambda: np.zeros((3, len(SPREAD_BINS) - 1)))
    _errors: list[tuple[float, float]] = field(default_factory=list)
    """Mean square error and CRPS of each time."""

    def update(self, truth_N: Floats, ensemble_EN: Floats, coarse_M: Floats) -> None:
        """Add a time: full fields in physical units and the given block means."""
        members, sphere = len(ensemble_EN), self.sphere
        mean_N = ensemble_EN.mean(axis=0)
        error_N = mean_N - truth_N
        self._add("bias", error_N)
        self._add("squared_error", error_N**2)
        self._add("mae", np.abs(error_N))
        crps_N = fair_crps(truth_N, ensemble_EN)
        self._add("crps", crps_N)
        of_area = sphere.area_N / sphere.area_N.sum()
        self._errors.append((float(error_N**2 @ of_area), float(crps_N @ of_area)))
        if members > 1:
            variance_N = ensemble_EN.var(axis=0, ddof=1)
            self._add("variance", variance_N)
            self._add_reliability(variance_N, error_N)
        self._note("energy_score", energy_score(truth_N, ensemble_EN, sphere.n_blocks).mean())
        self._count_ranks(truth_N, ensemble_EN)
        share = sphere.area_N.reshape(sphere.n_blocks, -1)
        share = share / share.sum(axis=1, keepdims=True)
        means_EM = (ensemble_EN.reshape(members, *share.shape) * share).sum(axis=2)
        self._note("conservation", np.abs(means_EM - coarse_M).max() / self.std)
        own_N = np.repeat(coarse_M, share.shape[1])
        residual_N, residual_EN = truth_N - own_N, ensemble_EN - own_N
        self._note("lag1_truth", self._lag1(residual_N[None]))
        self._note("lag1", self._lag1(residual_EN))
        self._note("seam_jump_truth", self._seam_jump(truth_N[None]))
        self._note("seam_jump", self._seam_jump(ensemble_EN))
        self._note("seam_error", self._seam_jump(error_N[None]))
        off = np.quantile(residual_N, QUANTILES) - np.quantile(residual_EN, QUANTILES)
        self._note("quantile_error", np.abs(off).mean() / self.std)
        degree = min(LARGEST_DEGREE, largest_degree(len(truth_N)))
        fields = np.concatenate([truth_N[None], ensemble_EN])
        spectra = power_spectrum(fields, sphere.centres_N3, sphere.area_N, degree)
        self._spectra.append((spectra[0], spectra[1:].mean(axis=0)))

    def result(self) -> dict[str, Any]:
        """Scores for JSON: of all cells, and under ``regions`` those that are means over cells.

        ``spread_skill`` is sqrt((E + 1) / E) spread / RMSE (Fortin et al. 2014); ``spectrum_ratio`` the
        power of a member over that of the ground truth by degree, from 1; ``seam_error`` the error of the
        ensemble mean's difference between two neighbours, across seams over inside of blocks; ``seam_jump``
        that ratio of the differences themselves in members, over that in the ground truth;
        ``seam_rmse`` is the plain error of the cells at seams over that of the others, which exceeds 1 also
        for a perfect model: what a cell has across the seam is not known to it by a mean that it is part
        of. ``reliability`` has, for cells with like spread, root mean spread and error and their share.
        ``quantile_error`` is in deviations of the target. What is not defined is None.
        """
        everywhere = np.ones(len(self.sphere.area_N), dtype=bool)
        regions = {name: self._means(mask) for name, mask in self.sphere.regions.items()}
        scalars = {name: _mean(values) for name, values in self._scalars.items()}
        truth, member = (np.mean([pair[i] for pair in self._spectra], axis=0) for i in (0, 1))
        assert self._ranks is not None
        return {
            **self._means(everywhere),
            "times": len(self._errors),
            **{name: scalars[name] for name in _MEANS},
            "conservation": max(x for x in self._scalars["conservation"] if x is not None),
            "seam_rmse": regions["seams"]["rmse"] / regions["interior"]["rmse"],
            "seam_jump": _ratio(scalars["seam_jump"], scalars["seam_jump_truth"]),
            "rank_histogram": (self._ranks / self._ranks.sum()).tolist(),
            "spectrum_truth": truth[1:].tolist(),
            "spectrum_ratio": (member[1:] / truth[1:]).tolist(),
            "reliability": self._reliable(),
            "regions": regions,
        }

    def by_time(self) -> dict[str, Floats]:
        """RMSE and CRPS of each time."""
        square_T, crps_T = np.array(self._errors).T
        return {"rmse": np.sqrt(square_T), "crps": crps_T}

    def _means(self, mask_N: NDArray[np.bool_]) -> dict[str, float]:
        weight_N = (
            self.sphere.area_N * mask_N / (self.sphere.area_N[mask_N].sum() * len(self._errors))
        )
        mean = {name: float(total @ weight_N) for name, total in self._sums.items()}
        rmse = float(np.sqrt(mean["squared_error"]))
        result = {"rmse": rmse, **{name: mean[name] for name in ("bias", "mae", "crps")}}
        if "variance" in mean and self._ranks is not None:
            members, spread = len(self._ranks) - 1, float(np.sqrt(mean["variance"]))
            ratio = np.sqrt((members + 1) / members) * spread / max(rmse, 1e-300)
            result |= {"spread": spread, "spread_skill": float(ratio)}
        return result

    def _add(self, name: str, values_N: Floats) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + values_N

    def _note(self, name: str, value: float | None) -> None:
        self._scalars.setdefault(name, []).append(None if value is None else float(value))

    def _add_reliability(self, variance_N: Floats, error_N: Floats) -> None:
        n_bins = len(SPREAD_BINS) - 1
        found = np.searchsorted(SPREAD_BINS, np.sqrt(variance_N) / self.std) - 1
        known = (found >= 0) & (found < n_bins)
        for row, values in enumerate((np.ones_like(error_N), variance_N, error_N**2)):
            self._reliability[row] += np.bincount(found[known], values[known], minlength=n_bins)

    def _reliable(self) -> list[dict[str, float]]:
        count, variance, square = self._reliability
        return [
            {
                "spread": float(np.sqrt(variance[i] / count[i])),
                "rmse": float(np.sqrt(square[i] / count[i])),
                "share": float(count[i] / count.sum()),
            }
            for i in np.flatnonzero(count)
        ]

    def _count_ranks(self, truth_N: Floats, ensemble_EN: Floats) -> None:
        ranks = (ensemble_EN < truth_N).sum(axis=0)
        counts = np.bincount(ranks, minlength=len(ensemble_EN) + 1)
        self._ranks = counts if self._ranks is None else self._ranks + counts

    def _lag1(self, fields_EN: Floats) -> float | None:
        """Correlation of differences from the block means between cells that share an edge."""
        if not fields_EN.std(axis=1).min() > 1e-9 * self.std:
            return None
        pairs = self.sphere.pairs_P2
        return float(np.mean([np.corrcoef(*x[pairs].T)[0, 1] for x in fields_EN]))

    def _seam_jump(self, fields_EN: Floats) -> float | None:
        """Root mean square difference between neighbours across seams over that within blocks."""
        pairs = self.sphere.pairs_P2
        block = pairs // (len(self.sphere.area_N) // self.sphere.n_blocks)
        across = block[:, 0] != block[:, 1]
        means = []
        for values_N in fields_EN:  # one by one: of the finest grids a field has 31 million pairs
            square = (values_N[pairs[:, 0]] - values_N[pairs[:, 1]]) ** 2
            means.append((square[across].mean(), square[~across].mean()))
        seams, within = np.mean(means, axis=0)
        return float(np.sqrt(seams / within)) if within > 1e-18 else None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None


def fair_crps(truth_N: Floats, ensemble_EN: Floats) -> Floats:
    """Continuous ranked probability score, unbiased in the number of members (Ferro 2014), [N]."""
    if len(ensemble_EN) == 1:
        return np.abs(ensemble_EN[0] - truth_N)
    found = [
        scoringrules.crps_ensemble(truth_N[part], ensemble_EN[:, part], m_axis=0, estimator="fair")
        for part in slices(len(truth_N), AT_ONCE)
    ]
    return np.concatenate(found)


def energy_score(truth_N: Floats, ensemble_EN: Floats, n_blocks: int) -> Floats:
    """Energy score of each block, with its cells as components, [M]; fair in the number of members."""
    truth_MK = truth_N.reshape(n_blocks, -1)
    members_MEK = ensemble_EN.reshape(len(ensemble_EN), *truth_MK.shape).swapaxes(0, 1)
    if members_MEK.shape[1] == 1:
        return np.linalg.norm(members_MEK[:, 0] - truth_MK, axis=1)
    found = [
        scoringrules.es_ensemble(truth_MK[part], members_MEK[part], estimator="fair")
        for part in slices(n_blocks, max(1, AT_ONCE // truth_MK.shape[1]))
    ]
    return np.concatenate(found)

"""Realism of rollouts: how likely the ground truth is under the distribution of the rollouts.

This is the metric of the Waymo Open Sim Agents Challenge (Montali et al. 2023, NeurIPS, arXiv:2305.12032),
with the weights of its later editions. Each feature of an agent gets a histogram over all rollouts and
steps, with a pseudo-count in every bin. The exponential of the mean log likelihood of the true values, over
steps and agents of a scenario, is the score of the scenario, between 0 and 1. Whether an agent collides or
leaves the road at any step is a Bernoulli variable. Realism is the weighted mean of the features' scores.

Shape suffixes: S rollouts, A agents, T steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from millrace.systems.traffic.geometry import (
    Floats,
    box_corners,
    distance_to_edge,
    distance_to_nearest,
    time_to_collision,
)
from millrace.systems.traffic.tracks import STEP_S

_CAP_S = 5.0
KNOWN = 3
"""Poses before those that are scored: accelerations by central differences take two on each side."""


@dataclass(frozen=True)
class Feature:
    """How a feature is scored: by a histogram, or as a Bernoulli variable if it has no bins."""

    weight: float
    low: float = 0.0
    high: float = 2.0
    """Ends of the histogram; values beyond them count in the outer bins."""
    bins: int = 0


FEATURES: dict[str, Feature] = {
    "speed": Feature(0.05, 0, 25, 10),
    "acceleration": Feature(0.05, -12, 12, 11),
    "angular_speed": Feature(0.05, -0.628, 0.628, 11),
    "angular_acceleration": Feature(0.05, -3.14, 3.14, 11),
    "distance_to_object": Feature(0.1, -5, 40, 10),
    "time_to_collision": Feature(0.1, 0, _CAP_S, 10),
    "collision": Feature(0.25),
    "distance_to_edge": Feature(0.05, -20, 40, 10),
    "off_road": Feature(0.25),
}
"""Units are m, s and rad. The weights sum to 0.95 and are normalised."""


def features(
    pose_SAT3: Floats, size_A2: Floats, kind_A: NDArray, edge_E22: Floats
) -> dict[str, Floats]:
    """Features of agents over time.

    Parameters
    ----------
    pose_SAT3 : ndarray
        Poses every 0.1 s, of which the first `KNOWN` are those until the current step; NaN where not
        observed.
    size_A2 : ndarray
        Length and width (m).
    kind_A : ndarray
        Class; features that concern the road edge are NaN for all but vehicles.
    edge_E22 : ndarray
        Segments of the road edges, with the road on their left.

    Returns
    -------
    dict
        [S, A, T - KNOWN] by name, [S, A] for those that are Bernoulli variables; NaN where unknown, as are
        the speeds of the last step and the accelerations of the last two.
    """
    speed = np.hypot(_slope(pose_SAT3[..., 0]), _slope(pose_SAT3[..., 1]))
    turning = _slope(np.unwrap(_filled(pose_SAT3[..., 2]), axis=2))
    turning = np.where(np.isfinite(speed), turning, np.nan)
    distance = distance_to_nearest(pose_SAT3[:, :, KNOWN:], size_A2)
    vehicle_A = np.asarray(kind_A) == 0
    edge = np.full(distance.shape, np.nan)
    if vehicle_A.any() and len(edge_E22):
        corner = box_corners(pose_SAT3[:, vehicle_A, KNOWN:], size_A2[vehicle_A][:, None])
        beyond = distance_to_edge(corner.reshape(-1, 2), edge_E22)
        edge[:, vehicle_A] = beyond.reshape(corner.shape[:-1]).max(axis=-1)
    return {
        "speed": speed[..., KNOWN:],
        "acceleration": _slope(speed)[..., KNOWN:],
        "angular_speed": turning[..., KNOWN:],
        "angular_acceleration": _slope(turning)[..., KNOWN:],
        "distance_to_object": distance,
        "time_to_collision": time_to_collision(pose_SAT3, speed, size_A2, _CAP_S)[..., KNOWN:],
        "collision": _ever(distance < 0, distance),
        "distance_to_edge": edge,
        "off_road": _ever(edge > 0, edge),
    }


def likelihood(name: str, rollouts: Floats, truth: Floats) -> float:
    """Score of one feature in a scenario, from 0 to 1; NaN if nothing is known.

    Parameters
    ----------
    name : str
        One of `FEATURES`.
    rollouts : ndarray
        [S, A, T] or [S, A].
    truth : ndarray
        [A, T] or [A].
    """
    feature = FEATURES[name]
    values_AN = np.moveaxis(rollouts, 0, -1).reshape(rollouts.shape[1], -1)
    truth_AT = truth.reshape(len(truth), -1)
    logs = []
    for sampled, true in zip(values_AN, truth_AT, strict=True):
        known, true = sampled[np.isfinite(sampled)], true[np.isfinite(true)]
        if len(known) and len(true):
            logs.append(np.log(_probability(feature, known, true)))
    return float(np.exp(np.concatenate(logs).mean())) if logs else float("nan")


def _probability(feature: Feature, known: Floats, true: Floats) -> Floats:
    """Fraction of the rollouts in the bins of the true values."""
    n, pseudo_count = (feature.bins, 0.1) if feature.bins else (2, 0.001)
    reach = feature.high - feature.low
    bins = [np.clip(((v - feature.low) / reach * n).astype(int), 0, n - 1) for v in (known, true)]
    count = np.bincount(bins[0], minlength=n) + pseudo_count
    return (count / count.sum())[bins[1]]


def realism(rollouts: Mapping[str, Floats], truth: Mapping[str, Floats]) -> dict[str, float]:
    """Scores of a scenario by feature, and ``realism``, their weighted mean over what is known.

    The arguments are `features` of the rollouts and of the ground truth, which has one rollout.
    """
    scores = {name: likelihood(name, rollouts[name], truth[name][0]) for name in FEATURES}
    known = {name: score for name, score in scores.items() if np.isfinite(score)}
    weight = sum(FEATURES[name].weight for name in known)
    total = sum(FEATURES[name].weight * score for name, score in known.items())
    return {**scores, "realism": total / weight if weight else float("nan")}


def _slope(values: Floats) -> Floats:
    """Central difference over time, per second; NaN at the ends."""
    slope = np.full(values.shape, np.nan)
    slope[..., 1:-1] = (values[..., 2:] - values[..., :-2]) / (2 * STEP_S)
    return slope


def _filled(values: Floats) -> Floats:
    """Repeat the last value where there is none, so that unwrapping goes on across gaps."""
    index = np.where(np.isfinite(values), np.arange(values.shape[-1]), 0)
    found = np.take_along_axis(values, np.maximum.accumulate(index, axis=-1), axis=-1)
    return np.nan_to_num(found)


def _ever(happens: NDArray[np.bool_], known: Floats) -> Floats:
    """Whether something happens at any step; NaN if nothing is known."""
    return np.where(np.isfinite(known).any(axis=-1), happens.any(axis=-1).astype(float), np.nan)

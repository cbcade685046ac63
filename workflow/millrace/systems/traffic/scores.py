"""Scores of motion forecasts: tokens, trajectories and realism, beside honest baselines.

Baselines are constant velocity, the frequencies of tokens in training, and, as a floor of realism, random
tokens. The ground truth, scored as if it were a forecast, is the ceiling of realism.

Shape suffixes: S rollouts, A agents, K tokens, T steps of 0.1 s after the current step, V tokens of a
vocabulary, C classes, N blocks of scenarios.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from millrace.evaluation.cases import case_record
from millrace.evaluation.trained_model import finite
from millrace.systems.base import Progress
from millrace.systems.traffic.dataset import ScenarioBatch, ScenarioDataset
from millrace.systems.traffic.geometry import Floats, global_poses
from millrace.systems.traffic.realism import FEATURES, KNOWN, features, realism
from millrace.systems.traffic.smart.network import Smart
from millrace.systems.traffic.smart.rollout import RolloutConfig, rollout
from millrace.systems.traffic.temperature import fitted_temperature
from millrace.systems.traffic.tokens import HISTORY, STRIDE
from millrace.systems.traffic.tracks import CLASSES, CURRENT_STEP, LINE_TYPES, STEP_S

FORECASTS = ("model", "shuffled_map", "constant_velocity", "noise", "truth")
MISSED = 2.0
"""A forecast misses an agent if its best rollout ends farther off than this (m)."""

EVENTS = ("collision", "off_road")

_BATCH = 8
_DRAWS = 2000


def token_frequencies(dataset: ScenarioDataset) -> Floats:
    """Frequency of each token in the training scenarios, by class, [C, V]; one is added to each count."""
    count = np.ones((len(CLASSES), dataset.vocabulary.width))
    for kind, tokens in enumerate(dataset.vocabulary.motion):
        count[kind, len(tokens) :] = 0
    for scenario in dataset.scenarios("train"):
        rows = dataset.rows("agent", scenario)
        agent, k = np.nonzero(rows["valid"])
        np.add.at(count, (rows["kind"][agent], rows["token"][agent, k]), 1)
    return count / count.sum(axis=1, keepdims=True)


class TokenUsage:
    """Counts which tokens occur, ranked by ``frequency_CV``, see `token_frequencies`."""

    def __init__(self, frequency_CV: Floats) -> None:
        self._rank_CV = np.argsort(np.argsort(-frequency_CV, axis=1, kind="stable"), axis=1)
        self._count_CV = np.zeros_like(self._rank_CV)

    def add(self, token_SAK: NDArray, kind_A: NDArray) -> None:
        """Count tokens; -1 stands for no token."""
        for kind, rank_V in enumerate(self._rank_CV):
            found = token_SAK[:, np.asarray(kind_A) == kind]
            ranks = rank_V[found[found >= 0]]
            self._count_CV[kind] += np.bincount(ranks, minlength=len(rank_V))

    def result(self) -> dict[str, dict[str, list[float]]]:
        """By class: the ``share`` of all occurring tokens that the first so many ``tokens`` make up."""
        ranks = np.unique(np.geomspace(1, self._rank_CV.shape[1], 40).astype(int))
        return {
            name: {
                "tokens": ranks.tolist(),
                "share": (count_V.cumsum()[ranks - 1] / max(count_V.sum(), 1)).tolist(),
            }
            for name, count_V in zip(CLASSES, self._count_CV, strict=True)
        }


def next_tokens(
    module: Smart, dataset: ScenarioDataset, split: str, progress: Progress | None = None
) -> Iterator[tuple[ScenarioBatch, Tensor, Tensor, Tensor]]:
    """Logits of tokens after the current step, given the true ones before them, [B, A, K, V].

    Yields for each batch of a split also the true tokens, and which of them count, [B, A, K].
    """
    for batch in _batches(dataset, split, progress):
        with torch.no_grad():
            logits = finite(module(batch)[0])[:, :, HISTORY - 1 :]
        token = batch.token_BAK[:, :, HISTORY:]
        valid = batch.valid_BAK[:, :, HISTORY:] & batch.valid_BAK[:, :, HISTORY - 1 : -1]
        yield batch, logits, token, valid


def temperature_for(module: Smart, dataset: ScenarioDataset, split: str) -> dict[str, Any] | None:
    """The temperature with which next tokens of a split are most probable, see `fitted_temperature`."""

    def tokens() -> Iterator[tuple[Tensor, Tensor]]:
        for _, logits, token, valid in next_tokens(module, dataset, split):
            yield logits[valid], token[valid]

    return fitted_temperature(tokens)


def token_scores(
    module: Smart,
    dataset: ScenarioDataset,
    split: str,
    progress: Progress | None = None,
    temperature: float | None = None,
) -> dict[str, dict[str, Any]]:
    """Accuracy and mean log loss of the next token, given the true tokens before it.

    Only tokens after the current step count. Scores are by class, and of ``all``; ``prior_accuracy`` and
    ``prior_log_loss`` are of the baseline that predicts the frequencies of tokens in training, and
    ``calibrated_log_loss`` is that with a ``temperature``, if one is given.
    """
    frequency_CV = token_frequencies(dataset)
    sums_C6 = np.zeros((len(CLASSES), 6))
    for batch, logits, token, valid in next_tokens(module, dataset, split, progress):
        log, cooler = (
            (logits.float() / by).log_softmax(dim=-1).gather(-1, token[..., None])[..., 0]
            for by in (1.0, temperature or 1.0)
        )
        right = logits.argmax(dim=-1) == token
        for kind, share in enumerate(frequency_CV):
            own = valid & (batch.kind_BA == kind)[:, :, None]
            found = token[own].cpu().numpy()
            hits = [int(right[own].sum()), int((found == share.argmax()).sum())]
            losses = [-float(log[own].sum()), -float(np.log(share[found]).sum())]
            sums_C6[kind] += [len(found), *hits, *losses, -float(cooler[own].sum())]
    keys = ["accuracy", "prior_accuracy", "log_loss", "prior_log_loss"]
    keys += ["calibrated_log_loss"] if temperature else []
    return {
        name: {"tokens": int(n)}
        | {key: _ratio(one, n) for key, one in zip(keys, sums, strict=False)}
        for name, (n, *sums) in zip(("all", *CLASSES), (sums_C6.sum(axis=0), *sums_C6), strict=True)
    }


def displacement(pose_SAT3: Floats, true_AT3: Floats) -> Floats:
    """Distance of rollouts from the ground truth, [S, A, T] (m); NaN where an agent is not observed."""
    return np.asarray(np.linalg.norm(pose_SAT3[..., :2] - true_AT3[..., :2], axis=-1))


def constant_velocity(true_AT3: Floats, steps: int, otherwise_A2: Floats | None = None) -> Floats:
    """Continue the motion between the last two observed steps without turning, [1, A, ``steps``, 3].

    ``true_AT3`` are whole tracks; only steps up to the current one are used. Agents that are observed at
    the current step only have the velocities ``otherwise_A2`` (m/s), by default 0.
    """
    now, before = true_AT3[:, CURRENT_STEP], true_AT3[:, CURRENT_STEP - 1]
    longer = (now - true_AT3[:, CURRENT_STEP - STRIDE])[:, :2] / (STRIDE * STEP_S)
    velocity = np.where(np.isfinite(before[:, :1]), (now - before)[:, :2] / STEP_S, longer)
    other = np.zeros_like(velocity) if otherwise_A2 is None else otherwise_A2
    velocity = np.where(np.isfinite(velocity), velocity, other)
    time = STEP_S * np.arange(1, steps + 1)[:, None]
    place = now[:, None, :2] + velocity[:, None] * time
    heading = np.broadcast_to(now[:, None, 2:], (*place.shape[:2], 1))
    return np.concatenate([place, heading], axis=-1)[None]


def velocity_of_tokens(dataset: ScenarioDataset, rows: Mapping[str, NDArray]) -> Floats:
    """Velocity of each agent by its last token of the history, [A, 2] (m/s)."""
    velocity_A2 = np.zeros((len(rows["kind"]), 2))
    for kind, tokens in enumerate(dataset.vocabulary.motion):
        own = rows["kind"] == kind
        end_A3 = tokens[rows["token"][own, HISTORY - 1], -1]
        now_A3 = rows["pose"][own, HISTORY - 1].astype(np.float64)
        # The frame in which the token began, by its end.
        heading = np.column_stack([np.zeros((own.sum(), 2)), now_A3[:, 2] - end_A3[:, 2]])
        velocity_A2[own] = global_poses(end_A3, heading)[:, :2] / (STRIDE * STEP_S)
    return velocity_A2


def random_tokens(dataset: ScenarioDataset, scenario: int, config: RolloutConfig) -> Floats:
    """Rollouts in which every token is as probable as any other, [S, A, T, 3]."""
    rows = dataset.rows("agent", scenario)
    random = np.random.default_rng([config.seed, scenario])
    pose = np.repeat(rows["pose"][None, :, HISTORY - 1].astype(np.float64), config.samples, axis=0)
    paths = []
    for _ in range(config.steps):
        path = np.empty((*pose.shape[:2], STRIDE + 1, 3))
        for kind, tokens in enumerate(dataset.vocabulary.motion):
            own = rows["kind"] == kind
            token = random.integers(len(tokens), size=(config.samples, int(own.sum())))
            path[:, own] = global_poses(tokens[token], pose[:, own, None])
        paths.append(path[:, :, 1:])
        pose = path[:, :, -1]
    return np.concatenate(paths, axis=2)


class GroundTruth:
    """The true motion of a scenario for ``steps`` after the current one, and its features.

    ``rows`` are those of the scenario's agents, ``edge_E22`` the segments of its road edges.
    """

    def __init__(self, rows: Mapping[str, np.ndarray], edge_E22: Floats, steps: int) -> None:
        self._rows, self._edge = rows, edge_E22
        true_AT3 = rows["true"].astype(np.float64)
        self._known_AT3 = true_AT3[:, CURRENT_STEP + 1 - KNOWN : CURRENT_STEP + 1]
        self.future_AT3 = true_AT3[:, CURRENT_STEP + 1 : CURRENT_STEP + 1 + steps]
        self.truth = self.features(self.future_AT3[None])
        self.start = self.features(self._known_AT3[None, :, -1:])
        """Features if no agent moved."""

    def features(self, pose_SAT3: Floats) -> dict[str, Floats]:
        """Features of poses after the current step."""
        known = np.broadcast_to(self._known_AT3, (len(pose_SAT3), *self._known_AT3.shape))
        pose, size = np.concatenate([known, pose_SAT3], axis=2), self._rows["size"]
        return features(pose, size.astype(np.float64), self._rows["kind"], self._edge)


class MotionScores:
    """Scores of one forecast, accumulated over scenarios.

    ``min_ade`` (average displacement error) is the mean over agents of the best rollout of each,
    ``scene_min_ade`` the mean over scenarios of the best rollout of all their agents together, and ``ade``
    the mean over all rollouts. ``miss_rate`` is the fraction of agents whose best rollout is more than
    `MISSED` off where they were observed last, and ``error_by_step`` the mean displacement of the agents'
    best rollouts. ``collision_rate`` and ``off_road_rate`` are fractions of agents (vehicles) and rollouts,
    without those that collide (are off the road) at the current step. Each rate has a 95 % interval, see
    `bootstrap_interval`.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = defaultdict(list)
        self._by_step: list[Floats] = []
        self._events: dict[str, list[tuple[float, float]]] = {name: [] for name in EVENTS}
        self._block: list[int] = []
        self._by_scene: list[tuple[float, float]] = []

    def add(self, pose_SAT3: Floats, truth: GroundTruth, block: int) -> None:
        """Add the rollouts of a scenario; scenarios of one ``block`` are not independent of each other."""
        error_SAT = displacement(pose_SAT3, truth.future_AT3[:, : pose_SAT3.shape[2]])
        error_SAT = error_SAT[:, np.isfinite(error_SAT).any(axis=(0, 2))]
        of_scene = (np.nan, np.nan)
        if error_SAT.size:
            error_SA = np.nanmean(error_SAT, axis=2)
            best_AT = error_SAT[error_SA.argmin(axis=0), np.arange(error_SA.shape[1])]
            last_A = np.isfinite(best_AT).cumsum(axis=1).argmax(axis=1)
            self._values["min_ade"] += error_SA.min(axis=0).tolist()
            self._values["scene_min_ade"].append(float(error_SA.mean(axis=1).min()))
            self._values["ade"] += error_SA.mean(axis=0).tolist()
            self._values["miss_rate"] += (best_AT[np.arange(len(last_A)), last_A] > MISSED).tolist()
            self._by_step.append(best_AT)
            of_scene = (float(error_SA.min(axis=0).mean()), float(error_SA.mean(axis=1).min()))
        self._by_scene.append(of_scene)
        found = truth.features(pose_SAT3)
        for name, score in realism(found, truth.truth).items():
            self._values[name].append(score)
        for name, tallies in self._events.items():
            counts = (truth.start[name][0] == 0) & np.isfinite(found[name])
            tallies.append((float(found[name][counts].sum()), float(counts.sum())))
        self._block.append(block)

    def cases(self, names: Sequence[str]) -> dict[str, Any]:
        """Errors of each scenario by its name, see `millrace.evaluation.cases`."""
        errors = zip(("min_ade", "scene_min_ade"), np.array(self._by_scene).T, strict=True)
        found = {name: ("m", values) for name, values in errors}
        for name in EVENTS:
            some_N, all_N = np.array(self._events[name]).T
            rate_N = np.divide(some_N, all_N, out=np.full(len(all_N), np.nan), where=all_N > 0)
            found[f"{name}_rate"] = ("", rate_N)
        return case_record(names, self._block, {"motion": found})

    def result(self) -> dict[str, Any]:
        """Scores, ready for JSON; None where nothing is known."""
        errors = np.concatenate(self._by_step).T if self._by_step else ()
        means = {name: _mean(self._values[name]) for name in (*FEATURES, "realism")}
        displacements = ("min_ade", "scene_min_ade", "ade", "miss_rate")
        return {
            **{name: _mean(self._values[name]) for name in displacements},
            "error_by_step": [_mean(step) for step in errors],
            **{f"{name}_rate": _ratio(*self.events(name).sum(axis=0)) for name in EVENTS},
            **{f"{name}_interval": bootstrap_interval(self.events(name)) for name in EVENTS},
            "realism": means.pop("realism"),
            "realism_by_feature": means,
            "scenes": len(self._block),
        }

    def events(self, name: str) -> Floats:
        """Number of collisions (departures from the road) in each block, and out of how many, [N, 2]."""
        block_N, number = np.unique(np.array(self._block, dtype=np.int64), return_inverse=True)
        events_N2 = np.zeros((len(block_N), 2))
        np.add.at(events_N2, number, np.array(self._events[name]).reshape(-1, 2))
        return events_N2


def bootstrap_interval(events_N2: Floats, less_N2: Floats | None = None) -> list[float] | None:
    """95 % interval of a rate, from blocks of scenarios drawn with replacement; None if nothing is known.

    Blocks are drawn, not agents or scenarios, because events in one block are correlated (Efron and
    Tibshirani 1993: An Introduction to the Bootstrap, ch. 8). The interval says how far chance in the
    choice of scenarios reaches; the model's weights are fixed. Arguments are `MotionScores.events`;
    ``less_N2`` are those of another forecast in the same blocks, whose rate is subtracted.
    """
    if not len(events_N2):
        return None
    drawn_DN = np.random.default_rng(0).integers(len(events_N2), size=(_DRAWS, len(events_N2)))
    with np.errstate(invalid="ignore"):
        rate_D = np.divide(*events_N2[drawn_DN].sum(axis=1).T)
        if less_N2 is not None:
            rate_D = rate_D - np.divide(*less_N2[drawn_DN].sum(axis=1).T)
    rate_D = rate_D[np.isfinite(rate_D)]
    return [float(end) for end in np.quantile(rate_D, [0.025, 0.975])] if len(rate_D) else None


def above_model(other: MotionScores, model: MotionScores) -> dict[str, list[float] | None]:
    """95 % intervals of how much higher the rates of a forecast are than those of the model."""
    return {
        f"{name}_above_model": bootstrap_interval(other.events(name), model.events(name))
        for name in EVENTS
    }


def motion_scores(
    module: Smart,
    dataset: ScenarioDataset,
    split: str,
    config: RolloutConfig,
    names: Sequence[str] = FORECASTS,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Score rollouts of a model, and the baselines, on every scenario of a split.

    The tracks of the ground truth have gaps; its rates are over the observed steps.

    Returns
    -------
    dict
        `MotionScores.result` of each of ``names``: ``model``, ``shuffled_map`` (the same model, given the
        maps of other scenarios), ``constant_velocity``, ``noise`` (random tokens) and ``truth``; of
        ``model`` and ``truth`` also ``token_coverage``, see `TokenUsage`; of ``model`` also ``cases``, see
        `MotionScores.cases`; of ``shuffled_map`` also `above_model`.
    """
    scores = {name: MotionScores() for name in names}
    scenes: list[str] = []
    frequency_CV = token_frequencies(dataset)
    usage = {name: TokenUsage(frequency_CV) for name in ("model", "truth") if name in names}
    shuffled = dataset.with_shuffled_maps() if "shuffled_map" in names else dataset
    for batch in _batches(dataset, split, progress):
        scenarios = batch.scenario_B.cpu().numpy()
        drawn = {}
        if "model" in names:
            drawn["model"] = rollout(module, batch, config)
        if "shuffled_map" in names:
            drawn["shuffled_map"] = rollout(module, shuffled.gather(scenarios), config)
        for b, scenario in enumerate(scenarios.tolist()):
            scenes.append(dataset.names[scenario])
            rows = dataset.rows("agent", scenario)
            truth = GroundTruth(rows, road_edges(dataset, scenario), config.horizon)
            n, true = len(rows["kind"]), rows["true"].astype(np.float64)
            poses = {k: r.pose_BSAT3[b, :, :n].double().cpu().numpy() for k, r in drawn.items()}
            steady_A2 = velocity_of_tokens(dataset, rows)
            poses["constant_velocity"] = constant_velocity(true, config.horizon, steady_A2)
            if "noise" in names:
                poses["noise"] = random_tokens(dataset, scenario, config)
            poses["truth"] = truth.future_AT3[None]
            for name in names:
                scores[name].add(poses[name], truth, int(dataset.block[scenario]))
            tokens = {"truth": np.where(rows["valid"], rows["token"], -1)[None, :, HISTORY:]}
            if "model" in names:
                tokens["model"] = drawn["model"].token_BSAK[b, :, :n].cpu().numpy()
            for name, used in usage.items():
                used.add(tokens[name], rows["kind"])
    found = {name: score.result() for name, score in scores.items()}
    for name, used in usage.items():
        found[name]["token_coverage"] = used.result()
    if "model" in names:
        found["model"]["cases"] = scores["model"].cases(scenes)
    if "model" in names and "shuffled_map" in names:
        found["shuffled_map"] |= above_model(scores["shuffled_map"], scores["model"])
    return found


def road_edges(dataset: ScenarioDataset, scenario: int) -> Floats:
    """Segments of the road edges of a scenario, begin and end, [E, 2, 2] (m)."""
    rows = dataset.rows("road", scenario)
    point = rows["point"][rows["type"] == LINE_TYPES.index("road_edge")].astype(np.float64)
    return np.concatenate([point[:, :2], point[:, 1:]])


def _batches(
    dataset: ScenarioDataset, split: str, progress: Progress | None
) -> Iterator[ScenarioBatch]:
    parts = [
        (group, np.arange(first, min(first + _BATCH, size)))
        for group, size in enumerate(dataset.groups(split))
        for first in range(0, size, _BATCH)
    ]
    for done, (group, index) in enumerate(parts):
        yield dataset.batch(split, group, index)
        if progress is not None:
            progress(done + 1, len(parts))


def _mean(values: Iterable[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None

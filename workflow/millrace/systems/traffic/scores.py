"""Scores of motion models: tokens, trajectories, and realism, beside honest baselines.

Baselines: constant velocity, the frequencies of tokens in training, and, as a floor of realism, tokens
drawn blindly. The truth, scored as if it were a forecast, is the ceiling.

Shape suffixes: B scenes, S rollouts, A road users, K tokens, T steps of 0.1 s after the present.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from millrace.systems.base import Progress
from millrace.systems.traffic.dataset import ScenarioBatch, ScenarioDataset
from millrace.systems.traffic.realism import FEATURES, features, realism
from millrace.systems.traffic.smart.network import Smart
from millrace.systems.traffic.smart.rollout import RolloutConfig, ahead, rollout
from millrace.systems.traffic.tokens import HISTORY, STRIDE
from millrace.systems.traffic.tracks import CLASSES, LINES, PRESENT, STEP_S
from millrace.systems.traffic.vocabulary import out_of_frame

Floats = NDArray[np.float64]

FORECASTS = ("model", "shuffled_map", "constant_velocity", "noise", "truth")
MISSED = 2.0
"""A road user is missed if its best rollout ends farther off than this (m)."""

EVENTS = ("collision", "off_road")

_BATCH = 8
_DRAWS = 2000


class FrequencyPrior:
    """How often each token occurs in training, by class."""

    def __init__(self, dataset: ScenarioDataset) -> None:
        count = np.ones((len(CLASSES), dataset.vocabulary.width))
        for kind, tokens in enumerate(dataset.vocabulary.motion):
            count[kind, len(tokens) :] = 0
        for scene in dataset.scenes("train"):
            rows = dataset.rows("agent", int(scene))
            valid = rows["valid"].astype(bool)
            for kind in range(len(CLASSES)):
                found = rows["token"][rows["kind"] == kind][valid[rows["kind"] == kind]]
                count[kind] += np.bincount(found, minlength=count.shape[1])
        self.share_CV = count / count.sum(axis=1, keepdims=True)


class TokenUsage:
    """Which tokens occur, ranked by how often they do in training."""

    def __init__(self, prior: FrequencyPrior) -> None:
        self._rank_CV = np.argsort(np.argsort(-prior.share_CV, axis=1, kind="stable"), axis=1)
        self._count_CV = np.zeros_like(self._rank_CV)

    def add(self, token_SAK: NDArray, kind_A: NDArray) -> None:
        """Count tokens; those below 0 are none."""
        for kind, rank_V in enumerate(self._rank_CV):
            found = token_SAK[:, np.asarray(kind_A) == kind]
            ranks = rank_V[found[found >= 0]]
            self._count_CV[kind] += np.bincount(ranks, minlength=len(rank_V))

    def result(self) -> dict[str, dict[str, list[float]]]:
        """By class: share of all that occurs that is among the first so many ``tokens``."""
        ranks = np.unique(np.geomspace(1, self._rank_CV.shape[1], 40).astype(int))
        return {
            name: {
                "tokens": ranks.tolist(),
                "share": (count_V.cumsum()[ranks - 1] / max(count_V.sum(), 1)).tolist(),
            }
            for name, count_V in zip(CLASSES, self._count_CV, strict=True)
        }


def token_scores(
    module: Smart, dataset: ScenarioDataset, split: str, progress: Progress | None = None
) -> dict[str, Any]:
    """Accuracy and mean log loss of the next token after the true ones, beside the frequency prior.

    Only tokens of the future count; each token weighs the same.
    """
    prior = FrequencyPrior(dataset)
    hits = np.zeros((len(CLASSES), 2))
    logs = np.zeros((len(CLASSES), 2))
    count = np.zeros(len(CLASSES))
    for batch in _batches(dataset, split, progress):
        with torch.no_grad():
            logits = module(batch)[0][:, :, HISTORY - 1 :]
        token = batch.token_BAK[:, :, HISTORY:]
        valid = batch.valid_BAK[:, :, HISTORY:] & batch.valid_BAK[:, :, HISTORY - 1 : -1]
        log = logits.float().log_softmax(dim=-1).gather(-1, token[..., None])[..., 0]
        right = logits.argmax(dim=-1) == token
        for kind in range(len(CLASSES)):
            own = valid & (batch.kind_BA == kind)[:, :, None]
            found = token[own].cpu().numpy()
            share = prior.share_CV[kind]
            count[kind] += len(found)
            hits[kind] += [int(right[own].sum()), int((found == share.argmax()).sum())]
            logs[kind] -= [float(log[own].sum()), float(np.log(share[found]).sum())]
    names = {name: slice(kind, kind + 1) for kind, name in enumerate(CLASSES)}
    return {
        name: {
            "tokens": int(count[rows].sum()),
            "accuracy": _share(hits[rows, 0].sum(), count[rows].sum()),
            "prior_accuracy": _share(hits[rows, 1].sum(), count[rows].sum()),
            "log_loss": _share(logs[rows, 0].sum(), count[rows].sum()),
            "prior_log_loss": _share(logs[rows, 1].sum(), count[rows].sum()),
        }
        for name, rows in {"all": slice(None), **names}.items()
    }


def displacement(pose_SAT3: Floats, true_AT3: Floats) -> Floats:
    """Displacement of each rollout, [S, A, T] (m); NaN where nobody was seen.

    Parameters
    ----------
    pose_SAT3, true_AT3 : ndarray
        After the present; the truth is NaN where nobody was seen.
    """
    return np.asarray(np.linalg.norm(pose_SAT3[..., :2] - true_AT3[..., :2], axis=-1))


def constant_velocity(true_AT3: Floats, steps: int) -> Floats:
    """Go on as between the last two steps seen, without turning, [1, A, T, 3].

    Parameters
    ----------
    true_AT3 : ndarray
        Whole tracks; only steps up to the present are looked at.
    steps : int
    """
    now, before = true_AT3[:, PRESENT], true_AT3[:, PRESENT - 1]
    longer = (now - true_AT3[:, PRESENT - STRIDE])[:, :2] / (STRIDE * STEP_S)
    velocity = np.where(np.isfinite(before[:, :1]), (now - before)[:, :2] / STEP_S, longer)
    time = STEP_S * np.arange(1, steps + 1)[:, None]
    place = now[:, None, :2] + velocity[:, None] * time
    heading = np.broadcast_to(now[:, None, 2:], (*place.shape[:2], 1))
    return np.concatenate([place, heading], axis=-1)[None]


def blind_tokens(dataset: ScenarioDataset, scene: int, config: RolloutConfig) -> Floats:
    """Every token as probable as any other, [S, A, T, 3]."""
    rows = dataset.rows("agent", scene)
    random = np.random.default_rng([config.seed, scene])
    pose = np.repeat(rows["pose"][None, :, HISTORY - 1].astype(np.float64), config.samples, axis=0)
    paths = []
    for _ in range(config.steps):
        path = np.empty((*pose.shape[:2], STRIDE + 1, 3))
        for kind, tokens in enumerate(dataset.vocabulary.motion):
            own = rows["kind"] == kind
            token = random.integers(len(tokens), size=(config.samples, int(own.sum())))
            path[:, own] = out_of_frame(tokens[token], pose[:, own, None])
        paths.append(path[:, :, 1:])
        pose = path[:, :, -1]
    return np.concatenate(paths, axis=2)


class TrueScene:
    """What happened in a scene, and its features.

    Parameters
    ----------
    rows : mapping
        Of its road users.
    edge_E22 : ndarray
    steps : int
        After the present.
    """

    def __init__(self, rows: Mapping[str, np.ndarray], edge_E22: Floats, steps: int) -> None:
        true_AT3 = rows["true"].astype(np.float64)
        self.now_A3 = true_AT3[:, PRESENT]
        self.future_AT3 = true_AT3[:, PRESENT + 1 : PRESENT + 1 + steps]
        self._size, self._kind, self._edge = rows["size"].astype(np.float64), rows["kind"], edge_E22
        self.truth = self.features(true_AT3[None, :, PRESENT : PRESENT + 1 + steps])
        self.start = self.features(np.repeat(self.now_A3[None, :, None], 3, axis=2))
        """If nobody moved."""

    def features(self, pose_SAT3: Floats) -> dict[str, Floats]:
        """Features of poses that begin at the present."""
        return features(pose_SAT3, self._size, self._kind, self._edge)


class MotionScores:
    """Scores of one forecaster, accumulated over scenes.

    ``min_ade``: of each road user the best rollout; ``scene_min_ade``: of each scene the best rollout of
    all its road users together; ``ade``: the mean rollout. ``miss_rate`` is the share of road users whose
    best rollout is more than `MISSED` off where they were seen last, and ``error_by_step`` the mean
    displacement of their best rollouts. ``collision_rate`` and ``off_road_rate`` are shares of the road
    users (vehicles) and rollouts, without those that collide (are off the road) at the present. Each has a
    95 % interval: how far chance in the choice of scenes reaches.
    """

    def __init__(self) -> None:
        self._best: list[float] = []
        self._mean: list[float] = []
        self._scene_best: list[float] = []
        self._missed: list[bool] = []
        self._by_step: list[Floats] = []
        self._realism: dict[str, list[float]] = {name: [] for name in (*FEATURES, "realism")}
        self._events: dict[str, list[tuple[float, float]]] = {name: [] for name in EVENTS}
        self._block: list[int] = []

    def add(self, pose_SAT3: Floats, scene: "TrueScene", block: int) -> None:
        """Add the rollouts of a scene; those of a ``block`` are not independent of each other."""
        future_AT3 = scene.future_AT3[:, : pose_SAT3.shape[2]]
        error_SAT = displacement(pose_SAT3, future_AT3)
        error_SAT = error_SAT[:, np.isfinite(error_SAT).any(axis=(0, 2))]
        if error_SAT.size:
            error_SA = np.nanmean(error_SAT, axis=2)
            best_AT = error_SAT[error_SA.argmin(axis=0), np.arange(error_SA.shape[1])]
            last_A = np.isfinite(best_AT).cumsum(axis=1).argmax(axis=1)
            self._best += error_SA.min(axis=0).tolist()
            self._mean += error_SA.mean(axis=0).tolist()
            self._scene_best.append(float(error_SA.mean(axis=1).min()))
            self._missed += (best_AT[np.arange(len(last_A)), last_A] > MISSED).tolist()
            self._by_step.append(best_AT)
        now = np.repeat(scene.now_A3[None, :, None], len(pose_SAT3), axis=0)
        found = scene.features(np.concatenate([now, pose_SAT3], axis=2))
        for name, score in realism(found, scene.truth).items():
            self._realism[name].append(score)
        for name, tallies in self._events.items():
            counts = (scene.start[name][0] == 0) & np.isfinite(found[name])
            tallies.append((float(found[name][counts].sum()), float(counts.sum())))
        self._block.append(block)

    def result(self) -> dict[str, Any]:
        """Scores, ready for JSON; what is undefined is None."""
        return {
            "min_ade": _mean(self._best),
            "scene_min_ade": _mean(self._scene_best),
            "ade": _mean(self._mean),
            "miss_rate": _mean(self._missed),
            "error_by_step": self._errors(),
            **{f"{name}_rate": _share(*self.events(name).sum(axis=0)) for name in EVENTS},
            **{f"{name}_interval": interval(self.events(name)) for name in EVENTS},
            "realism": _mean(self._realism["realism"]),
            "realism_by_feature": {name: _mean(self._realism[name]) for name in FEATURES},
            "scenes": len(self._realism["realism"]),
        }

    def events(self, name: str) -> Floats:
        """Of each block of scenes how many collide (are off the road), and of how many, [N, 2]."""
        block_N, number = np.unique(np.array(self._block, dtype=np.int64), return_inverse=True)
        events_N2 = np.zeros((len(block_N), 2))
        np.add.at(events_N2, number, np.array(self._events[name]).reshape(-1, 2))
        return events_N2

    def _errors(self) -> list[float | None]:
        if not self._by_step:
            return []
        return [_mean(step) for step in np.concatenate(self._by_step).T]


def interval(events_N2: Floats, less_N2: Floats | None = None) -> list[float] | None:
    """95 % interval of a rate, from blocks of scenes drawn with replacement; None if nothing can be said.

    Blocks are drawn, and not road users or scenes, since what happens to those of a block goes together
    (Efron and Tibshirani 1993: An Introduction to the Bootstrap, ch. 8). The model's weights are fixed.

    Parameters
    ----------
    events_N2 : ndarray
        See `MotionScores.events`.
    less_N2 : ndarray, optional
        Those of another forecaster in the same blocks, whose rate is subtracted.
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
    """Say by how much the rates of a forecaster are higher than the model's, as 95 % intervals."""
    return {
        f"{name}_above_model": interval(other.events(name), model.events(name)) for name in EVENTS
    }


def motion_scores(
    module: Smart,
    dataset: ScenarioDataset,
    split: str,
    config: RolloutConfig,
    names: Sequence[str] = FORECASTS,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Score rollouts of a model, and the baselines, on every scene of a split.

    The rows of ``truth`` have the gaps of the tracks, so that its rates are of what was seen.

    Returns
    -------
    dict
        `MotionScores.result` of each of ``names``: ``model``, ``shuffled_map`` (the same model, given the
        maps of other scenes), ``constant_velocity``, ``noise`` and ``truth``; with ``token_coverage``, see
        `TokenUsage`, of ``model`` and ``truth``. ``collision_above_model`` and ``off_road_above_model`` of
        ``shuffled_map`` are 95 % intervals of how much higher its rates are than those of ``model``.
    """
    scores = {name: MotionScores() for name in names}
    prior = FrequencyPrior(dataset)
    usage = {name: TokenUsage(prior) for name in ("model", "truth") if name in names}
    shuffled = dataset.with_other_maps() if "shuffled_map" in names else dataset
    for batch in _batches(dataset, split, progress):
        scenes = batch.scene_B.cpu().numpy()
        drawn = {}
        if "model" in names:
            drawn["model"] = rollout(module, batch, config)
        if "shuffled_map" in names:
            drawn["shuffled_map"] = rollout(module, shuffled.gather(scenes), config)
        for b, scene in enumerate(scenes.tolist()):
            rows, steps = dataset.rows("agent", scene), ahead(config)
            true_scene = TrueScene(rows, edges(dataset, scene), steps)
            n, true = len(rows["kind"]), rows["true"].astype(np.float64)
            poses = {
                name: r.pose_BSAT3[b, :, :n].double().cpu().numpy() for name, r in drawn.items()
            }
            poses["constant_velocity"] = constant_velocity(true, steps)
            if "noise" in names:
                poses["noise"] = blind_tokens(dataset, scene, config)
            poses["truth"] = true_scene.future_AT3[None]
            for name in names:
                scores[name].add(poses[name], true_scene, int(dataset.block[scene]))
            tokens = {"truth": np.where(rows["valid"], rows["token"], -1)[None, :, HISTORY:]}
            if "model" in names:
                tokens["model"] = drawn["model"].token_BSAK[b, :, :n].cpu().numpy()
            for name, used in usage.items():
                used.add(tokens[name], rows["kind"])
    found = {name: score.result() for name, score in scores.items()}
    for name, used in usage.items():
        found[name]["token_coverage"] = used.result()
    if "model" in names and "shuffled_map" in names:
        found["shuffled_map"] |= above_model(scores["shuffled_map"], scores["model"])
    return found


def edges(dataset: ScenarioDataset, scene: int) -> Floats:
    """Pieces of road edge of a scene, begin and end, [E, 2, 2] (m)."""
    rows = dataset.rows("road", scene)
    point = rows["point"][rows["type"] == LINES.index("road_edge")].astype(np.float64)
    return np.concatenate([point[:, :2], point[:, 1:]])


def _batches(
    dataset: ScenarioDataset, split: str, progress: Progress | None
) -> Iterator[ScenarioBatch]:
    sizes = dataset.groups(split)
    parts = [
        (group, np.arange(first, min(first + _BATCH, size)))
        for group, size in enumerate(sizes)
        for first in range(0, size, _BATCH)
    ]
    for done, (group, index) in enumerate(parts):
        yield dataset.batch(split, group, index)
        if progress is not None:
            progress(done + 1, len(parts))


def _mean(values: Sequence[float] | Floats) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None


def _share(part: float, of: float) -> float | None:
    return float(part / of) if of else None

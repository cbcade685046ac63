"""Time of a step on a layout that was not run, from those that were and the alpha-beta model.

- computing: as measured with the same batch on a rank; else from a straight line over the batch of a rank
  through all measured layouts (constant and slope of 0 or more);
- imbalance and data wait: as in the measured layout with the nearest number of ranks, data wait in
  proportion to the batch of a rank;
- communication: the all-reduce of the alpha-beta model, less what hides behind the backward pass; the share
  that hides is calibrated on the measured layouts, and taken as 0 if there is none to calibrate on.

Shape suffixes: K bootstrap draws (or none), J measured layouts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from millrace.layout import Layout
from millrace.scaling.communication import LinkModel, all_reduce_seconds, ring_factors
from millrace.scaling.factors import Measurement
from millrace.scaling.quantity import REACH, Quantity, Refusal, label_at
from millrace.scaling.statistics import interval, relative_least_squares

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """A step that was computed, not measured."""

    layout: Layout
    step: Quantity
    parts: dict[str, float]
    """Seconds: computing, imbalance, data, communication; the sum is the step."""
    levels: Floats
    """w, v, u, m as in `millrace.scaling.factors`, [4]."""
    draws: Floats
    """[K, 4]: uncertainty of the inputs; that of the model itself is not in it."""
    basis: str
    """One sentence: what it was computed from."""


class StepModel:
    """Model of the step of one experiment on one kind of device.

    Parameters
    ----------
    measured : sequence of Measurement
        Of all modes.
    links : mapping
        Models of ``intra`` and ``inter``, or why there is none.
    gradient_bytes : int
    seed : int
    """

    def __init__(
        self,
        measured: Sequence[Measurement],
        links: Mapping[str, LinkModel | Refusal],
        gradient_bytes: int,
        seed: int,
    ) -> None:
        self.measured = sorted(measured, key=lambda one: (one.ranks, one.nodes))
        self._links, self._bytes = links, gradient_bytes
        self._random = np.random.default_rng(seed)

    def link(self, layout: Layout) -> LinkModel | Refusal:
        """Model of the slowest link of a layout."""
        return self._links["inter" if layout.nodes > 1 else "intra"]

    def all_reduce(self, layout: Layout) -> float | None:
        """Modelled time of the all-reduce of all gradients, s; None: no model of the link."""
        link = self.link(layout)
        if layout.world_size == 1:
            return 0.0
        if isinstance(link, Refusal):
            return None
        return all_reduce_seconds(link, self._bytes, layout.world_size)

    def backward_law(self) -> tuple[float, float]:
        """Constant (s) and slope (s/sample) of the backward pass over the batch of a rank."""
        constant, slope = self._law(np.stack([_backward(one, one.levels) for one in self.measured]))
        return float(constant), float(slope)

    def predict(self, layout: Layout, rank_batch: float) -> Prediction | Refusal:
        """Predict a layout with a batch of each rank."""
        what = f"prediction of {layout}"
        label = label_at(layout.world_size, [one.ranks for one in self.measured])
        if label is None:
            largest = max(one.ranks for one in self.measured)
            return Refusal(
                what,
                f"its {layout.world_size} ranks are beyond {REACH:g} times the largest measured "
                f"number, {largest}",
            )
        link = self.link(layout) if layout.world_size > 1 else None
        if isinstance(link, Refusal):
            return Refusal(
                what,
                f"there is no model of its links: {link.reason}; measure them, or give scaling.links in "
                "the configuration",
            )
        levels = self._levels(layout, rank_batch, [one.levels for one in self.measured], None)
        draws = self._levels(
            layout, rank_batch, [one.draws for one in self.measured], self._sampled(link)
        )
        degrees = max(1, sum(one.degrees for one in self.measured))
        w, v, u, m = (float(level) for level in levels)
        low, high = interval(w, draws[:, 0], degrees)
        return Prediction(
            layout,
            Quantity(w, "s", label, low, high),
            {"computing": m, "imbalance": u - m, "data": v - u, "communication": w - v},
            levels,
            draws,
            self._basis(layout, rank_batch, link),
        )

    def deviation(self) -> float | None:
        """Largest deviation of the model on the measured layouts of several ranks; None: fewer than two."""
        found = []
        for one in self.measured:
            layout = Layout.parse(one.layout)
            if one.ranks > 1 and not isinstance(self.link(layout), Refusal):
                levels = self._levels(
                    layout, one.rank_batch, [m.levels for m in self.measured], None
                )
                found.append(abs(float(levels[0]) / float(one.levels[0]) - 1))
        return max(found) if len(found) > 1 else None

    def _levels(
        self,
        layout: Layout,
        rank_batch: float,
        levels_J: Sequence[Floats],
        sampled: Mapping[str, tuple[Floats, Floats]] | None,
    ) -> Floats:
        """w, v, u, m, [..., 4], from those of the measured layouts, [..., 4] each."""
        same = self._same_batch(layout, rank_batch)
        backward_J = [_backward(one, at) for one, at in zip(self.measured, levels_J, strict=True)]
        if same is not None:
            m, backward = levels_J[same][..., 3], backward_J[same]
        else:
            m = self._at(rank_batch, np.stack([at[..., 3] for at in levels_J]))
            backward = self._at(rank_batch, np.stack(backward_J))
        near = self._nearest(layout.world_size)
        _, v_near, u_near, m_near = np.moveaxis(levels_J[near], -1, 0)
        u = np.asarray(m * (u_near / m_near if layout.world_size > 1 else 1.0))
        v = u + (v_near - u_near) * rank_batch / self.measured[near].rank_batch
        if layout.world_size == 1:
            return np.stack([v, v, u, m], axis=-1)
        transfer = self._transfer(layout, sampled)
        hidden = self._hidden(levels_J, backward_J, sampled)
        w = v + transfer - hidden * np.minimum(transfer, backward)
        return np.stack([w, v, u, m], axis=-1)

    def _transfer(
        self, layout: Layout, sampled: Mapping[str, tuple[Floats, Floats]] | None
    ) -> Floats:
        link = self.link(layout)
        assert isinstance(link, LinkModel)
        alpha, beta = np.asarray(link.alpha.value), np.asarray(link.beta.value)
        if sampled and link.link in sampled:
            alpha, beta = sampled[link.link]
        messages, traffic = ring_factors(layout.world_size)
        return np.asarray(messages * alpha + traffic * self._bytes / beta)

    def _hidden(
        self,
        levels_J: Sequence[Floats],
        backward_J: Sequence[Floats],
        sampled: Mapping[str, tuple[Floats, Floats]] | None,
    ) -> Floats:
        """Share of the communication that can hide and does, median over the measured layouts."""
        found = []
        for one, levels, backward in zip(self.measured, levels_J, backward_J, strict=True):
            layout = Layout.parse(one.layout)
            if one.ranks > 1 and isinstance(self.link(layout), LinkModel):
                transfer = self._transfer(layout, sampled)
                exposed = levels[..., 0] - levels[..., 1]
                share = (transfer - exposed) / np.minimum(transfer, backward)
                found.append(share.clip(0, 1))
        return np.asarray(np.median(found, axis=0) if found else 0.0)

    def _sampled(self, link: LinkModel | None) -> dict[str, tuple[Floats, Floats]]:
        """Draws of alpha and beta of every fitted link, as wide as their intervals."""
        draws = len(self.measured[0].draws)
        sampled = {}
        for name, model in self._links.items():
            if isinstance(model, LinkModel):
                sampled[name] = (
                    _normal(model.alpha, draws, self._random),
                    _normal(model.beta, draws, self._random),
                )
        return sampled

    def _same_batch(self, layout: Layout, rank_batch: float) -> int | None:
        """Measured layout whose ranks had the same batch; the one with most alike ranks."""
        same = [j for j, one in enumerate(self.measured) if one.rank_batch == rank_batch]
        return min(
            same, key=lambda j: abs(self.measured[j].ranks - layout.world_size), default=None
        )

    def _nearest(self, ranks: int) -> int:
        """Measured layout with the nearest number of ranks, by ratio; the larger of equally near ones."""

        def distance(j: int) -> tuple[float, int]:
            return (abs(np.log(self.measured[j].ranks / ranks)), -self.measured[j].ranks)

        return min(range(len(self.measured)), key=distance)

    def _law(self, values_J: Floats) -> tuple[Floats, Floats]:
        """Constant and slope over the batch of a rank, of 0 or more, from values [J, ...]."""
        batch_J = np.array([one.rank_batch for one in self.measured])
        y = np.moveaxis(values_J, 0, -1)
        slope_only = relative_least_squares(batch_J[:, None], y).coefficients[..., 0]
        if len(set(batch_J)) < 2:
            return np.zeros_like(slope_only), slope_only
        constant_only = relative_least_squares(np.ones((len(batch_J), 1)), y).coefficients[..., 0]
        both = relative_least_squares(np.stack([np.ones_like(batch_J), batch_J], axis=1), y)
        constant, slope = both.coefficients[..., 0], both.coefficients[..., 1]
        first = np.where(slope < 0, constant_only, np.where(constant < 0, 0.0, constant))
        second = np.where(slope < 0, 0.0, np.where(constant < 0, slope_only, slope))
        return first, second

    def _at(self, rank_batch: float, values_J: Floats) -> Floats:
        constant, slope = self._law(values_J)
        return constant + slope * rank_batch

    def _basis(self, layout: Layout, rank_batch: float, link: LinkModel | None) -> str:
        same = self._same_batch(layout, rank_batch)
        if same is not None:
            text = f"computing as measured on {self.measured[same].layout}"
        else:
            batches = sorted({one.rank_batch for one in self.measured})
            text = f"computing from a line through {len(batches)} measured batches of a rank"
        if link is None:
            return f"{text}."
        hidden = float(
            self._hidden(
                [one.levels for one in self.measured],
                [_backward(one, one.levels) for one in self.measured],
                None,
            )
        )
        return (
            f"{text}, communication over {link.link}-node links {link.source}, {hidden:.0%} of it "
            "hidden."
        )


def _backward(one: Measurement, levels: Floats) -> Floats:
    return levels[..., 3] * one.shares["backward"]


def _normal(quantity: Quantity, draws: int, random: np.random.Generator) -> Floats:
    if quantity.low is None or quantity.high is None:
        return np.full(draws, quantity.value)
    width = (quantity.high - quantity.low) / (2 * 1.96)
    return (quantity.value + width * random.standard_normal(draws)).clip(min=0.1 * quantity.value)

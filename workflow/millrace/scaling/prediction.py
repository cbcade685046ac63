"""Prediction of the step time of layouts that were not run.

- Computing: as measured with the same batch per rank; otherwise from a straight line over the batch per
  rank through all measured layouts (constant and slope of 0 or more).
- Imbalance and waiting for data: as in the measured layout with the nearest number of ranks; waiting for
  data is proportional to the batch per rank.
- Communication: the all-reduce of the alpha-beta model, less what is hidden behind the backward pass. The
  hidden share is calibrated on the measured layouts, and 0 if none of them allows it.

Shape suffixes: K bootstrap draws, J measured layouts; ``...`` is K or nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from millrace.layout import Layout
from millrace.scaling.communication import LinkModel, all_reduce_seconds, ring_seconds
from millrace.scaling.factors import Measurement, StepLevels, losses
from millrace.scaling.quantity import MAX_EXTRAPOLATION, Floats, Quantity, Refusal, label_at
from millrace.scaling.statistics import interval, relative_least_squares

_Links = Mapping[str, tuple[Floats, Floats]]
"""Latency (s) and bandwidth (bytes/s) by kind of link, [...] each."""


@dataclass(frozen=True)
class Prediction(StepLevels):
    """A step that was computed, not measured; `draws` leaves out the uncertainty of the model itself."""

    layout: Layout
    step: Quantity
    parts: dict[str, float]
    """Seconds: computing, imbalance, data, communication; their sum is the step."""
    basis: str
    """One sentence on what the step was computed from."""


class StepModel:
    """Model of the step time of one experiment on one kind of device.

    ``measured`` are the measured layouts of all modes, ``links`` the models of the links ``intra`` and
    ``inter``, or why there is none. An all-reduce is of ``gradient_bytes``; ``seed`` is that of the draws
    of latency and bandwidth.
    """

    def __init__(
        self,
        measured: Sequence[Measurement],
        links: Mapping[str, LinkModel | Refusal],
        gradient_bytes: int,
        seed: int,
    ) -> None:
        self.measured = sorted(measured, key=lambda one: (one.ranks, one.nodes))
        self.links, self._bytes = links, gradient_bytes
        self._random = np.random.default_rng(seed)
        self._levels_J = [one.levels for one in self.measured]
        models = (model for model in links.values() if isinstance(model, LinkModel))
        self._estimates: _Links = {
            model.link: (np.asarray(model.alpha.value), np.asarray(model.beta.value))
            for model in models
        }

    def all_reduce(self, layout: Layout) -> float | None:
        """Return the modelled time, s, to reduce all gradients; None: there is no model of the link."""
        link = self.links[_slowest_link(layout)]
        if layout.world_size == 1:
            return 0.0
        if isinstance(link, Refusal):
            return None
        return float(all_reduce_seconds(link, self._bytes, layout.world_size))

    def backward_law(self) -> tuple[float, float]:
        """Return constant (s) and slope (s/sample) of the backward pass over the batch of a rank."""
        constant, slope = self._line(np.stack(self._backward(self._levels_J)))
        return float(constant), float(slope)

    def predict(self, layout: Layout, rank_batch: float) -> Prediction | Refusal:
        """Predict the step of a layout with ``rank_batch`` samples on each rank."""
        what = f"prediction of {layout}"
        ranks = [one.ranks for one in self.measured]
        label = label_at(layout.world_size, ranks)
        if label is None:
            return Refusal(
                what,
                f"its {layout.world_size} ranks are beyond {MAX_EXTRAPOLATION:g} times the largest "
                f"measured number, {max(ranks)}",
            )
        link = self.links[_slowest_link(layout)] if layout.world_size > 1 else None
        if isinstance(link, Refusal):
            return Refusal(
                what,
                f"there is no model of its links: {link.reason}; measure them, or give scaling.links in "
                "the configuration",
            )
        levels = self._predicted(layout, rank_batch, self._levels_J, self._estimates)
        links_K = {
            model.link: (self._drawn(model.alpha), self._drawn(model.beta))
            for model in self.links.values()
            if isinstance(model, LinkModel)
        }
        draws = self._predicted(layout, rank_batch, [one.draws for one in self.measured], links_K)
        degrees = max(1, sum(one.degrees for one in self.measured))
        seconds = float(levels[0])
        return Prediction(
            rank_batch=rank_batch,
            levels=levels,
            draws=draws,
            degrees=degrees,
            layout=layout,
            step=Quantity(seconds, "s", label, *interval(seconds, draws[:, 0], degrees)),
            parts={"computing": float(levels[3])} | losses(levels),
            basis=self._basis(layout, rank_batch, link),
        )

    def deviation(self) -> float | None:
        """Return the largest relative deviation of the model from measured steps of several ranks.

        None: fewer than two measured layouts can be compared.
        """
        found = []
        for one in self.measured:
            layout = Layout.parse(one.layout)
            if one.ranks > 1 and _slowest_link(layout) in self._estimates:
                step = self._predicted(layout, one.rank_batch, self._levels_J, self._estimates)[0]
                found.append(abs(float(step) / float(one.levels[0]) - 1))
        return max(found) if len(found) > 1 else None

    def _predicted(
        self, layout: Layout, rank_batch: float, levels_J: Sequence[Floats], links: _Links
    ) -> Floats:
        """Levels w, v, u, m of a layout, [..., 4], from those of the measured layouts, [..., 4] each."""
        same = self._same_batch(layout, rank_batch)
        backward_J = self._backward(levels_J)
        if same is not None:
            m, backward = levels_J[same][..., 3], backward_J[same]
        else:
            m = self._at(rank_batch, np.stack([levels[..., 3] for levels in levels_J]))
            backward = self._at(rank_batch, np.stack(backward_J))

        def distance(j: int) -> tuple[float, int]:
            ranks = self.measured[j].ranks  # of two equally near ones, the larger is nearer
            return abs(np.log(ranks / layout.world_size)), -ranks

        near = min(range(len(self.measured)), key=distance)
        _, v_near, u_near, m_near = np.moveaxis(levels_J[near], -1, 0)
        u = np.asarray(m * (u_near / m_near if layout.world_size > 1 else 1.0))
        v = u + (v_near - u_near) * rank_batch / self.measured[near].rank_batch
        if layout.world_size == 1:
            return np.stack([v, v, u, m], axis=-1)
        transfer = self._transfer(layout, links)
        w = v + transfer - self._hidden(levels_J, links) * np.minimum(transfer, backward)
        return np.stack([w, v, u, m], axis=-1)

    def _transfer(self, layout: Layout, links: _Links) -> Floats:
        """Seconds of the all-reduce of all gradients, [...]."""
        return ring_seconds(*links[_slowest_link(layout)], self._bytes, layout.world_size)

    def _hidden(self, levels_J: Sequence[Floats], links: _Links) -> Floats:
        """Share of the communication that can be hidden and is, median over measured layouts, [...]."""
        found = []
        backward_J = self._backward(levels_J)
        for one, levels, backward in zip(self.measured, levels_J, backward_J, strict=True):
            layout = Layout.parse(one.layout)
            if one.ranks > 1 and _slowest_link(layout) in links:
                transfer = self._transfer(layout, links)
                exposed = levels[..., 0] - levels[..., 1]
                found.append(((transfer - exposed) / np.minimum(transfer, backward)).clip(0, 1))
        return np.asarray(np.median(found, axis=0) if found else 0.0)

    def _drawn(self, quantity: Quantity) -> Floats:
        """Draws from a normal distribution with the interval of a quantity, [K]."""
        count = len(self.measured[0].draws)
        if quantity.low is None or quantity.high is None:
            return np.full(count, quantity.value)
        width = (quantity.high - quantity.low) / (2 * 1.96)
        draws = quantity.value + width * self._random.standard_normal(count)
        return draws.clip(min=0.1 * quantity.value)

    def _same_batch(self, layout: Layout, rank_batch: float) -> int | None:
        """Index of the measured layout with this batch per rank and the most similar number of ranks."""
        same = [j for j, one in enumerate(self.measured) if one.rank_batch == rank_batch]
        return min(
            same, key=lambda j: abs(self.measured[j].ranks - layout.world_size), default=None
        )

    def _backward(self, levels_J: Sequence[Floats]) -> list[Floats]:
        """Seconds of the backward pass of each measured layout, [...]."""
        pairs = zip(self.measured, levels_J, strict=True)
        return [levels[..., 3] * one.shares["backward"] for one, levels in pairs]

    def _line(self, values_J: Floats) -> tuple[Floats, Floats]:
        """Constant and slope over the batch of a rank, of 0 or more, from values [J, ...]."""
        batch_J = np.array([one.rank_batch for one in self.measured])
        y = np.moveaxis(values_J, 0, -1)
        slope_only = relative_least_squares(batch_J[:, None], y).coefficients[..., 0]
        if len(set(batch_J)) < 2:
            return np.zeros_like(slope_only), slope_only
        ones_J = np.ones_like(batch_J)
        constant_only = relative_least_squares(ones_J[:, None], y).coefficients[..., 0]
        both = relative_least_squares(np.stack([ones_J, batch_J], axis=1), y)
        constant, slope = np.moveaxis(both.coefficients, -1, 0)
        first = np.where(slope < 0, constant_only, np.where(constant < 0, 0.0, constant))
        second = np.where(slope < 0, 0.0, np.where(constant < 0, slope_only, slope))
        return first, second

    def _at(self, rank_batch: float, values_J: Floats) -> Floats:
        constant, slope = self._line(values_J)
        return constant + slope * rank_batch

    def _basis(self, layout: Layout, rank_batch: float, link: LinkModel | None) -> str:
        same = self._same_batch(layout, rank_batch)
        if same is not None:
            text = f"computing as measured on {self.measured[same].layout}"
        else:
            batches = len({one.rank_batch for one in self.measured})
            text = f"computing from a line through {batches} measured batches of a rank"
        if link is None:
            return f"{text}."
        hidden = float(self._hidden(self._levels_J, self._estimates))
        links = f"communication over {link.link}-node links {link.source}"
        return f"{text}, {links}, {hidden:.0%} of it hidden."


def _slowest_link(layout: Layout) -> str:
    return "inter" if layout.nodes > 1 else "intra"

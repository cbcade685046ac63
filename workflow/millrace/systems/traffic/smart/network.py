"""SMART: agents as sequences of motion tokens over a map of road tokens.

A map encoder lets road segments attend to each other, once a scenario. In each layer of the decoder an
agent at one of its tokens attends to its own earlier tokens, to the road, and to the other agents at that
time; a head gives the logits of its next token. Positions enter only as relative positions, so that a
scenario may be moved and turned. The decoder works on one token step at a time (`Smart.advance`); training
does all token steps together.

Shape suffixes: B scenarios, A agents, K token steps (0.5 s, at the ends of the tokens), M road segments,
V tokens, L decoder layers, C channels, Q queries and N sources of an attention, flattened.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from millrace.systems.traffic.dataset import ScenarioBatch
from millrace.systems.traffic.settings import SmartConfig
from millrace.systems.traffic.smart import chunked, kernels
from millrace.systems.traffic.smart.layers import (
    FourierEmbedding,
    Neighbours,
    RelativeAttention,
    mlp,
    nearest_neighbours,
    relative_positions,
)
from millrace.systems.traffic.smart.tabulated import Tables
from millrace.systems.traffic.tracks import CLASSES, LIGHT_STATES, LINE_TYPES
from millrace.systems.traffic.vocabulary import corners

_RELATION = (1, 2, 2)  # distance, bearing, difference in heading
_TOKEN_S = 0.5


class DecoderLayer(nn.Module):
    """Attention to the agent's own past, then to the road, then to the other agents."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.time = RelativeAttention(hidden, heads)
        self.road = RelativeAttention(hidden, heads, two_sided=True)
        self.agents = RelativeAttention(hidden, heads)


class EncodedMap(NamedTuple):
    """The encoded map of a batch, which all token steps and all rollouts share."""

    pose_BM3: Tensor
    valid_BM: Tensor
    light_BMK: Tensor
    sources_LN2C: tuple[Tensor, ...]
    """Keys and values in each layer of the decoder, over all B x M road segments."""
    table_TC: Tensor
    """Embedding of motion tokens."""
    token_T: Tensor | None
    """int64: their numbers, see `Smart._numbers`, in order; None: those of all tokens."""
    time_tables: Tables | None = None
    road_tables: Tables | None = None
    agent_tables: Tables | None = None


@dataclass
class Cache:
    """Poses, and keys and values of the decoder, of earlier token steps; the newest is the last one."""

    pose: list[Tensor] = field(default_factory=list)
    """[B, A, 3] each."""
    valid: list[Tensor] = field(default_factory=list)
    """[B, A] each."""
    sources: list[list[Tensor]] = field(default_factory=list)
    """Keys and values of each layer, [B A, 2 C] each."""

    def repeated(self, count: int) -> "Cache":
        """The same for so many rollouts of each scenario, next to each other."""
        shape = self.valid[0].shape
        return Cache(
            [pose.repeat_interleave(count, dim=0) for pose in self.pose],
            [valid.repeat_interleave(count, dim=0) for valid in self.valid],
            [
                [s.unflatten(0, shape).repeat_interleave(count, dim=0).flatten(0, 1) for s in step]
                for step in self.sources
            ],
        )


class Smart(nn.Module):
    """Logits of the next token of every agent at every token step.

    Parameters
    ----------
    config : SmartConfig
    motion_CVP3 : Tensor
        Motion tokens of the classes, padded to the largest vocabulary, [3, V, 6, 3].
    count_C : Tensor
        int64[3], number of tokens of each class.
    road_VP2 : Tensor
        Road tokens, [V, 3, 2].
    """

    motion_CVP3: Tensor
    shape_CV8: Tensor
    exists_CV: Tensor
    road_V6: Tensor

    def __init__(
        self, config: SmartConfig, motion_CVP3: Tensor, count_C: Tensor, road_VP2: Tensor
    ) -> None:
        super().__init__()
        self.config = config
        h = config.hidden
        n_tokens = motion_CVP3.shape[1]
        end_CV3 = motion_CVP3[:, :, -1].double().numpy()
        shapes = [torch.from_numpy(corners(end_V3, c)) for c, end_V3 in enumerate(end_CV3)]
        self.register_buffer("motion_CVP3", motion_CVP3.float())
        self.register_buffer("shape_CV8", torch.stack(shapes).flatten(2).float())
        self.register_buffer("exists_CV", torch.arange(n_tokens) < count_C[:, None])
        self.register_buffer("road_V6", road_VP2.float().flatten(1))
        self.token = nn.ModuleList(mlp(8, h, h) for _ in CLASSES)
        self.kind = nn.Embedding(len(CLASSES), h)
        self.size = FourierEmbedding((1, 1), h, config.bands)
        self.motion = FourierEmbedding((1, 2), h, config.bands)
        self.fusion = mlp(2 * h, h, h)
        self.road_token = mlp(6, h, h)
        self.road_type = nn.Embedding(len(LINE_TYPES), h)
        self.light = nn.Embedding(len(LIGHT_STATES), h)
        self.relation_map = FourierEmbedding(_RELATION, h, config.bands)
        self.relation_time = FourierEmbedding((*_RELATION, 1), h, config.bands)
        self.relation_road = FourierEmbedding(_RELATION, h, config.bands)
        self.relation_agents = FourierEmbedding(_RELATION, h, config.bands)
        self.map_layers = nn.ModuleList(
            RelativeAttention(h, config.heads) for _ in range(config.map_layers)
        )
        self.layers = nn.ModuleList(DecoderLayer(h, config.heads) for _ in range(config.layers))
        self.head = mlp(h, h, n_tokens)
        self.road_head = mlp(h, h, len(road_VP2))

    @property
    def _decoder(self) -> list[DecoderLayer]:
        return cast(list[DecoderLayer], list(self.layers))

    def forward(self, batch: ScenarioBatch) -> tuple[Tensor, Tensor]:
        """Logits of the next motion token, [B, A, K - 1, V], and of the next road token, [B, M, V]."""
        road_BMC, near = self._embed_map(batch)
        known = [t[:, :, :-1] for t in (batch.token_BAK, batch.pose_BAK3, batch.valid_BAK)]
        used = None
        if chunked.applies(road_BMC):  # of thousands of tokens a batch has some hundreds
            used = self._numbers(batch.kind_BA, known[0]).unique()
        encoded = self._encode(batch, self._attend_map(road_BMC, near), used)
        logits = self.decode(encoded, batch.kind_BA, batch.size_BA2, *known)
        masked_BM = batch.road_masked_BM
        shown = near._replace(mask_QK=near.mask_QK & ~masked_BM.flatten()[near.index_QK])
        masked_BMC = torch.where(masked_BM[..., None], torch.zeros_like(road_BMC), road_BMC)
        return logits, self.road_head(self._attend_map(masked_BMC, shown))

    def encode_map(self, batch: ScenarioBatch, tabulate: bool = False) -> EncodedMap:
        """Encode the map, for `decode` and `advance`.

        ``tabulate`` what relations are embedded from, see `tabulated`: of use for many token steps.
        """
        encoded = self._encode(batch, self._attend_map(*self._embed_map(batch)))
        if not tabulate:
            return encoded
        road, agents = (r * 1.001 / 10 for r in (self.config.road_radius, self.config.agent_radius))
        past = self.config.past * _TOKEN_S
        # Other pairs than those of road and agent are too few for tables of bearings.
        return encoded._replace(
            time_tables=self.relation_time.tables((road, None, 1, past)),
            road_tables=self.relation_road.tables((road, 2, 1), self.light.weight),
            agent_tables=self.relation_agents.tables((agents, None, 1)),
        )

    def decode(
        self,
        encoded: EncodedMap,
        kind_BA: Tensor,
        size_BA2: Tensor,
        token_BAK: Tensor,
        pose_BAK3: Tensor,
        valid_BAK: Tensor,
    ) -> Tensor:
        """Logits of the token after each of the token steps, which are the first of all; [B, A, K, V]."""
        x_BAKC = self._embed(encoded, kind_BA, size_BA2, token_BAK)
        queries, place = None, None
        if chunked.applies(x_BAKC):  # without padding: as many rows as there are tokens
            queries = valid_BAK.flatten().nonzero()[:, 0]
            place = valid_BAK.flatten().cumsum(0).sub_(1).clamp_(min=0)
        near = (
            self._near_time(pose_BAK3, valid_BAK, queries, place),
            self._near_road(pose_BAK3, valid_BAK, encoded, 0, queries),
            self._near_agents(pose_BAK3, valid_BAK, queries, place),
        )
        return self._logits(encoded, kind_BA, x_BAKC, near, lambda number, own: own, queries)

    def advance(
        self,
        encoded: EncodedMap,
        cache: Cache,
        kind_BA: Tensor,
        size_BA2: Tensor,
        token_BA: Tensor,
        pose_BA3: Tensor,
        valid_BA: Tensor,
    ) -> Tensor:
        """Logits of the token after one more token step, [B, A, V]; ``cache`` is extended.

        The batch may hold several rollouts of each scenario of ``encoded``, next to each other.
        """
        cache.pose.append(pose_BA3)
        cache.valid.append(valid_BA)
        cache.sources.append([])
        past = cache.sources[-1 - self.config.past : -1]

        def earlier(number: int, own: Tensor) -> Tensor | list[Tensor]:
            cache.sources[-1].append(own)
            return [step[number] for step in past] or own

        x_BAKC = self._embed(encoded, kind_BA, size_BA2, token_BA[..., None])
        pose, valid = pose_BA3[:, :, None], valid_BA[:, :, None]
        near = (
            self._near_cache(cache, encoded.time_tables),
            self._near_road(pose, valid, encoded, len(cache.pose) - 1),
            self._near_agents(pose, valid, tables=encoded.agent_tables),
        )
        return self._logits(encoded, kind_BA, x_BAKC, near, earlier)[:, :, 0]

    def token_poses(self, pose_BA3: Tensor, kind_BA: Tensor, token_BA: Tensor) -> Tensor:
        """Six poses of motion tokens that begin at given poses, [B, A, 6, 3]."""
        local = self.motion_CVP3[kind_BA, token_BA]
        c, s = pose_BA3[..., 2:].cos(), pose_BA3[..., 2:].sin()
        x = pose_BA3[..., :1] + c * local[..., 0] - s * local[..., 1]
        y = pose_BA3[..., 1:2] + s * local[..., 0] + c * local[..., 1]
        turn = pose_BA3[..., 2:] + local[..., 2]
        return torch.stack([x, y, torch.atan2(turn.sin(), turn.cos())], dim=-1)

    def _embed_map(self, batch: ScenarioBatch) -> tuple[Tensor, Neighbours]:
        """Embedding of the road segments, [B, M, C], and the neighbours of each."""
        x_BMC = self.road_token(self.road_V6)[batch.road_token_BM]
        x_BMC = x_BMC + self.road_type(batch.road_type_BM)
        pose, place = batch.road_pose_BM3.flatten(0, 1), batch.road_pose_BM3[..., :2]
        own = torch.eye(place.shape[1], dtype=torch.bool, device=place.device)
        allowed = batch.road_valid_BM[:, None] & ~own
        count, radius = self.config.map_neighbours, self.config.map_radius
        index, mask = nearest_neighbours(place, place, allowed, count, radius)
        flat = _flat(index, place.shape[1])
        mask = mask.flatten(0, 1)
        relation = self.relation_map.pairs(relative_positions(pose[:, None], pose[flat]), mask)
        return x_BMC, Neighbours(flat, mask, relation)

    def _attend_map(self, x_BMC: Tensor, near: Neighbours) -> Tensor:
        x_QC = x_BMC.flatten(0, 1)
        for layer in cast(list[RelativeAttention], list(self.map_layers)):
            x_QC = layer(x_QC, layer.sources(x_QC), near)
        return x_QC.view_as(x_BMC)

    def _encode(
        self, batch: ScenarioBatch, x_BMC: Tensor, token_T: Tensor | None = None
    ) -> EncodedMap:
        sources = tuple(layer.road.sources(x_BMC.flatten(0, 1)) for layer in self._decoder)
        road = (batch.road_pose_BM3, batch.road_valid_BM, batch.light_BMK)
        return EncodedMap(*road, sources, self._embed_tokens(token_T), token_T)

    def _embed_tokens(self, token_T: Tensor | None) -> Tensor:
        """Embedding of motion tokens with numbers in order, or of all, [T, C]."""
        classes, n_tokens = self.exists_CV.shape
        end_T3, shape_T8 = self.motion_CVP3[:, :, -1].flatten(0, 1), self.shape_CV8.flatten(0, 1)
        counts = [n_tokens] * classes
        if token_T is not None:
            end_T3, shape_T8 = end_T3[token_T], shape_T8[token_T]
            counts = torch.bincount(token_T // n_tokens, minlength=classes).tolist()
        far = (end_T3[..., :2].square().sum(dim=-1) + 1e-2).sqrt()
        motion = torch.stack([far, *(end_T3[..., :2] / far[..., None]).unbind(-1)], dim=-1)
        parts = zip(self.token, shape_T8.split(counts), strict=True)
        shape = torch.cat([mlp(part) for mlp, part in parts])
        return self.fusion(torch.cat([shape, self.motion(motion)], dim=-1))

    def _numbers(self, kind_BA: Tensor, token_BAK: Tensor) -> Tensor:
        """Numbers of motion tokens among those of all classes."""
        return kind_BA[..., None] * self.exists_CV.shape[1] + token_BAK

    def _embed(
        self, encoded: EncodedMap, kind_BA: Tensor, size_BA2: Tensor, token_BAK: Tensor
    ) -> Tensor:
        """Embedding of motion tokens, [B, A, K, C]."""
        number = self._numbers(kind_BA, token_BAK)
        if encoded.token_T is not None:
            number = torch.searchsorted(encoded.token_T, number)
        tokens = functional.embedding(number, encoded.table_TC)
        return tokens + (self.kind(kind_BA) + self.size(size_BA2 / 10))[:, :, None]

    def _logits(
        self,
        encoded: EncodedMap,
        kind_BA: Tensor,
        x_BAKC: Tensor,
        near: tuple[Neighbours, Neighbours, Neighbours],
        past: Callable[[int, Tensor], Tensor | list[Tensor]],
        queries: Tensor | None = None,
    ) -> Tensor:
        """Pass through the decoder, [B, A, K, V].

        ``near`` are the neighbours in time, on the road and among the agents. ``past`` is a function of the
        number of a layer and the keys and values of the given token steps, which returns those of earlier
        token steps. ``queries`` are the rows that take part, int64; None: all. Logits of others are 0.
        """
        x_QC = _rows(x_BAKC.flatten(0, 2), queries)
        near_time, near_road, near_agents = near
        for number, layer in enumerate(self._decoder):
            x_QC = layer.time(x_QC, past(number, layer.time.sources(x_QC)), near_time)
            x_QC = layer.road(x_QC, encoded.sources_LN2C[number], near_road)
            x_QC = layer.agents(x_QC, layer.agents.sources(x_QC), near_agents)
        logits = self.head(x_QC)
        if queries is not None:
            rows = logits.new_zeros(x_BAKC[..., 0].numel(), logits.shape[1])
            logits = rows.index_copy(0, queries, logits)
        logits = logits.view(*x_BAKC.shape[:3], -1)
        return logits.masked_fill(~self.exists_CV[kind_BA][:, :, None], -1e4)

    def _near_time(
        self, pose_BAK3: Tensor, valid_BAK: Tensor, queries: Tensor | None, place: Tensor | None
    ) -> Neighbours:
        """Earlier token steps of the same agent, over all B x A x K.

        ``queries`` are the rows that take part, ``place`` is the place of each row among them.
        """
        n_steps, past = pose_BAK3.shape[2], self.config.past
        back = torch.arange(-past, 0, device=pose_BAK3.device)
        at_KP = torch.arange(n_steps, device=pose_BAK3.device)[:, None] + back
        mask = (at_KP >= 0) & valid_BAK[:, :, at_KP.clamp(min=0)]
        n = pose_BAK3.shape[0] * pose_BAK3.shape[1]
        first = torch.arange(n, device=pose_BAK3.device)[:, None, None] * n_steps
        flat = _rows((first + at_KP.clamp(min=0)).flatten(0, 1), queries)
        pose, mask = pose_BAK3.flatten(0, 2), _rows(mask.flatten(0, 2), queries)
        index, own = flat if place is None else place[flat], _rows(pose, queries)
        return self._over_time(index, mask, own, pose[flat], -back * _TOKEN_S)

    def _near_cache(self, cache: Cache, tables: Tables | None) -> Neighbours:
        """Earlier token steps of the cache, for the newest."""
        pose, past = cache.pose[-1].flatten(0, 1), self.config.past
        poses, valid = cache.pose[-1 - past : -1], cache.valid[-1 - past : -1]
        if not poses:  # one neighbour that does not count: the token step itself
            flat = torch.arange(len(pose), device=pose.device)[:, None]
            back = torch.zeros(1, device=pose.device)
            return self._over_time(flat, torch.zeros_like(flat).bool(), pose, pose[flat], back)
        earlier = torch.stack([p.flatten(0, 1) for p in poses], dim=1)
        mask = torch.stack([v.flatten() for v in valid], dim=1)
        flat = torch.arange(mask.numel(), device=pose.device).view_as(mask)
        back = torch.arange(len(poses), 0, -1, device=pose.device) * _TOKEN_S
        return self._over_time(flat, mask, pose, earlier, back, tables)

    def _over_time(
        self,
        index_QK: Tensor,
        mask_QK: Tensor,
        pose_Q3: Tensor,
        earlier_QK3: Tensor,
        back_K: Tensor,
        tables: Tables | None = None,
    ) -> Neighbours:
        seen = relative_positions(pose_Q3[:, None], earlier_QK3)
        back = back_K.to(seen.dtype)[:, None].expand(*seen.shape[:-1], 1)
        relation = self.relation_time.pairs(torch.cat([seen, back], dim=-1), mask_QK, tables=tables)
        return Neighbours(index_QK, mask_QK, relation)

    def _near_road(
        self,
        pose_BAK3: Tensor,
        valid_BAK: Tensor,
        encoded: EncodedMap,
        first: int,
        queries: Tensor | None = None,
    ) -> Neighbours:
        """Road segments near agents, which may be of several rollouts of each scenario."""
        n_scenarios, n_segments = encoded.valid_BM.shape
        n_steps = pose_BAK3.shape[2]
        agents = pose_BAK3[..., :2].unflatten(0, (n_scenarios, -1)).flatten(1, 3)
        road = encoded.pose_BM3[..., :2]
        count, radius = self.config.road_neighbours, self.config.road_radius
        index, mask = nearest_neighbours(agents, road, encoded.valid_BM[:, None], count, radius)
        grouped = queries is None and self._grouped(index, n_scenarios, road[..., 0].numel())
        if grouped:  # rollouts of an agent follow each other: they see the same road
            rows = torch.arange(valid_BAK.numel()).view(n_scenarios, -1, *valid_BAK.shape[1:])
            queries = rows.transpose(1, 2).flatten()
        flat = _rows(_flat(index, n_segments), queries)
        pose = _rows(pose_BAK3.flatten(0, 2), queries)
        seen = relative_positions(pose[:, None], encoded.pose_BM3.flatten(0, 1)[flat])
        at = torch.arange(first, first + n_steps, device=pose.device).expand_as(valid_BAK)
        light = encoded.light_BMK.flatten(0, 1)[flat, _rows(at.flatten(), queries)[:, None]]
        mask = _rows(mask.flatten(0, 1) & valid_BAK.flatten()[:, None], queries)
        extra = self.light.weight, light
        relation = self.relation_road.pairs(seen, mask, extra, encoded.road_tables)
        if not grouped:
            return Neighbours(flat, mask, relation)
        given = (flat, n_scenarios, road[..., 0].numel(), self.config.heads)
        return Neighbours(flat, mask, relation, chunked.parts(*given, queries))

    def _near_agents(
        self,
        pose_BAK3: Tensor,
        valid_BAK: Tensor,
        queries: Tensor | None = None,
        place: Tensor | None = None,
        tables: Tables | None = None,
    ) -> Neighbours:
        """Other agents at the same token step; see `_near_time`."""
        n, agents, steps = valid_BAK.shape
        centre, valid = (t.transpose(1, 2).flatten(0, 1) for t in (pose_BAK3[..., :2], valid_BAK))
        own = torch.eye(agents, dtype=torch.bool, device=centre.device)
        count, radius = self.config.agent_neighbours, self.config.agent_radius
        index, mask = nearest_neighbours(centre, centre, valid[:, None] & ~own, count, radius)
        # From rows (scenario, step, agent) to the order of the queries, (scenario, agent, step).
        index, mask = (t.view(n, steps, agents, -1).transpose(1, 2) for t in (index, mask))
        scenario = torch.arange(n, device=centre.device).view(-1, 1, 1, 1)
        step = torch.arange(steps, device=centre.device).view(1, 1, -1, 1)
        flat = _rows(((scenario * agents + index) * steps + step).flatten(0, 2), queries)
        pose, mask = pose_BAK3.flatten(0, 2), _rows(mask.flatten(0, 2), queries)
        seen = relative_positions(_rows(pose, queries)[:, None], pose[flat])
        relation = self.relation_agents.pairs(seen, mask, tables=tables)
        if place is not None:
            return Neighbours(place[flat], mask, relation)
        if steps > 1 or not self._grouped(flat, n, len(pose)):
            return Neighbours(flat, mask, relation)
        parts = chunked.parts(flat, n, len(pose), self.config.heads)
        return Neighbours(flat, mask, relation, parts)

    def _grouped(self, index: Tensor, groups: int, sources: int) -> bool:
        """Whether attention within groups is of use: kernels gather nothing anyway."""
        heads, hidden = self.config.heads, self.config.hidden
        suits = kernels.attend(self.kind.weight, heads=heads, width=hidden // heads)
        return not suits and chunked.dense_enough(index, groups, sources)


def _rows(x: Tensor, taken: Tensor | None) -> Tensor:
    return x if taken is None else x.index_select(0, taken)


def _flat(index_BQK: Tensor, n_sources: int) -> Tensor:
    """Index over the sources of all scenarios, [B Q, K]."""
    first = torch.arange(index_BQK.shape[0], device=index_BQK.device)[:, None, None] * n_sources
    return (index_BQK + first).flatten(0, 1)

"""SMART: road users as sequences of motion tokens over a map of road tokens.

A map encoder lets pieces of road look at each other, once a scene. In each layer of the decoder a road user
at one of its tokens looks at its own past, at the road, and at the others at that time; a head gives the
logits of the next token. Positions enter by relations only, so that a scene may be moved and turned.
Every part of the decoder works on one moment (`Smart.advance`); training does all moments together.

Shape suffixes: B scenes, A road users, K moments (ends of tokens), M pieces of road, V tokens, C channels,
Q queries and N sources of an attention, flattened.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from millrace.errors import ConfigError
from millrace.systems.traffic.dataset import ScenarioBatch
from millrace.systems.traffic.smart.layers import (
    FourierEmbedding,
    Neighbours,
    RelativeAttention,
    mlp,
    nearest,
    relations,
)
from millrace.systems.traffic.tracks import CLASSES, LIGHTS, LINES
from millrace.systems.traffic.vocabulary import corners

_RELATION = (1, 2, 2)  # distance, bearing, turn
_TOKEN_S = 0.5


@dataclass(frozen=True)
class SmartConfig:
    """Parameters of SMART, see config/README.md for what each does."""

    hidden: int = 128
    heads: int = 8
    map_layers: int = 3
    layers: int = 6
    bands: int = 64
    """Learned frequencies of each relation."""
    map_radius: float = 10.0
    """Between pieces of road (m)."""
    road_radius: float = 30.0
    """From a road user to the road (m)."""
    agent_radius: float = 60.0
    """Between road users (m)."""
    map_neighbours: int = 16
    road_neighbours: int = 64
    agent_neighbours: int = 32
    past: int = 6
    """Earlier tokens that a road user looks at."""
    label_smoothing: float = 0.1
    road_weight: float = 1.0
    """Weight of the loss of the next piece of road."""
    closed_loop: int = 0
    """Train on the model's own rollouts, which follow the token nearest to the truth among so many most
    probable ones; 0: on the true tokens."""

    def __post_init__(self) -> None:
        counts = (self.hidden, self.heads, self.map_layers, self.layers, self.bands, self.past)
        if min(*counts, self.map_neighbours, self.road_neighbours, self.agent_neighbours) < 1:
            raise ConfigError("model: expected widths, layers, heads and neighbours of 1 or more")
        if self.hidden % self.heads:
            raise ConfigError(
                f"model.hidden = {self.hidden}: expected a multiple of model.heads = {self.heads}"
            )
        if self.closed_loop < 0:
            raise ConfigError(
                f"model.closed_loop = {self.closed_loop}: expected a number of tokens, or 0"
            )
        if not 0 <= self.label_smoothing < 1 or self.road_weight < 0:
            raise ConfigError(
                "model: expected label_smoothing from 0 to 1 and road_weight of 0 or more"
            )


class DecoderLayer(nn.Module):
    """Past of the same road user, then the road, then the others."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.time = RelativeAttention(hidden, heads)
        self.road = RelativeAttention(hidden, heads, two_sided=True)
        self.agents = RelativeAttention(hidden, heads)


class Road(NamedTuple):
    """The road of a batch, encoded: what all moments and all rollouts share."""

    pose_BM3: Tensor
    valid_BM: Tensor
    light_BMK: Tensor
    sources_LN2C: tuple[Tensor, ...]
    """Keys and values in each layer of the decoder, over all B x M pieces."""
    table_CVC: Tensor
    """Embedding of the motion tokens of each class."""


@dataclass
class Cache:
    """What the decoder remembers of moments that are over, the newest last."""

    pose: list[Tensor] = field(default_factory=list)
    """[B, A, 3] each."""
    valid: list[Tensor] = field(default_factory=list)
    sources: list[list[Tensor]] = field(default_factory=list)
    """Keys and values of each layer, [B A, 2 C] each."""


class Smart(nn.Module):
    """Logits of the next token of every road user at every moment.

    Parameters
    ----------
    config : SmartConfig
    motion_CVP3 : Tensor
        Tokens of the classes, padded to the largest vocabulary, [3, V, 6, 3].
    count_C : Tensor
        int64[3], tokens of each class.
    road_VP2 : Tensor
        Tokens of road, [V, 3, 2].
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
        shape_CV8 = torch.stack(
            [
                torch.from_numpy(corners(motion_CVP3[kind, :, -1].double().numpy(), kind)).flatten(
                    1
                )
                for kind in range(len(CLASSES))
            ]
        )
        self.register_buffer("motion_CVP3", motion_CVP3.float())
        self.register_buffer("shape_CV8", shape_CV8.float())
        self.register_buffer("exists_CV", torch.arange(n_tokens) < count_C[:, None])
        self.register_buffer("road_V6", road_VP2.float().flatten(1))
        self.token = nn.ModuleList(mlp(8, h, h) for _ in CLASSES)
        self.kind = nn.Embedding(len(CLASSES), h)
        self.size = FourierEmbedding((1, 1), h, config.bands)
        self.motion = FourierEmbedding((1, 2), h, config.bands)
        self.fusion = mlp(2 * h, h, h)
        self.road_token = mlp(6, h, h)
        self.road_type = nn.Embedding(len(LINES), h)
        self.light = nn.Embedding(len(LIGHTS), h)
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
        road_BMC, near_map = self._road(batch)
        road = self._encoded(batch, self._map(road_BMC, near_map))
        logits = self.decode(
            road,
            batch.kind_BA,
            batch.size_BA2,
            batch.token_BAK[:, :, :-1],
            batch.pose_BAK3[:, :, :-1],
            batch.valid_BAK[:, :, :-1],
        )
        seen = ~batch.road_hidden_BM.flatten()[near_map.index_QK]
        partial = near_map._replace(mask_QK=near_map.mask_QK & seen)
        hidden_BMC = torch.where(
            batch.road_hidden_BM[..., None], torch.zeros_like(road_BMC), road_BMC
        )
        road_logits = self.road_head(self._map(hidden_BMC, partial))
        return logits, road_logits

    def decode(
        self,
        road: Road,
        kind_BA: Tensor,
        size_BA2: Tensor,
        token_BAK: Tensor,
        pose_BAK3: Tensor,
        valid_BAK: Tensor,
    ) -> Tensor:
        """Logits after each of some moments from the first on, [B, A, K, V]."""
        x_BAKC = self.embed(road, kind_BA, size_BA2, token_BAK)
        near_time = self._near_time(pose_BAK3, valid_BAK)
        near_road = self._near_road(pose_BAK3, valid_BAK, road, first=0)
        near_agents = self._near_agents(pose_BAK3, valid_BAK)
        x_QC = x_BAKC.flatten(0, 2)
        for layer, sources in zip(self._decoder, road.sources_LN2C, strict=True):
            x_QC = layer.time(x_QC, layer.time.sources(x_QC), near_time)
            x_QC = layer.road(x_QC, sources, near_road)
            x_QC = layer.agents(x_QC, layer.agents.sources(x_QC), near_agents)
        return self._logits(x_QC.view_as(x_BAKC), kind_BA[:, :, None])

    def encode_road(self, batch: ScenarioBatch) -> Road:
        """Encode the road, for `advance`."""
        road_BMC, near = self._road(batch)
        return self._encoded(batch, self._map(road_BMC, near))

    def advance(
        self,
        road: Road,
        cache: Cache,
        kind_BA: Tensor,
        size_BA2: Tensor,
        token_BA: Tensor,
        pose_BA3: Tensor,
        valid_BA: Tensor,
    ) -> Tensor:
        """Logits after one more moment, [B, A, V]; ``cache`` is extended.

        The batch may hold several rollouts of each scene of ``road``, those of a scene together.
        """
        moment = len(cache.pose)
        x_BAC = self.embed(road, kind_BA, size_BA2, token_BA[..., None])[:, :, 0]
        cache.pose.append(pose_BA3)
        cache.valid.append(valid_BA)
        cache.sources.append([])
        pose, valid = pose_BA3[:, :, None], valid_BA[:, :, None]
        near_time = self._near_cache(cache)
        near_road = self._near_road(pose, valid, road, first=moment)
        near_agents = self._near_agents(pose, valid)
        x_QC = x_BAC.flatten(0, 1)
        past = cache.sources[-1 - self.config.past : -1]
        for number, (layer, sources) in enumerate(
            zip(self._decoder, road.sources_LN2C, strict=True)
        ):
            cache.sources[-1].append(layer.time.sources(x_QC))
            if past:
                earlier = torch.stack([moments[number] for moments in past], dim=1).flatten(0, 1)
            else:
                earlier = cache.sources[-1][-1]
            x_QC = layer.time(x_QC, earlier, near_time)
            x_QC = layer.road(x_QC, sources, near_road)
            x_QC = layer.agents(x_QC, layer.agents.sources(x_QC), near_agents)
        return self._logits(x_QC.view_as(x_BAC), kind_BA)

    def embed(self, road: Road, kind_BA: Tensor, size_BA2: Tensor, token_BAK: Tensor) -> Tensor:
        """Embedding of tokens, [B, A, K, C]."""
        n_tokens = road.table_CVC.shape[1]
        tokens = road.table_CVC.flatten(0, 1)[kind_BA[..., None] * n_tokens + token_BAK]
        return tokens + (self.kind(kind_BA) + self.size(size_BA2 / 10))[:, :, None]

    def _table(self) -> Tensor:
        end_CV3 = self.motion_CVP3[:, :, -1]
        far = (end_CV3[..., :2].square().sum(dim=-1) + 1e-2).sqrt()
        motion = torch.stack([far, *(end_CV3[..., :2] / far[..., None]).unbind(-1)], dim=-1)
        shape = torch.stack([mlp(s) for mlp, s in zip(self.token, self.shape_CV8, strict=True)])
        return self.fusion(torch.cat([shape, self.motion(motion)], dim=-1))

    def step(self, pose_BA3: Tensor, kind_BA: Tensor, token_BA: Tensor) -> Tensor:
        """Six poses of a token that begins at given poses, [B, A, 6, 3]."""
        local = self.motion_CVP3[kind_BA, token_BA]
        c, s = pose_BA3[..., 2:].cos(), pose_BA3[..., 2:].sin()
        x = pose_BA3[..., :1] + c * local[..., 0] - s * local[..., 1]
        y = pose_BA3[..., 1:2] + s * local[..., 0] + c * local[..., 1]
        turn = pose_BA3[..., 2:] + local[..., 2]
        return torch.stack([x, y, torch.atan2(turn.sin(), turn.cos())], dim=-1)

    def _logits(self, x: Tensor, kind: Tensor) -> Tensor:
        exists = self.exists_CV[kind].expand(*x.shape[:-1], -1)
        return self.head(x).masked_fill(~exists, -1e4)

    def _road(self, batch: ScenarioBatch) -> tuple[Tensor, Neighbours]:
        """Embedding of the pieces, [B, M, C], and which are near which."""
        x_BMC = self.road_token(self.road_V6)[batch.road_token_BM]
        x_BMC = x_BMC + self.road_type(batch.road_type_BM)
        pose, valid = batch.road_pose_BM3, batch.road_valid_BM
        own = torch.eye(pose.shape[1], dtype=torch.bool, device=pose.device)
        index, mask = nearest(
            pose[..., :2],
            pose[..., :2],
            valid[:, None] & ~own,
            self.config.map_neighbours,
            self.config.map_radius,
        )
        flat = _flat(index, pose.shape[1])
        seen = relations(pose.flatten(0, 1)[:, None], pose.flatten(0, 1)[flat])
        return x_BMC, _neighbours(flat, mask.flatten(0, 1), self.relation_map(seen))

    def _map(self, x_BMC: Tensor, near: Neighbours) -> Tensor:
        x_QC = x_BMC.flatten(0, 1)
        for layer in cast(list[RelativeAttention], list(self.map_layers)):
            x_QC = layer(x_QC, layer.sources(x_QC), near)
        return x_QC.view_as(x_BMC)

    def _encoded(self, batch: ScenarioBatch, x_BMC: Tensor) -> Road:
        flat = x_BMC.flatten(0, 1)
        return Road(
            batch.road_pose_BM3,
            batch.road_valid_BM,
            batch.light_BMK,
            tuple(layer.road.sources(flat) for layer in self._decoder),
            self._table(),
        )

    def _near_time(self, pose_BAK3: Tensor, valid_BAK: Tensor) -> Neighbours:
        """Earlier moments of the same road user, over all B x A x K."""
        n_moments, past = pose_BAK3.shape[2], self.config.past
        back = torch.arange(-past, 0, device=pose_BAK3.device)
        at_KP = torch.arange(n_moments, device=pose_BAK3.device)[:, None] + back
        mask = (at_KP >= 0) & valid_BAK[:, :, at_KP.clamp(min=0)]
        n = pose_BAK3.shape[0] * pose_BAK3.shape[1]
        first = torch.arange(n, device=pose_BAK3.device)[:, None, None] * n_moments
        flat = (first + at_KP.clamp(min=0)).flatten(0, 1)
        pose = pose_BAK3.flatten(0, 2)
        seen = self._over_time(pose, pose[flat], -back * _TOKEN_S)
        return _neighbours(flat, mask.flatten(0, 2), self.relation_time(seen))

    def _near_cache(self, cache: Cache) -> Neighbours:
        """Earlier moments of the cache, for the newest."""
        pose, past = cache.pose[-1].flatten(0, 1), self.config.past
        poses, valid = cache.pose[-1 - past : -1], cache.valid[-1 - past : -1]
        n = len(poses)
        if not n:
            flat = torch.arange(len(pose), device=pose.device)[:, None]
            mask = torch.zeros_like(flat, dtype=torch.bool)
            seen = self._over_time(pose, pose[flat], torch.zeros(1, device=pose.device))
        else:
            earlier = torch.stack([p.flatten(0, 1) for p in poses], dim=1)
            mask = torch.stack([v.flatten() for v in valid], dim=1)
            flat = torch.arange(earlier.shape[0] * n, device=pose.device).view(-1, n)
            back = torch.arange(n, 0, -1, device=pose.device) * _TOKEN_S
            seen = self._over_time(pose, earlier, back)
        return _neighbours(flat, mask, self.relation_time(seen))

    def _over_time(self, pose_Q3: Tensor, earlier_QK3: Tensor, back_K: Tensor) -> Tensor:
        seen = relations(pose_Q3[:, None], earlier_QK3)
        back = back_K.to(seen.dtype)[:, None].expand(*seen.shape[:-1], 1)
        return torch.cat([seen, back], dim=-1)

    def _near_road(
        self, pose_BAK3: Tensor, valid_BAK: Tensor, road: Road, first: int
    ) -> Neighbours:
        """Pieces of road near road users, who may be of several rollouts of each scene."""
        n_scenes, n_pieces = road.valid_BM.shape
        moments = pose_BAK3.shape[2]
        place = pose_BAK3[..., :2].reshape(n_scenes, -1, 2)
        index, mask = nearest(
            place,
            road.pose_BM3[..., :2],
            road.valid_BM[:, None],
            self.config.road_neighbours,
            self.config.road_radius,
        )
        flat = _flat(index, n_pieces)
        pose = pose_BAK3.flatten(0, 2)
        seen = relations(pose[:, None], road.pose_BM3.flatten(0, 1)[flat])
        at = torch.arange(first, first + moments, device=pose.device).repeat(len(pose) // moments)
        light = road.light_BMK.flatten(0, 1)[flat, at[:, None]]
        relation = self.relation_road(seen, self.light(light))
        return _neighbours(flat, mask.flatten(0, 1) & valid_BAK.flatten()[:, None], relation)

    def _near_agents(self, pose_BAK3: Tensor, valid_BAK: Tensor) -> Neighbours:
        """Others at the same moment."""
        n, agents, moments = valid_BAK.shape
        pose, valid = (t.transpose(1, 2).flatten(0, 1) for t in (pose_BAK3, valid_BAK))
        own = torch.eye(agents, dtype=torch.bool, device=pose.device)
        index, mask = nearest(
            pose[..., :2],
            pose[..., :2],
            valid[:, None] & ~own,
            self.config.agent_neighbours,
            self.config.agent_radius,
        )
        # From rows (scene, moment, agent) to the order of the queries, (scene, agent, moment).
        index = index.view(n, moments, agents, -1).transpose(1, 2)
        mask = mask.view(n, moments, agents, -1).transpose(1, 2)
        scene = torch.arange(n, device=pose.device).view(-1, 1, 1, 1)
        moment = torch.arange(moments, device=pose.device).view(1, 1, -1, 1)
        flat = ((scene * agents + index) * moments + moment).flatten(0, 2)
        every = pose_BAK3.flatten(0, 2)
        relation = self.relation_agents(relations(every[:, None], every[flat]))
        return _neighbours(flat, mask.flatten(0, 2), relation)


def _neighbours(index: Tensor, mask: Tensor, relation: Tensor) -> Neighbours:
    # Normalised here, once for all layers: what is affine in it is in their own weights.
    return Neighbours(index, mask, functional.layer_norm(relation, relation.shape[-1:]))


def _flat(index_BQK: Tensor, n_sources: int) -> Tensor:
    """Index over the sources of all scenes, [B Q, K]."""
    first = torch.arange(len(index_BQK), device=index_BQK.device)[:, None, None] * n_sources
    return (index_BQK + first).flatten(0, 1)

"""The next token of every agent as a program, see `millrace.evaluation.program`.

Shape suffixes: B scenarios, A agents, K token steps, M road segments, V tokens, T steps of 0.1 s.
"""

from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor, nn

from millrace.evaluation.program import BATCH, NotExportable, Program, Value
from millrace.evaluation.trained_model import TrainedModel, finite
from millrace.systems.traffic.dataset import ScenarioBatch, ScenarioDataset
from millrace.systems.traffic.smart.network import Smart
from millrace.systems.traffic.tokens import HISTORY, STRIDE
from millrace.systems.traffic.tracks import CLASSES, LIGHT_STATES, LINE_TYPES, STEP_S


class NextTokenProgram(nn.Module):
    """From the map and the tokens up to the current step to the next token and where it leads."""

    def __init__(self, net: Smart) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        kind_BA: Tensor,
        size_BA2: Tensor,
        token_BAK: Tensor,
        pose_BAK3: Tensor,
        valid_BAK: Tensor,
        road_token_BM: Tensor,
        road_type_BM: Tensor,
        road_pose_BM3: Tensor,
        road_valid_BM: Tensor,
        light_BMK: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Probability of each token, [B, A, V], and the poses to which it leads, [B, A, V, T, 3]."""
        nothing = torch.zeros_like(road_token_BM)
        batch = ScenarioBatch(
            *(kind_BA, size_BA2, token_BAK, pose_BAK3, valid_BAK),
            *(road_token_BM, road_type_BM, road_pose_BM3, road_valid_BM),
            road_next_BM=nothing,
            road_masked_BM=nothing.bool(),
            light_BMK=light_BMK,
            y_KBTV=pose_BAK3,
            weight_B=pose_BAK3[:, 0, 0, 0],
            scenario_B=kind_BA[:, 0],
        )
        encoded = self.net.encode_map(batch)
        given = (token_BAK, pose_BAK3, valid_BAK)
        logits = self.net.decode(encoded, kind_BA, size_BA2, *given)[:, :, -1]
        return next_tokens(self.net, logits, kind_BA, pose_BAK3[:, :, -1], valid_BAK[:, :, -1])


def next_tokens(
    net: Smart, logits_BAV: Tensor, kind_BA: Tensor, pose_BA3: Tensor, valid_BA: Tensor
) -> tuple[Tensor, Tensor]:
    """Probabilities of tokens, 0 for agents that are not there, and the poses to which they lead."""
    probability_BAV = logits_BAV.softmax(dim=-1) * valid_BA[..., None]
    token_V = torch.arange(logits_BAV.shape[-1], device=kind_BA.device)
    kind_BA1 = kind_BA[..., None]
    path = net.token_poses(pose_BA3[:, :, None], kind_BA1, token_V.expand(*kind_BA.shape, -1))
    return probability_BAV, path[..., 1:, :] * valid_BA[..., None, None, None]


def next_token_program(model: TrainedModel) -> Program:
    """Program of a model of traffic, and examples from its samples.

    Packages of it have fixed numbers of agents and segments, the most that a scenario of the samples has:
    with them free, too, AOTInductor does not come to an end.
    """
    net, dataset = model.module, model.dataset
    if not isinstance(net, Smart):
        raise NotExportable(
            f"model {model.spec.name}: of the models of traffic, SMART alone can be exported as a program"
        )
    config = net.config
    agents = config.agent_neighbours + 1
    segments = max(config.map_neighbours, config.road_neighbours) + 1
    free = {BATCH: 1, "token_step": 2}
    package = _program(
        dataset, net, max(agents, dataset.most("agent")), max(segments, dataset.most("road"))
    )
    fixed = "Numbers of agents and segments are fixed: fill up with what is not valid."
    return replace(
        _program(dataset, net, agents, segments),
        free=free | {"agent": agents, "segment": segments},
        package=replace(package, free=free, notes=(*package.notes, fixed)),
    )


def _program(dataset: ScenarioDataset, net: Smart, agents: int, segments: int) -> Program:
    """Program with examples of at least so many agents and segments."""
    batch = dataset.gather(np.arange(len(dataset.names))[:2], agents, segments)
    seconds, names = STRIDE * STEP_S, [f.name for f in fields(ScenarioBatch)]
    tensors = {name: getattr(batch, name) for name in names}
    for name in ("token_BAK", "pose_BAK3", "valid_BAK", "light_BMK"):
        tensors[name] = tensors[name][:, :, :HISTORY].contiguous()
    agent, road, token = (BATCH, "agent"), (BATCH, "segment"), (BATCH, "agent", "token_step")
    pose = "x, y (m), heading (rad, counter-clockwise from +x)"
    place = f"{pose}, relative to a point within some hundred metres"
    about = [
        ("kind_BA", agent, "1", f"class of the agent: {_numbered(CLASSES)}"),
        ("size_BA2", (*agent, "length_width"), "m", "length and width"),
        ("token_BAK", token, "1", "motion token that ended at each step, a number in the vocabulary"),
        ("pose_BAK3", (*token, "pose"), "m, m, rad",
         f"{place}, every {seconds:g} s up to the current step"),
        ("valid_BAK", token, "1", "whether there is a token; false for padding"),
        ("road_token_BM", road, "1", "road token of each segment, a number in the vocabulary"),
        ("road_type_BM", road, "1", f"type of its line: {_numbered(LINE_TYPES)}"),
        ("road_pose_BM3", (*road, "pose"), "m, m, rad", f"{place}: begin and direction of the segment"),
        ("road_valid_BM", road, "1", "false for padding"),
        ("light_BMK", (*road, "token_step"), "1", f"its traffic light: {_numbered(LIGHT_STATES)}"),
    ]  # fmt: skip

    @torch.no_grad()
    def own() -> tuple[Tensor, Tensor]:
        given = ScenarioBatch(**tensors)
        kind, *now = (tensors[name] for name, *_ in about[:5])
        logits = finite(net.decode(net.encode_map(given), kind, *now)[:, :, -1])
        return next_tokens(net, logits, kind, now[2][:, :, -1], now[3][:, :, -1])

    expected = own()
    inputs = [
        Value(name.rpartition("_")[0], tensors[name], axes, unit, text)
        for name, axes, unit, text in about
    ]
    return Program(
        NextTokenProgram(net),
        inputs,
        outputs=[
            Value("probability", expected[0], (*agent, "token"), "1",
                  "of each motion token of the agent's class; 0 for agents that are not there"),
            Value("path", expected[1], (*agent, "token", "step", "pose"), "m, m, rad",
                  f"{pose} every {STEP_S:g} s of the next {seconds:g} s, if that token is taken"),
        ],
        own=own,
        notes=[
            "One token: for a rollout draw one for each agent, append it, the last pose of its path and "
            "its validity, and call the program again. Rollouts of `millrace predict` also keep agents "
            "apart, which is not in the program."
        ],
    )  # fmt: skip


def _numbered(names: tuple[str, ...]) -> str:
    return ", ".join(f"{number} {name}" for number, name in enumerate(names))

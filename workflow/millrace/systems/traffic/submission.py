"""Rollouts as a submission to the Waymo Open Sim Agents Challenge, written without TensorFlow.

Each file of scenarios gives a shard, a ``SimAgentsChallengeSubmission``: of every scenario 32 rollouts of
80 steps of 0.1 s, of all objects that are valid at step 10. Objects of the type other, which are no road
users, go on at their velocity. All keep their height above the sea. Source of the numbers of the fields:
`protos/sim_agents_submission.proto` of github.com/waymo-research/waymo-open-dataset.

Shape suffixes: S rollouts, T steps, O objects.
"""

import functools
import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from millrace.errors import DataError
from millrace.evaluation.application import Prepared
from millrace.evaluation.loaded import LoadedModel
from millrace.files import atomic_write
from millrace.systems.base import Progress
from millrace.systems.traffic.application import TEST, TrafficForecasts, written
from millrace.systems.traffic.formats import Traffic
from millrace.systems.traffic.formats.waymo import (
    Messages,
    message,
    message_classes,
    read_records,
    read_scenario,
)
from millrace.systems.traffic.geometry import Floats
from millrace.systems.traffic.scenario_file import Writer
from millrace.systems.traffic.settings import TokenConfig
from millrace.systems.traffic.tokens import Tokeniser
from millrace.systems.traffic.tracks import CURRENT_STEP, STEP_S, Scenario

ROLLOUTS, HORIZON = 32, 80
_TOGETHER = 32
"""Scenarios that are rolled out at once."""
_MOST_AGENTS = 1 << 16
"""All agents take part, however few the model was trained with."""
_MESSAGES: Messages = {
    "Trajectory": (
        ("center_x", 2, "+float"),
        ("center_y", 3, "+float"),
        ("center_z", 4, "+float"),
        ("heading", 5, "+float"),
        ("object_id", 6, "int32"),
    ),
    "JointScene": (("simulated_trajectories", 1, "*Trajectory"),),
    "ScenarioRollouts": (("scenario_id", 1, "string"), ("joint_scenes", 2, "*JointScene")),
    "Submission": (
        ("scenario_rollouts", 1, "*ScenarioRollouts"),
        ("submission_type", 2, "int32"),
        ("account_name", 3, "string"),
        ("unique_method_name", 4, "string"),
        ("authors", 5, "*string"),
        ("affiliation", 6, "string"),
        ("description", 7, "string"),
        ("method_link", 8, "string"),
        ("uses_lidar_data", 9, "bool"),
        ("uses_camera_data", 10, "bool"),
        ("uses_public_model_pretraining", 11, "bool"),
        ("num_model_parameters", 12, "string"),
        ("acknowledge_complies_with_closed_loop_requirement", 14, "bool"),
    ),
}
_SIM_AGENTS = 1  # of the enumeration SubmissionType


class _Given(NamedTuple):
    """A scenario with the objects that have to be simulated."""

    name: str
    ids: list[int]
    state_O6: Floats
    """x, y, z, heading, and the velocity along x and y at the current step."""
    scenarios: list[Scenario]
    """Itself, as far as there are road users."""


def shard_names(count: int) -> list[str]:
    """Names of the files of a submission."""
    return [f"submission.binproto-{number:05d}-of-{count:05d}" for number in range(count)]


def write_shards(
    model: LoadedModel,
    traffic: Traffic,
    directory: Path,
    about: Mapping[str, Any],
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Write a shard for each file of traffic; returns the numbers of scenarios and of objects.

    ``about`` are values of the other fields of a submission, by name.
    """
    counts = np.zeros(2, dtype=int)
    # It was built when it was loaded.
    parameters = sum(value.numel() for value in model.module_for(None).parameters())
    header = {
        "submission_type": _SIM_AGENTS,
        "uses_lidar_data": False,
        "uses_camera_data": False,
        "uses_public_model_pretraining": False,
        "num_model_parameters": f"{max(1, round(parameters / 1000))}K",
        **about,
    }
    for number, (path, name) in enumerate(
        zip(traffic.files, shard_names(len(traffic.files)), strict=True)
    ):
        with atomic_write(directory / name) as partial, partial.open("wb") as file:
            # A message may be written in parts: repeated fields of one after the other are joined.
            file.write(_classes()["Submission"](**header).SerializeToString())
            given = _given(path)
            while some := list(islice(given, _TOGETHER)):
                poses = _rolled_out(model, [one for g in some for one in g.scenarios], seed)
                for one in some:
                    made = _rollouts(one, poses.get(one.name, {}))
                    part = _classes()["Submission"](scenario_rollouts=[made])
                    file.write(part.SerializeToString())
                counts += len(some), sum(len(one.ids) for one in some)
        if progress is not None:
            progress(number + 1, len(traffic.files))
    return int(counts[0]), int(counts[1])


def _given(path: Path) -> Iterator[_Given]:
    """Scenarios of a file, also of a test set."""
    for content in read_records(path):
        name, scenarios = read_scenario(content, path, futures=False)
        scenario = message("Scenario")
        scenario.ParseFromString(content)
        now = {
            track.id: track.states[CURRENT_STEP]
            for track in scenario.tracks
            if track.states[CURRENT_STEP].valid
        }
        if not now:
            raise DataError(
                f"{path}: scenario {name!r} has no object that is valid at step {CURRENT_STEP}; a "
                "submission needs one in each: copy the file again"
            )
        columns = ("center_x", "center_y", "center_z", "heading", "velocity_x", "velocity_y")
        state = np.array([[getattr(one, key) for key in columns] for one in now.values()])
        yield _Given(name, list(now), state, scenarios)


def _rolled_out(
    model: LoadedModel, scenarios: list[Scenario], seed: int
) -> dict[str, dict[str, Floats]]:
    """x, y and heading of each agent by name of scenario and track, [S, T, 3]."""
    if not scenarios:
        return {}

    def fill(tokeniser: Tokeniser, config: TokenConfig, writer: Writer) -> None:
        del config
        for tokenised in tokeniser(scenarios):
            writer.add(tokenised, TEST)

    options = TrafficForecasts(members=ROLLOUTS, seed=seed, seconds=HORIZON * STEP_S)
    found: dict[str, dict[str, Floats]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = written(model.recipe, Path(folder), fill, _MOST_AGENTS)
        for piece in model.pieces(Prepared(files, 0), options):
            pose = np.stack([piece.forecast[key].values for key in ("x", "y", "heading")], axis=-1)
            for row, name in enumerate(piece.forecast["scenario_name"].values.tolist()):
                tracks = piece.forecast["track"].values[row].tolist()
                found[name] = {one: pose[row, :, a] for a, one in enumerate(tracks) if one}
    return found


def _rollouts(given: _Given, poses: Mapping[str, Floats]) -> Any:
    """All rollouts of a scenario, its objects in their order in the file."""
    made = _classes()["ScenarioRollouts"](scenario_id=given.name)
    time_T = STEP_S * np.arange(1, HORIZON + 1)
    of_objects = []
    for own, (x, y, z, heading, along_x, along_y) in zip(given.ids, given.state_O6, strict=True):
        steady = np.column_stack([x + along_x * time_T, y + along_y * time_T, 0 * time_T + heading])
        pose_ST3 = poses.get(str(own), np.broadcast_to(steady, (ROLLOUTS, HORIZON, 3)))
        of_objects.append((own, pose_ST3, [z] * HORIZON))
    for rollout in range(ROLLOUTS):
        scene = made.joint_scenes.add()
        for own, pose_ST3, z_T in of_objects:
            x_T, y_T, heading_T = pose_ST3[rollout].T.tolist()
            scene.simulated_trajectories.add(
                object_id=own, center_x=x_T, center_y=y_T, center_z=z_T, heading=heading_T
            )
    return made


@functools.cache
def _classes() -> dict[str, Any]:
    return message_classes(_MESSAGES)

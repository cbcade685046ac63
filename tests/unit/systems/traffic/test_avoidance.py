"""Draws of agents that would drive into each other, with paths that are made up."""

import numpy as np
import pytest
import torch

from millrace.systems.traffic.geometry import box_distance
from millrace.systems.traffic.smart.avoidance import choose, overlap

CAR = (4.0, 2.0)
WEIGHTS = (0.7, 0.3, 0.0)


def on_a_line(speed_C, start_A, heading_A):
    """Paths along the x axis: candidate c goes ``speed_C[c]`` m in five steps."""
    speed_C, start_A, heading_A = map(torch.tensor, (speed_C, start_A, heading_A))

    def paths(agent_N, place_N):
        done = speed_C[place_N].unsqueeze(-1) * torch.linspace(0, 1, 6)
        heading = heading_A[agent_N, None]
        x = start_A[agent_N, None] + done * heading.cos()
        return torch.stack([x, torch.zeros_like(x), heading.expand_as(x)], dim=-1)

    return paths


def drawn(paths, n, uniform=0.5, weights=WEIGHTS, present=None, usable=(True, True, True)):
    """Candidates of ``n`` cars in one scene."""
    weight = torch.tensor(weights).expand(1, n, -1)
    uniform = torch.full((1, n), uniform) if isinstance(uniform, float) else torch.tensor([uniform])
    present = torch.ones(1, n, dtype=torch.bool) if present is None else torch.tensor([present])
    usable = torch.tensor(usable).expand(1, n, -1)
    sizes = torch.tensor(CAR).expand(1, n, 2)
    place, path = choose(weight, usable, uniform, paths, sizes, present)
    assert torch.equal(path[0], paths(torch.arange(n), place[0]))
    return place[0].tolist()


def test_of_two_that_meet_one_yields():
    paths = on_a_line([6.0, 1.0, 0.0], [0.0, 13.0], [0.0, np.pi])
    assert sorted(drawn(paths, 2)) == [0, 1]


def test_the_one_that_chose_what_is_less_probable_yields():
    paths = on_a_line([6.0, 5.0, 0.0], [0.0, 14.5], [0.0, np.pi])
    # The second draws 5 m, with a probability of 0.3; what is left is 6 m, which is worse, and to stay.
    assert drawn(paths, 2, [0.5, 0.9]) == [0, 2]


def test_those_that_stay_apart_draw_as_if_alone():
    paths = on_a_line([6.0, 1.0, 0.0], [0.0, 40.0, 80.0], [0.0, 0.0, np.pi])
    assert drawn(paths, 3, [0.1, 0.75, 0.69]) == [0, 1, 0]


def test_a_last_resort_is_taken_where_all_else_collides():
    paths = on_a_line([6.0, 5.0, 0.0], [0.0, 8.0], [0.0, np.pi])
    assert sorted(drawn(paths, 2))[1] == 2


def test_a_token_that_is_in_no_vocabulary_is_no_resort():
    paths = on_a_line([6.0, 5.0, 0.0], [0.0, 8.0], [0.0, np.pi])
    assert 2 not in drawn(paths, 2, usable=(True, True, False))


def test_boxes_that_overlap_already_are_left_alone():
    paths = on_a_line([6.0, 1.0, 0.0], [0.0, 2.0], [0.0, np.pi])
    assert drawn(paths, 2) == [0, 0]


def test_padding_is_not_in_the_way():
    paths = on_a_line([6.0, 1.0, 0.0], [0.0, 13.0], [0.0, np.pi])
    assert drawn(paths, 2, present=[True, False]) == [0, 0]


def test_where_every_choice_collides_all_end():
    paths = on_a_line([6.0, 6.0, 6.0], [0.0, 13.0], [0.0, np.pi])
    assert len(drawn(paths, 2)) == 2


@pytest.mark.parametrize("seed", range(3))
def test_boxes_overlap_where_their_distance_is_negative(seed):
    """Against the distances that collisions are counted by."""
    random, n = np.random.default_rng(seed), 400
    pose = random.uniform([0, 0, -4], [14, 14, 4], (n, 1, 3))
    size = random.uniform([2, 0.5], [8, 3], (n, 2))
    one, other = np.triu_indices(n, 1)
    expected = box_distance(pose[one, 0], size[one], pose[other, 0], size[other]) < 0
    found = overlap(pose, size, np.stack([one, other]))
    assert 0.05 < expected.mean() < 0.95
    assert (found == expected).all()

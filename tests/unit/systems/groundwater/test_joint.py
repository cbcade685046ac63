"""Several datasets as one: common statistics, own groups, and no rank left waiting."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from millrace.data.joint import pooled
from millrace.data.normalisation import Normalisation
from millrace.data.samples import datasets_of, open_dataset
from millrace.errors import ExitCode
from millrace.evaluation.run import evaluate_run
from millrace.launch.launcher import launch
from millrace.training.batches import RankShare
from millrace.training.config import ReplayConfig
from millrace.training.replay import Replay
from millrace.training.request import Request

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def two_datasets(samples, other_samples):
    """Patches of 40 and 25 nodes, and of 9 and 150."""
    return {role: [str(samples[role]), str(other_samples[role])] for role in samples}


@pytest.fixture
def dataset(two_datasets, definition):
    return open_dataset("patches", two_datasets, definition["data"], CPU)


def test_groups_are_those_of_all_datasets(dataset, two_datasets, definition):
    parts = [open_dataset("patches", p, definition["data"], CPU) for p in datasets_of(two_datasets)]
    assert dataset.groups("test").tolist() == [n for part in parts for n in part.groups("test")]
    assert [dataset.batch("test", g, np.array([0])).y_KBTV.shape[0] for g in range(4)] == [
        40,
        25,
        9,
        150,
    ]


def test_a_batch_means_the_same_in_every_dataset(dataset, two_datasets, definition):
    """Physical states come back with the common statistics, whichever dataset they are from."""
    parts = [open_dataset("patches", p, definition["data"], CPU) for p in datasets_of(two_datasets)]
    index = np.array([2, 5])
    for group, (part, own) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        joint = dataset.to_physical(dataset.batch("validation", group, index).y_KBTV)
        alone = parts[part].to_physical(parts[part].batch("validation", own, index).y_KBTV)
        np.testing.assert_allclose(joint, alone, rtol=1e-4, atol=0.05)


def test_pooled_statistics_are_those_of_the_joined_values():
    random = np.random.default_rng(0)
    a, b = random.normal(2, 1, (500, 2)), random.normal(-3, 4, (500, 2))
    joined = np.concatenate([a, b])
    both = pooled([statistics(a), statistics(b)])
    np.testing.assert_allclose(both.mean_V, joined.mean(axis=0))
    np.testing.assert_allclose(both.std_V, joined.std(axis=0))


def test_identity_names_all_datasets(dataset, two_datasets, definition):
    turned = {role: paths[::-1] for role, paths in two_datasets.items()}
    other = open_dataset("patches", turned, definition["data"], CPU)
    assert len(dataset.definition["digest"]) == 2
    assert dataset.definition != other.definition


def test_what_follows_on_a_forecast_is_of_the_same_dataset(dataset):
    """Of the four patches the last two are of the second dataset."""
    replay, index = (
        Replay(ReplayConfig(longest=8, fresh=0.01, depth=1), dataset, 0),
        np.array([2, 5]),
    )
    for group in range(4):
        part = RankShare(group, index, np.ones(2, dtype=np.float32), np.arange(2), 2)
        batch = dataset.batch("train", group, index)
        draw = replay.draw(replay.lots(part, 0))
        assert torch.equal(replay.gather(draw).y_KBTV, batch.y_KBTV)
        forecast = torch.full_like(batch.past_NBTV[: len(batch.y_KBTV)], 0.5).swapaxes(0, 1)
        replay.keep(draw, forecast)
        draw = replay.draw(replay.lots(part, 1))
        assert draw.lead.tolist() == [2, 2]
        found, later = (
            replay.fill(replay.gather(draw), draw),
            dataset.batch("train", group, index + 2),
        )
        assert torch.equal(found.y_KBTV, later.y_KBTV)
        assert (found.last_KBV == 0.5).all()


@pytest.mark.slow
def test_two_ranks_train_on_patches_of_very_different_sizes(two_datasets, definition, tmp_path):
    """And every dataset is scored."""
    request = Request(
        experiment="both",
        layout="n1_gpu2",
        seed=0,
        target_epoch=2,
        definition=definition,
        files=two_datasets,
        runs=str(tmp_path / "runs"),
        checkpoint=str(tmp_path / "epoch_2.ckpt"),
        receipt=str(tmp_path / "epoch_2.json"),
    )
    assert launch(request, 2) == ExitCode.OK
    history = json.loads(Path(request.receipt).read_text())["history"]
    assert history[1]["train_loss"] < history[0]["train_loss"]
    paths = {name: tmp_path / name for name in ("metrics.json", "figures", "training.png")}
    checkpoint, receipt = Path(request.checkpoint), Path(request.receipt)
    evaluate_run(checkpoint, receipt, two_datasets, *paths.values())
    metrics = json.loads(paths["metrics.json"].read_text())
    counts = [scores["test"]["head"]["count"] for scores in metrics["datasets"]]
    assert counts == [65 * 8 * 2, 159 * 18 * 2]
    assert metrics["test"] == metrics["datasets"][0]["test"]


def statistics(values):
    return Normalisation(
        variables=("a", "b"),
        mean_V=values.mean(axis=0),
        std_V=values.std(axis=0),
        increment_std_V=np.ones(2),
        forcings=(),
        forcing_mean_F=np.zeros(0),
        forcing_std_F=np.zeros(0),
        low_D=np.zeros(3),
        high_D=np.ones(3),
    )

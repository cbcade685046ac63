"""`millrace plan --parallel`: what a GPU would hold and send, without weights."""

import functools

import pytest
import torch
import yaml
from plans import small

from millrace.errors import ExitCode
from millrace.planning.command import main
from millrace.systems.registry import get_model
from millrace.systems.weather.aurora.config import AuroraConfig
from millrace.systems.weather.aurora.swin import SwinBlock
from millrace.systems.weather.extract import WeatherConfig
from millrace.systems.weather.outline import WeatherOutline
from millrace.systems.weather.settings import WeatherWindowConfig
from millrace.training.config import TrainConfig
from millrace.training.parallel.config import ParallelConfig
from millrace.training.parallel.footprint import Workload, footprints

SHAPE, LEVELS, BATCH = (16, 32), 3, 4
KEYS = {
    "embed_dim": 32,
    "encoder_depths": [1, 1, 1],
    "decoder_depths": [1, 1, 1],
    "encoder_heads": [2, 4, 8],
    "decoder_heads": [8, 4, 2],
    "perceiver_heads": 2,
    "window": [2, 4, 4],
}
SMALL = AuroraConfig(**{key: tuple(v) if isinstance(v, list) else v for key, v in KEYS.items()})


def outline():
    return WeatherOutline(WeatherConfig(), WeatherWindowConfig(), SHAPE, LEVELS)


@functools.cache
def predicted(world=1, recompute=False, precision="float32", **block):
    dataset, train = outline(), TrainConfig(global_batch=BATCH, precision=precision)
    subject = Workload(get_model("aurora"), SMALL, dataset, dataset.batch, train)
    resolved = ParallelConfig(**block).for_model("aurora", SMALL, world, BATCH)
    return footprints(subject, resolved, None, recompute)


def test_one_process_holds_all_and_sends_nothing():
    [one] = predicted()
    assert one.gradients == one.parameters == one.optimiser / 2
    assert one.sent == {}
    assert predicted(recompute=True)[0].activations < 0.7 * one.activations


def test_replicas_send_each_gradient():
    [one] = predicted(2)
    assert one.parameters == predicted()[0].parameters
    assert one.sent == {"gradients of replicas": one.parameters}


def test_shards_send_weights_twice_and_gradients_once():
    [one] = predicted(2, dp_shard=2)
    assert one.parameters == pytest.approx(predicted()[0].parameters / 2, abs=1)
    assert one.sent == {"shards": 3 * one.parameters}


def test_blocks_are_sent_in_half_precision():
    whole, [half] = predicted()[0], predicted(2, dp_shard=2, precision="bfloat16")
    with torch.device("meta"):
        module = get_model("aurora").build(SMALL, outline())
    blocks = sum(
        p.numel() for b in module.blocks if isinstance(b, SwinBlock) for p in b.parameters()
    )
    assert 0.5 * whole.parameters < 4 * blocks < whole.parameters
    # Of half of the weights, twice, 2 bytes less for each of the blocks; gradients as before.
    assert half.sent == {"shards": 3 * half.parameters - 2 * blocks}
    [single] = predicted(2, dp_shard=2)
    for kept in ("parameters", "gradients", "optimiser"):
        assert getattr(half, kept) == getattr(single, kept)
    assert half.activations < single.activations


@pytest.mark.slow
def test_stages_of_unequal_work_have_larger_bubbles():
    first, second = (one.bubble for one in predicted(2, pipeline=2))
    assert first != second
    assert (first + second) / 2 > 1 / 5  # the bubble of stages of equal work


@pytest.mark.slow
def test_stages_send_tokens_time_and_skip():
    tokens, width = SMALL.latent_levels * (SHAPE[0] // 4) * (SHAPE[1] // 4), SMALL.embed_dim
    # Between the two stages lies the coarsest resolution: a 16th of the tokens, four times as wide.
    sample = 4 * (tokens // 16 * 4 * width + width + tokens * width)
    found = predicted(2, pipeline=2)
    assert sum(one.parameters for one in found) == predicted()[0].parameters
    assert [one.sent for one in found] == [{"between stages": BATCH * sample}] * 2


@pytest.fixture
def configuration(tmp_path, monkeypatch):
    """A file on top of a configuration, which is in the working directory."""
    storms = {
        "dataset": "planet",
        "data": {},
        "model": {"name": "aurora", **KEYS},
        "train": {"epochs": 3, "global_batch": 4, "log": ["wandb"]},
    }
    made = {
        "datasets": {"planet": {"source": "demo", "format": "weather"}},
        "run": {"layouts": ["n1_gpu2"]},
        "experiments": {"head": {"dataset": "planet", "model": {"name": "gino"}}, "storms": storms},
    }
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(made))
    over = tmp_path / "over.yaml"
    over.write_text("experiments: { storms: { parallel: { pipeline: 2 } } }")
    monkeypatch.chdir(tmp_path)
    return over


@pytest.mark.slow
def test_the_table(configuration, capsys):
    asked = ["--grid", "16x32", "--levels", "3", "--parallel", "storms"]
    assert main([*asked, "--configfile", str(configuration)]) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    shown = " ".join(" ".join(lines).split())
    assert "storms on n1_gpu2: dp_replicate 1 x dp_shard 1 x pipeline 2" in shown
    assert "kept (configured)" in shown
    assert "pipeline, 2 of 2" in shown
    first, second = (one.bubble for one in predicted(2, pipeline=2))
    bubble = f"{(first + second) / 2:.0%} of the time ({first:.0%}, {second:.0%} by position)"
    assert f"4 micro-batches, 1f1b; the pipeline bubble is {bubble}" in shown
    assert "between stages" in shown
    assert "fits, 0% of its memory" in shown


def test_what_a_piece_of_a_grid_takes_is_shown_and_does_not_grow_with_the_grid(tmp_path, capsys):
    held = []
    for level in (4, 6):
        made = small("downscaler")
        made["datasets"]["small"]["demo"]["level"] = level
        made["experiments"]["tiny"]["data"]["piece_blocks"] = 50
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(made))
        asked = ["--parallel", "tiny", "--layout", "n1_gpu1"]
        assert main([*asked, "--configfile", str(tmp_path / "config.yaml")]) == ExitCode.OK
        shown = " ".join(capsys.readouterr().out.split())
        said, _, rest = shown.partition(" blocks of 16 a sample, ")
        assert said.endswith(f"{80 * 4**level:,} cells; 50")
        held.append(rest)
    assert 100 < int(held[0].split()[0]) < 250, "blocks around the piece"
    assert held[0] == held[1]


@pytest.mark.parametrize("levels", [(2, 4), (4, 2)])
def test_of_several_datasets_the_one_with_the_largest_samples_is_shown(tmp_path, capsys, levels):
    made = small("downscaler")
    for name, level in zip(("one", "other"), levels, strict=True):
        demo = {**made["datasets"]["small"]["demo"], "level": level}
        made["datasets"][name] = {**made["datasets"]["small"], "demo": demo}
    made["experiments"]["tiny"]["dataset"] = ["one", "other"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(made))
    asked = ["--parallel", "tiny", "--configfile", str(tmp_path / "config.yaml")]
    assert main(asked) == ExitCode.OK
    largest = "other" if levels[1] == 4 else "one"
    shown = " ".join(capsys.readouterr().out.split())
    assert f"20,480 cells; 1280 blocks of 16 a sample, 0 around ({largest}, the largest)" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["storm", "n1_gpu2"], "no such experiment in the configuration; did you mean 'storms'"),
        (["head", "n1_gpu2"], "--parallel head: gino: what its samples will hold is not known"),
        (["storms", "n1_gpu3", "--division", "{dp_shard: 2}"], "but the layout has 3"),
        (["storms", "n1_gpu2", "--configfile", "none.yaml"], "none.yaml: cannot be read"),
        (["storms", "n1_gpu2", "--grid", "18x32"], "does not divide the grid of 18 x 32"),
    ],
)
def test_mistakes_are_sentences(configuration, capsys, arguments, message):
    experiment, layout, *more = arguments
    assert main(["--parallel", experiment, "--layout", layout, *more]) == ExitCode.USER
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("{ replay: { longest: 4 } }", "train.replay: forecasts leave a pipeline"),
        ("{ compile: true }", "work on replicas of a model only"),
        ("{ gradient_compression: bfloat16 }", "work on replicas of a model only"),
    ],
)
def test_options_that_the_workflow_refuses(configuration, capsys, train, message):
    configuration.write_text(
        f"experiments: {{ storms: {{ parallel: {{ pipeline: 2 }}, train: {train} }} }}"
    )
    given = ["--parallel", "storms", "--configfile", str(configuration)]
    assert main(given) == ExitCode.USER
    assert message in capsys.readouterr().err

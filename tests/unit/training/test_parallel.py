"""Any mix of copies, shards, stages and cut layers: the gradients of one process, checkpoints that move."""

import copy
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import parallel_worker
import pytest
import torch

WORKER = Path(parallel_worker.__file__)

# name -> ranks, parallel block, largest relative difference of a gradient
MODES = {
    "ddp2": (2, {}, 1e-5),
    "static2": (2, {"static_graph": True}, 1e-5),
    "fsdp2": (2, {"dp_shard": 2}, 1e-5),
    "gpipe2": (2, {"pipeline": 2, "schedule": "gpipe"}, 1e-5),
    "pp2": (2, {"pipeline": 2, "schedule": "1f1b"}, 1e-5),
    "interleaved2": (2, {"pipeline": 2, "schedule": "interleaved"}, 1e-5),
    "tp2": (2, {"tensor": 2}, 1e-3),
    "ddp4": (4, {}, 1e-5),
    "fsdp4": (4, {"dp_shard": 4}, 1e-5),
    "hsdp4": (4, {"dp_shard": 2, "dp_replicate": 2}, 1e-5),
    "gpipe4": (4, {"pipeline": 4, "schedule": "gpipe"}, 1e-5),
    "pp4": (4, {"pipeline": 4, "schedule": "1f1b"}, 1e-5),
    "interleaved4": (4, {"pipeline": 4, "schedule": "interleaved"}, 1e-5),
    "pp2_fsdp2": (4, {"pipeline": 2, "dp_shard": 2}, 1e-5),
    "pp2_interleaved_fsdp2": (4, {"pipeline": 2, "dp_shard": 2, "schedule": "interleaved"}, 1e-5),
    "pp2_copies2": (4, {"pipeline": 2, "dp_replicate": 2}, 1e-5),
    "tp2_fsdp2": (4, {"tensor": 2, "dp_shard": 2}, 1e-3),
    "tp2_copies2": (4, {"tensor": 2, "dp_replicate": 2}, 1e-3),
    "tp2_pp2": (4, {"tensor": 2, "pipeline": 2}, 1e-3),
}
MOVES = ["ddp2", "fsdp2", "pp2", "tp2", "pp2_fsdp2"]
STEPS = 3


@pytest.fixture(scope="module")
def run_jobs(tmp_path_factory, alone):
    """(ranks, jobs by name) -> results by name; all jobs share one torchrun."""

    def run(ranks, jobs):
        if ranks == 1:
            return {name: parallel_worker.perform(job, alone) for name, job in jobs.items()}
        directory = tmp_path_factory.mktemp("jobs")
        given, output = directory / "jobs.json", directory / "results.json"
        given.write_text(json.dumps(jobs))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={ranks}", str(WORKER), str(given), str(output)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, _reason(done.stderr)
        return json.loads(output.read_text())

    return run


@pytest.fixture(scope="module")
def blocks(experiments):
    """(keys of the block data) -> definition of the small Aurora and its files."""

    def make(**data):
        definition, files = copy.deepcopy(experiments["aurora"])
        definition["data"] |= data
        return {"definition": definition, "files": files}

    return make


@pytest.fixture(scope="module")
def gradients(run_jobs, blocks, tmp_path_factory, alone):
    """(rollout steps) -> {mode: (result, gradients)} at perturbed weights, one process as ``alone``."""
    done = {}

    def compute(rollout):
        if rollout in done:
            return done[rollout]
        directory = tmp_path_factory.mktemp(f"gradients{rollout}")
        job = blocks(output_steps=rollout) | {
            "do": "gradients",
            "weights": str(directory / "weights.pt"),
        }
        torch.save(perturbed_weights(parallel_worker.build(job, alone).module), job["weights"])
        results = {}
        for ranks in (1, 2, 4):
            modes = {n: m for n, m in MODES.items() if m[0] == ranks} or {"alone": (1, {}, 0)}
            jobs = {
                name: job | {"parallel": block, "output": str(directory / f"{name}.pt")}
                for name, (_, block, _) in modes.items()
            }
            results |= run_jobs(ranks, jobs)
        done[rollout] = {
            name: (result, torch.load(directory / f"{name}.pt")) for name, result in results.items()
        }
        return done[rollout]

    return compute


def perturbed_weights(module):
    """At the initial weights blocks nearly vanish, and with them what could be wrong."""
    generator = torch.Generator().manual_seed(7)
    return {
        name: p.detach() + 0.1 * torch.randn(p.shape, generator=generator)
        for name, p in module.named_parameters()
    }


@pytest.mark.slow
@pytest.mark.parametrize("rollout", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_of_one_process(gradients, mode, rollout):
    (alone, expected), (result, found) = (gradients(rollout)[name] for name in ("alone", mode))
    assert found.keys() == expected.keys()
    assert all(float(g.abs().max()) > 0 for g in expected.values()), "the test would be vacuous"
    largest = {n: relative(found[n], expected[n]) for n in expected}
    worst = max(largest, key=largest.__getitem__)
    print(f"{mode} rollout {rollout}: {largest[worst]:.1e} ({worst})")
    tolerance = MODES[mode][2]
    assert largest[worst] <= tolerance, worst
    for key in ("loss", "norm", "validation"):
        assert result[key] == pytest.approx(alone[key], rel=tolerance), key
    assert result["weights_survive"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fsdp4", "pp2", "pp4", "tp2", "pp2_fsdp2"])
def test_each_process_holds_a_part(gradients, mode):
    results = gradients(1)
    if "fsdp" not in mode:
        assert results[mode][0]["held"] < 0.8 * results["alone"][0]["held"]


@pytest.fixture(scope="module")
def moved(run_jobs, blocks, tmp_path_factory):
    """{(from, to): losses after the checkpoint} and {"alone": losses throughout}."""
    directory = tmp_path_factory.mktemp("moved")
    base = blocks() | {"steps": STEPS}
    base["definition"]["train"] |= {"ema": 0.9, "learning_rate": 1e-3}
    modes = {"alone": (1, {}, 0)} | {name: MODES[name] for name in MOVES}
    files = {name: str(directory / f"{name}.pt") for name in modes}
    whole = run_jobs(1, {"whole": base | {"do": "train", "steps": 2 * STEPS}})["whole"]
    for ranks in (1, 2, 4):
        run_jobs(
            ranks,
            {
                name: base | {"do": "train", "parallel": block, "output": files[name]}
                for name, (n, block, _) in modes.items()
                if n == ranks
            },
        )
    results = {}
    for ranks in (1, 2, 4):
        jobs = {
            f"{before}>{after}": base
            | {"do": "continue", "parallel": modes[after][1], "state": files[before]}
            for before, after in itertools.product(modes, modes)
            if modes[after][0] == ranks
        }
        results |= run_jobs(ranks, jobs)
    return whole, results, {name: torch.load(path) for name, path in files.items()}


@pytest.mark.slow
@pytest.mark.parametrize("after", ["alone", *MOVES])
@pytest.mark.parametrize("before", ["alone", *MOVES])
def test_checkpoints_move_between_modes(moved, before, after):
    whole, results, _ = moved
    tolerance = 1e-4 if "tp2" in (before, after) else 1e-6
    found = results[f"{before}>{after}"]
    worst = max(
        abs(a / b - 1) for a, b in zip(found["losses"], whole["losses"][STEPS:], strict=True)
    )
    print(f"{before} -> {after}: {worst:.1e}")
    assert worst <= tolerance
    assert found["validation"] == pytest.approx(whole["validation"], rel=10 * tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MOVES)
def test_checkpoints_look_like_that_of_one_process(moved, mode):
    *_, states = moved
    one, other = states["alone"], states[mode]
    for key in ("model", "ema_model"):
        assert one[key].keys() == other[key].keys()
        for name, value in one[key].items():
            torch.testing.assert_close(other[key][name], value, rtol=1e-3, atol=1e-4)
    assert one["optimizer"]["state"].keys() == other["optimizer"]["state"].keys()
    for number, moments in one["optimizer"]["state"].items():
        assert moments["exp_avg"].shape == other["optimizer"]["state"][number]["exp_avg"].shape


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def _reason(text):
    """What the worker printed, without torchrun's report about it."""
    return text.partition("torch.distributed.elastic")[0][-9000:]


VARIANTS = {
    "accumulated": {"execution": {"micro_batch": 1, "activation_checkpointing": True}},
    "bfloat16": {"train": {"precision": "bfloat16"}},
    "clipped": {"train": {"clip_norm": 0.05, "loss": {"kind": "mse"}}},
    "odd": {"train": {"global_batch": 5}},
}
"""What else training can be told -> the keys."""


@pytest.fixture(scope="module")
def varied(run_jobs, blocks):
    results = {}
    for ranks in (1, 2, 4):
        modes = {"alone": (1, {}, 0)} | {name: MODES[name] for name in MOVES}
        jobs = {}
        for variant, keys in VARIANTS.items():
            base = blocks() | {
                "do": "train",
                "steps": STEPS,
                "execution": keys.get("execution", {}),
            }
            base["definition"]["train"] |= keys.get("train", {})
            jobs |= {
                f"{variant} {name}": base | {"parallel": block}
                for name, (n, block, _) in modes.items()
                if n == ranks
            }
        results |= run_jobs(ranks, jobs)
    return results


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", MOVES)
def test_all_options_work_in_every_mode(varied, mode, variant):
    alone, found = varied[f"{variant} alone"], varied[f"{variant} {mode}"]
    tolerance = {"bfloat16": 5e-3}.get(variant, 1e-4 if mode == "tp2" else 1e-5)
    assert found["losses"] == pytest.approx(alone["losses"], rel=tolerance)
    assert found["validation"] == pytest.approx(alone["validation"], rel=tolerance)

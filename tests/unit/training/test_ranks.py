"""Any number of ranks trains the same problem: same batches, same losses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = 40
WORKER = Path(__file__).with_name("rank_worker.py")


@pytest.fixture(scope="module")
def results(samples, definition, tmp_path_factory):
    """Results by number of ranks. Batches of 6 on 3 ranks divide evenly, on 2 and 1 too; the last
    batch of a group holds fewer samples than there are ranks."""
    directory = tmp_path_factory.mktemp("ranks")
    blocks = {**definition, "train": {**definition["train"], "global_batch": 9}}
    job = directory / "job.json"
    files = {role: str(path) for role, path in samples.items()}
    job.write_text(json.dumps({"definition": blocks, "files": files, "steps": STEPS}))
    return {n: torchrun(n, job, directory / f"{n}.json") for n in (1, 2, 3)}


def torchrun(ranks, job, output):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", str(WORKER), str(job), str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.mark.parametrize("ranks", [2, 3])
def test_losses_agree(results, ranks):
    assert len(results[1]["losses"]) >= STEPS
    assert results[ranks]["losses"] == pytest.approx(results[1]["losses"], rel=1e-5)
    assert results[ranks]["validation"] == pytest.approx(results[1]["validation"], rel=1e-5)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_batches_of_one(results, ranks):
    for shares, alone in zip(results[ranks]["batches"], results[1]["batches"], strict=True):
        [(group, index, _)] = alone
        assert {share[0] for share in shares} == {group}
        counted = [
            i
            for _, indices, weights in shares
            for i, w in zip(indices, weights, strict=True)
            if w == 1
        ]
        assert sorted(counted) == sorted(index)


def test_some_rank_was_idle(results):
    """Else the case of fewer samples than ranks went untested."""
    weights = [w for shares in results[3]["batches"] for *_, ws in shares for w in ws]
    assert 0.0 in weights

"""The launcher around real torchrun jobs: exit codes, signals, threads, stop and go."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
import torch
from images import Image, with_apptainer
from pausing import Gate, is_rank
from tiers import nightly_for, slow_for

from millrace.errors import ConfigError, ExitCode
from millrace.launch.container import command, shown
from millrace.launch.launcher import Surroundings, launch, run_workers
from millrace.layout import Layout
from millrace.processes import die_with_parent
from millrace.training.request import Request

EPOCHS = 6
SIGNALS = nightly_for([signal.SIGTERM, signal.SIGUSR2, signal.SIGINT], signal.SIGTERM.__ne__)

LAUNCH = """
import json, sys
from millrace.launch.launcher import launch, run_workers
from millrace.layout import Layout
from millrace.processes import die_with_parent
from millrace.training.request import Request
sys.exit(launch(Request(**json.loads(sys.argv[1])), cpus=1))
"""

TELLS_COPIES = """
import os, pathlib
from millrace.data.samples import LOCAL_COPIES
from millrace.systems.base import System
SYSTEM = System("told")
if LOCAL_COPIES in os.environ:
    text = pathlib.Path(os.environ[LOCAL_COPIES]).read_text()
    pathlib.Path(__file__).with_suffix(".json").write_text(text)
    shared = pathlib.Path(os.environ["MILLRACE_SHARED_SAMPLES"])
    pathlib.Path(__file__).with_suffix(".txt").write_text(f"{shared} {shared.is_dir()}")
"""


@pytest.fixture
def request_for(samples, definition, tmp_path):
    def build(name="run", layout="n1_gpu1", epochs=EPOCHS, **train):
        return Request(
            experiment="wave",
            layout=layout,
            seed=0,
            target_epoch=epochs,
            definition={**definition, "train": {**definition["train"], **train}},
            files={role: str(path) for role, path in samples.items()},
            runs=str(tmp_path / name / "runs"),
            checkpoint=str(tmp_path / name / f"epoch_{epochs}.ckpt"),
            receipt=str(tmp_path / name / f"epoch_{epochs}.json"),
        )

    return build


@pytest.fixture
def whole(request_for):
    """Weights of a run that was never stopped."""
    request = request_for("whole")
    assert launch(request, cpus=1) == ExitCode.OK
    return torch.load(request.checkpoint, weights_only=True)["model"]


@pytest.mark.slow
def test_ranks_share_the_threads_of_the_job_and_copies_of_the_samples(
    request_for, tmp_path, monkeypatch
):
    monkeypatch.setenv("MKL_NUM_THREADS", "2")  # as Snakemake sets it for a job of two threads
    monkeypatch.setenv("TMPDIR", str(tmp_path / "node"))
    (tmp_path / "node").mkdir()
    plugin = tmp_path / "told.py"
    plugin.write_text(TELLS_COPIES)
    request = replace(
        request_for(layout="n1_gpu2", epochs=1),
        save_steps=2,
        execution={"local_copies": True},
        plugins=[str(plugin)],
    )
    assert launch(request, cpus=2) == ExitCode.OK
    copies = json.loads((tmp_path / "told.json").read_text())
    assert copies.keys() == {*request.files.values()}
    assert all(Path(copy).is_relative_to(tmp_path / "node") for copy in copies.values())
    shared = (tmp_path / "told.txt").read_text()
    assert shared.startswith(f"{tmp_path}/node/millrace_samples_")
    assert shared.endswith(" True")
    assert not [*(tmp_path / "node").glob("millrace_samples*")]
    receipt = json.loads(Path(request.receipt).read_text())
    [session] = receipt["sessions"]
    assert (session["ranks"], session["threads"]) == (2, 1)
    kept = {int(path.name[5:]) for path in Path(request.runs).glob("*/step_*")}
    assert receipt["step"] in kept
    assert [step for step in kept if step < receipt["step"]], "checkpoints within the epoch"


@pytest.mark.slow
def test_ranks_start_in_an_image_and_train_the_same_bits(request_for, whole, tmp_path, monkeypatch):
    place = tmp_path / "my runs (é)" / "it's"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    monkeypatch.setenv("PATH", with_apptainer(os.environ["PATH"]))
    image = Image(place / "millrace.sif")
    inside = Surroundings(container=command("millrace.sif", shown("--nv", [])))
    request = request_for()
    assert launch(request, 1, inside) == ExitCode.OK
    [agent] = image.calls
    assert agent["command"][:3] == ["python", "-m", "millrace.launch.agent"]
    assert agent["options"]["flags"] == ["--nv"]
    assert agent["directory"] == str(place)
    assert_same(torch.load(request.checkpoint, weights_only=True)["model"], whole)


@pytest.mark.slow
def test_a_launch_leaves_nothing_in_the_machines_temporary_folder(
    request_for, tmp_path, monkeypatch
):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    request = request_for(layout="n1_gpu2", epochs=1)  # two ranks have samples in common there
    assert launch(request, cpus=1) == ExitCode.OK
    assert not list(temporary.iterdir())
    assert not list(Path(request.runs).glob(".launch_*"))


@pytest.mark.slow
def test_end_of_the_allocation_saves_and_asks_to_try_again(request_for, whole, monkeypatch):
    request = request_for()
    monkeypatch.setenv("MILLRACE_DEADLINE", str(time.time()))
    assert launch(request, cpus=1) == ExitCode.TRY_AGAIN
    assert not Path(request.checkpoint).exists()
    monkeypatch.delenv("MILLRACE_DEADLINE")
    assert launch(request, cpus=1) == ExitCode.OK
    assert_same(torch.load(request.checkpoint, weights_only=True)["model"], whole)


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_saves_and_asks_to_try_again(request_for, number):
    request = request_for(epochs=5000)
    running = start(request)
    wait_for_epochs(request, 3)
    running.send_signal(number)
    assert running.wait(300) == ExitCode.TRY_AGAIN
    steps = [path.name for path in Path(request.runs).glob("*/step_*")]
    assert steps
    done = len(next(Path(request.runs).glob("*/metrics.jsonl")).read_text().splitlines())
    assert 3 <= done < 5000


@pytest.mark.slow
def test_ranks_of_one_node_listen_on_its_loopback_and_need_no_name(request_for):
    request = request_for(epochs=5000, layout="n1_gpu2")
    nameless = ["unshare", "-u", "sh", "-c", 'hostname node-x.invalid && exec "$@"', "sh"]
    if subprocess.run([*nameless, "true"], capture_output=True, check=False).returncode:
        nameless = []  # only root may
    running = start(request, *nameless)
    try:
        wait_for_epochs(request, 1)
        below = psutil.Process(running.pid).children(recursive=True)
        ranks = [one for one in below if is_rank(one)]
        assert sorted(one.name() for one in ranks) == ["rank 0", "rank 1"]
        assert {tuple(one.cmdline()) for one in ranks} == {tuple(ranks[0].parent().cmdline())}
        sockets = [one for process in below for one in process.net_connections("inet")]
        assert {one.laddr.ip.removeprefix("::ffff:") for one in sockets} == {"127.0.0.1"}
    finally:
        running.terminate()
        running.wait(300)


def test_killed_launcher_leaves_no_process_and_the_next_one_no_files(request_for):
    request = request_for(epochs=5000)
    running = start(request)
    wait_for_epochs(request, 2)
    below = psutil.Process(running.pid).children(recursive=True)
    assert len(below) >= 2
    running.kill()
    running.wait(300)
    _, alive = psutil.wait_procs(below, timeout=300)
    assert alive == []
    [left] = Path(request.runs).glob(".launch_*")
    left.rename(left.with_name(f"{left.name[:-8]}a_1_b_2c"))  # as tempfile may name it
    assert launch(request_for(epochs=1), cpus=1) == ExitCode.OK
    assert not [*Path(request.runs).glob(".launch_*")]


@pytest.mark.parametrize("killed", slow_for(["launcher", "agent", "torchrun"], "launcher".__ne__))
def test_ranks_that_have_just_begun_end_with_what_started_them(request_for, killed):
    running = start(request_for(epochs=5000, layout="n1_gpu2"))
    launcher = psutil.Process(running.pid)
    end = time.monotonic() + 180
    while not (ranks := [one for one in launcher.children(True) if is_rank(one)]):
        assert time.monotonic() < end
    tree = launcher.children(recursive=True)
    of = {"launcher": [launcher], "agent": tree, "torchrun": [ranks[0].parent()]}[killed]
    next(one for one in of if killed != "agent" or is_a(one, "launch.agent")).kill()
    _, alive = psutil.wait_procs([*ranks, *tree], timeout=300)
    running.kill()
    running.wait(300)
    assert alive == []


def test_a_training_that_is_told_to_stop_while_it_begins_imports_no_torch_first(
    request_for, tmp_path, monkeypatch
):
    gate = Gate(tmp_path / "gate", "millrace.launch.torchrun", "torch")  # it is never opened
    for name, value in gate.environment.items():
        monkeypatch.setenv(name, value)
    request = request_for(epochs=5000)
    running = start(request)
    try:
        gate.wait()
        tree = psutil.Process(running.pid).children(recursive=True)
        running.terminate()
        assert running.wait(300) == ExitCode.TRY_AGAIN
        assert psutil.wait_procs(tree, timeout=300)[1] == []
    finally:
        running.kill()


def is_a(process, module):
    try:
        return f"millrace.{module}" in process.cmdline()[:4]  # python -u -m module
    except psutil.Error:
        return False


@pytest.mark.slow
def test_second_launch_on_the_same_run_is_refused_by_name(request_for, capfd):
    request = request_for(epochs=5000)
    running = start(request)
    try:
        wait_for_epochs(request, 1)
        assert launch(request, cpus=1) == ExitCode.LOCKED
        assert "in use by process" in capfd.readouterr().err
    finally:
        running.terminate()
        running.wait(300)


@pytest.mark.slow
def test_user_error_is_the_last_line(request_for, capfd):
    request = request_for(learning_rat=1.0)
    assert launch(request, cpus=1) == ExitCode.USER
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last == "error: train: unknown key 'learning_rat': did you mean 'learning_rate'?"


@pytest.mark.slow
def test_loss_that_is_not_finite_has_its_own_code(request_for, capfd):
    request = request_for(learning_rate=1e30, clip_norm=None)
    assert launch(request, cpus=1) == ExitCode.NOT_FINITE
    assert "infinite or NaN" in capfd.readouterr().err


@pytest.mark.slow
def test_an_error_in_a_rank_is_printed_once(tmp_path, monkeypatch, capfd):
    (tmp_path / "broken.py").write_text("import os\n1 / int(os.environ['RANK'])\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    request = tmp_path / "launch" / "request.json"
    request.parent.mkdir()
    request.write_text("{}")
    assert run_workers("broken", request, Layout.parse("n1_gpu2"), cpus=2)
    said = capfd.readouterr().err
    assert said.count("Traceback") == said.count("ZeroDivisionError: division by zero") == 1
    assert said.strip().splitlines()[-1].startswith("rank 0 ended with exit code 1")


def test_several_nodes_are_refused(request_for):
    with pytest.raises(ConfigError, match="needs 2 nodes"):
        launch(request_for(layout="n2_gpu1"), cpus=1)


def start(request, *within):
    command = [*within, sys.executable, "-c", LAUNCH, json.dumps(asdict(request))]
    return subprocess.Popen(
        command,
        env=os.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent,  # of a test that is killed
    )


def wait_for_epochs(request, n):
    end = time.monotonic() + 180
    while time.monotonic() < end:
        for metrics in Path(request.runs).glob("*/metrics.jsonl"):
            if len(metrics.read_text().splitlines()) >= n:
                return
        time.sleep(0.02)
    raise AssertionError("training did not get going")


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []

"""A trace of the steps that were asked for."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from millrace.errors import ConfigError
from millrace.training.config import ProfileConfig
from millrace.training.profiler import StepProfiler, traces


def work(profiler, first, last):
    for step in range(first, last):
        with torch.profiler.record_function(f"step {step}"):
            torch.zeros(4) + 1
        profiler.on_step(step + 1)


def traced(directory):
    (path,) = traces(directory)
    events = json.loads(gzip.decompress(Path(path).read_bytes()))["traceEvents"]
    return sorted({e["name"] for e in events if str(e.get("name", "")).startswith("step ")})


def test_traces_its_window(tmp_path):
    profiler = StepProfiler(ProfileConfig(start=3, steps=2), tmp_path, 0)
    work(profiler, 0, 9)
    profiler.close()
    assert traced(tmp_path) == ["step 3", "step 4"]
    assert [path.name for path in tmp_path.iterdir()] == ["profile_step_3.json.gz"]


def test_a_window_may_begin_with_the_session_and_end_with_it(tmp_path):
    profiler = StepProfiler(ProfileConfig(start=3, steps=10), tmp_path, 3)
    work(profiler, 3, 5)
    profiler.close()
    assert traced(tmp_path) == ["step 3", "step 4"]


@pytest.mark.parametrize(("config", "first"), [(None, 0), (ProfileConfig(start=3, steps=2), 4)])
def test_nothing_is_traced_without_a_window_or_after_it(tmp_path, config, first):
    profiler = StepProfiler(config, tmp_path, first)
    work(profiler, first, 9)
    profiler.close()
    assert traces(tmp_path) == []


@pytest.mark.parametrize("window", [(-1, 2), (0, 0)])
def test_nonsense_is_refused(window):
    with pytest.raises(ConfigError, match=r"train\.profile"):
        ProfileConfig.parse(dict(zip(("start", "steps"), window, strict=True)), "train.profile")

"""Nothing of validation and test data reaches what the weather model is trained on."""

import h5py
import numpy as np
import pytest
import torch
from travelling_waves import waves

from millrace.data.split import SplitConfig
from millrace.systems.weather.aurora.config import AuroraConfig
from millrace.systems.weather.aurora.spec import SPEC
from millrace.systems.weather.dataset import WeatherDataset
from millrace.systems.weather.extract import extract_weather
from millrace.systems.weather.settings import WeatherConfig, WeatherWindowConfig

CONFIG = WeatherConfig(surface=("2t", "msl"), air=("z", "u"), static=("lsm",))
SPLIT = SplitConfig(train=0.5, validation=0.25, gap=2)
STEPS, TRAIN = 24, 10  # half of 24 steps, less two gaps


@pytest.fixture
def files(tmp_path):
    """Samples before and after all states after the training period were changed."""
    data = waves(STEPS)
    later = data.time >= data.time[TRAIN]
    # Of all variables that change in time, in the range that they may have.
    changed = {
        name: v.where(~later, v.mean() + 1.5 * (v - v.mean()).roll(longitude=5)).transpose(*v.dims)
        for name, v in data.data_vars.items()
        if "time" in v.dims
    }
    made = {}
    for name, one in {"before": data, "after": data.assign(changed)}.items():
        one.to_netcdf(tmp_path / f"{name}.nc")
        made[name] = tmp_path / f"{name}.h5"
        extract_weather(tmp_path / f"{name}.nc", made[name], CONFIG, SPLIT)
    return made


def test_later_states_change_no_sample_and_no_statistic_of_training(files):
    with h5py.File(files["before"]) as one, h5py.File(files["after"]) as other:
        assert one["split"][0].tolist() == [0, TRAIN]
        assert one.attrs["digest"] != other.attrs["digest"]
        assert not np.array_equal(one["state"][TRAIN:], other["state"][TRAIN:])
        assert np.array_equal(one["state"][:TRAIN], other["state"][:TRAIN])
        for name in ("climatology", "stats/mean", "stats/std", "stats/increment_std", "static"):
            assert np.array_equal(one[name][()], other[name][()]), name
    before, after = (WeatherDataset(path, WeatherWindowConfig()) for path in files.values())
    assert before.normalisation.to_json() == after.normalisation.to_json()
    windows = np.arange(len(before.starts("train")))
    assert len(windows) == TRAIN - 2
    first, second = (vars(dataset.batch("train", 0, windows)) for dataset in (before, after))
    assert all(torch.equal(first[name], second[name]) for name in first)
    tested = [dataset.batch("test", 0, np.arange(2)).y_BKCIJ for dataset in (before, after)]
    assert not torch.equal(*tested)


def test_later_states_change_no_weight_of_a_trained_model(files):
    config = AuroraConfig.parse(
        {
            "embed_dim": 8,
            "encoder_depths": [1, 1, 1],
            "decoder_depths": [1, 1, 1],
            "encoder_heads": [1, 2, 2],
            "decoder_heads": [2, 2, 1],
            "perceiver_heads": 1,
            "latent_levels": 2,
            "window": [1, 4, 4],
        },
        "model",
    )
    weights = []
    for path in files.values():
        dataset = WeatherDataset(path, WeatherWindowConfig())
        torch.manual_seed(0)
        model = SPEC.build(config, dataset)
        optimiser = torch.optim.Adam(model.parameters(), 1e-3)
        for step in range(2):
            batch = dataset.batch("train", 0, np.array([step, step + 3]))
            loss = (model(batch) - batch.y_BKCIJ).abs().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

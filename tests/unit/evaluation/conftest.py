"""A checkpoint of a plug-in's model."""

import pytest
import torch
from array_fields import write

from millrace.data.arrays import ArrayDataset
from millrace.data.recipe import recipe_of
from millrace.evaluation.loaded import load
from millrace.evaluation.trained_model import TrainedModel
from millrace.models.arrays import ArrayModel
from millrace.models.losses import forecast
from millrace.models.spec import ModelSpec
from millrace.systems import registry
from millrace.systems.arrays import ArrayConfig, array_kind
from millrace.systems.base import Model, System


class Shift(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.net = torch.nn.Conv1d(channels[0], channels[1], 1)

    def forward(self, x):
        return self.net(x.flatten(2)).unflatten(2, x.shape[2:])


@pytest.fixture
def of_arrays(monkeypatch, tmp_path):
    """A loaded model on arrays, its dataset and samples."""

    def make(samples, **config):
        is_series = samples.time is not None
        kind = array_kind("mine", ["mine"], lambda *_: samples, series=is_series)
        spec = ModelSpec("shift", ArrayConfig, _build, forecast, _loss)
        system = System("mine", kinds=(kind,), models=(Model("shift", "mine", spec),))
        monkeypatch.setattr(registry, "loaded_plugins", {"mine": system})
        dataset = ArrayDataset(write(tmp_path, samples), ArrayConfig(**config))
        definition = {"data": config, "model": {"name": "shift"}}
        module = _build(None, dataset)
        state = {"model": module.state_dict(), "recipe": recipe_of("mine", definition, dataset)}
        torch.save(state, tmp_path / "mine.ckpt")
        return load(tmp_path / "mine.ckpt", device="cpu"), TrainedModel(spec, module, dataset)

    return make


def _build(_, dataset):
    torch.manual_seed(0)
    return ArrayModel(Shift((dataset.in_channels, dataset.out_channels)))


def _loss(*_):
    raise NotImplementedError

"""A trained model, rebuilt from a checkpoint, with samples to forecast."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from millrace.data.normalisation import Normalisation
from millrace.data.samples import Files, open_dataset
from millrace.errors import NotFiniteError
from millrace.models.spec import ModelSpec
from millrace.systems.registry import get_model, kind_of
from millrace.training.receipt import check_bytes, read_receipt
from millrace.training.store import load_state, weights_of
from millrace.training.warm_start import check_buffers


@dataclass(frozen=True)
class TrainedModel:
    """A model with its weights, and samples to forecast."""

    spec: ModelSpec
    module: nn.Module
    dataset: Any
    """Samples, opened by `millrace.data.samples.open_dataset`."""

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        receipt: Mapping[str, Any],
        files: Files,
        device: torch.device | None = None,
        statistics: Normalisation | None = None,
    ) -> "TrainedModel":
        """Rebuild the model of a checkpoint, which its receipt describes, with sample files by role.

        It is on the GPU by default, if there is one. ``statistics`` are those of the data that the model
        was trained on, if ``files`` hold other data. Raises `DataError` if the checkpoint is damaged.
        """
        check_bytes(checkpoint, receipt)
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        definition = receipt["definition"]
        parameters = dict(definition["model"])
        spec = get_model(parameters.pop("name"))
        dataset = open_dataset(
            kind_of(spec.name).name, files, definition["data"], device, statistics
        )
        module = spec.build(spec.config.parse(parameters, "model"), dataset).to(device)
        weights = weights_of(load_state(checkpoint))
        check_buffers(module, weights, spec.matching_buffers, checkpoint)
        module.load_state_dict(weights)
        return cls(spec, module.eval(), dataset)

    @torch.no_grad()
    def __call__(self, batch: Any) -> Tensor:
        """Forecast of a batch in normalised units, see `ModelSpec.predict` and `finite`."""
        return finite(self.spec.predict(self.module, batch))


def finite(forecast: Tensor) -> Tensor:
    """Return what a model has computed; raises `NotFiniteError` if any of it is infinite or NaN."""
    if not bool(torch.isfinite(forecast).all()):
        raise NotFiniteError(
            "a forecast of the model is infinite or NaN, and nothing is written: look for values in the "
            "data that are far from those of the training, or train again with a lower train.learning_rate"
        )
    return forecast


def read_training(receipt: Path) -> dict[str, Any]:
    """Read a receipt with what a model is rebuilt from; raises `DataError` like `read_receipt`."""
    return read_receipt(receipt, ("definition", "normalisation", "dataset"))

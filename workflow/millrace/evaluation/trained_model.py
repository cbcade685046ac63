"""A model with its weights, rebuilt from a checkpoint, and the samples it was made for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from millrace.config import from_mapping
from millrace.data.normalisation import Normalisation
from millrace.data.samples import Files, open_dataset
from millrace.errors import DataError
from millrace.models.spec import ModelSpec
from millrace.systems.registry import get_model, kind_of
from millrace.training.store import checksum, load_state, weights_of
from millrace.training.warm_start import check_bound


@dataclass(frozen=True)
class TrainedModel:
    """A model with its weights and the samples it was made for."""

    spec: ModelSpec
    module: nn.Module
    dataset: Any
    """What `millrace.data.samples.open_dataset` returns."""

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        receipt: Mapping[str, Any],
        files: Files,
        device: torch.device | None = None,
        statistics: Normalisation | None = None,
    ) -> "TrainedModel":
        """Rebuild the model of a checkpoint.

        Parameters
        ----------
        checkpoint : Path
        receipt : mapping
            Written with it; says what the checkpoint is.
        files : mapping
            Sample files by role.
        device : torch.device, optional
            By default the GPU, if there is one.
        statistics : Normalisation, optional
            Of the data that the model was trained on, if ``files`` hold other data.

        Raises
        ------
        DataError
            The checkpoint is damaged.
        """
        if checksum(checkpoint) != receipt["checkpoint"]["crc32"]:
            raise DataError(
                f"{checkpoint}: damaged, its checksum is not the one of its receipt; delete it and run "
                "again: it is restored from the run's store"
            )
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        definition = receipt["definition"]
        parameters = dict(definition["model"])
        spec = get_model(parameters.pop("name"))
        dataset = open_dataset(
            kind_of(spec.name).name, files, definition["data"], device, statistics
        )
        module = spec.build(from_mapping(spec.config, parameters, "model"), dataset).to(device)
        weights = weights_of(load_state(checkpoint))
        check_bound(module, weights, spec.bound, checkpoint)
        module.load_state_dict(weights)
        return cls(spec, module.eval(), dataset)

    @torch.no_grad()
    def __call__(self, batch: Any) -> Tensor:
        """Forecast of a batch, normalised."""
        return self.spec.predict(self.module, batch)

"""A model that is loaded from its checkpoint alone, and applied to named arrays in physical units.

model = millrace.load("epoch_12.ckpt")
forecast = model.predict(states, forcings)
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from millrace.config import Settings
from millrace.data.recipe import VERSION, recipe_of, restore, statistics_of
from millrace.data.samples import Files, open_dataset
from millrace.errors import ConfigError, DataError
from millrace.evaluation.application import Application, Piece, Prepared, Recipe
from millrace.evaluation.exporting import export
from millrace.evaluation.forecast_file import attributes_of, axis_of
from millrace.evaluation.program import Program
from millrace.evaluation.trained_model import TrainedModel, read_training
from millrace.models.spec import ModelSpec
from millrace.provenance import code_version
from millrace.systems.base import Progress, resolve
from millrace.systems.registry import get_kind, get_model, kind_of, load_plugins, recognised
from millrace.training.receipt import check_bytes, check_published
from millrace.training.store import load_state, weights_of
from millrace.training.warm_start import check_buffers, content_digest

_SAME_STEP = 0.05
"""Relative difference of time steps that is not worth a remark."""


class LoadedModel:
    """A trained model, and what applies it to named arrays.

    Attributes
    ----------
    spec : ModelSpec
    recipe : mapping
        See `millrace.data.recipe`.
    about : mapping
        Provenance of forecasts: model, run hash, epoch, digest of the weights, version.
    device : torch.device
    weights : mapping of str to Tensor
        State dict of the module.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Mapping[str, Tensor],
        recipe: Recipe,
        about: Mapping[str, str],
        device: torch.device,
        checkpoint: Path,
    ) -> None:
        self.spec, self.recipe, self.about, self.device = spec, recipe, about, device
        self.weights, self._checkpoint = weights, checkpoint
        self._module: nn.Module | None = None

    def module_for(self, dataset: Any) -> nn.Module:
        """The network, which is built when it is used first, for samples like those of the training."""
        if self._module is None:
            parameters = dict(self.recipe["definition"]["model"])
            del parameters["name"]
            config = self.spec.config.parse(parameters, "model")
            module = self.spec.build(config, dataset).to(self.device)
            buffers = self.spec.matching_buffers
            check_buffers(module, self.weights, buffers, self._checkpoint)
            module.load_state_dict(self.weights)
            self._module = module.eval()
        return self._module

    def opened(self, files: Files, **other: Any) -> Any:
        """Dataset of sample files, normalised as that of the training; ``other`` keys replace its own."""
        statistics = statistics_of(self.recipe["normalisation"])
        data = {**self.recipe["definition"]["data"], **other}
        return open_dataset(self.recipe["kind"], files, data, self.device, statistics)

    @property
    def application(self) -> Application:
        """How models on this kind of samples are applied; raises `ConfigError` if they are not."""
        kind = get_kind(self.recipe["kind"])
        if kind.application is None:
            raise ConfigError(
                f"samples of {kind.name} have no `application`, which makes samples of named arrays: give "
                "their SampleKind one"
            )
        made: Application = resolve(kind.application)
        return made

    def options(self, given: Mapping[str, Any]) -> Settings:
        """Options of forecasts; raises `ConfigError` for unknown or wrong ones."""
        return self.application.options.parse(given, "predict")

    def predict(
        self, states: Any, forcings: xr.Dataset | None = None, **options: Any
    ) -> xr.Dataset:
        """Forecast what follows on named arrays, or from raw files.

        Parameters
        ----------
        states : xarray.Dataset or path
            What the system says of named arrays, in the units of their attributes, or else in those of the
            training; see the documentation of the system. Or where raw files lie, as for the training.
        forcings : xarray.Dataset, optional
            What is known of the time that is forecast, for models that were trained with it.
        **options
            Of the system, such as ``members`` and ``seed``, and what is forecast: ``limit``, ``times`` or
            ``scenarios``.

        Returns
        -------
        xarray.Dataset
            In physical units, with names, units and attributes as in files of forecasts.

        Raises
        ------
        DataError
            Something is missing, in another unit, or on another grid.
        ConfigError
            An option is unknown or wrong.
        """
        chosen = self.options(options)
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            if not isinstance(states, str | Path):
                prepared = self.application.write(self.recipe, states, forcings, directory)
            elif forcings is not None:
                raise ConfigError("forcings: raw files hold their own; leave them out")
            else:
                prepared = self.prepared(Path(states), directory, chosen)
            parts = [piece.forecast for piece in self.pieces(prepared, chosen)]
        made = parts[0]
        if len(parts) > 1:
            made = xr.concat(parts, axis_of(made), data_vars="minimal")
        about = {**self.about, "options": chosen.model_dump_json()}
        return made.assign_attrs(attributes_of(about))

    def prepared(
        self,
        source: Path,
        directory: Path,
        options: Settings | None = None,
        raw: str | None = None,
        workers: int = 1,
    ) -> Prepared:
        """Sample files of raw files, which ``workers`` processes parse, of what the options ask for.

        ``raw`` is their format, by default that of the names of the files. Raises `DataError` if they are
        malformed, or not what the model was trained on.
        """
        raw = raw or recognised(get_kind(self.recipe["kind"]).formats, source, "--format")
        return self.application.prepare(self.recipe, source, raw, directory, workers, options)

    def program(
        self, source: str | Path | None = None, raw: str | None = None, **options: Any
    ) -> Program:
        """The model as one module from physical tensors to physical tensors, see `Program`.

        Parameters
        ----------
        source : path, optional
            Raw files whose first samples become its examples; by default these are made up.
        raw : str, optional
            Format of the raw files; by default it is recognised by the names of the files.
        **options
            Of the system, such as ``steps`` of a sampler.

        Raises
        ------
        ConfigError
            The model cannot be exported, or an option is unknown or wrong.
        """
        application = self.application
        chosen = application.export_options.parse(options, "export")
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            if source is None:
                prepared = application.example(self.recipe, directory)
            else:
                prepared = self.prepared(Path(source), directory, raw=raw)
            dataset = self.opened(prepared.files, **application.exported_data)
            model = TrainedModel(self.spec, self.module_for(dataset), dataset)
            return application.program(model, self.recipe, prepared, chosen)

    def export(self, output: str | Path, to: str | None = None, **options: Any) -> dict[str, Any]:
        """Write a program or the weights, see `millrace.evaluation.exporting.export`."""
        return export(self, Path(output), to, **options)

    def remarks(self, prepared: Prepared) -> list[str]:
        """In which ways samples differ from those of the training, in sentences without a full stop."""
        dataset, own = self.opened(prepared.files), self.recipe.get("time_step")
        found, time = list(prepared.remarks), getattr(dataset, "time", [])
        # What is not given past states does not depend on the time between them.
        if own and len(time) > 1 and getattr(dataset.config, "input_steps", 0):
            step = float(np.median(np.diff(time)))
            if abs(step / own - 1) > _SAME_STEP:
                found.append(
                    f"the median time between states is {step / own:.3g} times that of the training"
                )
        return found

    def pieces(
        self, prepared: Prepared, options: Settings, progress: Progress | None = None
    ) -> Iterator[Piece]:
        """Forecasts of sample files, a piece at a time."""
        dataset = self.opened(prepared.files)
        model = TrainedModel(self.spec, self.module_for(dataset), dataset)
        return self.application.pieces(model, self.recipe, prepared, options, progress)


def load(
    checkpoint: str | Path,
    *,
    samples: Files | None = None,
    device: str | torch.device | None = None,
    plugins: Iterable[str] = (),
) -> LoadedModel:
    """Load a model from its checkpoint, which is all that is needed.

    Parameters
    ----------
    checkpoint : path
        ``epoch_<n>.ckpt`` of a training. Nothing in it is executed.
    samples : mapping, optional
        Sample files of the training by role, such as ``{"patches": ..., "graph": ...}``: for a checkpoint
        of an earlier version, beside which its receipt lies, or of a very large grid.
    device : str or torch.device, optional
        By default the GPU, if there is one.
    plugins : iterable of str
        Files or modules of systems from outside that are not installed.

    Raises
    ------
    DataError
        The checkpoint is damaged, or does not say how its model is applied.
    ConfigError
        The model or a plug-in is unknown.
    """
    path = Path(checkpoint)
    load_plugins(plugins)
    check_published(path)
    state = load_state(path)
    recipe = _recipe(path, state, samples)
    weights = weights_of(state)
    name = recipe["definition"]["model"]["name"]
    about = {
        "model": name,
        "checkpoint": path.name,
        "checkpoint_digest": content_digest(path),
        "run_hash": str(state.get("identity", "")),
        "epoch": str(max((one["epoch"] for one in state.get("history", ())), default=0)),
        "millrace_version": code_version(),
    }
    model = LoadedModel(get_model(name), weights, recipe, about, _device(device), path)
    if samples or "samples" in recipe:  # else it is built for what it is applied to
        with tempfile.TemporaryDirectory() as folder:
            files: Files = samples or {
                role: restore(content, Path(folder) / f"{role}.h5", {})
                for role, content in recipe["samples"].items()
            }
            model.module_for(model.opened(files))
    return model


def _recipe(path: Path, state: Mapping[str, Any], samples: Files | None) -> Recipe:
    recipe, receipt = state.get("recipe"), path.with_suffix(".json")
    if recipe is not None and recipe.get("version") != VERSION:
        raise DataError(
            f"{path}: says how to apply its model in form {recipe.get('version')}; this version reads form "
            f"{VERSION}: use the version of Millrace that trained it"
        )
    if recipe is None and not receipt.is_file():
        raise DataError(
            f"{path}: is of an earlier version and does not say how to apply its model; keep its receipt "
            f"{receipt.name} beside it, and give the sample files of its training, if they are asked for, "
            "as `samples`, `--samples` on the command line"
        )
    if recipe is None:
        described = read_training(receipt)
        check_bytes(path, described)
        recipe = {
            "version": VERSION,
            "kind": kind_of(described["definition"]["model"]["name"]).name,
            "definition": {key: described["definition"][key] for key in ("data", "model")},
            "normalisation": described["normalisation"],
            "preparation": described["dataset"],
        }
    if samples is not None and "samples" not in recipe:
        definition = recipe["definition"]
        cpu = torch.device("cpu")
        dataset = open_dataset(recipe["kind"], samples, definition["data"], cpu)
        recipe = {**recipe_of(recipe["kind"], definition, dataset, most=None)}
    return dict(recipe)


def _device(given: str | torch.device | None) -> torch.device:
    device = torch.device(given or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: PyTorch sees no GPU here; leave the option out")
    return device

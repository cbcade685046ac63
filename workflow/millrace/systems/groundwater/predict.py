"""Predictions of a trained model for new raw files, which may be of another mesh of the same site.

    millrace predict --checkpoint epoch_8.ckpt --source DIR --output predictions.h5

The new files are checked and cut like those that the model was trained on, but normalised with the
statistics of its training period, which are in the receipt.

Shape suffixes: W windows, L lead steps, N points, V variables.
"""

import json
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from millrace.data.hdf5 import create, create_dataset, open_checked, rows_per_chunk, strings
from millrace.data.normalisation import Normalisation
from millrace.data.samples import dataset_class
from millrace.errors import ConfigError, DataError
from millrace.evaluation.trained_model import TrainedModel, read_training
from millrace.files import write_json
from millrace.provenance import code_version, provenance
from millrace.systems.base import Progress
from millrace.systems.groundwater.feflow_csv import find_files
from millrace.systems.groundwater.figures.comparison import error_over_time
from millrace.systems.groundwater.plane_dataset import PlaneDataset
from millrace.systems.groundwater.planes import BOUNDARY
from millrace.systems.groundwater.prediction import Prediction
from millrace.systems.groundwater.preparation import prepare
from millrace.systems.groundwater.series import SCHEMA as SERIES_SCHEMA
from millrace.systems.registry import kind_of

SCHEMA = "millrace.predictions/1"

_KEYS = ("experiment", "layout", "seed", "epoch", "identity")


def predict(
    checkpoint: Path,
    receipt: Path,
    source: Path,
    output: Path,
    *,
    metrics: Path | None = None,
    figure: Path | None = None,
    workspace: Path | None = None,
    device: torch.device | None = None,
    stride: int | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Predict the states that follow those in raw files, window by window.

    Parameters
    ----------
    checkpoint, receipt : Path
        Outputs of the training, from any device.
    source : Path
        Directory of raw files as for training, see `millrace.systems.groundwater.feflow_csv`.
    output : Path
        ``predictions.h5`` to write, see `_describe`.
    metrics : Path, optional
        JSON to write, with what is returned: errors where the files hold the ground truth, and those of
        persistence.
    figure : Path, optional
        Error over time to draw.
    workspace : Path, optional
        Directory for the samples made of the raw files; by default a temporary one.
    device : torch.device, optional
        By default the GPU, if there is one.
    stride : int, optional
        Steps between the starts of windows; by default forecasts follow each other.
    workers : int
        Processes that parse raw files.
    progress : callable, optional
        Called with (batches done, all).

    Raises
    ------
    DataError
        The receipt is of an earlier version, the checkpoint is damaged, or a raw file is malformed.
    ConfigError
        The new mesh cannot be cut, or is too coarse for the graph of the model.
    """
    described = read_training(receipt)
    with nullcontext(workspace) if workspace else tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        definition = described["definition"]
        kind = kind_of(definition["model"]["name"]).name
        config: Any = dataset_class(kind).config_type.parse(definition["data"], "data")
        files = _prepare_samples(described, kind, config, source, directory, workers)
        if not checkpoint.is_file():
            raise DataError(f"{checkpoint}: no such checkpoint; run the train stage first")
        forcings = tuple(BOUNDARY) if kind == "planes" else config.forcings
        values = described["normalisation"]
        statistics = Normalisation.from_json(values, config.variables, forcings)
        model = TrainedModel.load(checkpoint, described, files, device, statistics)
        prediction = Prediction(model, stride)
        with create(output) as file:
            outside = _describe(file, prediction, model, directory / "series.h5", described)
            for start, values_WLNV in prediction.batches(progress):
                file["prediction"][start : start + len(values_WLNV)] = values_WLNV
    result = {
        "schema": "millrace.prediction_metrics/1",
        **{key: described[key] for key in _KEYS},
        "windows": len(prediction.starts),
        "points": prediction.n_points,
        "points_outside_training_box": outside,
        "units": prediction.units,
        "variables": prediction.metrics.result(),
        "provenance": provenance(),
    }
    if metrics is not None:
        write_json(metrics, result)
    if figure is not None:
        error_over_time(
            prediction.issue_time_W,
            prediction.rmse_WV,
            prediction.persistence_rmse_WV,
            prediction.units,
            figure,
        )
    return result


def _prepare_samples(
    described: Mapping[str, Any],
    kind: str,
    config: Any,
    source: Path,
    directory: Path,
    workers: int,
) -> dict[str, Path]:
    """Check raw files and cut them as a receipt says; returns the sample files by role."""
    needed = max(3, config.length)
    if (found := len(find_files(source, with_forcings=False).fields)) < needed:
        raise DataError(f"{source}: {found} output times; this model needs {needed} or more")
    dataset = described["dataset"]
    if not dataset[kind]:
        raise ConfigError(
            f"the model was trained on {kind} that were not cut from raw files of a mesh, so it is unknown "
            f"how to cut {kind} from new ones"
        )
    block = {
        **dataset,
        "variables": config.variables,
        "forcings": list(BOUNDARY.values()) if kind == "planes" else config.forcings,
        # Nothing is trained: the split is there because a series has one.
        "split": {"train": 1 / 3, "validation": 1 / 3},
    }
    return prepare(source, directory, block, described["definition"]["model"], workers)


def _describe(
    file: h5py.File,
    prediction: Prediction,
    model: TrainedModel,
    series: Path,
    described: Mapping[str, Any],
) -> float:
    """Write all but the predictions; returns the share of points outside the training domain.

    ``/prediction`` f32[W, L, N, V]; ``/issue_time`` f64[W] and ``/time`` f64[W, L] (d), see
    `Prediction`; ``/coords`` f64[N, 3] (m); ``/node`` i64[N] and ``/slice`` i32[N] as in the raw files,
    or for models on planes ``/plane`` i64[N].
    """
    dataset = model.dataset
    with open_checked(series, SERIES_SCHEMA) as source:
        digest = str(source.attrs["digest"])
        node, layer, coords = (source[name][()] for name in ("node", "slice", "coords"))
    if isinstance(dataset, PlaneDataset):
        coords = dataset.cell_coords
        points = {"plane": dataset.plane_of_cell}
    else:
        points = {"node": node, "slice": layer}
    times = {"issue_time": prediction.issue_time_W, "time": prediction.time_WL}
    for name, values in {**points, "coords": coords, **times}.items():
        create_dataset(file, name, values)
    shape = prediction.shape
    chunks = (1, 1, rows_per_chunk(shape[2:], np.float32), shape[3])
    create_dataset(file, "prediction", shape=shape, dtype=np.float32, chunks=chunks)
    file.attrs.update(
        schema=SCHEMA,
        variables=strings([*prediction.units]),
        units=strings([*prediction.units.values()]),
        source_digest=digest,
        checkpoint_crc32=described["checkpoint"]["crc32"],
        code_version=code_version(),
        provenance=json.dumps(provenance()),
        **{key: described[key] for key in _KEYS},
    )
    # Outside is beyond the box of the training data by more than a tenth of its size.
    training = dataset.normalisation
    unit = training.unit_coords(coords[:, : len(training.low_D)])
    return float(((unit < -0.1) | (unit > 1.1)).any(axis=1).mean())

"""From raw files to the samples of a model in one process, without the rules of the workflow."""

from pathlib import Path

from millrace.systems.base import Block
from millrace.systems.groundwater.graphs import build_graphs
from millrace.systems.groundwater.patches import PatchConfig, extract_patches
from millrace.systems.groundwater.planes import PlaneConfig, extract_planes
from millrace.systems.groundwater.series import preprocess, series_options
from millrace.systems.registry import kind_of


def prepare(
    source: Path, directory: Path, dataset: Block, model: Block, workers: int = 1
) -> dict[str, Path]:
    """Check raw files of a mesh and make the sample files of a model.

    ``source`` holds raw files, see `millrace.systems.groundwater.feflow_csv`; the series and the samples go
    to ``directory``. ``dataset`` and ``model`` are blocks of the configuration, ``workers`` processes that
    parse raw files. Returns the sample files by role. Raises `DataError` if a raw file is malformed,
    `ConfigError` if a setting is wrong or the mesh cannot be cut like this.
    """
    series = directory / "series.h5"
    preprocess(source, series, **series_options(dataset), workers=workers)
    return cut(series, directory, dataset, model)


def cut(series: Path, directory: Path, dataset: Block, model: Block) -> dict[str, Path]:
    """Make the sample files of a model from a series, see `prepare`."""
    kind = kind_of(model["name"])
    files = {role: directory / name for role, name in kind.sample_files(model).items()}
    if kind.name == "planes":
        config = PlaneConfig.parse(dataset.get("planes", {}), "planes")
        extract_planes(series, files["planes"], config)
        return files
    cut = PatchConfig.parse(dataset.get("patches", {}), "patches")
    extract_patches(series, files["patches"], cut)
    if "graph" in files:
        shape = tuple(model["latent_shape"])
        build_graphs(files["patches"], files["graph"], shape, model["radius"])
    return files

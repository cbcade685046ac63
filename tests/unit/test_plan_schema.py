"""The schema of the configuration, the code behind it, and the configurations that are shipped."""

from dataclasses import fields

import pytest
import yaml
from plans import ROOT, SCHEMA

from millrace.config import from_mapping
from millrace.data.adapters import ADAPTERS
from millrace.data.blocks import BlockConfig
from millrace.data.patches import PatchConfig
from millrace.data.planes import PlaneConfig
from millrace.data.scenarios import TokenConfig
from millrace.data.series import SplitConfig
from millrace.data.views import VIEWS
from millrace.data.weather import WeatherConfig
from millrace.demo.aquifer import AquiferConfig
from millrace.demo.barotropic import BarotropicConfig
from millrace.demo.climate import ClimateConfig
from millrace.demo.traffic import TrafficConfig
from millrace.evaluate import EVALUATIONS
from millrace.models.losses import LOSSES, LossConfig
from millrace.models.registry import MODELS, get_model
from millrace.plan import EXECUTION, Plan
from millrace.systems import FORMATS, KIND_OF_MODEL, KINDS
from millrace.systems.motion import ADAPTED
from millrace.training.config import (
    COMPRESSIONS,
    LOGGERS,
    PRECISIONS,
    EarlyStoppingConfig,
    ExecutionConfig,
    InitFromConfig,
    ProfileConfig,
    ReplayConfig,
    TrainConfig,
)
from millrace.training.parallel.config import SCHEDULES as PARALLEL_SCHEDULES
from millrace.training.parallel.config import ParallelConfig
from millrace.training.schedules import SCHEDULES, ScheduleConfig

DEFAULT = yaml.safe_load((ROOT / "config/config.yaml").read_text())
EXPERIMENT = SCHEMA["$defs"]["experiment"]["properties"]
TRAIN = EXPERIMENT["train"]["properties"]
SHIPPED = [
    None,
    *sorted(
        path for kind in ("demo", "experiments") for path in (ROOT / "config" / kind).glob("*")
    ),
]
# Blocks of a dataset that are made into dataclasses, by format.
BLOCKS = {
    "feflow_csv": {"demo": AquiferConfig, "patches": PatchConfig, "planes": PlaneConfig},
    "plane_folders": {},
    "icon": {"demo": ClimateConfig, "blocks": BlockConfig},
    "tracks": {"demo": TrafficConfig, "tokens": TokenConfig},
    **{name: {"tokens": TokenConfig} for name in ADAPTERS},
    "weather": {"demo": BarotropicConfig, "weather": WeatherConfig},
}


def merged(base, over):
    """As Snakemake merges a second configuration file: mappings key by key, all else replaced."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: merged(base.get(key), value) for key, value in over.items()}


def test_schema_and_dataclasses_have_the_same_keys() -> None:
    for cls, keys in (
        (TrainConfig, TRAIN.keys() - {"epochs", "milestone_every", "save_every", *EXECUTION}),
        (ExecutionConfig, set(EXECUTION)),
        (EarlyStoppingConfig, TRAIN["early_stopping"]["properties"].keys()),
        (InitFromConfig, TRAIN["init_from"]["properties"].keys()),
        (ReplayConfig, TRAIN["replay"]["properties"].keys()),
        (ProfileConfig, TRAIN["profile"]["properties"].keys()),
        (ScheduleConfig, TRAIN["schedule"]["properties"].keys()),
        (LossConfig, TRAIN["loss"]["properties"].keys()),
        (ParallelConfig, EXPERIMENT["parallel"]["properties"].keys()),
    ):
        assert {field.name for field in fields(cls)} == keys, cls
    kept = SCHEMA["$defs"]
    split = kept["dataset"]["properties"]["split"]
    patches = kept["groundwater_dataset"]["properties"]["patches"]
    for cls, block in ((PatchConfig, patches), (SplitConfig, split)):
        assert {field.name for field in fields(cls)} == block["properties"].keys(), cls
        for field in fields(cls):
            default = block["properties"][field.name].get("default")
            assert default is None or field.default == default, field.name


def test_schema_and_code_have_the_same_choices() -> None:
    properties = SCHEMA["$defs"]["experiment"]["properties"]
    assert properties["model"]["properties"]["name"]["enum"] == list(MODELS)
    assert SCHEMA["$defs"]["dataset"]["properties"]["format"]["enum"] == list(FORMATS)
    assert TRAIN["schedule"]["properties"]["kind"]["enum"] == list(SCHEDULES)
    assert TRAIN["loss"]["properties"]["kind"]["enum"] == list(LOSSES)
    assert TRAIN["precision"]["enum"] == list(PRECISIONS)
    assert TRAIN["gradient_compression"]["enum"] == list(COMPRESSIONS)
    assert TRAIN["log"]["items"]["enum"] == list(LOGGERS)
    assert EXPERIMENT["parallel"]["properties"]["schedule"]["enum"] == list(PARALLEL_SCHEDULES)


@pytest.mark.parametrize("over", SHIPPED, ids=lambda p: p.stem if p else "config")
def test_shipped_configurations_build(over) -> None:
    made = merged(DEFAULT, yaml.safe_load(over.read_text())) if over else DEFAULT
    plan = Plan(made, SCHEMA)
    assert plan.final_checkpoints()
    for name in plan.experiments:
        definition = plan.definition(name)
        model = dict(definition["model"])
        spec = get_model(model.pop("name"))
        from_mapping(spec.config, model, "model")
        from_mapping(VIEWS[spec.view].config_type, definition["data"], "data")
        from_mapping(TrainConfig, definition["train"], "train")
        parallel = plan.experiments[name].get("parallel", {})
        from_mapping(ParallelConfig, parallel, "parallel")
    for dataset in plan.datasets.values():
        for key, cls in BLOCKS[dataset.get("format", "feflow_csv")].items():
            from_mapping(cls, dataset.get(key, {}), key)
        if "split" in dataset:
            from_mapping(SplitConfig, dataset["split"], "split")


def test_every_system_is_registered_everywhere() -> None:
    assert list(KINDS) == list(VIEWS) == list(EVALUATIONS)
    assert {name: spec.view for name, spec in MODELS.items()} == KIND_OF_MODEL
    assert all(spec.name == name for name, spec in MODELS.items())
    for kind in KINDS.values():
        assert set(kind.formats) <= set(FORMATS)
        assert kind.ensembles == (EVALUATIONS[kind.name].together is not None)


def test_every_adapter_is_a_format() -> None:
    assert set(KINDS["scenarios"].formats) == {"tracks", *ADAPTERS}
    assert set(ADAPTED) == set(ADAPTERS)

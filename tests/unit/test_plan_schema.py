"""The schema of the configuration, the code behind it, and the configurations that are shipped."""

from dataclasses import fields

import pytest
import yaml
from plans import ROOT, SCHEMA

from millrace.config import from_mapping
from millrace.data.samples import dataset_class
from millrace.data.split import SplitConfig
from millrace.models.settings import LOSSES, LossConfig
from millrace.plan import Plan, complete
from millrace.systems.base import resolve
from millrace.systems.groundwater.patches import PatchConfig
from millrace.systems.groundwater.planes import PlaneConfig
from millrace.systems.registry import formats, get_model, kind_of, kinds, models, raw_format
from millrace.systems.traffic.formats import ADAPTERS
from millrace.systems.traffic.scenarios import TokenConfig
from millrace.systems.traffic.system import ADAPTED
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
from millrace.training.request import EXECUTION
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
# Blocks of a dataset that rules of a system make into dataclasses.
BLOCKS = {
    "feflow_csv": {"patches": PatchConfig, "planes": PlaneConfig},
    **{name: {"tokens": TokenConfig} for name in ("tracks", *ADAPTERS)},
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
    patches = formats()["feflow_csv"].keys["properties"]["patches"]
    for cls, block in ((PatchConfig, patches), (SplitConfig, split)):
        assert {field.name for field in fields(cls)} == block["properties"].keys(), cls
        for field in fields(cls):
            default = block["properties"][field.name].get("default")
            assert default is None or field.default == default, field.name


def test_schema_and_code_have_the_same_choices() -> None:
    made = complete(SCHEMA)["$defs"]
    assert made["experiment"]["properties"]["model"]["properties"]["name"]["enum"] == list(models())
    assert made["dataset"]["properties"]["format"]["enum"] == list(formats())
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
        from_mapping(dataset_class(kind_of(spec.name).name).config_type, definition["data"], "data")
        from_mapping(TrainConfig, definition["train"], "train")
        parallel = plan.experiments[name].get("parallel", {})
        from_mapping(ParallelConfig, parallel, "parallel")
    for dataset in plan.datasets.values():
        made = raw_format(dataset)
        for key, cls in BLOCKS.get(made.name, {}).items():
            from_mapping(cls, dataset.get(key, {}), key)
        if made.simulation:
            from_mapping(resolve(made.simulation), dataset.get("demo", {}), "demo")
        for kind in kinds().values():
            if kind.extraction and kind.extraction.config and made.name in kind.formats:
                section = kind.extraction.section(dataset)
                from_mapping(resolve(kind.extraction.config), section, kind.name)
        if "split" in dataset:
            from_mapping(SplitConfig, dataset["split"], "split")


def test_what_systems_name_is_there() -> None:
    for name, model in models().items():
        assert get_model(name).name == name
        assert model.kind in kinds()
        assert resolve(model.settings) is get_model(name).config
    for kind in kinds().values():
        assert resolve(kind.settings) is dataset_class(kind.name).config_type
        assert set(kind.formats) <= set(formats())
        assert kind.ensembles == (resolve(kind.evaluation).ensemble is not None)
        assert kind.name in kind.sample_files({}) or kind.files
        for reference in (kind.prediction, kind.outline, kind.extraction and kind.extraction.run):
            assert reference is None or callable(resolve(reference))
    for raw in formats().values():
        assert (raw.simulate is None) == (raw.simulation is None)
        assert raw.simulate is None or callable(resolve(raw.simulate))
        assert (ROOT / f"envs/{raw.environment}.yaml").is_file()


def test_every_adapter_is_a_format() -> None:
    assert set(kinds()["scenarios"].formats) == {"tracks", *ADAPTERS}
    assert set(ADAPTED) == set(ADAPTERS)

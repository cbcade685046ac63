"""The configurations that are shipped, the JSON schema for editors, and what systems name."""

import json

import jsonschema
import pytest
import yaml
from plans import ROOT

from millrace.configuration import configuration_schema
from millrace.data.samples import dataset_class
from millrace.evaluation.application import Application
from millrace.plan import Plan
from millrace.systems.base import resolve
from millrace.systems.registry import formats, get_model, kinds, models
from millrace.systems.traffic.formats import ADAPTERS
from millrace.systems.traffic.system import FORMATS
from millrace.yaml_files import merged, read_yaml

SHIPPED = [
    None,
    *sorted(
        path for kind in ("demo", "experiments") for path in (ROOT / "config" / kind).glob("*")
    ),
]


@pytest.mark.parametrize("over", SHIPPED, ids=lambda p: p.stem if p else "config")
def test_shipped_configurations_build_and_fit_the_schema_of_editors(over) -> None:
    made = read_yaml(ROOT / "config/config.yaml")
    made = merged(made, read_yaml(over)) if over else made
    assert Plan(made).final_checkpoints()
    schema = json.loads(json.dumps(configuration_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(made, schema)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("datasets/coast/patches/clusterz", 3),
        ("datasets/coast/split/gap", -1),
        ("experiments/gino_head/model/hiden", 3),
        ("experiments/gino_head/model/name", "ginoo"),
        ("experiments/gino_head/data/stride", 0),
        ("experiments/gino_head/train/schedule/kind", "cosin"),
        ("experiments/gfno_plane/data/boundary", "outside"),
        ("scaling/goal/min_efficiency", 2),
    ],
)
def test_editors_refuse_what_planning_refuses(path, value) -> None:
    made = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    block = made
    *parents, last = path.split("/")
    for key in parents:
        block = block[key]
    block[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(made, json.loads(json.dumps(configuration_schema())))


def test_what_systems_name_is_there() -> None:
    for name, model in models().items():
        assert get_model(name).name == name
        assert model.kind in kinds()
        assert model.settings, "planning would import torch"
        assert model.model_settings() is get_model(name).config
    for kind in kinds().values():
        assert kind.settings, "planning would import torch"
        assert kind.data_settings() is dataset_class(kind.name).config_type
        assert set(kind.formats) <= set(formats())
        assert kind.ensembles == (resolve(kind.evaluation).ensemble is not None)
        assert kind.name in kind.sample_files({}) or kind.files
        assert kind.application is None or issubclass(type(resolve(kind.application)), Application)
        for reference in (kind.outline, kind.extraction and kind.extraction.run):
            assert reference is None or callable(resolve(reference))
    for raw in formats().values():
        assert (raw.simulate is None) == (raw.simulation is None)
        assert raw.simulate is None or callable(resolve(raw.simulate))
        assert (ROOT / f"envs/{raw.environment}.yaml").is_file()


def test_every_adapter_is_a_format() -> None:
    assert set(kinds()["scenarios"].formats) == {"tracks", *ADAPTERS}
    assert set(FORMATS) == {"tracks", *ADAPTERS}

"""The first page of the report says what ran, in text that Snakemake can turn into a page."""

from types import SimpleNamespace

import jinja2
import pytest
import yaml
from docutils.core import publish_parts
from plans import ROOT

# Blocks are trimmed as Snakemake's report does it.
PAGE = jinja2.Template(
    (ROOT / "workflow/report/workflow.rst").read_text(), trim_blocks=True, lstrip_blocks=True
)


def rendered(config):
    """HTML of the page; anything that is wrong in its markup raises SystemMessage."""
    text = PAGE.render(snakemake=SimpleNamespace(config=config))
    settings = {"halt_level": 1, "report_level": 5}
    return publish_parts(text, writer="html5", settings_overrides=settings)["body"]


@pytest.mark.parametrize("demo", ["gino", "aurora", "smart", "downscaler", "gfno"])
def test_every_experiment_is_told_with_its_data_layouts_and_seeds(demo):
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    own = yaml.safe_load((ROOT / f"config/demo/{demo}.yaml").read_text())
    for block, value in own.items():
        config[block] = {**config[block], **value}
    page = rendered(config)
    for name in config["run"]["experiments"]:
        one = config["experiments"][name]
        (told,) = (item for item in page.split("<li>") if f">{name}<" in item)
        assert f"the model {one['model']['name']} on {one['dataset']}" in told
        for key in ("layouts", "seeds"):
            assert ", ".join(map(str, one.get(key) or config["run"][key])) in told
    assert page.index("What was found.") < page.index("What is missing.")


def test_a_race_and_several_datasets_are_told_as_such():
    one = {"dataset": ["north", "south"], "model": {"name": "gino"}, "race": ["n1_gpu4", "n4_gpu1"]}
    run = {"experiments": ["both"], "layouts": ["n1_gpu1"], "seeds": [0]}
    page = " ".join(rendered({"run": run, "experiments": {"both": one}}).split())
    assert "the model gino on north and south, on n1_gpu4 or n4_gpu1, with the seeds 0." in page


def test_a_configuration_that_stands_elsewhere_is_left_out():
    assert "What ran." not in rendered({"its": {}})

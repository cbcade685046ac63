"""The documents name what there is: every key with its default, files, make targets, stages."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import yaml

from millrace.config import from_mapping
from millrace.data.split import SplitConfig
from millrace.models.settings import LossConfig
from millrace.plan import Plan, complete
from millrace.systems.downscaling.blocks import BlockConfig
from millrace.systems.downscaling.settings import (
    BlockDatasetConfig,
    DownscalerConfig,
    RegressionConfig,
)
from millrace.systems.downscaling.simulator.climate import ClimateConfig
from millrace.systems.groundwater.patches import PatchConfig
from millrace.systems.groundwater.planes import PlaneConfig
from millrace.systems.groundwater.settings import (
    GfnoConfig,
    GinoConfig,
    PlaneWindowConfig,
    WindowConfig,
)
from millrace.systems.groundwater.simulator.aquifer import AquiferConfig
from millrace.systems.registry import formats
from millrace.systems.traffic.scenarios import TokenConfig
from millrace.systems.traffic.settings import ScenarioConfig, SmartConfig
from millrace.systems.traffic.simulator.sumo import SumoConfig
from millrace.systems.traffic.simulator.traffic import TrafficConfig
from millrace.systems.weather.aurora.config import AuroraConfig
from millrace.systems.weather.extract import WeatherConfig
from millrace.systems.weather.settings import WeatherWindowConfig
from millrace.systems.weather.simulator.barotropic import BarotropicConfig
from millrace.training.config import (
    EarlyStoppingConfig,
    ExecutionConfig,
    InitFromConfig,
    ProfileConfig,
    ReplayConfig,
    TrainConfig,
)
from millrace.training.parallel.config import ParallelConfig
from millrace.training.schedules import ScheduleConfig

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
CONFIG_README = (REPOSITORY / "config/README.md").read_text()
SCHEMA = yaml.safe_load((REPOSITORY / "workflow/schemas/config.schema.yaml").read_text())
DATASET, EXPERIMENT = SCHEMA["$defs"]["dataset"], SCHEMA["$defs"]["experiment"]
GROUNDWATER, ICON, WEATHER, TRAFFIC = (
    formats()[name].keys for name in ("feflow_csv", "icon", "weather", "tracks")
)
TRAIN = EXPERIMENT["properties"]["train"]

CONFIGS = {
    "demo` of groundwater": AquiferConfig,
    "demo` of ICON": ClimateConfig,
    "demo` of traffic": TrafficConfig,
    "demo` of SUMO": SumoConfig,
    "tokens": TokenConfig,
    "data` on scenarios": ScenarioConfig,
    "model` SMART": SmartConfig,
    "demo` of weather": BarotropicConfig,
    "weather": WeatherConfig,
    "data` on weather": WeatherWindowConfig,
    "model` Aurora": AuroraConfig,
    "split": SplitConfig,
    "patches": PatchConfig,
    "planes": PlaneConfig,
    "blocks": BlockConfig,
    "data` on blocks": BlockDatasetConfig,
    "model` Downscaler": DownscalerConfig,
    "model` Regression": RegressionConfig,
    "data` on patches": WindowConfig,
    "data` on planes": PlaneWindowConfig,
    "model` GINO": GinoConfig,
    "model` GFNO": GfnoConfig,
    "train": TrainConfig,
    "schedule": ScheduleConfig,
    "loss": LossConfig,
    "early_stopping": EarlyStoppingConfig,
    "init_from": InitFromConfig,
    "replay": ReplayConfig,
    "profile": ProfileConfig,
    "parallel": ParallelConfig,
}
SCHEMAS = {
    "run": SCHEMA["properties"]["run"],
    "predictions": SCHEMA["$defs"]["prediction"],
    "datasets": DATASET,
    "datasets` of groundwater": GROUNDWATER,
    "datasets` of ICON": ICON,
    "datasets` of traffic": TRAFFIC,
    "tokens": TRAFFIC["properties"]["tokens"],
    "datasets` of weather": WEATHER,
    "weather": WEATHER["properties"]["weather"],
    "split": DATASET["properties"]["split"],
    "patches": GROUNDWATER["properties"]["patches"],
    "planes": GROUNDWATER["properties"]["planes"],
    "blocks": ICON["properties"]["blocks"],
    "experiments": EXPERIMENT,
    "model` GINO": EXPERIMENT["properties"]["model"],
    "train": TRAIN,
    "schedule": TRAIN["properties"]["schedule"],
    "loss": TRAIN["properties"]["loss"],
    "early_stopping": TRAIN["properties"]["early_stopping"],
    "init_from": TRAIN["properties"]["init_from"],
    "profile": TRAIN["properties"]["profile"],
    "parallel": EXPERIMENT["properties"]["parallel"],
}
# Given beside the block, for all of the dataset.
ELSEWHERE = {("blocks", "variables"), ("data` on weather", "variables")}
# They name the file of the graph, so the workflow wants them spelt out.
REQUIRED_BY_PLAN = {("model` GINO", "latent_shape"), ("model` GINO", "radius")}
OPTIONS = {"-n": 0, "--report": 1, "--unlock": 0, "--profile": 1, "--configfile": 1, "--config": 1}
OPTIONS |= {"-R": 1, "--set-threads": 1, "-s": 1, "--workflow-profile": 1}


def documented(block: str) -> dict[str, str]:
    """Keys of the table under a heading of config/README.md, with their defaults."""
    section = re.split(r"^#+ ", CONFIG_README.split(_heading(block))[1], flags=re.M)[0]
    return dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", section, flags=re.M))


def _heading(block: str) -> str:
    return f"# `{block}\n" if "`" in block else f"# `{block}`\n"


def fields_of(block: str) -> list[dataclasses.Field]:
    more = dataclasses.fields(ExecutionConfig) if block == "train" else ()
    own = [f for f in dataclasses.fields(CONFIGS[block]) if (block, f.name) not in ELSEWHERE]
    return [*own, *more]


def properties(schema):
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for value in schema.values():
            yield from properties(value)


def test_every_key_of_the_schema_is_described():
    missing = [key for key in properties(complete(SCHEMA)) if f"`{key}`" not in CONFIG_README]
    assert not missing


@pytest.mark.parametrize("block", CONFIGS)
def test_fields_are_described_with_their_defaults(block):
    defaults = documented(block)
    for field in fields_of(block):
        assert field.name in defaults, f"config/README.md, `{block}`: no `{field.name}`"
        said = defaults[field.name]
        if (block, field.name) in REQUIRED_BY_PLAN:
            assert said == "required"
        elif field.default is not dataclasses.MISSING:
            true = list(field.default) if isinstance(field.default, tuple) else field.default
            assert (None if said == "none" else yaml.safe_load(said)) == true, field.name
        else:
            optional = field.default_factory is not dataclasses.MISSING
            assert said == ("{}" if optional else "required"), field.name


@pytest.mark.parametrize("block", SCHEMAS)
def test_the_schema_and_the_tables_agree(block):
    schema, defaults = SCHEMAS[block], documented(block)
    # `true` stands for a key that is described with those of all formats.
    own = {key: value for key, value in schema["properties"].items() if value is not True}
    assert set(own) <= set(defaults)
    for key, value in own.items():
        if "default" in value:
            assert yaml.safe_load(defaults[key]) == value["default"], key
        if key in schema.get("required", []):
            assert defaults[key] == "required", key
    known = set(own)
    if block in CONFIGS:
        known |= {field.name for field in fields_of(block)}
    if block.startswith("datasets` of"):
        known |= {"demo"}  # of every format that can be simulated
    assert set(defaults) <= known, "a key is described that does not exist"


def test_the_complete_example_is_a_valid_configuration():
    (example,) = re.findall(r"```yaml\n(# my_site.+?)```", CONFIG_README, flags=re.S)
    config = yaml.safe_load(example)
    assert len(Plan(config, SCHEMA).final_checkpoints()) == 3  # one a seed
    (dataset,) = config["datasets"].values()
    (experiment,) = config["experiments"].values()
    model = {key: value for key, value in experiment["model"].items() if key != "name"}
    for block, values in (("data` on patches", experiment["data"]), ("model` GINO", model)):
        from_mapping(CONFIGS[block], values, block)
    for block in ("split", "patches"):
        from_mapping(CONFIGS[block], dataset[block], block)


def code_of(text: str) -> list[str]:
    """Lines of code: those of fenced blocks, and inline code outside of them."""
    fences = re.findall(r"```\w*\n(.*?)```", text, flags=re.S)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    return [line for block in fences for line in block.splitlines()] + inline


@pytest.mark.parametrize("document", ["README.md", "config/README.md", "profiles/README.md"])
def test_files_that_are_named_exist(document):
    text = (REPOSITORY / document).read_text()
    folders = r"(?:config|docs|envs|profiles|tests|workflow|\.ci)/[\w./-]*"
    files = r"Snakefile|Makefile|LICENSE|[A-Z]+\.md|pyproject\.toml"
    words = {word for line in code_of(text) for word in re.split(r"[\s\"',]+", line)}
    named = {word for word in words if re.fullmatch(f"{folders}|{files}", word)}
    linked = re.findall(r"\]\((?!https?:)([^)]+)\)", text)
    assert len(named) > 1
    examples = {"profiles/"}  # of profiles/<name>
    gone = [n for n in named - examples if not (REPOSITORY / n).exists()]
    gone += [n for n in linked if not ((REPOSITORY / document).parent / n).exists()]
    assert not gone


def test_make_targets_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.M))
    named = {t for line in code_of(README) for t in re.findall(r"\bmake ([a-z-]+)", line)}
    assert {"demo", "test"} <= named <= targets


def test_commands_name_rules_and_options_that_exist():
    stages = set(
        re.findall(r"^rule (\w+):", (REPOSITORY / "Snakefile").read_text(), flags=re.M)
    ) - {"all"}
    rules = stages.union(
        *(
            re.findall(r"^rule (\w+):", path.read_text(), flags=re.M)
            for path in (REPOSITORY / "workflow/rules").glob("*.smk")
        )
    )
    commands = [line for line in code_of(README) if line.startswith("snakemake ")]
    assert len(commands) > 8
    for command in commands:
        words = shlex.split(command, comments=True)[1:]
        while words:
            word = words.pop(0)
            if word.startswith("-"):
                values = [words.pop(0) for _ in range(OPTIONS[word])]
                assert word != "-R" or values[0] in rules, command
            else:
                assert word in stages or word.startswith("results/"), command
    inline = set(re.findall(r"`(\w+)`", README))
    assert stages <= inline, "a stage is not named"
    assert set(re.findall(r"`((?:train|evaluate|build|extract|simulate)_\w+)`", README)) <= rules

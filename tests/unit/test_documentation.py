"""The documents name what there is: every key with its default, files, make targets, stages."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from millrace.configuration import configuration_schema
from millrace.plan import Plan
from millrace.reference import reference

REPOSITORY = Path(__file__).parents[2]
SITE = sorted(
    path
    for path in (REPOSITORY / "docs").rglob("*.md")
    if not {"generated", "_build"} & {*path.parts}
)
PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text()
    for path in (
        *(REPOSITORY / name for name in ("README.md", "config/README.md", "profiles/README.md")),
        REPOSITORY / "examples/darcy/README.md",
        *SITE,
    )
}
EVERYTHING = "\n".join(PAGES.values())
# An option of Snakemake, and how many values follow it.
OPTIONS = {"-n": 0, "--report": 1, "--unlock": 0, "--profile": 1, "--configfile": 1, "--config": 1}
OPTIONS |= {"-R": 1, "--set-threads": 1, "-s": 1, "--workflow-profile": 1, "--cores": 1}
OPTIONS |= {"--set-resources": 1, "--rerun-triggers": 3}


def test_the_reference_of_all_keys_is_that_of_the_code():
    told = "is not what the code says: run `make reference`"
    assert (REPOSITORY / "docs/reference/config.md").read_text() == reference(), told
    written = json.loads((REPOSITORY / "config/schema.json").read_text())
    assert written == json.loads(json.dumps(configuration_schema())), told


def test_every_key_has_a_sentence():
    rows = [line.split(" | ") for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 180
    assert [row[0] for row in rows if not row[-1].strip(" |").endswith((".", "`"))] == []


def test_the_front_page_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_the_complete_example_is_a_valid_configuration():
    fences = [
        token.content for token in tokens_of(PAGES["config/README.md"]) if token.info == "yaml"
    ]
    (example,) = (content for content in fences if content.startswith("# my_site"))
    assert len(Plan(yaml.safe_load(example)).final_checkpoints()) == 3  # one a seed


def merged(below, above):
    """What Snakemake makes of two files: mappings key by key, all else replaced."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: merged(below.get(key), value) for key, value in above.items()}


def tokens_of(text):
    """Tokens of a page in Markdown, those of lines as well."""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        yield token
        yield from token.children or []


DEMO = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())
# What pages show of datasets is tried with experiments of the demos.
EXPERIMENTS = {"feflow_csv": "gino_salt", "icon": "downscaler_tas", "weather": "aurora_copies"}
EXPERIMENTS["waymo"] = "smart_traffic"
CONFIGURATIONS = [
    pytest.param(block, id=f"{name}:{number}")
    for name, text in PAGES.items()
    if name != "docs/extending.md"  # see test_extending.py
    for number, block in enumerate(
        token.content for token in tokens_of(text) if token.type == "fence" and token.info == "yaml"
    )
    if {*yaml.safe_load(block)} <= {"run", "datasets", "experiments", "predictions", "scaling"}
]


def complete(shown):
    """A whole configuration around what a page shows."""
    whole = DEMO
    for file in ("downscaler", "aurora", "smart"):
        demo = yaml.safe_load((REPOSITORY / f"config/demo/{file}.yaml").read_text())
        whole = merged(whole, {key: demo[key] for key in ("datasets", "experiments")})
    known, added = whole["experiments"], {}
    for name, block in shown.get("datasets", {}).items():
        like = known[EXPERIMENTS[block.get("format", "feflow_csv")]]
        data = {key: value for key, value in like["data"].items() if key != "forcings"}
        if "variables" in block:
            data["variables"] = block["variables"]
        added[f"of_{name}"] = like | {"dataset": name, "data": data}
    for name, block in shown.get("experiments", {}).items():
        if "model" in block or name in known:
            continue
        added[name] = known["aurora_copies" if "aurora" in name else "downscaler_tas"]
    return merged(merged(whole, {"experiments": added}), shown)


@pytest.mark.parametrize("block", CONFIGURATIONS)
def test_what_pages_show_of_configurations_is_valid(block):
    shown = yaml.safe_load(block)
    plan = Plan(complete(shown))
    for key in ("datasets", "experiments"):
        assert {*shown.get(key, {})} <= {*getattr(plan, key)}


def code_of(text: str) -> list[str]:
    """Lines of code: those of fenced blocks, and inline code outside of them."""
    lines = []
    for token in tokens_of(text):
        if token.type == "fence":
            lines += token.content.replace("\\\n", " ").splitlines()
        elif token.type == "code_inline":
            lines.append(token.content)
    return lines


@pytest.mark.parametrize("document", PAGES)
def test_files_that_are_named_exist(document):
    text = PAGES[document]
    folders = r"(?:config|docs|envs|profiles|tests|workflow|\.ci)/[\w./-]*"
    files = r"Snakefile|Makefile|LICENSE|[A-Z]+\.md|pyproject\.toml"
    words = {word for line in code_of(text) for word in re.split(r"[\s\"',]+", line)}
    named = {word for word in words if re.fullmatch(f"{folders}|{files}", word)}
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", text)
    # Of users' projects and of profiles/<name>; made while the site is built.
    examples = {"profiles/", "profiles/mine", "profiles/mine/cluster.yaml", "docs/_build/html"}
    examples |= {"workflow/millrace/systems/groundwater/my_gru.py"}
    gone = [n for n in named - examples if not (REPOSITORY / n).exists()]
    # Pages that are made while the site is built are checked by that.
    linked = [n for n in linked if "generated/" not in n]
    gone += [n for n in linked if not ((REPOSITORY / document).parent / n).exists()]
    assert not gone


def test_make_targets_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.M))
    named = {t for line in code_of(EVERYTHING) for t in re.findall(r"\bmake ([a-z-]+)", line)}
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
    commands = [line for line in code_of(EVERYTHING) if line.startswith("snakemake ")]
    assert len(commands) > 40
    for command in commands:
        words = shlex.split(command, comments=True)[1:]
        while words:
            word = words.pop(0)
            if word.startswith("-"):
                values = [words.pop(0) for _ in range(OPTIONS[word])]
                assert word != "-R" or values[0] in rules, command
            else:
                assert word in stages or word.startswith("results/"), command
    inline = set(re.findall(r"`(\w+)`", EVERYTHING))
    assert stages <= inline, "a stage is not named"
    assert (
        set(re.findall(r"`((?:train|evaluate|build|extract|simulate)_\w+)`", EVERYTHING)) <= rules
    )

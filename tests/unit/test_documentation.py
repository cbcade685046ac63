"""The documents name what there is: every key with its default, files, make targets, stages."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from millrace.configuration import configuration_schema
from millrace.plan import Plan
from millrace.reference import reference

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
CONFIG_README = (REPOSITORY / "config/README.md").read_text()
OPTIONS = {"-n": 0, "--report": 1, "--unlock": 0, "--profile": 1, "--configfile": 1, "--config": 1}
OPTIONS |= {"-R": 1, "--set-threads": 1, "-s": 1, "--workflow-profile": 1}


def test_the_reference_of_all_keys_is_that_of_the_code():
    told = "is not what the code says: run `make reference`"
    assert (REPOSITORY / "docs/reference/config.md").read_text() == reference(), told
    written = json.loads((REPOSITORY / "config/schema.json").read_text())
    assert written == json.loads(json.dumps(configuration_schema())), told


def test_every_key_has_a_sentence():
    rows = [line.split(" | ") for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 180
    assert [row[0] for row in rows if not row[-1].strip(" |").endswith((".", "`"))] == []


def test_the_complete_example_is_a_valid_configuration():
    (example,) = re.findall(r"```yaml\n(# my_site.+?)```", CONFIG_README, flags=re.S)
    assert len(Plan(yaml.safe_load(example)).final_checkpoints()) == 3  # one a seed


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

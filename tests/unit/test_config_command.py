"""`millrace config`, and YAML that would silently be read as something else."""

import json

import pytest
import yaml
from plans import ROOT, config

from millrace.config_command import main
from millrace.errors import ConfigError
from millrace.plan import Plan
from millrace.reference import explain
from millrace.systems import registry
from millrace.yaml_files import check_yaml


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of one's own with a configuration in two files."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(config()))
    (tmp_path / "more.yaml").write_text("experiments: {head: {train: {learning_rate: 5e-3}}}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_are_checked_together(folder, capsys) -> None:
    assert main(["check", "more.yaml"]) == 0
    assert capsys.readouterr().out == "checked: 1 experiments on 1 datasets\n"
    (folder / "more.yaml").write_text("experiments: {head: {model: {hiden: 3}}}")
    assert main(["check", "more.yaml"]) == 2
    told = "error: config: experiments.head.model: unknown key 'hiden': did you mean 'hidden'?\n"
    assert capsys.readouterr().err == told
    assert main(["check"]) == 0
    assert main(["check", "none.yaml"]) == 2
    assert (
        capsys.readouterr().err == "error: none.yaml: cannot be read: No such file or directory\n"
    )


def test_what_is_shown_is_the_same_configuration_with_its_defaults(folder, capsys) -> None:
    assert main(["show", "more.yaml"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    block = shown["experiments"]["head"]
    assert block["train"]["learning_rate"] == 0.005
    assert (block["train"]["precision"], block["model"]["layers"]) == ("float32", 4)
    again, first = Plan(shown), Plan(yaml.safe_load((folder / "config/config.yaml").read_text()))
    assert again.final_checkpoints() == first.final_checkpoints()
    assert again.milestones("head") == first.milestones("head")
    assert main(["show", "more.yaml", "--json", "--key", "experiments.head.data"]) == 0
    assert json.loads(capsys.readouterr().out)["stride"] == 1
    assert main(["show", "--key", "experiments.heat"]) == 2
    assert "no 'heat'; known are head" in capsys.readouterr().err


def test_a_key_is_explained_wherever_it_stands(capsys) -> None:
    assert main(["explain", "train.learning_rate"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("experiments.<name>.train.learning_rate\n  takes    a number above 0")
    assert "default  0.001" in told
    assert len(explain("hidden").split("\n\n")) == 3, "of three models"
    assert "(patch box)" in explain("model.radius")
    assert main(["explain", "learning_rat"]) == 2
    assert "did you mean 'learning_rate'?" in capsys.readouterr().err


def test_keys_of_a_plug_in_are_in_reference_and_schema(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(registry, "loaded_plugins", {})
    page = (ROOT / "docs/extending.md").read_text()
    program = page.split("```python\n")[1].split("```")[0].replace("my_gru", "explained_gru")
    (tmp_path / "explained_gru.py").write_text(program)
    plugin = f"--plugin={tmp_path / 'explained_gru.py'}"
    assert main(["explain", plugin, "model.hidden"]) == 0
    assert "Size of the hidden state." in capsys.readouterr().out
    assert main(["schema", plugin]) == 0
    assert "Size of the hidden state." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "run:\n  seeds: [0]\n  seeds: [1]",
            r":3: the key 'seeds' stands there twice, first in line 2",
        ),
        ("a: {b: 1, 'b': 2}", r":1: the key 'b' stands there twice"),
        ("a:\n- b\n- 010", r":3: YAML reads 010 as 8: write 8"),
        ("a: 1_000", r":1: YAML reads 1_000 as 1000: write 1000"),
        ("a: 1:30", r":1: YAML reads 1:30 as 90: write 90"),
        ("a: [", ": not YAML: "),
        ("\x07: 1", ": not YAML: "),
        pytest.param("[" * 5000, ": not YAML: ", id="deeply nested"),
    ],
)
def test_what_yaml_would_read_as_something_else_is_refused(tmp_path, text, told) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        check_yaml(file)


def test_json_is_not_held_to_the_rules_of_yaml(tmp_path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{\n\t"a": [1]\n}')
    check_yaml(file)


def test_plain_yaml_passes_with_anchors_that_multiply_and_merge_keys(tmp_path) -> None:
    file = tmp_path / "a.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join(10 * [f'*a{n - 1}'])}]" for n in range(1, 40)]
    lines += ["b: &b {c: 0, d: 5.0e-3}", "e: {<<: *b, c: '010'}", "f: [0, 00:1a, 2020-01-01, 0x1f]"]
    file.write_text("\n".join(lines))
    check_yaml(file)

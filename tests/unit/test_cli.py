"""The one command: what it names is there, and what it does not know it says."""

import subprocess
import sys
import tomllib

import pytest
from plans import ROOT

from millrace import cli
from millrace.errors import ExitCode
from millrace.systems.base import resolve

HELP = [[name] for name in cli.COMMANDS] + [
    ["runs", "watch"],
    ["cluster", "place"],
]


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_each_command_helps(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == 0
    assert f"usage: millrace {' '.join(command)}" in capsys.readouterr().out


def test_help_names_all_commands_with_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in cli.COMMANDS)
    examples = [line.split()[1] for line in said.splitlines() if line.startswith("  millrace ")]
    assert len(examples) > 3
    assert set(examples) <= set(cli.COMMANDS)


def test_the_version_is_said(capsys):
    assert cli.main(["--version"]) == ExitCode.OK
    assert capsys.readouterr().out.startswith("millrace 0.")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["chek", "my_system.py"], "no command 'chek'; did you mean 'check'?"),
        ([], "expected a command; `millrace --help` lists them"),
    ],
)
def test_what_is_no_command_is_told(arguments, told, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == ExitCode.USER
    assert told in capsys.readouterr().err


def test_arguments_and_exit_codes_are_passed_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["runs", "list", "--root", "nowhere"]) == ExitCode.DATA
    assert "nowhere" in capsys.readouterr().err
    assert (
        cli.main(["predict", "--checkpoint", "a.ckpt", "--source", ".", "--output", "b.h5"]) == 65
    )
    assert "a.json: no such receipt; it lies beside the checkpoint" in capsys.readouterr().err


def test_commands_are_imported_when_they_are_called():
    program = (
        "import sys; from millrace.cli import main; main(['--version'])\n"
        "print([m for m in ('torch', 'numpy', 'rich', 'h5py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.endswith("\n[]\n"), done.stderr


def test_it_is_installed_as_millrace():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert resolve(scripts["millrace"]) is cli.main

"""The one command: what it names is there, and what it does not know it says."""

import contextlib
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from plans import ROOT

from millrace import cli
from millrace.errors import ExitCode
from millrace.systems.base import resolve

DOCUMENTS = ["README.md", "config/README.md", "profiles/README.md", "examples/darcy/README.md"]
DOCUMENTS += sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "docs").rglob("*.md")
    if not {"generated", "_build"} & {*path.parts}
)


def help_of(capsys, *command):
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == ExitCode.OK
    return capsys.readouterr().out


def parsed(line):
    """Options of a line as users type it."""
    words = shlex.split(line, comments=True)[1:]
    return cli.full_parser().parse_args(words[: words.index(">")] if ">" in words else words)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_helps_with_examples_that_are_right(name, capsys):
    text = help_of(capsys, name)
    subcommands = re.findall(r"^    ([a-z]+) ", text, flags=re.MULTILINE)
    assert name not in ("runs", "cluster") or "show" in subcommands
    for command in ([name], *([name, one] for one in subcommands)):
        usage, text = f"millrace {' '.join(command)}", help_of(capsys, *command)
        assert text.startswith(f"usage: {usage} ")
        examples = re.findall(rf"^  ({usage}.*)$", text.partition("\nexamples:")[2], re.MULTILINE)
        assert examples, f"{usage}: no example"
        for line in examples:
            parsed(line)


def test_every_option_of_every_command_says_what_it_is_for(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    page = importlib.import_module("generate").commands()
    rows = re.findall(r"^\| `(.+)` \|(.*)\|$", page, flags=re.M)
    assert len(rows) > 60
    assert [option for option, meaning in rows if not meaning.strip()] == []
    headings = re.findall(r"^#+ `millrace (.+)`$", page, flags=re.M)
    assert {*cli.COMMANDS, "cluster place", "runs backup", "config explain"} <= {*headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_documents_are_right(document, capsys):
    text = (ROOT / document).read_text().replace("\\\n", " ")
    lines = re.findall(r"^(millrace .*)$", text, flags=re.MULTILINE)
    named = re.findall(r"`(millrace [a-z][^`]*)`", text)  # which may leave out what is required
    for line in (*lines, *named):
        with contextlib.suppress(SystemExit):
            parsed(line.replace("\n", " "))
        told = capsys.readouterr().err
        assert not told or (line in named and " required: " in told), f"{line}: {told}"


def test_help_names_all_commands_with_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in cli.COMMANDS)
    examples = [line.split()[1] for line in said.splitlines() if line.startswith("  millrace ")]
    assert len(examples) > 3
    assert set(examples) <= {*cli.COMMANDS, "COMMAND"}


def test_exit_codes_are_those_of_help_and_site(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    said = capsys.readouterr().out.partition("exit codes:\n")[2]
    told = {int(line.split()[0]): line.split(maxsplit=1)[1] for line in said.splitlines()}
    assert told == {int(code): code.meaning for code in ExitCode}
    monkeypatch.syspath_prepend(ROOT / "docs")
    page = importlib.import_module("generate").exit_codes()
    assert dict(re.findall(r"^\| `(\d+)` \| (.+) \|$", page, flags=re.M)) == {
        str(code): meaning for code, meaning in told.items()
    }


def test_the_version_is_said(capsys):
    assert cli.main(["--version"]) == ExitCode.OK
    assert capsys.readouterr().out.startswith("millrace 0.")
    assert cli.main(["--version", "runs", "list", "--root", "nowhere"]) == ExitCode.OK


PREDICT = ["--checkpoint", "a", "--source", "b", "--output", "c"]
STREAM = ["--stream", "a", "--grids", "b", "--output", "c", "--once"]
MISTAKES = {
    "init": (["init", "mine", "--system", "wetter"], "did you mean 'weather'?"),
    "init in a file": (["init", "file"], "file: exists and is not an empty folder"),
    "init without files": (["init", "mine", "--format", "waymo"], "there is no simulator of waymo"),
    "init with a profile": (["init", "mine", "--profile", "gilbert"], "did you mean 'gilbreth'?"),
    "init with a source": (["init", "mine", "--source", "none"], "no directory "),
    "init with a format": (["init", "mine", "--format", "icom"], "did you mean 'icon'?"),
    "check": (["check", "gini"], "did you mean 'gino'?"),
    "check a file": (["check", "none.py"], "plugins: no file "),
    "runs": (["runs", "show", "salt"], "runs: no such directory"),
    "watch": (["runs", "watch", "--profile", "gilbert"], "did you mean 'gilbreth'?"),
    "place": (["cluster", "place", "gilbreth", "n1gpu1"], "layout 'n1gpu1': expected"),
    "show": (["cluster", "show", "gilbert"], "did you mean 'gilbreth'?"),
    "doctor": (["doctor", "--configfile", "none.yaml"], "no run.layouts to be read"),
    "report": (["report", "--configfile", "none.yaml"], "none.yaml"),
    "report to text": (["report", "--output", "a.txt"], "expected a name that ends in .html"),
    "predict": (["predict", *PREDICT], "a: no such checkpoint"),
    "stream": (["stream", *STREAM], "b: no grid file"),
    "completion": (["completion", "fish"], "invalid choice: 'fish'"),
    "an option": (["runs", "list", "--jsom"], "unrecognized arguments: --jsom"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_changes_nothing(mistake, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    arguments, told = MISTAKES[mistake]
    try:
        code = cli.main(arguments)
    except SystemExit as ended:  # argparse ends by itself
        code = ended.code
    assert code in (ExitCode.USER, ExitCode.DATA)
    *before, said = capfd.readouterr().err.splitlines()
    assert told in said
    assert "error: " in said
    assert all(line.startswith(("usage: ", "  ")) for line in before)
    assert {path.name for path in tmp_path.iterdir()} - {".snakemake"} == {"file"}


def test_ctrl_c_and_a_reader_who_has_seen_enough_leave_no_traceback(monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("millrace.runs.command.main", interrupted)
    assert cli.main(["runs"]) == ExitCode.INTERRUPTED
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "millrace.cli", "cluster", "show", "--json"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")


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
    assert "a.ckpt: no such checkpoint; run the train stage first" in capsys.readouterr().err


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

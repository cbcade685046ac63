"""Completion in real shells: what a line becomes when the tabulator is pressed."""

import os
import pty
import re
import select
import shutil
import subprocess
import time

import pytest

from millrace.completion import script

LINES = {
    "rep\t": ["report"],
    "runs lat\t": ["runs", "latest"],
    "doctor --need\t": ["doctor", "--need-gb"],
    "init mine --system wea\t": ["init", "mine", "--system", "weather"],
    "init mine --profile lev\t": ["init", "mine", "--profile", "levante"],
    "check gfn\t": ["check", "gfno"],
    "check my_sy\t": ["check", "my_system.py"],
    "cluster place kat\t n2_gpu2": ["cluster", "place", "katana", "n2_gpu2"],
    "predict --device cu\t": ["predict", "--device", "cuda"],
    "report --configfile my_si\t": ["report", "--configfile", "my_site.yaml"],
    "runs show salt/n1_gpu1/se\t": ["runs", "show", "salt/n1_gpu1/seed7"],
    "completion z\t": ["completion", "zsh"],
}
"""What is typed after ``millrace``, and the arguments that arrive."""
STARTS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source ./_millrace"),
    "zsh": (["zsh", "-f", "-i"], "fpath=($PWD $fpath); autoload -U compinit; compinit -u -D"),
}
PATIENCE_S = 120


class Shell:
    """An interactive shell in which ``millrace`` only shows its arguments."""

    def __init__(self, name, folder):
        self.terminal, child = pty.openpty()
        command, prepare = STARTS[name]
        environment = os.environ | {"TERM": "dumb", "INPUTRC": "/dev/null", "HOME": str(folder)}
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), child)
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, start_new_session=True, **streams
        )
        os.close(child)
        os.write(self.terminal, f"{prepare}; millrace() {{ echo \"<$*\"'>'; }}\n".encode())
        self.arguments("completion bash")  # it listens

    def arguments(self, typed):
        """The arguments of a line, once it has been completed and run."""
        os.write(self.terminal, f"millrace {typed}\n".encode())
        said, end = "", time.monotonic() + PATIENCE_S
        while not (found := re.search(r"<([^<>\"]*)>", said)):
            assert select.select([self.terminal], [], [], end - time.monotonic())[0], said
            said += os.read(self.terminal, 4096).decode()
        return found[1].split()

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


@pytest.mark.parametrize("name", STARTS)
def test_commands_options_files_and_names_are_completed(name, tmp_path):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    (tmp_path / "_millrace").write_text(script(name))
    for file in ("my_system.py", "my_site.yaml"):
        (tmp_path / file).touch()
    (tmp_path / "runs/salt/n1_gpu1/seed7").mkdir(parents=True)
    shell = Shell(name, tmp_path)
    try:
        # Directories end with a slash, so that one can go on.
        found = {typed: [a.rstrip("/") for a in shell.arguments(typed)] for typed in LINES}
    finally:
        shell.close()
    assert found == LINES


def test_both_scripts_know_every_command():
    for name in STARTS:
        made = script(name)
        assert all(word in made for word in ("efficiency", "--run-hashes", "aurora", "gilbreth"))
        if name == "bash":
            assert subprocess.run(["bash", "-n"], input=made, text=True).returncode == 0

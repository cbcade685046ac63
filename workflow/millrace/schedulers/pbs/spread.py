"""Runs a command once on each node of a PBS job.

``python -m millrace.schedulers.pbs.spread DIRECTORY COMMAND...`` has pbsdsh start the processes. But what
they print goes to the job's own output, pbsdsh does not tell how they ended, ends at once when it is told
to stop, and waits for minutes for the tasks of a node whose MoM is lost. So each node writes its output and
its exit code to files in DIRECTORY, which all nodes share; here the output is passed on as it grows, and
the end is that of the commands.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from millrace.processes import dying_with_this, forwarding_signals

# Once the first node has ended, or pbsdsh without having started it, the others get this time to end, too.
GRACE_S = 30.0
_POLL_S = 0.5
# PBS sets these for each process.
_OWN = re.compile("(PBS_(NODENUM|TASKNUM|VNODENUM|MOMPORT|JOBCOOKIE)|TMPDIR)$")

# pbsdsh passes almost no environment to its processes, and command lines can be read by everybody: so a
# private file holds both. A signal reaches the shell as well, which must live to tell the exit code.
_SCRIPT = """{environment}
cd {here} || exit
exec >> {folder}/"out.$PBS_NODENUM" 2>&1
echo $$ > {folder}/"pid.$PBS_NODENUM"
trap : TERM INT
{command}
echo $? > {folder}/".code.$PBS_NODENUM"
mv {folder}/".code.$PBS_NODENUM" {folder}/"code.$PBS_NODENUM"
"""


def main(directory: Path, command: Sequence[str]) -> int:
    """Run the command on all nodes of this job, and return the largest of their exit codes."""
    nodes = len(Path(os.environ["PBS_NODEFILE"]).read_text().split())
    directory.mkdir(parents=True, exist_ok=True)
    private = tempfile.mkdtemp(prefix=f"{os.environ['PBS_JOBID']}.", dir=directory.absolute())
    folder = Path(private)
    try:
        script = folder / "start.sh"
        script.write_bytes(os.fsencode(_script(folder, command)))
        return _Spread(folder, nodes).run(script)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Spread:
    """The processes of all nodes, as the files in ``folder`` tell of them."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self._folder, self._nodes = folder, nodes
        self._here = os.environ.get("PBS_NODENUM", "0")
        self._passed_on: dict[Path, int] = {}

    def run(self, script: Path) -> int:
        program = shutil.which("pbsdsh") or "/opt/pbs/bin/pbsdsh"
        pbsdsh = subprocess.Popen(
            [program, "--", "/bin/bash", str(script)], preexec_fn=dying_with_this()
        )

        def tell(number: int) -> None:
            if number in (signal.SIGTERM, signal.SIGINT):  # others end pbsdsh and reach nobody
                pbsdsh.send_signal(number)

        with forwarding_signals(tell):
            self._wait(pbsdsh)
        with suppress(ProcessLookupError):
            pbsdsh.kill()
        own = pbsdsh.wait()
        self._pass_on(rest=True)
        codes = self._codes()
        if missing := [str(n) for n in range(self._nodes) if str(n) not in codes]:
            print(
                f"node {', '.join(missing)} of the job has told no exit code: it was lost, or PBS did not "
                "start the command there",
                file=sys.stderr,
            )
        # Negative: killed here, because it waited for a node that was lost.
        return max([*codes.values(), 1 if missing else 0, max(own, 0) if missing else 0])

    def _wait(self, pbsdsh: "subprocess.Popen[bytes]") -> None:
        """Return when all nodes have ended, or the first has and the time of the others is over."""
        until = None
        while len(self._codes()) < self._nodes:
            self._pass_on()
            if until is None and self._is_over_here(pbsdsh.poll() is not None):
                until = time.monotonic() + GRACE_S
            if until is not None and time.monotonic() > until:
                return
            time.sleep(_POLL_S)

    def _is_over_here(self, pbsdsh_ended: bool) -> bool:
        if self._here in self._codes():
            return True
        # Told to stop, pbsdsh does not wait for its processes; they save.
        return pbsdsh_ended and not self._is_alive_here()

    def _is_alive_here(self) -> bool:
        with suppress(OSError, ValueError):
            return psutil.pid_exists(int((self._folder / f"pid.{self._here}").read_text()))
        return False

    def _codes(self) -> dict[str, int]:
        """Exit codes by the number of the node."""
        return {path.suffix[1:]: int(path.read_text()) for path in self._folder.glob("code.*")}

    def _pass_on(self, rest: bool = False) -> None:
        """Print what the nodes have written since, in whole lines but for the rest."""
        for path in sorted(self._folder.glob("out.*")):
            with path.open("rb") as file:
                file.seek(self._passed_on.get(path, 0))
                new = file.read()
            if not rest:
                new = new[: new.rfind(b"\n") + 1]
            self._passed_on[path] = self._passed_on.get(path, 0) + len(new)
            sys.stdout.buffer.write(new)
        sys.stdout.flush()


def _script(folder: Path, command: Sequence[str]) -> str:
    names = [name for name in os.environ if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII)]
    values = {name: os.environ[name] for name in names if not _OWN.match(name)}
    return _SCRIPT.format(
        environment="\n".join(f"export {n}={shlex.quote(v)}" for n, v in values.items()),
        here=shlex.quote(str(Path.cwd())),
        folder=shlex.quote(str(folder)),
        command=shlex.join(command),
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))

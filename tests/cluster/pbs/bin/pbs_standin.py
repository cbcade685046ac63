"""Stand-in for PBS: qsub, qstat, qdel and pbsdsh that execute the jobs on this machine.

It answers as OpenPBS 23.06 does, with what was observed there: exit codes (35, 153), a deleted running
job that reports success (substate 91), a walltime kill (-29, substate 93), ``-V`` without PATH, the
history of ended jobs or none, badly quoted JSON that holds the first job only, paths of output in ASCII.
pbsdsh has an almost empty environment, writes to the job's own output, does not tell how its tasks ended,
waits for those of a lost node, and ends at once when it is told to stop.

The directory $PBS_STANDIN is "the server": ``settings.json`` (see `SETTINGS`), ``jobs/<n>.json``. Each
job has a process of its own, its MoM, which waits for a slot and ends with the job. Python's standard
library only: a job's environment may have no other.
"""

import contextlib
import fcntl
import getopt
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

SETTINGS = {
    "slots": 4,
    "hold": False,
    "hosts": ["localhost", "node02", "node03", "node04"],
    "kill_delay_s": 10.0,
    # Real seconds per second of walltime, so that minutes need not last as long.
    "walltime_scale": 1.0,
    # Part of the walltime after which jobs are killed: less than 1 comes as a surprise.
    "killed_at": 1.0,
    "history": True,
    "qstat_fails": 0,
    "qsub_fails": 0,
    "qsub_refuses": "",
    # What jobs are said to have used.
    "mem": "1000kb",
    # Of these nodes nobody hears how their tasks ended.
    "lost_nodes": [],
}
SERVER = "pbs"
_POLL_S = 0.05
_RESOURCES = {"ncpus", "mem", "ngpus", "gpu_model", "mpiprocs", "ompthreads", "walltime"}
# Exit codes of the commands are PBS error numbers modulo 256.
UNKNOWN_JOB, HISTORY_JOB = 15001 % 256, 15139 % 256
_UNKNOWN_RESOURCE, _BAD_VALUE = 15035 % 256, 15014 % 256
UNREACHABLE = "Connection refused\n{0}: cannot connect to server pbs (errno=111)"
_MINIMAL_PATH = "/bin:/usr/bin"


# --- the server's memory -------------------------------------------------------------------------


def root() -> Path:
    return Path(os.environ["PBS_STANDIN"])


@contextlib.contextmanager
def locked():
    with (root() / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def settings() -> dict:
    with contextlib.suppress(FileNotFoundError):
        return SETTINGS | json.loads((root() / "settings.json").read_text())
    return dict(SETTINGS)


def change(**values) -> None:
    with locked():
        _replace(root() / "settings.json", settings() | values)


def fails_now(counter: str) -> bool:
    """Count down the failures that were asked for."""
    with locked():
        now = settings()
        if now[counter] <= 0:
            return False
        _replace(root() / "settings.json", now | {counter: now[counter] - 1})
        return True


def _replace(path: Path, value: dict) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value))
    partial.replace(path)


def _file(number: int) -> Path:
    return root() / "jobs" / f"{number}.json"


def job(number: int) -> dict | None:
    try:
        return json.loads(_file(number).read_text())
    except FileNotFoundError:
        return None


def jobs() -> list[dict]:
    numbers = sorted(int(path.stem) for path in (root() / "jobs").glob("[0-9]*.json"))
    return [found for found in map(job, numbers) if found]


def _update(number: int, **values) -> dict | None:
    """Change a job, unless it was lost."""
    with locked():
        before = job(number)
        if before is None:
            return None
        _replace(_file(number), before | values | {"mtime": time.time()})
        return before | values


def find(id: str) -> dict | None:
    match = re.fullmatch(rf"(\d+)(\.{SERVER})?", id)
    return job(int(match[1])) if match else None


# --- qsub ----------------------------------------------------------------------------------------


def qsub(arguments: list[str]) -> int:
    try:
        options, operands = getopt.getopt(arguments, "N:j:o:e:l:q:P:A:S:v:W:r:m:M:k:VhI")
    except getopt.GetoptError as error:
        return refuse(f"qsub: {error}", 2)
    if fails_now("qsub_fails"):
        return refuse(UNREACHABLE.format("qsub"), 111)
    if refusal := settings()["qsub_refuses"]:
        return refuse(f"qsub: {refusal}", 170)
    given = dict(options)
    name = given.get("-N", Path(operands[0]).name[:15] if operands else "STDIN")
    if not re.fullmatch(r"[A-Za-z][\w.+-]{0,229}", name):
        return refuse("qsub: illegal -N value", 2)
    if not _is_path(given.get("-o", "x")):
        return refuse("qsub: illegal -o value", 2)
    resources = {}
    for key, value in options:
        if key == "-l":
            part, _, text = value.partition("=")
            resources[part] = text
    chunks, chunk, unknown = _chunks(resources.get("select", "1:ncpus=1"))
    if unknown or set(resources) - {"select", "place", "walltime"}:
        return refuse(f"qsub: Unknown resource: {unknown or resources}", _UNKNOWN_RESOURCE)
    if chunks > len(settings()["hosts"]):
        return refuse("qsub: Job violates queue and/or server resource limits", _BAD_VALUE)
    content = Path(operands[0]).read_text() if operands else sys.stdin.read()
    number = _register(
        name=name,
        script=content,
        options=given,
        resources=resources,
        chunks=chunks,
        chunk=chunk,
        mem=settings()["mem"],
        variables=_variables(given),
        arguments=arguments,
        workdir=str(Path.cwd()),
    )
    _start_mom(number)
    print(f"{number}.{SERVER}")
    return 0


def _is_path(text: str) -> bool:
    """Whether qsub takes a path of output: ``[host:]path`` in printable ASCII."""
    host, colon, _ = text.partition(":")
    plain = text.isascii() and text.isprintable()
    return plain and (not colon or "/" in host or re.fullmatch(r"[\w.-]+", host) is not None)


def _chunks(select: str) -> tuple[int, dict[str, str], str]:
    """Number of chunks, resources of each, the first resource that does not exist."""
    count, *parts = select.split(":")
    chunk = dict(part.split("=", 1) for part in parts)
    unknown = next((key for key in chunk if key not in _RESOURCES), "")
    return int(count), chunk, unknown


def _variables(given: dict[str, str]) -> dict[str, str]:
    """Environment that goes with the job: -V is everything but PATH."""
    passed = {}
    if "-V" in given:
        passed |= {k: v for k, v in os.environ.items() if k != "PATH"}
    for item in filter(None, given.get("-v", "").split(",")):
        key, _, value = item.partition("=")
        passed[key] = value if "=" in item else os.environ.get(key, "")
    return passed


def _register(**fields) -> int:
    with locked():
        (root() / "jobs").mkdir(exist_ok=True)
        last = root() / "last"
        number = int(last.read_text()) + 1 if last.exists() else 1
        last.write_text(str(number))
        now = time.time()
        # A held job is not the same as the settings' hold, under which jobs wait in the queue.
        state = "H" if "-h" in fields["options"] else "Q"
        _replace(
            _file(number),
            {
                "number": number,
                "state": state,
                "substate": 10,
                "ctime": now,
                "mtime": now,
                "sessions": [],
                **fields,
            },
        )
    return number


def _start_mom(number: int) -> None:
    log = (root() / "mom.log").open("a")
    # Not a child of qsub's caller: it must not get its signals, nor keep its pipes open.
    subprocess.Popen(
        [sys.executable, __file__, "mom", str(number)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


# --- MoM: waits for a slot, executes, warns, kills -------------------------------------------------


def mom(number: int) -> None:
    _update(number, mom=os.getpid())
    found = _wait_for_slot(number)
    if found is None:
        return
    script = root() / "jobs" / f"{number}.SC"
    script.write_text(found["script"])
    nodes = settings()["hosts"][: found["chunks"]]
    nodefile = root() / "jobs" / f"{number}.nodes"
    lines = [node for node in nodes for _ in range(int(found["chunk"].get("mpiprocs", 1)))]
    nodefile.write_text("".join(f"{line}\n" for line in lines))
    spool = root() / "jobs" / f"{number}.OU"
    with spool.open("a") as output:
        top = subprocess.Popen(
            [found["options"].get("-S", "/bin/bash"), str(script)],
            cwd=Path.home(),
            env=_job_environment(found, nodefile),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    _update(
        number,
        sessions=[[top.pid, 0]],
        exec_host="+".join(f"{node}/0*{found['chunk'].get('ncpus', 1)}" for node in nodes),
    )
    exit_status, substate = _watch(number, top)
    if _flag(number, "vanish").exists():
        return  # the node is off: nobody hears how the job ended
    _deliver(found, spool)
    _update(number, state="F", substate=substate, Exit_status=exit_status, obittime=time.time())


def _wait_for_slot(number: int) -> dict | None:
    """The job once it may run; None if it was deleted or lost before."""
    while True:
        with locked():
            now = settings()
            mine = job(number)
            if mine is None:
                return None
            if _flag(number, "delete").exists():
                ended = {"state": "F", "substate": 91, "mtime": time.time()}
                _replace(_file(number), mine | ended)
                return None
            others = [other for other in jobs() if other["number"] != number]
            running = sum(other["state"] in "RE" for other in others)
            first = all(o["number"] > number for o in others if o["state"] == "Q")
            if mine["state"] == "Q" and not now["hold"] and first and running < now["slots"]:
                started = {"state": "R", "substate": 42, "stime": time.time()}
                _replace(_file(number), mine | started)
                return mine | started
        time.sleep(_POLL_S)


def _job_environment(found: dict, nodefile: Path) -> dict[str, str]:
    id = f"{found['number']}.{SERVER}"
    scratch = root() / "tmp" / f"pbs.{id}"
    scratch.mkdir(parents=True, exist_ok=True)
    return (
        found["variables"]
        | _task_environment(found["number"], 0)
        | {
            "PBS_JOBNAME": found["name"],
            "PBS_NODEFILE": str(nodefile),
            "PBS_O_WORKDIR": found["workdir"],
            "PBS_O_HOST": "login",
            "PBS_O_PATH": "",
            "PBS_QUEUE": found["options"].get("-q", "workq"),
            "PBS_JOBDIR": str(Path.home()),
            "TMPDIR": str(scratch),
            "NCPUS": found["chunk"].get("ncpus", "1"),
            "OMP_NUM_THREADS": found["chunk"].get("ncpus", "1"),
            "SHELL": "/bin/bash",
        }
    )


def _task_environment(number: int, node: int) -> dict[str, str]:
    """What every process started by a MoM finds, on any node."""
    return {
        "HOME": str(Path.home()),
        "USER": os.environ.get("USER", "user"),
        "LOGNAME": os.environ.get("USER", "user"),
        "PATH": _MINIMAL_PATH,
        "PBS_JOBID": f"{number}.{SERVER}",
        "PBS_ENVIRONMENT": "PBS_BATCH",
        "PBS_JOBCOOKIE": "0" * 32,
        "PBS_NODENUM": str(node),
        "PBS_TASKNUM": str(node + 1),
        "PBS_STANDIN": os.environ["PBS_STANDIN"],  # instead of /etc/pbs.conf
    }


def _watch(number: int, top: subprocess.Popen) -> tuple[int | None, int]:
    """Exit status and substate, once the job is over and all of its processes are gone."""
    started = time.monotonic()
    killed: tuple[int, int] | None = None
    kill_at = None
    while top.poll() is None:
        if _flag(number, "vanish").exists():
            break
        if killed is None:
            if _flag(number, "delete").exists():
                killed = (0, 91)
            elif time.monotonic() > started + _allowed_s(number):
                killed = (-29, 93)
            if killed:
                _update(number, state="E", substate=51)
                # Only the processes of the first node hear of it.
                _signal(number, signal.SIGTERM, nodes=[0])
                kill_at = time.monotonic() + settings()["kill_delay_s"]
        if kill_at is not None and time.monotonic() > kill_at:
            break
        time.sleep(_POLL_S)
    # When the job's shell has ended, PBS kills what it has left behind.
    _signal(number, signal.SIGKILL)
    code = top.wait()
    code = 256 - code if code < 0 else code
    return killed or (code, 92 if code == 0 else 93)


def _signal(number: int, which: int, nodes: list[int] | None = None) -> None:
    found = job(number) or {"sessions": []}
    ours = {s for s, node in found["sessions"] if nodes is None or node in nodes}
    while reached := [pid for pid, session in sessions().items() if session in ours]:
        for pid in reached:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, which)
        if which != signal.SIGKILL:
            return
        # One that forked while they were listed leaves a child that was not.
        time.sleep(_POLL_S)


def sessions() -> dict[int, int]:
    """Session of every process; one that left the session of its job is out of reach for PBS."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                found[int(stat.parent.name)] = int(fields[3])
    return found


def _deliver(found: dict, spool: Path) -> None:
    """Copy the output to where -o says, as PBS does when the job is over."""
    given = found["options"].get("-o", found["workdir"] + "/")
    path = Path(found["workdir"]) / given.rpartition(":")[2]
    if path.is_dir():
        path = path / f"{found['number']}.{SERVER}.OU"
    with contextlib.suppress(OSError):
        path.write_bytes(spool.read_bytes())


def walltime_s(found: dict) -> float | None:
    """Real seconds that a job may run."""
    text = found.get("resources", {}).get("walltime")
    if not text:
        return None
    total = 0
    for part in text.split(":"):
        total = 60 * total + int(part)
    return total * settings()["walltime_scale"]


def _allowed_s(number: int) -> float:
    """Real seconds after which a job is killed."""
    walltime = walltime_s(job(number) or {})
    return math.inf if walltime is None else walltime * settings()["killed_at"]


def _flag(number: int, name: str) -> Path:
    return root() / "jobs" / f"{number}.{name}"


# --- qstat, qdel -----------------------------------------------------------------------------------


def qdel(arguments: list[str]) -> int:
    _, ids = getopt.getopt(arguments, "xW:")
    code = 0
    for id in ids:
        found = find(id)
        if found is None:
            code = refuse(f"qdel: Unknown Job Id {id}", UNKNOWN_JOB)
        elif found["state"] == "F":
            code = refuse(f"qdel: Job has finished {id}", HISTORY_JOB)
        else:
            _flag(found["number"], "delete").touch()
    return code


# --- pbsdsh --------------------------------------------------------------------------------------


def pbsdsh(arguments: list[str]) -> int:
    """Start a command once per line of the node file, each time as a MoM does."""
    command = arguments[arguments.index("--") + 1 :] if "--" in arguments else arguments
    number = int(os.environ["PBS_JOBID"].split(".")[0])
    lines = (root() / "jobs" / f"{number}.nodes").read_text().splitlines()
    tasks = []

    def bail_out(which: int, frame) -> None:
        ours = [task.pid for task in tasks]
        for pid, session in sessions().items():
            if session in ours:
                os.kill(pid, which)
        os._exit(1)  # without waiting for them

    for which in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(which, bail_out)
    with (root() / "jobs" / f"{number}.OU").open("a") as output:
        for node in range(len(lines)):
            environment = _task_environment(number, node)
            tasks.append(
                subprocess.Popen(
                    command,
                    cwd=Path.home(),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            )
            _add_session(number, tasks[-1].pid, node)
    for node, task in enumerate(tasks):
        if code := task.wait():
            print(f"pbsdsh: task 0x{node + 1:08X} exit status {code}")
        while node in settings()["lost_nodes"]:
            time.sleep(_POLL_S)
    return 0


def _add_session(number: int, session: int, node: int) -> None:
    with locked():
        if (found := job(number)) is not None:
            _replace(_file(number), found | {"sessions": [*found["sessions"], [session, node]]})


def refuse(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__" and sys.argv[1:2] == ["mom"]:
    mom(int(sys.argv[2]))

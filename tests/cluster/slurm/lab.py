"""A real SLURM on one machine: several emulated GPU nodes, as at the sites the profiles are for.

Debian's packages, no systemd. Everything lives in one directory and is stopped by recorded process ids.
Its nodes are those of Gilbreth and Levante, described here independently of the profiles, so that a
wrong partition, constraint or GPU count in a profile is refused as it would be there.
"""

import contextlib
import fcntl
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from millrace.processes import die_with_parent

PACKAGES = (
    *("slurmctld", "slurmd", "slurm-client", "munge"),
    *("slurmdbd", "mariadb-server-core", "mariadb-client-core"),
)
ACCOUNT = "proj"
_CLUSTER = "lab"
_SITE = Path("/etc/slurm")
_SITE_LOCK = Path("/run/lock/millrace-slurm-tests")
_FILES = ("slurm.conf", "slurmdbd.conf", "gres.conf", "cgroup.conf")


@dataclass(frozen=True)
class Node:
    """Nodes of one kind."""

    names: tuple[str, ...]
    cores: int
    memory_mb: int
    gpus: int
    features: str


NODES = (
    Node(("gilbreth-n000",), 48, 1_000_000, 4, "nvlink,N"),
    Node(tuple(f"gilbreth-k{n:03d}" for n in range(4)), 64, 512_000, 2, "K"),
    Node(("levante-g000",), 128, 512_000, 4, "a100_80"),
    Node(("levante-c000",), 128, 256_000, 0, ""),
)
PARTITIONS = {
    "a100-40gb": (NODES[0], "14-0"),
    "a100-80gb": (NODES[1], "14-0"),
    "gpu": (NODES[2], "12:00:00"),
    "compute": (NODES[3], "08:00:00"),
    "shared": (NODES[3], "7-0"),
}


class SlurmLab:
    """See the module."""

    def __init__(self, directory: Path, base_port: int = 16810) -> None:
        self.directory = directory
        self._port = base_port
        self._host = socket.gethostname().split(".")[0]
        self._daemons: dict[str, psutil.Popen] = {}

    def start(self) -> None:
        """Bring everything up; takes about six seconds, or longer if other tests still have theirs."""
        self._lock = _SITE_LOCK.open("w")
        _wait(1800, self._is_ours, f"the SLURM of other tests, which holds {_SITE_LOCK}")
        self._end_what_killed_tests_left()
        for name in ("run", "log", "state", "dev", "db"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self._write_configuration()
        self._start_munge()
        self._start_accounting()
        self._daemon("slurmctld", "slurmctld", "-D", "-f", self._path("slurm.conf"))
        _wait(600, lambda: self.run("scontrol", "ping").returncode == 0, "slurmctld")
        for name in self.nodes:
            self.start_node(name)
        idle = "idle,alloc,mix"
        _wait(
            120,
            lambda: (
                len(set(self.run("sinfo", "-hN", "-t", idle, "-o", "%N").stdout.split()))
                == len(self.nodes)
            ),
            "nodes",
        )

    @property
    def nodes(self) -> list[str]:
        """Names of all nodes."""
        return [name for kind in NODES for name in kind.names]

    def start_node(self, name: str) -> None:
        """Start the daemon of a node."""
        self._daemon(f"slurmd.{name}", "slurmd", "-D", "-N", name, "-f", self._path("slurm.conf"))

    def kill_node(self, name: str) -> None:
        """Let a node die, with everything that runs on it."""
        daemon = self._daemons.pop(f"slurmd.{name}")
        # What a job left to itself would run on: a node that loses power takes it along.
        steps = [p for p in psutil.process_iter(["cmdline", "name"]) if _is_step_of(p, name)]
        victims = [child for step in steps for child in step.children(recursive=True)]
        for process in (daemon, *steps, *victims):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        daemon.wait()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of SLURM."""
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    def stop(self) -> None:
        """Cancel all jobs and stop all daemons."""
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            self.run("scancel", "--user", getpass.getuser())
            with contextlib.suppress(TimeoutError):
                _wait(15, lambda: not self.run("squeue", "-h").stdout, "the end of all jobs")
        for name in reversed(list(self._daemons)):
            daemon = self._daemons.pop(name)
            daemon.terminate()
            try:
                daemon.wait(20)
            except psutil.TimeoutExpired:
                daemon.kill()
        for name in _FILES:
            with contextlib.suppress(FileNotFoundError):
                if (_SITE / name).readlink() == self.directory / name:
                    (_SITE / name).unlink()
        self._lock.close()

    def _is_ours(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _end_what_killed_tests_left(self) -> None:
        """Daemons died with the tests; steps of jobs, and what they run, are processes of their own."""
        if any(process.info["name"] == "slurmd" for process in psutil.process_iter(["name"])):
            return  # one of the machine's own, and so may be the steps
        left = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                of_a_job = process.environ().get("SLURM_CLUSTER_NAME") == _CLUSTER
                if of_a_job or process.name() == "slurmstepd":
                    process.kill()
                    left.append(process)
        psutil.wait_procs(left, timeout=20)

    def _path(self, name: str) -> str:
        return str(self.directory / name)

    def _daemon(self, name: str, *command: str) -> None:
        with (self.directory / "log" / f"{name}.out").open("w") as output:
            self._daemons[name] = psutil.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                # Tests that are killed stop nothing themselves.
                preexec_fn=die_with_parent,
            )

    def _start_munge(self) -> None:
        key, socket_ = self.directory / "munge.key", self.directory / "run/munge.socket"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(os.urandom(1024))
            key.chmod(0o400)
        self._daemon(
            "munged",
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={socket_}",
            f"--pid-file={self._path('run/munged.pid')}",
            f"--log-file={self._path('log/munged.log')}",
            f"--seed-file={self._path('run/munged.seed')}",
        )
        _wait(600, lambda: self.run("munge", f"--socket={socket_}", "-n").returncode == 0, "munge")

    def _start_accounting(self) -> None:
        database, socket_ = self.directory / "db", self._path("run/mysql.sock")
        user = getpass.getuser()
        if not (database / "mysql").exists():
            self._checked(
                "mariadb-install-db",
                "--no-defaults",
                f"--user={user}",
                f"--datadir={database}",
                "--auth-root-authentication-method=socket",
                "--skip-test-db",
            )
        self._daemon(
            "mariadbd",
            "mariadbd",
            "--no-defaults",
            f"--user={user}",
            f"--datadir={database}",
            f"--socket={socket_}",
            "--bind-address=127.0.0.1",
            f"--port={self._port + 9}",
            "--innodb-buffer-pool-size=64M",
            "--innodb-log-file-size=16M",
            "--innodb-lock-wait-timeout=900",
            "--performance-schema=OFF",
        )
        client = ("mariadb", "--no-defaults", "-S", socket_, "-e")
        _wait(600, lambda: self.run(*client, "select 1").returncode == 0, "mariadbd")
        self._checked(
            *client,
            "create database if not exists slurm_acct_db;"
            "create user if not exists 'slurm'@'127.0.0.1' identified by 'lab';"
            "create user if not exists 'slurm'@'localhost' identified by 'lab';"
            "grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1';"
            "grant all on slurm_acct_db.* to 'slurm'@'localhost';",
        )
        self._daemon("slurmdbd", "slurmdbd", "-D")
        manager = ("sacctmgr", "-in")
        _wait(600, lambda: self.run(*manager, "list", "cluster").returncode == 0, "slurmdbd")
        for words in (
            ("cluster", _CLUSTER),
            ("qos", "standby"),
            ("account", ACCOUNT, f"Cluster={_CLUSTER}", "Description=lab", "Organization=lab"),
            ("user", user, f"Account={ACCOUNT}", f"DefaultAccount={ACCOUNT}"),
        ):
            self.run(*manager, "add", *words)
        self._checked(*manager, "modify", "account", ACCOUNT, "set", "qos=normal,standby")

    def _checked(self, *command: str) -> None:
        done = self.run(*command)
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stdout}{done.stderr}")

    def _write_configuration(self) -> None:
        (self.directory / "slurm.conf").write_text(self._slurm_conf())
        (self.directory / "gres.conf").write_text(self._gres_conf())
        (self.directory / "cgroup.conf").write_text(
            "CgroupPlugin=autodetect\nCgroupAutomount=yes\nIgnoreSystemd=yes\n"
            "ConstrainCores=no\nConstrainDevices=no\nConstrainRAMSpace=no\n"
        )
        database = self.directory / "slurmdbd.conf"
        database.touch(mode=0o600)
        database.write_text(self._slurmdbd_conf())
        # The executor's job step removes SLURM_CONF from the environment of its children.
        _SITE.mkdir(exist_ok=True)
        for name in _FILES:
            (_SITE / name).unlink(missing_ok=True)
            (_SITE / name).symlink_to(self.directory / name)

    def _slurm_conf(self) -> str:
        here, port, user = self.directory, self._port, getpass.getuser()
        lines = [
            f"ClusterName={_CLUSTER}",
            f"SlurmctldHost={self._host}(127.0.0.1)",
            f"SlurmctldPort={port + 7}",
            f"SlurmUser={user}",
            f"SlurmdUser={user}",
            "AuthType=auth/munge",
            # Jobs that are queued again are held back for as long as a credential lives: 120 s by default.
            f"AuthInfo=socket={here}/run/munge.socket,cred_expire=30",
            "CredType=cred/munge",
            "MpiDefault=none",
            # As in production: with it a step's processes are known, and those that stay are killed.
            "ProctrackType=proctrack/cgroup",
            "TaskPlugin=task/none",
            "JobAcctGatherType=jobacct_gather/linux",
            "JobAcctGatherFrequency=2",
            "ReturnToService=2",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core_Memory",
            "DefMemPerCPU=100",
            "GresTypes=gpu",
            "SlurmdParameters=config_overrides",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,"
            "sched_min_interval=100000,sched_max_job_start=0",
            "MinJobAge=300",
            "KillWait=10",
            "OverTimeLimit=0",
            "SlurmctldTimeout=30",
            "SlurmdTimeout=10",
            "InactiveLimit=0",
            "JobRequeue=1",
            "PropagateResourceLimitsExcept=MEMLOCK",
            "MailProg=/bin/true",
            f"StateSaveLocation={here}/state",
            f"SlurmdSpoolDir={here}/spool.%n",
            f"SlurmctldPidFile={here}/run/slurmctld.pid",
            f"SlurmdPidFile={here}/run/slurmd.%n.pid",
            f"SlurmctldLogFile={here}/log/slurmctld.log",
            f"SlurmdLogFile={here}/log/slurmd.%n.log",
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=127.0.0.1",
            f"AccountingStoragePort={port + 8}",
            f"AccountingStoragePass={here}/run/munge.socket",
            "AccountingStoreFlags=job_comment",
            "AccountingStorageTRES=gres/gpu",
            "AccountingStorageEnforce=associations,qos,limits",
        ]
        next_port = port + 10
        for kind in NODES:
            gres = f" Gres=gpu:a100:{kind.gpus}" if kind.gpus else ""
            feature = f" Feature={kind.features}" if kind.features else ""
            for name in kind.names:
                next_port += 1
                lines.append(
                    f"NodeName={name} NodeHostname={self._host} NodeAddr=127.0.0.1 Port={next_port} "
                    f"CPUs={kind.cores} RealMemory={kind.memory_mb}{gres}{feature}"
                )
        for name, (kind, limit) in PARTITIONS.items():
            lines.append(
                f"PartitionName={name} Nodes={','.join(kind.names)} DefaultTime=10 MaxTime={limit} State=UP"
            )
        return "\n".join(lines) + "\n"

    def _gres_conf(self) -> str:
        lines = []
        for kind in NODES:
            for gpu in range(kind.gpus):
                device = self.directory / "dev" / f"nvidia{gpu}"
                if not device.exists():
                    # A character device is asked for; this one is /dev/null again.
                    os.mknod(device, 0o20666, os.makedev(1, 3))
                lines += [
                    f"NodeName={name} Name=gpu Type=a100 File={device} Flags=nvidia_gpu_env"
                    for name in kind.names
                ]
        return "\n".join(lines) + "\n"

    def _slurmdbd_conf(self) -> str:
        here, port = self.directory, self._port
        return (
            "AuthType=auth/munge\n"
            f"AuthInfo=socket={here}/run/munge.socket\n"
            f"DbdAddr=127.0.0.1\nDbdHost=localhost\nDbdPort={port + 8}\n"
            f"SlurmUser={getpass.getuser()}\nLogFile={here}/log/slurmdbd.log\n"
            f"PidFile={here}/run/slurmdbd.pid\nStorageType=accounting_storage/mysql\n"
            f"StorageHost=127.0.0.1\nStoragePort={port + 9}\nStorageUser=slurm\nStoragePass=lab\n"
            "StorageLoc=slurm_acct_db\n"
        )


def reason_to_skip() -> str | None:
    """Why no SLURM can be started here; installs the packages where that is possible."""
    if os.geteuid() != 0:
        return "a SLURM of our own needs root"
    if "SLURM_JOB_ID" in os.environ:
        return "this is a job of a real SLURM"
    foreign = [n for n in _FILES if (_SITE / n).exists() and not (_SITE / n).is_symlink()]
    if foreign:
        return f"{_SITE / foreign[0]} belongs to a real SLURM"
    if shutil.which("slurmctld") and shutil.which("mariadbd") and shutil.which("slurmdbd"):
        return None
    if not shutil.which("apt-get"):
        return "SLURM's daemons are not installed, and there is no apt-get"
    # Packages must not start daemons of their own.
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (
        ["apt-get", "-qq", "update"],
        ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *PACKAGES],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            return f"{' '.join(command[:3])} failed: {done.stderr.strip()[-200:]}"
    return None


def _is_step_of(process: psutil.Process, node: str) -> bool:
    # Steps of all nodes run on this machine; the daemon's name tells them apart.
    with contextlib.suppress(psutil.Error):
        if process.info["name"] == "slurmstepd":
            return process.environ().get("SLURMD_NODENAME") == node or any(
                child.environ().get("SLURMD_NODENAME") == node for child in process.children()
            )
    return False


def _wait(seconds: float, ready: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.1)

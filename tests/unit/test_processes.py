"""Signals that are passed on, and jobs whose Snakemake is gone."""

import os
import signal
import subprocess
import sys

from millrace.processes import forwarding_signals

ORPHAN = """
import os, sys, time
from millrace.processes import lead_jobs, stop_without_head
lead_jobs()
head = os.getpid()
if os.fork():
    os._exit(0)  # killed before its job has looked for it
while os.getppid() == head:
    time.sleep(0.01)
stop_without_head()
time.sleep(120)
"""


def test_ctrl_c_is_passed_on_as_sigterm():
    sent = []
    with forwarding_signals(sent.append):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            os.kill(os.getpid(), number)
    assert sent == [signal.SIGTERM, signal.SIGTERM, signal.SIGUSR2]


def test_a_job_whose_head_was_killed_before_it_began_stops():
    # The output ends with the last process that can write to it.
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=300
    )
    assert done.stderr == "Snakemake was killed: this job stops\n"


def test_a_process_ends_without_a_search_for_cycles():
    cycle = (
        "class Cycle:\n    def __del__(self): print('found')\n"
        "from millrace.processes import end_quickly\n{call}\nc = Cycle(); c.me = c; del c"
    )
    said = [
        subprocess.run([sys.executable, "-c", cycle.format(call=call)], capture_output=True).stdout
        for call in ("", "end_quickly()")
    ]
    assert said == [b"found\n", b""]

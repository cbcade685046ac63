"""All-reduces between the GPUs of this machine, of messages from 4 kB to 64 MB.

The bus rate is what each GPU sends and receives by the least that a sum over n of them needs, 2 (n - 1) / n
of the message. ``--device cpu --ranks 2`` tries it out without GPUs, on processes.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

import torch

from millrace.scaling.communication import fit_link
from millrace.scaling.measure import time_all_reduces
from millrace.scaling.quantity import Refusal
from millrace.training.distributed import process_group


def main(given: Sequence[str] | None = None) -> None:
    """Start a rank for each GPU, which call this again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--ranks", type=int, help="all GPUs where none is given")
    parser.add_argument("--is-rank", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.is_rank:
        measure()
        return
    ranks = arguments.ranks or torch.cuda.device_count()
    if ranks < 2 or (arguments.device == "cuda" and ranks > torch.cuda.device_count()):
        print(f"{torch.cuda.device_count()} GPUs here, {ranks} asked for: no links to measure")
        return
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if arguments.device == "cpu" else {}
    command = [sys.executable, "-m", *launcher, __file__, "--is-rank"]
    subprocess.run(command, check=True, env={**os.environ, **hidden})


def measure() -> None:
    """Time all-reduces with the other ranks; the first one tells."""
    with process_group() as ranks:
        timings = time_all_reduces(ranks, "intra")
        if not ranks.is_first:
            return
        on_gpu, count = ranks.device.type == "cuda", ranks.world_size
        name = torch.cuda.get_device_name(ranks.device) if on_gpu else "CPU processes"
        print(f"all-reduce between {count} x {name}, medians\n{'bytes':>12}  {'ms':>9}  bus GB/s")
        for one in timings:
            rate = 2 * (count - 1) / count * one.bytes / one.seconds / 1e9
            print(f"{one.bytes:>12,}  {1e3 * one.seconds:>9.3f}  {rate:8.2f}")
        link = fit_link(timings, "intra")
        if not isinstance(link, Refusal):
            print(f"latency {link.alpha.value * 1e6:.1f} us, {link.beta.value / 1e9:.2f} GB/s")


if __name__ == "__main__":
    main()

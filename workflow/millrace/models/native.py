"""Kernels in C, compiled once on the machine that runs them.

Where there is no compiler, or its work cannot be loaded, operations of PyTorch take their place, with results
equal to rounding. All processes of a machine find the same file.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from millrace.models.products import is_eager

logger = logging.getLogger(__name__)

SWITCH = "MILLRACE_KERNELS"
"""Environment variable: 0 leaves all to PyTorch."""
_FLAGS = (
    *("-O3", "-march=native", "-std=gnu11", "-fPIC", "-fopenmp", "-Wno-psabi"),
    *("-fno-math-errno", "-fno-trapping-math"),
)
_LONGEST_S = 120


@functools.cache
def library(source: Path) -> ctypes.CDLL | None:
    """The functions of a file in C, or None where they cannot be had, which is told once."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        return _compiled(source)
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        logger.info("%s is left to PyTorch: %s", source.name, told.strip().splitlines()[-1])
        return None


def suit(*tensors: Tensor) -> bool:
    """Whether kernels take these tensors: contiguous float32 on a CPU, worked on as they are.

    Nothing else may look on: what counts or records operations does not see kernels.
    """
    return (
        is_eager(tensors[0])
        and not is_in_torch_dispatch_mode()
        and all(
            x.dtype == torch.float32 and x.is_contiguous() and type(x) in (Tensor, nn.Parameter)
            for x in tensors
        )
    )


def _compiled(source: Path) -> ctypes.CDLL:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "gcc"), "gcc", "cc"))), "")
    if not compiler:
        raise FileNotFoundError("no C compiler was found (gcc, cc or $CC)")
    openmp = _openmp()
    # Homes are shared by unlike processors, which take unlike instructions.
    known = (source.read_text(), _run(compiler, "--version"), _FLAGS, openmp, _processor())
    name = f"{source.stem}-{hashlib.sha256(repr(known).encode()).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "millrace"
    if not (folder / name).is_file():
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / name
            _run(compiler, *_FLAGS, "-shared", str(source), "-o", str(made), *openmp)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                copied = folder / f"{name}.{os.getpid()}"
                shutil.copy(made, copied)
                copied.replace(folder / name)
            except OSError:  # a home that cannot be written: for this process alone
                return ctypes.CDLL(str(made))
    return ctypes.CDLL(str(folder / name))


def _openmp() -> tuple[str, ...]:
    """The threads of PyTorch, which kernels share: two libraries of threads would take turns."""
    maps = Path("/proc/self/maps")
    found = (
        re.search(r"/\S*/lib(?:gomp|iomp5|omp)\b\S*", maps.read_text()) if maps.exists() else None
    )
    return (found.group(),) if found else ()


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return platform.processor()
    return "".join(
        sorted(set(re.findall(r"^(?:flags|Features|model name).*", information.read_text(), re.M)))
    )


def _run(*command: str) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        timeout=_LONGEST_S,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout

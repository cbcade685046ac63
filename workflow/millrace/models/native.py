"""Kernels in C, compiled once on the machine that runs them.

Where there is no compiler, or its work cannot be loaded, operations of PyTorch take their place: results
are equal to rounding. All processes of a machine find the same file.
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
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from millrace.models.products import is_eager

logger = logging.getLogger(__name__)

SWITCH = "MILLRACE_KERNELS"
"""Environment variable: 0 leaves all to PyTorch."""
FLAGS = (
    *("-O3", "-march=native", "-std=gnu11", "-fPIC", "-fopenmp", "-Wno-psabi"),
    *("-fno-math-errno", "-fno-trapping-math"),
)
"""Of the compiler; what is not a number stays none, as nothing is assumed of them."""
HEADERS = Path(__file__).parent
"""Folder of what files include."""
LONGEST_S = 120
"""Seconds that a compiler is given."""
MAPS = Path("/proc/self/maps")
"""What is in memory of this process."""


@functools.cache
def has(source: Path) -> bool:
    """Whether the functions of a file in C can be had; if not, it is told why, once."""
    if os.environ.get(SWITCH) == "0":
        return False
    try:
        library(source)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        written = getattr(error, "stderr", None) or str(error)
        if isinstance(written, bytes):  # of a compiler whose time was up
            written = written.decode(errors="replace")
        lines = written.splitlines()
        told = next((line for line in lines if "error" in line), lines[-1])
        logger.info("%s: left to PyTorch, as %s", source.name, told)
        return False
    return True


@functools.cache
def library(source: Path) -> ctypes.CDLL:
    """The functions of a file in C; raises what compiling and loading raise."""
    found = map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "cc")))
    failed: Exception = FileNotFoundError("no C compiler was found (gcc, cc or $CC)")
    for compiler in dict.fromkeys(str(Path(one).resolve()) for one in found if one):
        try:
            return _compiled(source, compiler)
        except (OSError, subprocess.SubprocessError) as error:
            failed = error
    raise failed


def _compiled(source: Path, compiler: str) -> ctypes.CDLL:
    threads, text = openmp(), source.read_text()
    # Homes are shared by unlike processors, which take unlike instructions.
    headers = [(HEADERS / name).read_text() for name in re.findall(r'#include "(.+)"', text)]
    known = (text, headers, _run(compiler, "--version"), FLAGS, threads, _processor())
    name = f"{source.parent.name}-{hashlib.sha256(repr(known).encode()).hexdigest()[:16]}.so"
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    kept = (cache if cache.is_absolute() else Path.home() / ".cache") / "millrace" / name
    with suppress(OSError):  # which is not there yet, or damaged
        return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / name
        _run(compiler, *FLAGS, f"-I{HEADERS}", "-shared", str(source), "-o", str(made), *threads)
        # Of this process alone, unlike its number: machines and containers share homes.
        copied = kept.with_name(f"{name}.{Path(scratch).name}")
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(made, copied)
            copied.replace(kept)
        except OSError:  # a home that cannot be written, or is full: for this process alone
            with suppress(OSError):
                copied.unlink()
        return ctypes.CDLL(str(kept if kept.is_file() else made))


def are_plain(*tensors: Tensor) -> bool:
    """Whether tensors are float32 on a CPU, worked on as they are; they may lie in memory anyhow.

    Nothing else may look on: what counts or records operations would not see kernels.
    """
    return (
        is_eager(tensors[0])
        and not is_in_torch_dispatch_mode()
        and all(
            type(x) in (Tensor, nn.Parameter)
            and (x.device.type, x.dtype) == ("cpu", torch.float32)
            and not x.is_neg()
            for x in tensors
        )
    )


class Kernels:
    """A file in C as operations on tensors; its functions take the number of threads last."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def suit(self, *tensors: Tensor, channels: int = 0) -> bool:
        """Whether they take these tensors: plain and contiguous, in rows of so many channels.

        These are multiples of a vector.
        """
        return (
            are_plain(*tensors)
            and all(x.is_contiguous() for x in tensors)
            and has(self.source)
            and channels % self.vector() == 0
        )

    def described(self) -> str:
        """What computes, for records of a run: other vectors sum in another order."""
        return f"compiled, {self.vector()} numbers a vector" if has(self.source) else "PyTorch's"

    def vector(self) -> int:
        """Numbers of a vector of this processor."""
        return int(library(self.source).vector())

    def call(self, name: str, *given: Any) -> None:
        """Call a function with tensors (None: no pointer), structures and whole numbers."""
        getattr(library(self.source), name)(*map(_plain, given), torch.get_num_threads())


def pointer(x: Tensor | None) -> int | None:
    """Where the numbers of a tensor lie, for structures."""
    return None if x is None else x.data_ptr()


def expect(x: Tensor, *shape: int | None) -> None:
    """Raise `ValueError` for tensors of other shapes (None: of any length).

    Kernels would read and write beyond their memory.
    """
    fits = len(x.shape) == len(shape)
    for size, expected in zip(x.shape, shape, strict=False):
        fits = fits and expected in (None, size)
    if not fits:
        raise ValueError(f"a tensor of shape {list(x.shape)}, where kernels take {list(shape)}")


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, ctypes.Structure | ctypes.Array):
        return ctypes.byref(value)
    return ctypes.c_long(value) if isinstance(value, int) else value


def openmp() -> tuple[str, ...]:
    """The threads of PyTorch, which kernels share: two libraries of threads would take turns.

    Other packages bring such libraries, too; the one beside PyTorch's own is taken, if any is.
    """
    text = MAPS.read_text(errors="replace") if MAPS.exists() else ""
    found = re.findall(r" (/.*/lib(?:gomp|iomp5|omp)\b[^/\n]*)$", text, re.M)
    own = str(Path(torch.__file__).parent)
    return tuple(sorted(set(found), key=lambda path: (not path.startswith(own), path))[:1])


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
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"LC_ALL": "C"},  # the same words in all languages
        check=True,
        timeout=LONGEST_S,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout

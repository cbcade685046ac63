"""Files that others run without this library, checked against the checkpoint before they appear.

A program is written by `torch.export`, a package by AOTInductor, weights as safetensors. Beside each lies a
JSON file that says what goes in, what comes out, and of which checkpoint it is made.
"""

import copy
import inspect
import json
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from millrace.errors import ConfigError, UserError, first_line
from millrace.evaluation.program import BATCH, NotExportable, Program
from millrace.files import atomic_write, write_json
from millrace.provenance import provenance

TOLERANCE = 1e-5
"""Greatest difference from what the checkpoint gives, see `Program.difference`."""
FORMATS = {"program": ".pt2", "aoti": ".pt2", "safetensors": ".safetensors"}
"""Suffixes by format; the first one with a suffix is what it stands for."""
_RUNS = 5

Runs = Callable[..., Any]


def export(
    model: Any,
    output: Path,
    to: str | None = None,
    *,
    source: Path | None = None,
    raw: str | None = None,
    example: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Export a loaded model; the file appears if it gives what the checkpoint gives.

    Parameters
    ----------
    model : LoadedModel
    output : Path
        ``.pt2`` or ``.safetensors``; a JSON file of the same name appears beside it.
    to : {"program", "aoti", "safetensors"}, optional
        By default by the suffix: a program for ``.pt2``.
    source, raw
        Raw files whose samples are what it is tried on, and their format; by default samples are made up.
    example : Path, optional
        Safetensors file for what goes in and what the checkpoint gives for it.
    **options
        Of the system, such as ``steps`` of a sampler.

    Returns
    -------
    dict
        What the JSON file says, with the greatest ``difference``.

    Raises
    ------
    ConfigError
        The model cannot be exported like this, or an option is wrong.
    ExportError
        What was made gives something else than the checkpoint; nothing is left of it.
    """
    to = to or next((name for name, suffix in FORMATS.items() if suffix == output.suffix), None)
    if to not in FORMATS or output.suffix != FORMATS[to]:
        wanted = f"{FORMATS[to]} for {to}" if to in FORMATS else "one of " + ", ".join(FORMATS)
        raise ConfigError(f"--output {output}: expected the suffix {wanted}")
    if to == "aoti":
        need_compiler(model.device)
    program: Program = model.program(source, raw, **options)
    said = {
        "schema": "millrace.export/1",
        **model.about,
        "format": to,
        "file": output.name,
        "device": str(model.device),
        "torch": torch.__version__,
        "options": options,
        **program.outline(),
        "definition": model.recipe["definition"],
        "normalisation": model.recipe["normalisation"],
        "preparation": model.recipe["preparation"],
        "provenance": provenance(),
    }
    if to == "aoti":
        said["machine"] = platform.processor() or platform.machine()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        made = Path(folder) / f"model{output.suffix}"
        run = _WRITERS[to](program, made)
        said["difference"] = checked(program, run, output, to)
        if to != "safetensors":
            said["seconds"] = _speeds(program, run)
        with atomic_write(output) as partial:
            shutil.copyfile(made, partial)
    write_json(output.with_suffix(".json"), said)
    if example is not None:
        _write_example(program, example)
    return said


class ExportError(UserError):
    """What was exported is not what the checkpoint is."""

    exit_code = 1  # ExitCode.FAILED


def checked(program: Program, run: Runs, output: Path | str, to: str) -> float:
    """Greatest difference between what was made and the checkpoint; raises `ExportError` above `TOLERANCE`.

    Tried on all examples and, where the number of samples is free, on the first one alone.
    """
    difference = program.difference(_listed(run(*program.tensors)))
    if program.free.get(BATCH) == 1:
        alone = (
            value.tensor[:1].contiguous() if value.axes[0] == BATCH else value.tensor
            for value in program.inputs
        )  # fmt: skip
        difference = max(difference, program.difference(_listed(run(*alone)), samples=1))
    if not difference <= TOLERANCE:
        raise ExportError(
            f"{output}: not written, because what was made ({to}) differs from the checkpoint by "
            f"{difference:.1e} of the spread of a variable; expected {TOLERANCE:g} or less. Please report "
            "this, and export to another format meanwhile"
        )
    return difference


def need_compiler(device: torch.device) -> None:
    """Raise `ConfigError` if there is no C++ compiler, which AOTInductor calls."""
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError):
        found = False
    else:
        found = shutil.which(cpp_builder.get_cpp_compiler()) is not None
    if not found:
        raise ConfigError(
            "--to aoti: there is no C++ compiler, which makes such packages; install one (g++ or clang++, "
            "or set the environment variable CXX), or export with `--to program`"
        )


def traced(program: Program) -> torch.export.ExportedProgram:
    """The program as `torch.export` has it, of any lengths of its free axes."""
    dims = {axis: torch.export.Dim(axis, min=least) for axis, least in program.free.items()}
    shapes = tuple(
        {number: dims[axis] for number, axis in enumerate(value.axes) if axis in dims}
        for value in program.inputs
    )
    module = program.module.eval().requires_grad_(False)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(
                module, program.tensors, dynamic_shapes=_by_argument(module, shapes), strict=False
            )
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise NotExportable(
            f"torch.export cannot trace the model for any {', '.join(dims)} ({first_line(error)}); write "
            "lengths as `x.shape[0]`, not `len(x)`, and let no `if` or loop depend on values of tensors; "
            "`--to safetensors` works all the same"
        ) from error


def _by_argument(module: nn.Module, shapes: Sequence[Any]) -> Any:
    """Shapes as `torch.export` takes them: those of variadic arguments as one."""
    kinds = [one.kind for one in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(shapes)
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:named], tuple(shapes[named:]))


def _write_program(program: Program, path: Path) -> Runs:
    torch.export.save(traced(program), path)
    loaded: Runs = torch.export.load(path).module()
    return loaded


def _write_package(program: Program, path: Path) -> Runs:
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    # What the wrapper does is little: its compilation took half of the time.
    quick = {"aot_inductor.compile_wrapper_opt_level": "O0"}
    with _quiet():
        aoti_compile_and_package(traced(program), package_path=str(path), inductor_configs=quick)
    loaded: Runs = aoti_load_package(str(path))
    return loaded


def _write_weights(program: Program, path: Path) -> Runs:
    from safetensors.torch import load_file, save_file

    again: Any = copy.deepcopy(program.module)
    # One tensor under two names, such as that of a shared layer, is written twice. Libraries keep other
    # things beside tensors.
    kept = {
        name: one.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, one in again.net.state_dict().items()
        if isinstance(one, Tensor)
    }
    save_file(kept, path, {"format": "pt"})
    for parameter in again.net.parameters():
        parameter.fill_(torch.nan)
    # What is missing stays NaN, and is noticed.
    again.net.load_state_dict(load_file(path), strict=False)
    loaded: Runs = again
    return loaded


_WRITERS: dict[str, Callable[[Program, Path], Runs]] = {
    "program": _write_program,
    "aoti": _write_package,
    "safetensors": _write_weights,
}


def _write_example(program: Program, path: Path) -> None:
    from safetensors.torch import save_file

    values = [("input", one) for one in program.inputs]
    values += [("output", one) for one in program.outputs]
    tensors = {f"{role}.{one.name}": one.tensor.detach().cpu().contiguous() for role, one in values}
    with atomic_write(path) as partial:
        save_file(tensors, partial, {"order": json.dumps([*tensors])})


def _speeds(program: Program, run: Runs) -> dict[str, float]:
    """Shortest time of a call for the examples (s): of the checkpoint, and of what was made, in turns."""
    runs: dict[str, Callable[[], Any]] = {
        "checkpoint": program.own,
        "exported": lambda: run(*program.tensors),
    }
    found = dict.fromkeys(runs, float("inf"))
    for _ in range(_RUNS):
        for name, call in runs.items():
            begin = time.perf_counter()
            _listed(call())[0].cpu()
            found[name] = min(found[name], time.perf_counter() - begin)
    return found


def _listed(made: Any) -> list[Tensor]:
    return [made] if isinstance(made, Tensor) else list(made)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of libraries about what they will do otherwise one day."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

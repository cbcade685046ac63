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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from millrace.errors import ConfigError, UserError, first_line
from millrace.evaluation.export_formats import FORMATS
from millrace.evaluation.program import BATCH, NotExportable, Program
from millrace.files import atomic_write, write_json
from millrace.provenance import provenance

TOLERANCE = 1e-5
"""Greatest difference from what the checkpoint gives, see `Program.difference`."""
_RUNS = 5
_UNCHECKED = (
    "Inputs are contiguous and have exactly these shapes and types: a package reads others wrongly without "
    "a word, unless AOTI_RUNTIME_CHECK_INPUTS=1 is set where it runs, which refuses them."
)

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
    to = to or next((name for name, one in FORMATS.items() if one.suffix == output.suffix), None)
    if to not in FORMATS or output.suffix != FORMATS[to].suffix:
        wanted = (
            f"{FORMATS[to].suffix} for {to}" if to in FORMATS else "one of " + ", ".join(FORMATS)
        )
        raise ConfigError(f"--output {output}: expected the suffix {wanted}")
    about = output.with_suffix(".json")
    if example in (output, about):
        raise ConfigError(f"--example {example}: the export writes this file itself; name another")
    if to == "aoti":
        need_compiler(model.device)
    said = {
        "schema": "millrace.export/1",
        **model.about,
        "format": to,
        "file": output.name,
        "device": str(model.device),
        "torch": torch.__version__,
        "options": options,
        "definition": model.recipe["definition"],
        "normalisation": model.recipe["normalisation"],
        "preparation": model.recipe["preparation"],
        "provenance": provenance(),
    }
    if to == "aoti":
        said["machine"] = platform.processor() or platform.machine()
    written: list[Path] = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), _all_or_none(written):
        made = Path(folder) / f"model{output.suffix}"
        try:
            program: Program = model.program(source, raw, **options)
            if to == "aoti" and program.package is not None:
                program = program.package
            if example is not None:
                _write_example(program, example)
                written.append(example)
            said |= program.outline()
            if to == "aoti":
                said["notes"] = [*said["notes"], _UNCHECKED]
            run = _WRITERS[to](program, made)
            said["difference"] = checked(program, run, output, to)
            if to != "safetensors":
                said["seconds"] = _speeds(program, run)
        except NotExportable as error:
            if to != "safetensors":
                raise NotExportable(f"{error}; `--to safetensors` writes the weights") from error
            if example is not None:
                raise ConfigError(
                    f"--example {example}: nothing goes in or comes out of weights alone ({error}); leave "
                    "the option out"
                ) from error
            said |= _alone(f"Weights alone, read again and compared one by one: {error}.")
            said["difference"] = _write_weights_alone(model.weights, made, output)
        write_json(about, said)
        written.append(about)
        with atomic_write(output) as partial:
            shutil.copyfile(made, partial)
    return said


@contextmanager
def _all_or_none(written: Iterable[Path]) -> Iterator[None]:
    """Remove the files again if what is inside fails."""
    try:
        yield
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def _alone(note: str) -> dict[str, Any]:
    """What `Program.outline` says where there is no program."""
    return {"inputs": [], "outputs": [], "labels": {}, "free_axes": {}, "notes": [note]}


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
            "lengths as `x.shape[0]`, not `len(x)`, and let no `if` or loop depend on values of tensors"
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
    again: Any = copy.deepcopy(program.module)
    loaded = _saved(again.net.state_dict(), path)[1]
    for parameter in again.net.parameters():
        parameter.fill_(torch.nan)
    # What is missing stays NaN, and is noticed.
    again.net.load_state_dict(loaded, strict=False)
    runs: Runs = again
    return runs


def _write_weights_alone(weights: Mapping[str, Any], path: Path, output: Path) -> float:
    """The difference of what is read again, which is none; raises `ExportError` if there is one."""
    kept, loaded = _saved(weights, path)
    if kept.keys() != loaded.keys() or not all(torch.equal(kept[n], loaded[n]) for n in kept):
        raise ExportError(f"{output}: not written, because its weights differ from the checkpoint")
    return 0.0


def _saved(weights: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights as they were written, and as they are read again."""
    from safetensors.torch import load_file, save_file

    # One tensor under two names, such as that of a shared layer, is written twice. Libraries keep other
    # things beside tensors.
    kept = {
        name: one.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, one in weights.items()
        if isinstance(one, Tensor)
    }
    save_file(kept, path, {"format": "pt"})
    return kept, load_file(path)


_WRITERS: dict[str, Callable[[Program, Path], Runs]] = {
    "program": _write_program,
    "aoti": _write_package,
    "safetensors": _write_weights,
}


def _write_example(program: Program, path: Path) -> None:
    from safetensors.torch import save_file

    values = [("input", one) for one in program.inputs]
    values += [("output", one) for one in program.outputs]
    tensors = {f"{role}.{one.name}": one.tensor for role, one in values}
    tensors |= program.beside
    # Tables of a patch may be those of the example; a file holds no tensor twice.
    tensors = {name: one.detach().cpu().clone().contiguous() for name, one in tensors.items()}
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

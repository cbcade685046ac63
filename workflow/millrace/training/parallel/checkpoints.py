"""Checkpoints in shards, by `torch.distributed.checkpoint`.

Each process writes what it holds, and reads what it needs of it under whatever division it has then: no
process ever has the whole model. Tensors have the names of the undivided model.
"""

import contextlib
import pickle
import warnings
import zlib
from collections.abc import Iterator, Mapping
from enum import Enum, EnumType
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from millrace.errors import DataError
from millrace.training.distributed import Ranks

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter, besides its step."""
_CHUNK = 1 << 20
_INDEX = ".metadata"
# What the index of a checkpoint is made of; a pickle may name anything else, and have it called.
_PARTS = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", "float32", "float64", "bfloat16", "float16", "int64"),
    "pathlib": ("PosixPath",),
    "collections": ("OrderedDict",),
}


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def save(tensors: Mapping[str, Tensor], directory: Path | None, ranks: Ranks) -> dict[str, Any]:
    """Write the tensors of all processes; call it on all.

    Parameters
    ----------
    tensors : mapping
        By name; of a `DTensor` this process's part is written, of others one process writes all.
    directory : Path
        Known to the first process, in reach of all.
    ranks : Ranks

    Returns
    -------
    dict
        Name of each file -> its size and checksum; on the first process, empty elsewhere.

    Raises
    ------
    OSError
        On all processes, what one of them met.
    """
    where = Path(ranks.from_first(str(directory)))
    with _errors_of_files(), _quiet():
        dcp.save(
            dict(tensors), storage_writer=dcp.FileSystemWriter(where), no_dist=ranks.world_size == 1
        )
    mine = [*where.glob(f"__{ranks.rank}_*"), *([where / _INDEX] if ranks.is_first else [])]
    found = ranks.gather({path.name: [path.stat().st_size, checksum(path)] for path in mine})
    return {name: facts for files in found for name, facts in files.items()}


def load_into(tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Fill tensors with what is saved under their names, each process for itself.

    Raises
    ------
    DataError
        Something is missing, or not readable.
    """
    try:
        with _quiet():
            dcp.load(dict(tensors), storage_reader=_Reader(directory), no_dist=True)
    except (CheckpointException, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise _unreadable(directory, error) from None


def load_whole(directory: Path) -> dict[str, Tensor]:
    """All tensors, whole, on the CPU."""
    try:
        index = _Reader(directory).read_metadata()
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise _unreadable(directory, error) from None
    tensors = {
        name: torch.empty(facts.size, dtype=facts.properties.dtype)
        for name, facts in index.state_dict_metadata.items()
        if isinstance(facts, TensorStorageMetadata)
    }
    load_into(tensors, directory)
    return tensors


def is_sharded(state: Mapping[str, Any]) -> bool:
    """Whether the tensors of a state are in shards beside it."""
    return "sharded" in state


def read_whole(state: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The state that a single process would have written.

    Parameters
    ----------
    state : mapping
        Plain values; under ``sharded`` what `millrace.training.parallel.state.sharded` says of the tensors.
    directory : Path
        Of the shards.
    """
    facts, tensors = state["sharded"], load_whole(directory)
    weights = {
        kind: {name: tensors[f"{kind}/{name}"] for name in facts["names"]}
        for kind in facts["weights"]
    }
    moments = {key: {name: tensors[f"{key}/{name}"] for name in facts["steps"]} for key in MOMENTS}
    plain = {key: value for key, value in state.items() if key != "sharded"}
    return plain | weights | {"optimizer": optimizer_of(facts, moments)}


def optimizer_of(
    facts: Mapping[str, Any], moments: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Any]:
    """State of `torch.optim.AdamW` with all trained parameters in one group, in their order."""
    trained, steps = facts["trained"], facts["steps"]
    state = {
        number: {
            "step": torch.tensor(steps[name]),
            **{key: values[name] for key, values in moments.items()},
        }
        for number, name in enumerate(trained)
        if name in steps
    }
    group = {**facts["group"], "params": list(range(len(trained)))}
    return {"state": state, "param_groups": [group]}


def _unreadable(directory: Path, error: BaseException) -> DataError:
    reason = str(error).splitlines()[-1] if str(error) else type(error).__name__
    return DataError(f"{directory}: not a readable checkpoint ({reason})")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # A process alone, or for itself, is meant.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


@contextlib.contextmanager
def _errors_of_files() -> Iterator[None]:
    try:
        yield
    except CheckpointException as error:
        for reason, _ in error.failures.values():
            if isinstance(reason, OSError):
                raise reason from None
            if isinstance(reason.__context__, OSError):
                raise reason.__context__ from None
        raise RuntimeError(str(error)) from None


class _Reader(dcp.FileSystemReader):
    """Reads the index without executing what it may contain; tensors are read so anyway."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        with (Path(self.path) / _INDEX).open("rb") as file:
            index = _Index(file).load()
        index.storage_meta.load_id = self.load_id
        return index


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if name not in _PARTS.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a checkpoint")
        return super().find_class(module, name)


def _member(kind: Any, name: str) -> Enum:
    """What Python before 3.11.4 writes for a member of an enumeration: an attribute, which could be any."""
    if not (isinstance(kind, EnumType) and name in kind.__members__):
        raise pickle.UnpicklingError("an attribute is no part of a checkpoint")
    return kind[name]

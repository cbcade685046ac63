"""Checkpoints in shards, with `torch.distributed.checkpoint`.

Each process writes what it holds and reads what it needs, also if the model is divided in another way then:
no process ever holds the full model. Tensors have the names of the undivided model.
"""

import contextlib
import pickle
import warnings
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
from millrace.sealed import checksum
from millrace.training.distributed import Ranks
from millrace.training.parallel.shards import MOMENTS

_INDEX = ".metadata"
# Classes in the index of a checkpoint; a pickle could name any other and have it called.
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


def save(tensors: Mapping[str, Tensor], directory: Path | None, ranks: Ranks) -> dict[str, Any]:
    """Write the tensors of all processes by name; call it on all.

    Each process writes its part of a `DTensor`; one process writes other tensors. All processes must reach
    the directory; only the first one needs to know it. An OSError of one process is raised on all. Returns
    size and checksum of each file by name on the first process, nothing on the others.
    """
    where = Path(ranks.from_first(str(directory)))
    writer, no_dist = dcp.FileSystemWriter(where), ranks.world_size == 1
    with _quiet():
        try:
            dcp.save(dict(tensors), storage_writer=writer, no_dist=no_dist)
        except CheckpointException as error:
            for reason, _ in error.failures.values():
                for cause in (reason, reason.__context__):
                    if isinstance(cause, OSError):
                        raise cause from None
            raise RuntimeError(str(error)) from None
    mine = [*where.glob(f"__{ranks.rank}_*"), *([where / _INDEX] if ranks.is_first else [])]
    found = ranks.gather({path.name: [path.stat().st_size, checksum(path)] for path in mine})
    return {name: facts for files in found for name, facts in files.items()}


def load_into(tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Fill tensors with the values saved under their names, each process for itself.

    Raises `DataError` if a tensor is missing or the files cannot be read.
    """
    try:
        with _quiet():
            dcp.load(dict(tensors), storage_reader=_Reader(directory), no_dist=True)
    except (CheckpointException, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise _unreadable(directory, error) from None


def load_all(directory: Path) -> dict[str, Tensor]:
    """Load all tensors in full, on the CPU; raises `DataError` like `load_into`."""
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


def assemble(state: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Put the shards in a directory together: the state that a single process would have written.

    ``state`` has plain values, and the description of `millrace.training.parallel.state.sharded_state`.
    """
    facts, tensors = state["sharded"], load_all(directory)
    weights = {
        kind: {name: tensors[f"{kind}/{name}"] for name in facts["names"]}
        for kind in facts["weights"]
    }
    # AdamW as it is with all trained parameters in one group, in their order.
    moments = {
        number: {"step": torch.tensor(facts["steps"][name])}
        | {key: tensors[f"{key}/{name}"] for key in MOMENTS}
        for number, name in enumerate(facts["trained"])
        if name in facts["steps"]
    }
    group = {**facts["group"], "params": list(range(len(facts["trained"])))}
    plain = {key: value for key, value in state.items() if key != "sharded"}
    return plain | weights | {"optimizer": {"state": moments, "param_groups": [group]}}


def _unreadable(directory: Path, error: BaseException) -> DataError:
    reason = str(error).splitlines()[-1] if str(error) else type(error).__name__
    return DataError(f"{directory}: not a readable checkpoint ({reason})")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # A process alone, or for itself, is intended.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


class _Reader(dcp.FileSystemReader):
    """Reads the index without executing code in it; torch already reads tensors that way."""

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
    """Member of an enumeration, which Python before 3.11.4 pickles as an arbitrary attribute."""
    if not (isinstance(kind, EnumType) and name in kind.__members__):
        raise pickle.UnpicklingError("an attribute is no part of a checkpoint")
    return kind[name]

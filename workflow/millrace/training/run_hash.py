"""Run hash: a digest of what decides the weights of a run, under which its checkpoints are kept.

Model, samples, optimiser, schedule, loss, seed and global batch are part of it. The number of epochs,
paths, resources, the layout and the versions of the code are not: they may change during a run, and two
layouts with one run hash must lead to the same weights.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from millrace.errors import DataError


def digest(definition: Mapping[str, Any]) -> str:
    """Run hash of the definition of a run, 16 hexadecimal digits."""
    text = json.dumps(definition, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List the keys that differ as ``key: old -> new``, see `changes`."""
    return [f"{key}: {was} -> {now}" for key, (was, now) in changes(old, new).items()]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return old and new value of the keys that differ, nested keys joined by dots."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    pairs = {
        key: (before.get(key, "nothing"), after.get(key, "nothing"))
        for key in sorted(before.keys() | after.keys())
    }
    return {key: (was, now) for key, (was, now) in pairs.items() if was != now}


def siblings(run_root: Path, name: str) -> Iterator[Mapping[str, Any]]:
    """Yield the intact definitions of other runs of the same experiment, layout and seed."""
    for path in sorted(run_root.glob("*/identity.json")):
        if path.parent.name != name:
            with contextlib.suppress(DataError):
                yield read_definition(path.parent)


def read_definition(run: Path) -> dict[str, Any]:
    """Read what a run was defined by from its store.

    Raises `DataError` if it is missing or damaged: its digest is the name of the directory.
    """
    path = run / "identity.json"
    try:
        described = json.loads(path.read_bytes())
        agrees = digest(described) == run.name
    except (OSError, ValueError, TypeError, RecursionError):
        raise DataError(f"{path}: it is missing or not readable") from None
    if not agrees:
        raise DataError(f"{path}: its digest is not the name of its directory")
    return dict(described)


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value

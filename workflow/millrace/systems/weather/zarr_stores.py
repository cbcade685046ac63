"""Zarr stores, here or elsewhere: what they declare is checked before it is unpacked, and read reliably.

Zarr takes a chunk that is not there for one of fill values. Where states are read in place, or over a
network, that is an error.
"""

import asyncio
import hashlib
import itertools
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from millrace.data.declared import DESCRIPTION, MOST_OBJECTS, check_shape
from millrace.errors import DataError, first_line
from millrace.files import leaves_room
from millrace.input_files import Address, check_file, in_words

RETRY_AFTER = [1.0, 4.0, 16.0]
"""Seconds until what could not be read from elsewhere is asked for again."""
_MOST_PARTS = 1_000
_DESCRIPTIONS = (".zmetadata", "zarr.json", ".zgroup", ".zattrs", ".zarray")
KEEP_FREE = 0.2
"""Share of a file system that the cache leaves free."""
_ASK_AGAIN = (408, 429)
"""Answers that are errors of the moment, among those that say that the question is wrong."""


class ReliableStore(WrapperStore[Any]):
    """A store in which a chunk that is missing is an error, and what fails is tried again.

    ``path`` is for messages. Chunks are kept in the directory ``cache``, if one is given, as long as a
    fifth of its file system is free.
    """

    def __init__(self, store: Store, path: Path, cache: Path | None = None) -> None:
        super().__init__(store)
        self._path, self._cache = path, cache

    def _with_store(self, store: Store) -> "ReliableStore":
        return type(self)(store, self._path, self._cache)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Bytes of a key; None if it describes something that is not there."""
        describes = key.rpartition("/")[2] in _DESCRIPTIONS
        kept = None
        if self._cache is not None and not describes:
            name = hashlib.sha256(f"{self._path}/{key} {byte_range}".encode()).hexdigest()
            kept = self._cache / name[:2] / name
            if (content := await asyncio.to_thread(_read, kept)) is not None:
                return prototype.buffer.from_bytes(content)
        value = await self._ask(key, prototype, byte_range, describes)
        if value is None and not describes:
            raise DataError(
                f"{self._path}/{key}: this chunk is missing; copy it again, or write the store with all "
                "chunks (`write_empty_chunks`) if it held one value alone"
            )
        if kept is not None and value is not None:
            await asyncio.to_thread(_write, kept, value.to_bytes())
        return value

    async def _ask(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None, describes: bool
    ) -> Buffer | None:
        for wait in [*RETRY_AFTER, None]:
            try:
                found: Buffer | None = await self._store.get(key, prototype, byte_range)
                return found
            except Exception as error:  # each protocol has its own
                status = getattr(error, "status", 0)
                refused = status == 403 or isinstance(error, PermissionError)
                if describes and refused:  # of S3, which does not tell what is not there
                    return None
                final = 400 <= status < 500 and status not in _ASK_AGAIN
                what = first_line(error) or type(error).__name__
                if wait is None or final or isinstance(self._store, LocalStore):
                    raise DataError(
                        f"{self._path}/{key}: cannot be read ({what}); "
                        "look whether it is there and may be read, and run the job again"
                    ) from error
                await asyncio.sleep(wait)
        raise AssertionError("not reached")


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _write(path: Path, content: bytes) -> None:
    """Keep a chunk; other processes see all of it or nothing. What cannot be kept is read again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not leaves_room(path.parent, len(content), KEEP_FREE):
            return
        with tempfile.NamedTemporaryFile(dir=path.parent) as file:
            file.write(content)
            file.flush()
            os.link(file.name, path)
    except OSError:
        return


def cache_folder(digest: str) -> Path | None:
    """Directory in which chunks of samples from elsewhere are kept; None if none is named.

    It is below ``MILLRACE_CACHE``, and nowhere by default: temporary folders of nodes may be in memory, or
    stay full when the job has ended. The name holds the ``digest`` of the samples: chunks of other samples,
    also of the same address, are not among them.
    """
    named = os.environ.get("MILLRACE_CACHE")
    return Path(named) / f"millrace-{os.getuid()}" / digest if named else None


def open_store(path: Path, cache: Path | None = None) -> ReliableStore:
    """Open a store here or, for an `Address`, elsewhere; raises `DataError` if a package is missing."""
    if not isinstance(path, Address):
        return ReliableStore(LocalStore(path, read_only=True), path)
    try:
        store = FsspecStore.from_url(str(path), read_only=True)
    except ImportError as error:
        raise DataError(
            f"{path}: install what reads it, the extra remote: `pip install -e '.[remote]'` "
            f"({first_line(error)})"
        ) from None
    return ReliableStore(store, path, cache)


def metadata_digest(path: Path) -> str:
    """Hash of what a store says of itself and of its arrays, 16 hexadecimal digits.

    It is that of the consolidated metadata where there are some, which a longer axis of time changes.
    """
    store = open_store(path)
    keys = [".zmetadata", "zarr.json"]
    found = {key: _described(store, key) for key in keys}
    group = json.loads(found["zarr.json"] or b"{}")
    if not found[".zmetadata"] and not group.get("consolidated_metadata"):
        names = sorted(name for name, _ in zarr.open_group(store, mode="r").arrays())
        keys = [f"{name}/{one}" for name in ("", *names) for one in _DESCRIPTIONS[1:]]
        found = {key: _described(store, key.lstrip("/")) for key in keys}
    parts = {key: hashlib.sha256(content).hexdigest() for key, content in found.items() if content}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _described(store: ReliableStore, key: str) -> bytes | None:
    content = sync(store.get(key, default_buffer_prototype()))
    return None if content is None else content.to_bytes()


def check_zarr(path: Path) -> None:
    """Refuse a Zarr store that declares more than memory holds at once, or that would run what it holds.

    Raises `DataError`, also if its description is damaged or it is not there.
    """
    elsewhere = isinstance(path, Address)
    try:
        group = zarr.open_group(open_store(path) if elsewhere else path, mode="r")
        arrays = list(itertools.islice(group.arrays(), MOST_OBJECTS))
        for name, one in arrays:
            codecs = [*one.filters, *one.compressors]
            if any("pickle" in type(codec).__name__.lower() for codec in codecs):
                raise DataError(
                    f"{path}: {name!r} holds pickled objects, which would be run; write numbers"
                )
            size = getattr(one.dtype, "itemsize", 1)
            check_shape(path, name, one.shape, one.chunks, size)
            if one.ndim == 1 and one.dtype.kind in "biufMm" and not elsewhere:  # texts have no size
                most = 2 * math.prod(one.shards or one.chunks) * size + DESCRIPTION
                _check_parts(path / name, most)
    except DataError:
        raise
    except Exception as error:  # of many kinds
        advice = "copy it again"
        if elsewhere:
            advice = "expected a store with consolidated metadata there"
        raise DataError(f"{path}: not readable as Zarr ({first_line(error)}); {advice}") from error


def _check_parts(folder: Path, most: int) -> None:
    """Refuse a stored part of an axis that is larger than its values: it would unpack to far more."""
    for part in itertools.islice(folder.rglob("*"), _MOST_PARTS):  # of many it takes long
        check_file(part)
        if part.stat().st_size > most:
            raise DataError(
                f"{part}: {in_words(part.stat().st_size)}, but {in_words(most)} hold all values that are "
                "declared; copy it again"
            )

"""Receipts: what lies beside a published checkpoint, describes it, and vouches for its bytes."""

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from millrace.errors import DataError
from millrace.input_files import check_file
from millrace.sealed import checksum, read_sealed

_REMEDY = (
    "delete it and run the train stage again: it is restored from the run's store, or trained again"
)
_VOUCHES = {"file", "size", "crc32"}
_PUBLISHED = re.compile(r"epoch_\d+\.ckpt")


def read_receipt(path: Path, needed: Iterable[str] = ("identity", "checkpoint")) -> dict[str, Any]:
    """Read a receipt; raises `DataError` if it is missing or damaged, or lacks a ``needed`` key."""
    receipt = read_sealed(
        path, "the receipt of a checkpoint", "it lies beside the checkpoint", _REMEDY
    )
    missing = {*needed} - receipt.keys()
    if missing:
        raise DataError(
            f"{path}: has no {min(missing)!r}, it is no receipt or was written by an earlier version; "
            f"{_REMEDY}"
        )
    return receipt


def check_bytes(checkpoint: Path, receipt: Mapping[str, Any]) -> None:
    """Raise `DataError` unless a checkpoint has the size and the checksum of its receipt."""
    vouches = receipt.get("checkpoint")
    if not isinstance(vouches, dict) or not vouches.keys() >= _VOUCHES:
        raise DataError(f"{checkpoint}: its receipt says nothing of its bytes; {_REMEDY}")
    check_file(checkpoint)
    try:
        size = checkpoint.stat().st_size
        if size == vouches["size"] and checksum(checkpoint) == vouches["crc32"]:
            return
    except FileNotFoundError:
        raise DataError(f"{checkpoint}: no such checkpoint; run the train stage first") from None
    except OSError as error:
        raise DataError(f"{checkpoint}: cannot be read ({error.strerror}); {_REMEDY}") from None
    raise DataError(
        f"{checkpoint}: damaged, its size or checksum is not the one of its receipt; {_REMEDY}"
    )


def check_published(checkpoint: Path) -> None:
    """Raise `DataError` if a checkpoint is not as it was written.

    A checkpoint that a run published is compared with the receipt beside it, any other with the checksums
    that PyTorch writes into it.
    """
    beside = checkpoint.with_suffix(".json")
    # Beside weights from elsewhere may lie a file of that name which is no receipt.
    if _PUBLISHED.fullmatch(checkpoint.name) and beside.is_file():
        check_bytes(checkpoint, read_receipt(beside))
        return
    check_file(checkpoint)
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            parts = archive.infolist()
            # PyTorch packs nothing: unpacking what others packed may take hours.
            packed = [one.filename for one in parts if one.compress_type != zipfile.ZIP_STORED]
            if sum(one.file_size for one in parts) > checkpoint.stat().st_size:
                packed.append("it")
            damaged = packed[0] if packed else archive.testzip()
    except FileNotFoundError:
        return  # said by who reads it
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError, EOFError):
        damaged = "it"
    if damaged:
        raise DataError(
            f"{checkpoint}: damaged, a checksum inside ({damaged}) is not that of its bytes; copy it again"
        )

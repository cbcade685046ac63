"""Weights that others published: where they are, and what a model took of them."""

import hashlib
import importlib
import importlib.util
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from millrace.errors import ConfigError, DataError, first_line, listed
from millrace.input_files import check_file
from millrace.training.receipt import check_published

HUB = "hf://"
_KEY = "train.init_from.published"
_SUFFIXES = (".ckpt", ".pt", ".pth")


def is_on_hub(published: str) -> bool:
    """Whether weights are on the Hugging Face Hub, and no file."""
    return published.startswith(HUB)


def published_file(published: str) -> Path:
    """File of published weights: itself, the one of a folder, or the copy of one on the Hub.

    Raises `ConfigError` if a name cannot be meant, and `DataError` if there is no such file.
    """
    if is_on_hub(published):
        return _downloaded(published)
    path = Path(published)
    if not path.is_dir():
        return path
    found = sorted(one for one in path.iterdir() if one.suffix in _SUFFIXES)
    if len(found) != 1:
        held = f"holds {listed([one.name for one in found])}" if found else "holds none"
        raise ConfigError(
            f"{_KEY}: {path} {held}; expected a folder with one file *{', *'.join(_SUFFIXES)}: name the "
            "file"
        )
    return found[0]


def _downloaded(published: str) -> Path:
    place, _, revision = published.removeprefix(HUB).partition("@")
    owner, _, rest = place.partition("/")
    repository, _, name = rest.partition("/")
    if not (owner and repository and name):
        raise ConfigError(
            f"{_KEY}: {published}: expected hf://owner/repository/file, such as "
            "hf://microsoft/aurora/aurora-0.25-small-pretrained.ckpt"
        )
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ConfigError(
            f"{_KEY}: {published} needs the package huggingface_hub, which is not installed; "
            "`pip install huggingface_hub`, or download the file and name it"
        )
    hub: Any = importlib.import_module("huggingface_hub")  # optional, and therefore not declared
    try:
        return Path(
            hub.hf_hub_download(
                repo_id=f"{owner}/{repository}", filename=name, revision=revision or None
            )
        )
    except Exception as error:  # of the package, of HTTP, of the file system
        raise DataError(
            f"{published}: cannot be had ({first_line(error)}); where jobs have no network, download it "
            f"before: `hf download {owner}/{repository} {name}`"
        ) from None


def file_digest(published: str) -> str:
    """SHA-256 of the bytes of published weights, whose checksums must be right.

    Raises errors like `published_file`, and `DataError` if the file is missing or damaged.
    """
    path = published_file(published)
    check_file(path)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{_KEY}: {path}: cannot be read ({error.strerror})") from None
    if zipfile.is_zipfile(path):  # files of old versions of PyTorch have no checksums
        check_published(path)
    return digest


def record(published: str, sha256: str, adopted: Any) -> dict[str, Any]:
    """What a model took of published weights, a `millrace.models.spec.Adopted`, for its receipt."""
    return {
        "published": published,
        "file": published_file(published).name,
        "sha256": sha256,
        "mapped": len(adopted.weights),
        "changed": adopted.changed,
        "new": adopted.new,
        "left_out": adopted.left_out,
    }


def told(record: Mapping[str, Any]) -> list[str]:
    """Lines for the log: what a run took of published weights."""
    lines = [
        f"starts from {record['file']} (sha256 {record['sha256'][:16]}): {record['mapped']} weights mapped"
    ]
    for key, title in (("changed", "changed"), ("new", "begins anew")):
        lines += [f"  {title}: {name} ({how})" for name, how in record[key].items()]
    if record["left_out"]:
        lines.append(f"  left out: {listed(record['left_out'], shown=6)}")
    return lines

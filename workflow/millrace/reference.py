"""What every key of the configuration takes, in words: `millrace config explain` and the reference."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from millrace.config import expected, nearest, schema_of
from millrace.configuration import Configuration
from millrace.errors import ConfigError
from millrace.systems.registry import formats, kinds, models

_HEAD = """\
# Configuration: all keys

Made by `millrace config explain` from the code that checks them. How files combine, and an example:
[Configuration files](configuration.md). A key that is not listed is refused. *required* means that
there is no default.
"""
# Keys beside the blocks.
_ALONE = ("plugins", "container")


@dataclass(frozen=True)
class Block:
    """A block of the configuration."""

    path: str
    """Where it stands: ``experiments.<name>.train.loss``."""
    when: str
    """For which datasets or experiments it stands there; empty: for all."""
    schema: Mapping[str, Any]
    """Its JSON schema."""

    @property
    def title(self) -> str:
        """Heading: its path, and when it stands there."""
        return f"`{self.path}`" + (f" {self.when}" if self.when else "")

    def items(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Its keys and their JSON schemas, in the order of the code."""
        yield from self.schema.get("properties", {}).items()

    def default(self, key: str) -> str:
        """Default of a key as YAML has it, or ``required``."""
        if key in self.schema.get("required", []):
            return "required"
        node = self.schema["properties"][key]
        if (_block(node) and node.get("default") is not None) or "default" not in node:
            return "{}"
        value = node["default"]
        return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def blocks() -> list[Block]:
    """All blocks of the configuration with those of all formats, kinds of samples and models."""
    whole = schema_of(Configuration)["properties"]
    found = list(_nested("run", "", whole["run"]))
    for name, raw in formats().items():
        found += _nested(
            "datasets.<name>", f"with `format: {name}`", schema_of(raw.dataset_settings())
        )
    experiment = _of_names(whole["experiments"])
    found += _nested("experiments.<name>", "", experiment)
    for kind in kinds().values():
        of = [name for name, model in models().items() if model.kind == kind.name]
        when = f"of {kind.name}, for {', '.join(of)}"
        found += _nested("experiments.<name>.data", when, schema_of(kind.data_settings()))
    for name, model in models().items():
        schema = schema_of(model.model_settings())
        found += _nested("experiments.<name>.model", f"with `name: {name}`", schema)
    found += _nested("predictions.<name>", "", _of_names(whole["predictions"]))
    found += _nested("comparisons.<name>", "", _of_names(whole["comparisons"]))
    found += _nested("scaling", "", whole["scaling"])
    top = schema_of(Configuration)
    alone = (Block(key, "", {**top, "properties": {key: whole[key]}}) for key in _ALONE)
    return [*alone, *found]


def explain(key: str) -> str:
    """What a key takes, its default and meaning, for each place where it may stand.

    ``key`` is a name or the end of a path, such as ``learning_rate`` or ``train.schedule.kind``. Raises
    `ConfigError` with the nearest key if there is none.
    """
    wanted, told = f".{key}", []
    known: dict[str, None] = {}
    for block in blocks():
        for name, node in block.items():
            path = f"{block.path}.{name}" if block.path not in _ALONE else name
            known[path.rpartition(">.")[2]] = known[name] = None
            if f".{path}".endswith(wanted):
                where = f"{path} {block.when}".strip().replace("`", "")
                told.append(
                    f"{where}\n  takes    {expected(node)}\n  default  {block.default(name)}\n  "
                    f"{_text(node)}"
                )
    if not told:
        raise ConfigError(f"no key {key!r}: {nearest(key, known)}")
    return "\n\n".join(dict.fromkeys(told))


def reference() -> str:
    """The reference of all keys, in Markdown."""
    parts: dict[str, list[Block]] = {}
    for block in blocks():  # formats that have the same block are told once
        parts.setdefault(json.dumps(block.schema, sort_keys=True), []).append(block)
    return "\n".join([_HEAD, *(_section(same) for same in parts.values())])


def _section(same: list[Block]) -> str:
    block = same[0]
    names = [one.when.rpartition("`format: ")[2].rstrip("`") for one in same]
    together = len(same) > 1 and all("`format: " in one.when for one in same)
    title = f"`{block.path}` with `format: {', '.join(names)}`" if together else block.title
    rows = [
        f"| `{key}` | {_cell(expected({**node, 'unit': ''}))} | {_cell(block.default(key))} | "
        f"{_cell(node.get('unit', ''))} | {_cell(_text(node))} |"
        for key, node in block.items()
    ]
    text = block.schema.get("about") or block.schema.get("description", "")
    text = "" if block.path in _ALONE else text
    table = ["| key | takes | default | unit | meaning |", "|---|---|---|---|---|", *rows]
    return "\n".join([f"## {title}", "", *([text, ""] if text else []), *table, ""])


def _nested(path: str, when: str, schema: Mapping[str, Any]) -> Iterator[Block]:
    """A block, and the blocks that are its keys."""
    yield Block(path, when, schema)
    for key, node in schema.get("properties", {}).items():
        if inside := _block(node):
            yield from _nested(f"{path}.{key}", when, inside)


def _block(node: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Schema of a key that is a block with keys of its own; None: it is not."""
    return next((one for one in _kinds(node) if one.get("properties")), None)


def _kinds(node: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    kinds_of: Iterable[Mapping[str, Any]] = node.get("anyOf", [node])
    return kinds_of


def _of_names(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Schema of what stands under names of the user's choice."""
    schema: Mapping[str, Any] = next(iter(node["patternProperties"].values()))
    return schema


def _text(node: Mapping[str, Any]) -> str:
    inside = _block(node)
    text = node.get("description") or (inside or {}).get("description", "")
    text = " ".join(text.split("\n\n")[0].split())
    examples = (
        yaml.safe_dump(one, default_flow_style=True, width=1000) for one in node.get("examples", [])
    )
    return " ".join([text, *(f"Example: `{one.split(chr(10))[0]}`." for one in examples)])


def _cell(text: str) -> str:
    return text.replace(" ()", "").replace("|", "\\|")

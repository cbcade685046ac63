"""Blocks of the configuration as pydantic models, which are the only place where a key is declared.

From a `Settings` class come the check of a block, the sentence that names a mistake, the JSON schema for
editors, and the reference in docs/reference/config.md.
"""

import difflib
import functools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from millrace.errors import ConfigError

T = TypeVar("T")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)
_WORDS = {"true": True, "false": False, "null": None}
_ABSURD = 10**9
"""A bound from which on nobody needs to be told of it."""
_SHOWN = 60
"""Characters of a wrong value that a message shows."""
_LARGEST = 200_000
"""Values of a configuration; anchors of YAML can stand for more of them than any memory holds."""


def option(default: Any = ..., *, unit: str = "", **bounds: Any) -> Any:
    """A key of `Settings` that is more than a type and a default.

    ``unit`` is shown in messages and the reference; ``bounds`` are those of `pydantic.Field`: ``ge``,
    ``gt``, ``le``, ``lt``, ``min_length``, ``pattern`` and so on. Without a default the key is
    required.
    """
    if "default_factory" not in bounds:
        bounds["default"] = default
    return Field(json_schema_extra={"unit": unit} if unit else None, **bounds)


def _distinct(items: tuple[T, ...]) -> tuple[T, ...]:
    twice = [one for number, one in enumerate(items) if one in items[:number]]
    if twice:
        raise ValueError(f"{twice[0]!r} stands there twice")
    return items


UNIQUE = (AfterValidator(_distinct), Field(json_schema_extra={"uniqueItems": True}))
"""Of a tuple: its items differ."""
Count = Annotated[int, Field(ge=1, le=_ABSURD)]
"""A whole number of 1 or more."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What random numbers start from."""
TEXT = r"^[^\x00-\x1f\x7f]+$"
Text = Annotated[str, Field(pattern=TEXT)]
"""Without control characters, and not empty."""
Names = Annotated[tuple[Text, ...], *UNIQUE]
"""Texts that differ."""
SomeNames = Annotated[tuple[Text, ...], Field(min_length=1), *UNIQUE]
"""One text or more that differ."""
LayoutName = Annotated[str, Field(pattern=r"^n[1-9][0-9]{0,5}_gpu[1-9][0-9]{0,5}$")]
"""``n<nodes>_gpu<GPUs per node>``."""
Layouts = Annotated[tuple[LayoutName, ...], Field(min_length=1), *UNIQUE]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]*(_[A-Za-z0-9-]+)*$", max_length=100)]
"""Letters, digits, ``-`` and single ``_``, a letter first: it becomes the name of a folder."""
COLUMN = r"^[^/\x00-\x1f]+$"
"""Pattern of a column of a table, which becomes the name of a folder."""
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """A block of the configuration: a key is a typed field, followed by one sentence in a docstring.

    ``learning_rate: float = option(1e-3, gt=0)`` has a default and a bound, see `option`. Relations between
    keys are checked in ``model_post_init``, whose ValueError names the key. Instances are frozen; they are
    made with keywords, or by `parse` from what stands in YAML.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        defer_build=True,  # each job reads all blocks, and checks few
        protected_namespaces=(),
    )

    @classmethod
    def parse(cls, values: Any, where: str) -> Self:
        """Check a block, as read from YAML or JSON; see `parse`."""
        made: Self = parse(cls, values, where)
        return made

    def essentials(self) -> dict[str, Any]:
        """Keys that differ from their defaults, as plain values.

        Leaving the defaults out keeps the run hash of old runs when a later version adds a key.
        """
        values: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Settings):
                value = value.essentials()
                if not value:
                    continue
            elif not field.is_required() and value == field.get_default(call_default_factory=True):
                continue
            values[name] = list(value) if isinstance(value, tuple) else value
        return values

    def replaced(self, **changes: Any) -> Self:
        """A checked copy with other values."""
        return type(self)(**{**dict(self), **changes})


def parse(kind: Any, values: Any, where: str) -> Any:
    """Make `Settings`, or a dataclass of pydantic, of what was read from YAML or JSON.

    Texts count as the numbers that they are, see `as_written`. Raises `ConfigError` with the first mistake:
    ``where``, the key below it, what was expected and what was found.
    """
    values = as_written(kind, values)
    try:
        text = json.dumps(values, default=str)
        return _adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise ConfigError(_sentence(kind, error, values, where)) from None
    except (TypeError, RecursionError) as error:  # of json: a key that is a date, say
        raise ConfigError(_told(where, text=str(error))) from None


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@functools.cache
def schema_of(kind: Any) -> dict[str, Any]:
    """JSON schema of a block, without references: what a key is, stands where the key stands."""
    made = _adapter(kind).json_schema()
    definitions = made.pop("$defs", {})

    def whole(node: Any) -> Any:
        if isinstance(node, list):
            return [whole(one) for one in node]
        if not isinstance(node, dict):
            return node
        node = dict(node)
        if reference := node.pop("$ref", None):
            kind = definitions[reference.removeprefix("#/$defs/")]
            node = {**kind, "about": kind.get("description", ""), **node}
        node.pop("title", None)
        return {
            key: {name: whole(one) for name, one in value.items()}
            if key == "properties"
            else whole(value)
            for key, value in node.items()
        }

    return dict(whole(made))


def nearest(name: object, known: Iterable[object]) -> str:
    """Suggest the known name that was probably meant, or list all of them; YAML names may be numbers."""
    known = sorted(str(one) for one in known)
    match = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {match[0]!r}?" if match else f"known are {', '.join(known)}"


def as_number(value: Any, whole: bool = False) -> Any:
    """Return the number that a text is, such as ``5e-3``, which YAML 1.1 takes for text; else the value.

    Where a ``whole`` number is wanted, ``1e4`` is one, but 8.0 is not.
    """
    if not isinstance(value, str) or len(value) > _SHOWN or not _NUMBER.fullmatch(value):
        return value
    if value.lstrip("+-").isdecimal():
        return int(value)
    number = float(value)
    return int(number) if whole and "e" in value.lower() and number.is_integer() else number


def as_written(kind: Any, values: Any) -> Any:
    """Return a block with texts as numbers, truth values and nulls where its keys want those.

    ``5e-3`` is text for YAML, and so is all that stands in braces on the command line. What fits no key, or
    is no mapping, stays as it is; ``values`` are not changed.
    """
    return _as_written(schema_of(kind), values)


def _as_written(node: Mapping[str, Any], value: Any) -> Any:
    kinds = node.get("anyOf", [node])
    if isinstance(value, Mapping):
        return {key: _as_written(_inside(node, str(key)) or {}, one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_written(_inside(node, n) or {}, one) for n, one in enumerate(value)]
    types = {kind.get("type") for kind in kinds}
    if not isinstance(value, str) or "string" in types:
        return value
    if (
        types & {"number", "integer"}
        and (number := as_number(value, "number" not in types)) != value
    ):
        return number
    word = _WORDS.get(value, value)
    fits = {bool: "boolean", type(None): "null"}.get(type(word)) in types
    return word if fits else value


def check_size(values: Any, where: str) -> None:
    """Raise `ConfigError` if a configuration holds more than any needs, or itself; in bounded time."""
    left = [values]
    for _ in range(_LARGEST):
        if not left:
            return
        value = left.pop()
        if isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value
    text = f"more than {_LARGEST:,} values; anchors (&a, *a) in each other multiply: write them out"
    raise ConfigError(_told(where, text=text))


def expected(node: Mapping[str, Any]) -> str:
    """What a key takes, in words, from its JSON schema: ``a number above 0 (m)``."""
    if "anyOf" in node:
        unit = f" ({node['unit']})" if "unit" in node else ""
        return " or ".join(expected(kind) for kind in node["anyOf"]) + unit
    if "enum" in node or "const" in node:
        return "one of " + ", ".join(str(one) for one in node.get("enum", [node.get("const")]))
    words = _WORD.get(node.get("type", ""), "a value")
    if node.get("type") == "array":
        words = _list(node)
    elif node.get("type") == "string":
        words = _PATTERNS.get(node.get("pattern", ""), words)
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    high = None if high is not None and high >= _ABSURD else high
    if low is not None and high is not None:
        words += f" from {_plain(low)} to {_plain(high)}"
    else:
        words += f" of {_plain(low)} or more" if low is not None else ""
        words += f" above {_plain(above)}" if above is not None else ""
        words += f", at most {_plain(high)}" if high is not None else ""
    words += f", below {_plain(below)}" if below is not None and below < _ABSURD else ""
    return words + (f" ({node['unit']})" if "unit" in node else "")


_WORD = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "object": "a block of keys",
    "null": "null",
}
_PATTERNS = {
    TEXT: "text",
    "^n[1-9][0-9]{0,5}_gpu[1-9][0-9]{0,5}$": "a layout such as n1_gpu2",
    COLUMN: "the name of a column, without / and control characters",
    "^[A-Za-z][A-Za-z0-9-]*(_[A-Za-z0-9-]+)*$": "a name of letters, digits, - and single _, a letter first",
}


def _list(node: Mapping[str, Any]) -> str:
    if "prefixItems" in node:
        return f"a list of {len(node['prefixItems'])}, each {expected(node['prefixItems'][0])}"
    least = node.get("minItems", 0)
    of = f", each {expected(node['items'])}" if node.get("items") else ""
    distinct = " different" if node.get("uniqueItems") else ""
    return "a list of " + (f"{least} or more{distinct} values" if least else "values") + of


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]  # as YAML has it
    if isinstance(value, int) and abs(value) > 10**15:
        return f"a number of {len(str(value))} digits" if abs(value) < 10**4000 else "a huge number"
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."


def _told(where: str, *parts: Any, text: str) -> str:
    """A sentence about a key: ``where``, then its path below that."""
    path = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in parts)
    path = f"{where} {path[1:]}" if where.endswith(":") and path else where + path
    return f"{path} {text}" if path.endswith(":") else f"{path}: {text}"


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def _sentence(kind: Any, error: ValidationError, values: Any, where: str) -> str:
    """The mistake that helps most: a key that is not known says more than that another is missing."""
    found = error.errors(include_url=False)
    first = next((one for one in found if one["type"] in _UNKNOWN), found[0])
    wrong, place = first["type"], list(first["loc"])
    node: Mapping[str, Any] = schema_of(kind)
    last = place.pop() if wrong in (*_UNKNOWN, "missing") else None
    is_name = place[-1:] == ["[key]"]
    value, parts = values, []
    for part in place[:-2] if is_name else place:
        if (inside := _inside(node, part)) is None:
            continue  # the name of one of several types that the key may have
        node, value = inside, value[part]
        parts.append(part)
    if wrong in _UNKNOWN:
        text = f"unknown key {last!r}: {nearest(last, node.get('properties', {}))}"
    elif wrong == "missing" and last in node.get("properties", {}):
        text = f"key {last!r} is missing, {expected(node['properties'][last])}"
    elif is_name:
        pattern = next(iter(node.get("patternProperties", {})), "")
        names = {"pattern": pattern} if pattern else node.get("propertyNames", {})
        text = f"{_shown(place[-2])}: expected {expected({'type': 'string', **names})}"
    elif wrong == "value_error":
        text = str(first["ctx"]["error"])
    else:
        text = f"expected {expected(node)}, got {_shown(value)}"
        choices = [str(one) for k in node.get("anyOf", [node]) for one in k.get("enum", [])]
        if close := difflib.get_close_matches(str(value), choices, n=1):
            text += f": did you mean {close[0]!r}?"
    return _told(where, *parts, text=text)


def _inside(node: Mapping[str, Any], part: Any) -> Mapping[str, Any] | None:
    """Schema of a key or an item of a block or list; None: there is none."""
    for kind in node.get("anyOf", [node]):
        if isinstance(part, int):
            items = [*kind.get("prefixItems", []), kind.get("items")]
            found = items[min(part, len(items) - 1)]
        else:
            others = [kind.get("additionalProperties"), *kind.get("patternProperties", {}).values()]
            others = [one for one in others if isinstance(one, dict)]
            found = kind.get("properties", {}).get(part) or next(iter(others), None)
        if found is not None:
            return dict(found)
    return None

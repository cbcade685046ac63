"""Checks of the configuration: one sentence names an unknown key, a wrong type or a value out of range."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jsonschema

from millrace.errors import ConfigError

T = TypeVar("T")


def _is_integer(_: Any, value: Any) -> bool:
    # JSON schema accepts 8.0 as an integer; `range` does not.
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(_: Any, value: Any) -> bool:
    # YAML has .nan, which passes every bound, and .inf; JSON, and with it the run hash, has neither.
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_VALIDATOR = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
        {"integer": _is_integer, "number": _is_finite}
    ),
)


def nearest(name: object, known: Iterable[object]) -> str:
    """Suggest the known name that was probably meant, or list all of them; YAML names may be numbers."""
    known = sorted(str(one) for one in known)
    match = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {match[0]!r}?" if match else f"known are {', '.join(known)}"


def check_one_of(key: str, value: str, known: Iterable[str]) -> None:
    """Raise `ConfigError` if the value of a key is none of the known ones."""
    if value not in known:
        raise ConfigError(f"{key} {value!r}: expected one of {', '.join(known)}")


def validate(config: Any, schema: Mapping[str, Any], source: str = "config") -> None:
    """Check a configuration, as read from YAML, against a JSON schema.

    Raises `ConfigError` with the first violation: ``source``, key, what was found and what was expected.
    """
    error = jsonschema.exceptions.best_match(_VALIDATOR(schema).iter_errors(config))
    if error is None:
        return
    where = ".".join(str(part) for part in error.absolute_path) or "the configuration"
    if error.validator != "additionalProperties":
        raise ConfigError(f"{source}: {where}: {error.message}")
    known = error.schema.get("properties", {})
    unknown = next(key for key in error.instance if key not in known)
    raise ConfigError(f"{source}: unknown key {unknown!r} in {where}: {nearest(unknown, known)}")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make a dataclass from values of the configuration, nested dataclasses and tuples included.

    Parameters
    ----------
    cls : type
        A dataclass.
    values : mapping
        Its fields, as read from YAML.
    where : str
        Key of ``values`` in the configuration, for error messages.

    Raises
    ------
    ConfigError
        A key is unknown or missing, or a value has the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}: {nearest(key, fields)}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{where}: key {name!r} is missing")
    return cls(**{key: _convert(hints[key], v, f"{where}.{key}") for key, v in values.items()})


def essentials(config: Any) -> dict[str, Any]:
    """Fields of a configuration dataclass that differ from their defaults.

    Leaving the defaults out keeps the run hash of old runs when a later version adds a field.
    """
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = essentials(value)
            if not value:
                continue
        elif value == field.default:
            continue
        values[field.name] = list(value) if isinstance(value, tuple) else value
    return values


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not types.NoneType)
        origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_mapping(typing.cast(type, hint), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        item_hints = typing.get_args(hint)
        if item_hints[-1] is Ellipsis:
            item_hints = item_hints[:1] * len(value)
        if len(value) != len(item_hints):
            raise ConfigError(f"{where}: expected {len(item_hints)} values, got {value!r}")
        items = enumerate(zip(item_hints, value, strict=True))
        return tuple(_convert(kind, item, f"{where}[{i}]") for i, (kind, item) in items)
    if hint is Any:
        return value
    if hint is float and _is_finite(None, value):
        return float(value)
    expected = origin or hint
    wrong = not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool)
    if wrong or hint is float:
        raise ConfigError(f"{where}: expected {expected.__name__}, got {value!r}")
    return value

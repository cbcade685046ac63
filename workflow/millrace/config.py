"""Checking of configuration: unknown keys, wrong types, values out of range, in one sentence each."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import jsonschema

from millrace.errors import ConfigError

T = TypeVar("T")


def _is_integer(_: Any, value: Any) -> bool:
    # JSON schema takes 8.0 for an integer; `range` does not.
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


def nearest(name: object, known: typing.Iterable[object]) -> str:
    """Say which known name was probably meant, or list them (YAML names may be numbers)."""
    known = sorted(str(one) for one in known)
    match = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {match[0]!r}?" if match else f"known are {', '.join(known)}"


def validate(config: Any, schema: Mapping[str, Any], source: str = "config") -> None:
    """Check a configuration against a JSON schema.

    Parameters
    ----------
    config : Any
        As YAML gives it.
    schema : mapping
    source : str
        Where it comes from, for messages.

    Raises
    ------
    ConfigError
        The first violation: its key, what was found, what was expected.
    """
    error = jsonschema.exceptions.best_match(_VALIDATOR(schema).iter_errors(config))
    if error is None:
        return
    where = ".".join(str(part) for part in error.absolute_path) or "the configuration"
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = next(key for key in error.instance if key not in known)
        raise ConfigError(
            f"{source}: unknown key {unknown!r} in {where}: {nearest(unknown, known)}"
        )
    raise ConfigError(f"{source}: {where}: {error.message}")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make a dataclass from configuration values, nested dataclasses and tuples included.

    Parameters
    ----------
    cls : type
        A dataclass.
    values : mapping
        Its fields, as YAML gives them.
    where : str
        Key of ``values`` in the configuration, for messages.

    Raises
    ------
    ConfigError
        Unknown or missing key, or a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    unknown = [key for key in values if key not in fields]
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}: {nearest(unknown[0], fields)}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
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
        arguments = typing.get_args(hint)
        repeated = len(arguments) == 2 and arguments[1] is Ellipsis
        if not repeated and len(value) != len(arguments):
            raise ConfigError(f"{where}: expected {len(arguments)} values, got {value!r}")
        kinds = [arguments[0]] * len(value) if repeated else list(arguments)
        return tuple(
            _convert(kind, item, f"{where}[{i}]")
            for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if hint is Any:
        return value
    if hint is float and _is_finite(None, value):
        return float(value)
    expected = origin or hint
    wrong = not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool)
    if wrong or hint is float:
        raise ConfigError(f"{where}: expected {expected.__name__}, got {value!r}")
    return value

"""Checks of the configuration: one sentence names an unknown key, a wrong type or a value out of range."""

import copy
import dataclasses
import difflib
import functools
import math
import operator
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jsonschema

from millrace.errors import ConfigError

T = TypeVar("T")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)


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


def as_number(value: Any, whole: bool = False) -> Any:
    """Return the number that a text is, such as ``5e-3``, which YAML 1.1 takes for text; else the value.

    Where a ``whole`` number is wanted, ``1e4`` is one, but 8.0 is not.
    """
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        return value
    if value.lstrip("+-").isdecimal():
        return int(value)
    number = float(value)
    return int(number) if whole and "e" in value.lower() and number.is_integer() else number


def validate(config: Any, schema: Mapping[str, Any], source: str = "config") -> Any:
    """Check a configuration, as read from YAML, against a JSON schema.

    Returns a copy in which texts stand as numbers where the schema wants those, see `as_number`. Raises
    `ConfigError` with the first violation: ``source``, key, what was found and what was expected.
    """
    validator, made = _VALIDATOR(schema), copy.deepcopy(config)
    errors = list(validator.iter_errors(made))
    for wrong in _with_parts(errors):
        if wrong.validator == "type" and wrong.absolute_path:
            *parents, last = wrong.absolute_path
            block = functools.reduce(operator.getitem, parents, made)
            wanted = wrong.validator_value  # a name or a list of names
            if "number" in wanted or "integer" in wanted:
                block[last] = as_number(block[last], whole="number" not in wanted)
    error = jsonschema.exceptions.best_match(validator.iter_errors(made)) if errors else None
    if error is None:
        return made
    where = ".".join(str(part) for part in error.absolute_path) or "the configuration"
    if error.validator != "additionalProperties":
        raise ConfigError(f"{source}: {where}: {error.message}")
    known = error.schema.get("properties", {})
    unknown = next(key for key in error.instance if key not in known)
    raise ConfigError(f"{source}: unknown key {unknown!r} in {where}: {nearest(unknown, known)}")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make a dataclass from values of the configuration, nested dataclasses and tuples included.

    Texts are read as numbers where those are wanted, see `with_numbers`.

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
    values = with_numbers(cls, values)
    return cls(**{key: _convert(hints[key], v, f"{where}.{key}") for key, v in values.items()})


def with_numbers(hint: Any, value: Any) -> Any:
    """Return a value of the configuration with texts as numbers where its type wants those.

    The type may be a dataclass, whose values are a mapping. See `as_number`; all else stays as it is.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return with_numbers(next(one for one in arguments if one is not types.NoneType), value)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        hints = typing.get_type_hints(hint)
        return {key: with_numbers(hints.get(key), one) for key, one in value.items()}
    if origin is tuple and isinstance(value, list):
        items = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return [*map(with_numbers, items, value)] if len(items) == len(value) else value
    return as_number(value, whole=hint is int) if hint in (int, float) else value


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


def _with_parts(errors: Iterable[Any]) -> Iterator[Any]:
    """Errors of a schema, and those of each of the alternatives of ``anyOf`` and ``oneOf``."""
    for error in errors:
        yield error
        yield from _with_parts(error.context)


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
        name = "list" if expected is tuple else expected.__name__  # as YAML has it
        raise ConfigError(f"{where}: expected {name}, got {value!r}")
    return value

"""Frozen dataclasses to and from JSON and YAML; unknown keys and wrong types are refused by name.

A setting comes from the class default, then from a `--config FILE`, then from a flag; the command
line does the last step, this module the first two. A dataclass checks its own ranges in
`__post_init__` and raises `ConfigError`; the file and the dotted path are put in front here.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from safe_o2o.errors import ConfigError

T = TypeVar("T")
_REFUSE: Any = object()


def require_positive(settings: Any, *names: str) -> None:
    """Refuse settings of which one of these is not above zero; NaN is not.

    Raises:
        ConfigError: with the setting's name and value.
    """
    for name in names:
        value = getattr(settings, name)
        if not value > 0:
            raise ConfigError(f"must be positive, got {value}", where=name)


def require_given(settings: Any, *names: str) -> None:
    """Refuse settings of which one of these is empty.

    Raises:
        ConfigError: with the setting's name.
    """
    for name in names:
        if not getattr(settings, name):
            raise ConfigError("is needed", where=name)


def require_one_of(settings: Any, name: str, known: Sequence[str]) -> None:
    """Refuse a setting that is none of these.

    Raises:
        ConfigError: with the setting's name.
    """
    if (value := getattr(settings, name)) not in known:
        raise ConfigError(f"must be one of {', '.join(known)}, got {value!r}", where=name)


def require_xyz(settings: Any, *names: str) -> None:
    """Refuse settings of which one has another length than three.

    Raises:
        ConfigError: with the setting's name.
    """
    for name in names:
        if len(value := getattr(settings, name)) != 3:
            raise ConfigError(f"needs x, y, z, got {value}", where=name)


def to_json(config: Any) -> Any:
    """A JSON-ready copy of a config: tuples become lists, paths and infinities become strings.

    Args:
        config: a dataclass instance, or a value inside one.

    Raises:
        ConfigError: a value has no place in a JSON file.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {
            item.name: to_json(getattr(config, item.name))
            for item in dataclasses.fields(config)
            if item.init
        }
    if isinstance(config, enum.Enum):
        return config.name
    if config is None or isinstance(config, bool | int | str):
        return config
    if isinstance(config, np.generic):
        return to_json(config.item())
    if isinstance(config, float):
        return config if math.isfinite(config) else str(config)
    if isinstance(config, Path):
        return str(config)
    if isinstance(config, Mapping):
        return {str(key): to_json(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_json(value) for value in config]
    raise ConfigError(f"{type(config).__name__} {config!r} cannot be written to a settings file")


def from_json(
    cls: type[T], data: Any, *, where: str | Path = "config", missing: Any = _REFUSE
) -> T:
    """Build a dataclass from what a settings file holds.

    Args:
        cls: the dataclass, nested dataclasses included.
        data: a mapping from field name to value; fields that are absent keep their default.
        where: the file, for messages.
        missing: what absent fields without a default become. When given, the result is a template
            for the command-line parser: only names and types are checked, since a flag may still
            fill or mend what the file says.

    Raises:
        ConfigError: an unknown key (the message names the near miss), a value of the wrong type, a
            field without a value, or a range that the dataclass itself refuses.
    """
    result: T = _dataclass(cls, data, str(where), "", missing)
    return result


def read(path: str | Path) -> dict[str, Any]:
    """The mapping in a settings file, JSON or YAML by its suffix.

    Raises:
        ConfigError: the file is missing, is neither, does not parse, or repeats a key.
    """
    path = Path(path)
    if path.suffix not in {".json", ".yaml", ".yml"}:
        raise ConfigError("a settings file ends in .json, .yaml or .yml", where=path)
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=path) from error
    except UnicodeDecodeError as error:
        raise ConfigError("is not UTF-8 text", where=path) from error
    data = _parse_json(text, path) if path.suffix == ".json" else _parse_yaml(text, path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"holds {_kind(data)} where settings by name belong", where=path)
    return data


def load(cls: type[T], path: str | Path) -> T:
    """`from_json` of `read`: a complete config from a file.

    Raises:
        ConfigError: see `read` and `from_json`.
    """
    return from_json(cls, read(path), where=path)


def dumps(config: Any) -> str:
    """The text of a JSON settings file; the same config gives the same bytes."""
    return json.dumps(to_json(config), indent=2, allow_nan=False) + "\n"


@functools.cache
def _type_hints(cls: type[Any]) -> dict[str, Any]:
    """Of a dataclass; messages are read many times a second, and evaluating them takes longest."""
    return typing.get_type_hints(cls)


def _dataclass(cls: Any, data: Any, where: str, path: str, missing: Any) -> Any:
    if dataclasses.is_dataclass(data) and isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        raise _error(f"needs settings by name, got {_kind(data)}", where, path)
    fields = {item.name: item for item in dataclasses.fields(cls) if item.init}
    for key in data:
        if key not in fields:
            raise _unknown(str(key), fields, where, path)
    hints = _type_hints(cls)
    values: dict[str, Any] = {}
    for name, item in fields.items():
        inner = f"{path}.{name}" if path else name
        if name in data:
            values[name] = _value(hints[name], data[name], where, inner, missing)
        elif _has_default(item):
            continue
        elif missing is _REFUSE:
            raise _error("has no value and no default", where, inner)
        else:
            values[name] = missing
    if missing is not _REFUSE:
        return _template(cls, fields.values(), values)
    try:
        return cls(**values)
    except ConfigError as error:
        place = ": ".join(str(part) for part in (where, path, error.where) if part)
        raise ConfigError(error.what, where=place, todo=error.todo) from error


def _template(cls: Any, fields: Iterable[dataclasses.Field[Any]], values: dict[str, Any]) -> Any:
    """An instance that skipped `__init__`, because a flag may yet mend what the file says."""
    blank = object.__new__(cls)
    for item in fields:
        if item.name in values:
            value = values[item.name]
        elif item.default_factory is not dataclasses.MISSING:
            value = item.default_factory()
        else:
            value = item.default
        object.__setattr__(blank, item.name, value)
    return blank


def _has_default(item: dataclasses.Field[Any]) -> bool:
    return (
        item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
    )


def _value(hint: Any, data: Any, where: str, path: str, missing: Any) -> Any:
    """Read one value as the annotated type, or say in one line what it should have been."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hasattr(hint, "__metadata__"):  # Annotated: the marks are the command line's business
        return _value(hint.__origin__, data, where, path, missing)
    if hint is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        return _union(args, data, where, path, missing)
    if origin is typing.Literal:
        if any(data == choice and type(data) is type(choice) for choice in args):
            return data
        choices = ", ".join(repr(choice) for choice in args)
        raise _error(f"must be one of {choices}, got {data!r}{_near(data, args)}", where, path)
    if origin in (tuple, list):
        return _sequence(origin, args, data, where, path, missing)
    if origin in (dict, typing.get_origin(Mapping[str, int])):
        if not isinstance(data, Mapping):
            raise _error(f"needs values by name, got {_kind(data)}", where, path)
        return {
            str(key): _value(args[1], value, where, f"{path}.{key}", missing)
            for key, value in data.items()
        }
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, data, where, path, missing)
    if isinstance(hint, type):
        return _scalar(hint, data, where, path)
    raise TypeError(f"{path}: settings cannot be annotated {hint!r}")


def _union(args: tuple[Any, ...], data: Any, where: str, path: str, missing: Any) -> Any:
    if data is None and type(None) in args:
        return None
    problems: list[ConfigError] = []
    for choice in args:
        if choice is type(None):
            continue
        try:
            return _value(choice, data, where, path, missing)
        except ConfigError as error:
            problems.append(error)
    raise problems[0]


def _sequence(
    origin: Any, args: tuple[Any, ...], data: Any, where: str, path: str, missing: Any
) -> Any:
    if not isinstance(data, list | tuple):
        raise _error(f"needs a list, got {_kind(data)}", where, path)
    if origin is list or (len(args) == 2 and args[1] is Ellipsis):
        hints: Iterable[Any] = [args[0]] * len(data)
    else:
        hints = args
        if len(data) != len(args):
            raise _error(f"needs {len(args)} values, got {len(data)}", where, path)
    return origin(
        _value(hint, value, where, f"{path}[{index}]", missing)
        for index, (hint, value) in enumerate(zip(hints, data, strict=True))
    )


def _scalar(hint: type, data: Any, where: str, path: str) -> Any:
    if issubclass(hint, enum.Enum):
        if isinstance(data, str) and data in hint.__members__:
            return hint[data]
        known = ", ".join(hint.__members__)
        raise _error(f"must be one of {known}, got {data!r}", where, path)
    if issubclass(hint, Path) and isinstance(data, str):
        return hint(data)
    if hint is float:
        number = _float(data)
        if number is not None:
            return number
    elif isinstance(data, hint) and not (hint is int and isinstance(data, bool)):
        return data
    raise _error(f"needs {_NAMES.get(hint, hint.__name__)}, got {_kind(data)}", where, path)


def _float(data: Any) -> float | None:
    """YAML 1.1 reads `3e-4` as text, and JSON has no infinity: both may stand in quotes."""
    if isinstance(data, bool) or not isinstance(data, int | float | str):
        return None
    try:
        return float(data)
    except ValueError:
        return None


_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "nothing (null)",
}


def _kind(data: Any) -> str:
    if isinstance(data, Mapping):
        return "settings by name"
    if isinstance(data, list | tuple):
        return f"a list of {len(data)}"
    return "nothing (null)" if data is None else f"{data!r}"


def _near(data: Any, known: Iterable[Any]) -> str:
    close = difflib.get_close_matches(str(data), [str(name) for name in known], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _unknown(key: str, fields: Iterable[str], where: str, path: str) -> ConfigError:
    known = list(fields)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    todo = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return ConfigError(
        f"unknown setting {f'{path}.{key}' if path else key!r}", where=where, todo=todo
    )


def _error(what: str, where: str, path: str) -> ConfigError:
    return ConfigError(what, where=f"{where}: {path}" if path else where)


def _parse_json(text: str, path: Path) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in pairs:
            if key in out:
                raise ConfigError(f"setting {key!r} is given twice", where=path)
            out[key] = value
        return out

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}"
        raise ConfigError(f"is not valid JSON ({error.msg})", where=where) from error


def _parse_yaml(text: str, path: Path) -> Any:
    import yaml  # here, so that the ground needs NumPy alone

    def once(node: Any) -> None:
        """PyYAML keeps the last of two equal keys in silence: refuse them while still nodes."""
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if str(key.value) in seen:
                    where = f"{path}:{key.start_mark.line + 1}"
                    raise ConfigError(f"setting {key.value!r} is given twice", where=where)
                seen.add(str(key.value))
                once(value)

    try:
        once(yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "does not parse"
        raise ConfigError(f"is not valid YAML ({problem})", where=where) from error

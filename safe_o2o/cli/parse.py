"""Arguments to dataclasses: default < `--config FILE` < flag; one line for whatever is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import sys
import typing
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from safe_o2o import catalog, config
from safe_o2o.errors import ConfigError, UnknownNameError

T = TypeVar("T")
_CONFIG_HELP = "--config FILE reads settings from a JSON or YAML file; flags win over it."


def parse(cls: type[T], argv: Sequence[str], *, verb: str) -> T:
    """Parse a verb's arguments into its dataclass.

    Args:
        cls: frozen dataclass; its docstring and fields become the help.
        argv: what follows the verb (and the catalogue name, where there is one).
        verb: the verb, for the help and for messages ("collect", "train fosp").

    Raises:
        ConfigError: an unknown flag (with the near miss), a bad or missing value, a bad file.
    """
    import tyro  # here: `safe-o2o list` must not wait for it

    path, rest = _take_config(argv)
    kwargs: dict[str, Any] = {}
    if path is not None:
        data = config.read(path)
        kwargs["default"] = config.from_json(cls, data, where=path, missing=tyro.MISSING)
    description = " ".join((cls.__doc__ or "").partition("\n")[0].split())
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            parsed: T = tyro.cli(
                cls,
                args=rest,
                prog=f"safe-o2o {verb}",
                description=f"{description}\n{_CONFIG_HELP}",
                **kwargs,
            )
            return parsed
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _one_line(stderr.getvalue(), flags(cls), verb) from None


def take_name(argv: Sequence[str], kind: str, *, verb: str) -> tuple[str, list[str]]:
    """Split off the catalogue name that stands first, without importing what it names.

    Args:
        argv: what follows the verb.
        kind: table of the catalogue ("algorithm").
        verb: the verb, for the message.

    Returns:
        The name as the catalogue spells it, and the rest of the arguments.

    Raises:
        UnknownNameError: no such name; the message has the near miss.
        ConfigError: no name was given.
    """
    table = catalog.TABLES[kind]
    known = ", ".join(table)
    if not argv or argv[0].startswith("-"):
        if argv and argv[0] in ("-h", "--help"):
            print(f"usage: safe-o2o {verb} NAME [ARGUMENTS]\n\nNAME: {known}")
            print(f"safe-o2o {verb} NAME --help shows the arguments")
            sys.exit(0)
        raise ConfigError(f"names no {kind}", where=verb, todo=f"known: {known}")
    name = argv[0].replace("-", "_")
    if name not in table:
        raise UnknownNameError(kind, argv[0], table)
    return name, list(argv[1:])


def take_value(argv: Sequence[str], name: str) -> str | None:
    """The value of `--name VALUE` or `--name=VALUE`, left in place; None where it is not given.

    For a flag that decides which other flags there are.
    """
    flag = f"--{name}"
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def with_field(cls: type[Any], name: str, default: Any) -> type[Any]:
    """A copy of a verb's dataclass with a nested config: `with_field(Train, "algo", FospConfig())`.

    This is how `safe-o2o train fosp --algo.beta 3` gets the flags of the class it names, with the
    values of a preset as defaults.
    """
    return dataclasses.make_dataclass(
        cls.__name__,
        [(name, type(default), dataclasses.field(default_factory=lambda: default))],
        bases=(cls,),
        namespace={"__doc__": cls.__doc__, "__module__": cls.__module__},
        frozen=True,
    )


def flags(cls: type[Any], prefix: str = "") -> list[str]:
    """Every flag of a dataclass, nested ones dotted, as it is typed: `--algo.expectile`."""
    hints = typing.get_type_hints(cls)
    out = ["--config", "--help"] if not prefix else []
    for item in dataclasses.fields(cls):
        name = prefix + item.name.replace("_", "-")
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            out += flags(typing.cast("type[Any]", hint), f"{name}.")
        else:
            out.append(f"--{name}")
    return out


def _take_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    path: str | None = None
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == "--config" or word.startswith("--config="):
            if path is not None:
                raise ConfigError("is given twice", where="--config")
            path = word.partition("=")[2] if "=" in word else next(words, "")
            if not path:
                raise ConfigError("needs a file", where="--config")
        else:
            rest.append(word)
    return path, rest


def _one_line(text: str, known: Iterable[str], verb: str) -> ConfigError:
    """The parser explains itself in a box of lines; keep what is wrong and add the near miss."""
    lines = []
    for raw in text.splitlines()[1:]:
        line = raw.strip("│╰╯╭╮ \t")
        if line and set(line) <= {"─"}:
            break
        if line:
            lines.append(line)
    what = " ".join(lines) or "the arguments are not understood"
    todo = f"see safe-o2o {verb} --help"
    if "nrecognized" in what:
        for flag in re.findall(r"--[\w.-]+", what):
            near = difflib.get_close_matches(flag.replace("_", "-"), list(known), n=1, cutoff=0.6)
            if near:
                todo = f"did you mean {near[0]}?"
                break
    return ConfigError(what.rstrip("."), where=verb, todo=todo)

"""`safe-o2o list [kind]`: the catalogue's names with the first line of each class's docstring.

The classes are not imported: their files are found by path and their docstrings read from the
syntax tree, so that the answer comes at once, whatever the classes would import.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

from safe_o2o import catalog
from safe_o2o.errors import ConfigError, UnknownNameError


def main(argv: Sequence[str]) -> None:
    """Print one table, or all of them."""
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: safe-o2o list [KIND]\n\nKIND: {', '.join(catalog.TABLES)}")
        return
    if len(argv) > 1:
        raise ConfigError(f"takes one kind, got {' '.join(argv)!r}", where="list")
    kinds = list(catalog.TABLES)
    if argv:
        kind = argv[0].rstrip("s") if argv[0] not in catalog.TABLES else argv[0]
        if kind not in catalog.TABLES:
            raise UnknownNameError("kind", argv[0], catalog.TABLES)
        kinds = [kind]
    print("\n\n".join(table(kind) for kind in kinds))


def table(kind: str) -> str:
    """The names of one kind as aligned text, one line each."""
    names = catalog.TABLES[kind]
    width = max((len(name) for name in names), default=0) + 2
    lines = [f"  {name:<{width}}{describe(target)}" for name, target in names.items()]
    return "\n".join([kind, *lines])


def describe(target: str) -> str:
    """First docstring line of the class behind `"module:Class"`, read without importing it."""
    module, _, attribute = target.partition(":")
    path = find_source(module)
    if path is None:
        return f"(not installed: {module})"
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == attribute:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return f"(no class {attribute} in {module})"


def find_source(module: str) -> Path | None:
    """The file of a module, found without running a line of it or of its packages."""
    search: list[str] | None = None
    spec = None
    for depth in range(1, module.count(".") + 2):
        name = ".".join(module.split(".")[:depth])
        for finder in sys.meta_path:
            spec = finder.find_spec(name, search)
            if spec is not None:
                break
        if spec is None:
            return None
        search = list(spec.submodule_search_locations or [])
    return Path(spec.origin) if spec is not None and spec.origin else None

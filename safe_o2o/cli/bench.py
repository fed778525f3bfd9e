"""`safe-o2o bench [NAME ...]`: the scripts in `benchmarks/`, one for each quoted figure."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import safe_o2o
from safe_o2o.errors import MissingDependencyError, UnknownNameError

FOLDER = Path(safe_o2o.__path__[0]).resolve().parent / "benchmarks"


def main(argv: Sequence[str]) -> int:
    """Without a name: list the scripts. With one: run it, the rest are its arguments."""
    if not FOLDER.is_dir():
        raise MissingDependencyError(
            "the benchmarks come with the source checkout only",
            where=FOLDER,
            todo="run this verb from a checkout installed with pip install -e",
        )
    found = scripts(FOLDER)
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, found), default=0) + 2
        print("usage: safe-o2o bench NAME [ARGUMENTS OF THE SCRIPT]\n")
        for name, path in found.items():
            doc = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            print(f"  {name:<{width}}{doc.partition(chr(10))[0]}")
        return 0
    name = argv[0].replace("-", "_").removesuffix(".py")
    if name not in found:
        raise UnknownNameError("benchmark", argv[0], found)
    return subprocess.call([sys.executable, str(found[name]), *argv[1:]])


def scripts(folder: Path) -> dict[str, Path]:
    """The runnable scripts of a folder by name; those that begin with `_` are their helpers."""
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem[0] != "_"}

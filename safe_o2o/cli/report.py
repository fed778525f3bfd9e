"""`safe-o2o report RUN`: one self-contained HTML page from what a run has left on disk so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from safe_o2o.cli import console
from safe_o2o.cli.parse import parse


@dataclass(frozen=True)
class Arguments:
    """Write the page of a run; stages that have not run yet are named as missing.

    Attributes:
        run: the run's folder.
        out: the page to write (default: RUN/report.html).
        workers: processes that make the films; 0 makes them in this one.
    """

    run: Annotated[Path, tyro.conf.arg(metavar="RUN"), tyro.conf.Positional]
    out: Path | None = None
    workers: int = 2


def main(argv: Sequence[str]) -> None:
    """Build the page and say where it is."""
    arguments = parse(Arguments, argv, verb="report")
    from safe_o2o.report.page import build_report  # after parsing: matplotlib takes its time

    page = build_report(arguments.run, arguments.out, workers=arguments.workers)
    print(f"report: {page} ({console.megabytes(page.stat().st_size)})")

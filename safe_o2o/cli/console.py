"""How the verbs speak: aligned tables on stdout, progress bars on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Progress = Callable[[int, int], None]
"""Called with (done, in all)."""


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """A bar on stderr while something takes long; only a terminal shows it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task(label, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as aligned text; columns of numbers lean right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    right = [
        all(isinstance(row[column], int | float) for row in rows) for column in range(len(header))
    ]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if lean else cell.ljust(width)
            for cell, width, lean in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    )


def percent(count: int, n: int) -> str:
    """A share in whole percent, `-` where there is nothing to share."""
    return f"{100 * count / n:.0f} %" if n else "-"


def megabytes(size: int) -> str:
    """A file size for people: 1 MB = 1e6 B."""
    return f"{size / 1e6:.1f} MB"

"""The fault matrix: each fault injected on mock and twin, with reaction, bound and measurement.

    python benchmarks/faults.py [--body mock] [--markdown FILE]

Exit code 1 when a reaction is not the expected one or comes too late. About a minute.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.fault_rows import ROWS, Missed
from tests.rig import Body

BODIES: tuple[Body, ...] = ("mock", "twin")
HEAD = ("fault", "reaction", "bound")


def main() -> None:
    """Inject every fault, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--body", choices=BODIES, help="only this one")
    parser.add_argument("--markdown", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    bodies = [body for body in BODIES if arguments.body in (None, body)]
    head = [*HEAD, *(f"measured on the {body}" for body in bodies)]
    table, lines, missed = Table(*head, title="fault matrix", show_lines=True), [], 0
    for row in track(ROWS, "injecting", console=Console(stderr=True)):
        cells = [row.fault, row.reaction, row.bound]
        for body in bodies:
            try:
                measured = row.run(body)
            except Missed as error:
                measured, missed = f"MISSED: {error}", missed + 1
            cells.append("the same" if measured == cells[-1] else measured)
        table.add_row(*cells)
        lines.append("| " + " | ".join(cells) + " |")
    Console().print(table)
    if arguments.markdown:
        top = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        arguments.markdown.write_text("\n".join([*top, *lines]) + "\n", "utf-8")
    if missed:
        raise SystemExit(f"{missed} of {len(lines) * len(bodies)} missed")


if __name__ == "__main__":
    main()

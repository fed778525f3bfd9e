"""`safe-o2o protocol TASK`: the paper's protocol for methods and seeds, into one table."""

from __future__ import annotations

from collections.abc import Sequence

from safe_o2o.cli.parse import parse, take_name
from safe_o2o.cli.protocol_run import Run
from safe_o2o.cli.protocol_settings import Arguments
from safe_o2o.errors import ConfigError
from safe_o2o.report import standings


def main(argv: Sequence[str]) -> None:
    """Measure what is missing, then show the table."""
    task, rest = take_name(argv, "task", verb="protocol")
    arguments = parse(Arguments, rest, verb=f"protocol {task}")
    if not all(0 < point < arguments.updates for point in arguments.numbers("points")):
        raise ConfigError(
            f"must lie between 0 and {arguments.updates} updates, got {arguments.points}",
            where="points",
        )
    runs = [
        Run(arguments, task, method, seed)
        for seed in arguments.numbers("seeds")
        for method in arguments.named("methods")
    ]
    for run in runs:
        run.measure()
    rows = standings.read(arguments.results)
    print(standings.table(rows, task))
    if arguments.picture is not None:
        from safe_o2o.report.learning_curve import draw

        draw(rows, task, arguments.picture)

"""`safe-o2o train ALGORITHM`: offline training on a dataset; repeated, it goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safe_o2o import catalog
from safe_o2o.cli import console
from safe_o2o.cli.parse import parse, take_name, take_value, with_field
from safe_o2o.training.group import is_first
from safe_o2o.training.offline import OfflineConfig, OfflineReport, train_offline

SHOWN = (
    *("model/loss", "critic/reward", "reach/p", "actor/weighted_error"),
    *("critic/loss", "critic/risk", "predictor/loss"),  # of the gate's heads
)


@dataclass(frozen=True)
class Arguments:
    """Train an algorithm offline; a killed run is resumed by the same command.

    Several processes share each batch under `torchrun --no-python safe-o2o train ...`.

    Attributes:
        data: the dataset.
        out: folder of checkpoints and metrics.
        preset: named settings of the algorithm; flags win over it.
        run: intervals, threads, device.
    """

    data: Path
    out: Path
    preset: str = "small"
    run: OfflineConfig = field(default_factory=OfflineConfig)


def main(argv: Sequence[str]) -> None:
    """Train, then say in one line how far it came."""
    name, rest = take_name(argv, "algorithm", verb="train")
    algorithm = catalog.load("algorithm", name)
    chosen = take_value(rest, "preset") or Arguments.preset
    arguments = parse(
        with_field(Arguments, "algo", algorithm.preset(chosen)), rest, verb=f"train {name}"
    )
    with console.progress(f"training {name}") as progress:

        def report(step: int, total: int, _: Mapping[str, float]) -> None:
            progress(step, total)

        result = train_offline(
            name,
            arguments.algo,
            arguments.data,
            arguments.out,
            arguments.run,
            report if is_first() else None,
        )
    if is_first():
        print(describe(result))


def describe(report: OfflineReport) -> str:
    """The one-line result."""
    done = report.step - report.resumed_at
    rate = f", {done / report.seconds:.1f} updates/s" if done else ""
    shown = ", ".join(f"{k} {report.metrics[k]:.3g}" for k in SHOWN if k in report.metrics)
    return f"trained to update {report.step} ({done} now{rate}); {shown}; {report.checkpoint}"

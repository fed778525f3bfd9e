"""`safe-o2o export CHECKPOINT`: a trained policy becomes an ONNX bundle, if the two agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from safe_o2o import bundle
from safe_o2o.cli import console
from safe_o2o.cli.parse import parse
from safe_o2o.data.dataset import Dataset
from safe_o2o.errors import ConfigError


@dataclass(frozen=True)
class Arguments:
    """Export a checkpoint; nothing is written unless network and graph agree on recorded steps.

    Attributes:
        checkpoint: a checkpoint, or a folder for its newest one.
        data: the dataset it was trained on: the recorded steps to compare on, and its statistics.
        out: folder of bundles; the new one gets the next version.
        observations: where DATA holds latents, the dataset that they were made from: what the
            bundle will see.
        gate: a checkpoint of `reachability`, trained on the states of the policy's world model, or
            a folder for its newest one: its gate comes into the bundle, and waits for
            `safe-o2o calibrate`.
        live: may actors load it: `first` lets it go live only where no other one is.
    """

    checkpoint: Annotated[Path, tyro.conf.arg(metavar="CHECKPOINT"), tyro.conf.Positional]
    data: Path
    out: Path
    observations: Path | None = None
    gate: Path | None = None
    live: Literal["first", "yes", "no"] = "first"


def main(argv: Sequence[str]) -> None:
    """Export, compare, and say how far apart network and graph are."""
    arguments = parse(Arguments, argv, verb="export")
    dataset = Dataset(arguments.data)
    from safe_o2o.export.algorithm import export_algorithm
    from safe_o2o.training import checkpoint, latents
    from safe_o2o.training.restore import load_algorithm, load_heads

    algorithm = load_algorithm(arguments.checkpoint)
    name = checkpoint.read_header(arguments.checkpoint).meta.algorithm
    encoder = None
    if latents.holds_latents(dataset):
        if arguments.observations is None:
            raise ConfigError(
                f"{arguments.data} holds latents: what were they made from?", where="--observations"
            )
        encoder = latents.LatentDataset(arguments.data).tracker()
        dataset = Dataset(arguments.observations)
    gate = None if arguments.gate is None else load_heads(arguments.gate)
    report = export_algorithm(algorithm, name, arguments.out, dataset, encoder=encoder, gate=gate)
    live = arguments.live == "yes" or (
        arguments.live == "first" and bundle.current(arguments.out) is None
    )
    if live:
        bundle.set_current(arguments.out, report.directory.name)
    print(
        f"exported {report.directory}: parity {report.parity:.1e} over {report.steps} recorded "
        f"steps, {console.megabytes(report.graph_bytes)}, graph {report.graph_sha256[:16]}, "
        f"{'live' if live else 'not live'}"
    )

"""`safe-o2o encode CHECKPOINT`: a dataset of what a trained world model makes of another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from safe_o2o.cli import console
from safe_o2o.cli.parse import parse
from safe_o2o.data.dataset import Dataset


@dataclass(frozen=True)
class Arguments:
    """Encode a dataset once, for algorithms to train on its latents; repeated, it goes on.

    Attributes:
        checkpoint: a checkpoint with a world model, or a folder for its newest one.
        data: the dataset to encode.
        out: the dataset of latents; made when missing, filled up when begun.
        what: `features`, what the model's own actor and critics read; or `state`, all that the
            model knows, for the heads of the reachability gate.
    """

    checkpoint: Annotated[Path, tyro.conf.arg(metavar="CHECKPOINT"), tyro.conf.Positional]
    data: Path
    out: Path
    what: Literal["features", "state"] = "features"


def main(argv: Sequence[str]) -> None:
    """Encode, and say how to go on."""
    arguments = parse(Arguments, argv, verb="encode")
    source = Dataset(arguments.data)
    from safe_o2o.training.latents import encode

    with console.progress("encoding") as progress:
        made = encode(source, arguments.checkpoint, arguments.out, progress, arguments.what)
    size = sum(array.shape[0] for array in made.spec.observation.arrays.values())
    print(
        f"encoded {len(made)} episodes, {size} numbers a record; {made.directory}, "
        f"hash {made.content_hash()[:16]}"
    )

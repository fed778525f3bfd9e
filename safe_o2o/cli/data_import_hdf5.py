"""`safe-o2o data import FILE.hdf5 --out DATASET`: D4RL's and DSRL's files into episodes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from safe_o2o.cli import console
from safe_o2o.cli.parse import parse
from safe_o2o.config import require_positive
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.formats.hdf5 import Hdf5Report, import_hdf5, spec_of

SUFFIXES = (".hdf5", ".h5")


@dataclass(frozen=True)
class Arguments:
    """Bring HDF5 files in the layout of D4RL or DSRL into a dataset; what is in it stays.

    Attributes:
        files: observations, actions, rewards, terminals, and timeouts, next_observations and costs
            where they have any; all of the same sizes.
        out: the dataset; made when missing, added to when there.
        task: what the episodes are labelled with.
        behavior: who acted.
        period: of a step, s; 0.02 in most of Gym's tasks.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE ..."), tyro.conf.Positional]
    out: Path
    task: str = "d4rl"
    behavior: str = "d4rl"
    period: float = 0.02

    def __post_init__(self) -> None:
        require_positive(self, "period")


def main(argv: Sequence[str]) -> None:
    """Import one file after the other; a line for each."""
    arguments = parse(Arguments, argv, verb="data import")
    fresh = not arguments.out.exists()
    spec = spec_of(arguments.files[0], arguments.period)
    dataset = Dataset.create(arguments.out, spec, task=arguments.task, exist_ok=True)
    try:
        for path in arguments.files:
            mine, theirs = str(dataset.directory), str(path)
            dataset.spec.require_same(spec_of(path, arguments.period), mine=mine, theirs=theirs)
            with console.progress(f"reading {path.name}") as progress:
                report = import_hdf5(path, dataset, behavior=arguments.behavior, progress=progress)
            print(describe(path, report))
    finally:
        if fresh and not len(dataset):  # a file that was wrong leaves nothing behind
            shutil.rmtree(arguments.out, ignore_errors=True)


def describe(path: Path, report: Hdf5Report) -> str:
    """What became of a file."""
    parts = [f"{report.episodes} episodes"]
    parts += [f"{report.known} known already"] if report.known else []
    parts += [f"{report.steps} steps", f"{report.clipped} entries of actions cut to their range"]
    if report.dropped:
        parts.append(f"{report.dropped} last steps dropped: the file has no next observation")
    return f"{path.name}: {', '.join(parts)}, {'with' if report.costs else 'without'} costs"

"""`safe-o2o data import BAG ... --map FILE --out DATASET`: bags of a robot into episodes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from safe_o2o import config
from safe_o2o.cli import console
from safe_o2o.cli.parse import parse
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.formats.bag_map import BagMap
from safe_o2o.data.formats.rosbag import ImportReport, import_bag
from safe_o2o.errors import ConfigError
from safe_o2o.types import Source


@dataclass(frozen=True)
class Arguments:
    """Bring rosbag2 folders, MCAP files and ROS 1 bags into a dataset; a bag that is in stays.

    Attributes:
        bags: bags, each one episode unless the mapping names a topic that says when one is on.
        map: which topic is which array, YAML or JSON (docs/bags.md).
        out: the dataset; made when missing, added to when there.
        task: what the episodes are labelled with.
        behavior: who acted.
        success: whether they all succeeded; `unknown` leaves it open.
    """

    bags: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="BAG ..."), tyro.conf.Positional]
    map: Path
    out: Path
    task: str = "safe_reach"
    behavior: str = "human"
    success: Literal["yes", "no", "unknown"] = "unknown"


def main(argv: Sequence[str]) -> None:
    """Import one bag after the other; a line for each, and what its topics lost."""
    arguments = parse(Arguments, argv, verb="data import")
    if not arguments.bags:
        raise ConfigError("names no bag", where="data import", todo="see --help")
    mapping = config.load(BagMap, arguments.map)
    fresh = not arguments.out.exists()
    dataset = Dataset.create(arguments.out, mapping.spec(), task=arguments.task, exist_ok=True)
    try:
        _import(arguments, mapping, dataset)
    finally:
        if fresh and not len(dataset):  # a mapping that was wrong leaves nothing behind
            shutil.rmtree(arguments.out, ignore_errors=True)


def _import(arguments: Arguments, mapping: BagMap, dataset: Dataset) -> None:
    for path in arguments.bags:
        with console.progress(f"reading {path.name}") as progress:
            report = import_bag(
                path,
                mapping,
                dataset,
                behavior=arguments.behavior,
                source=Source.HUMAN if arguments.behavior == "human" else Source.SCRIPT,
                success={"yes": True, "no": False, "unknown": None}[arguments.success],
                progress=progress,
            )
        print(describe(path, report))


def describe(path: Path, report: ImportReport) -> str:
    """What became of a bag."""
    known = f", {report.known} known already" if report.known else ""
    lines = [
        f"{path.name}: {len(report.episodes)} episodes{known}, {report.steps} steps, "
        f"{report.lost} lost, {report.clipped} entries of actions cut to their range"
    ]
    for name, told in report.topics.items():
        doubts = {
            "without a stamp": told.without_stamp,
            "out of order": told.out_of_order,
            "of other joints": told.other_joints,
            "instants too old": told.stale,
        }
        said = ", ".join(f"{count} {what}" for what, count in doubts.items() if count)
        lines.append(f"  {name}: {told.messages} of {told.kind}" + (f", {said}" if said else ""))
    return "\n".join(lines)

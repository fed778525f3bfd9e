"""`safe-o2o data ACTION PATH`: what a dataset holds, its hash, if it is whole; bags into one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from safe_o2o.cli import console
from safe_o2o.cli.parse import parse
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import Episode
from safe_o2o.errors import ConfigError, DataError, UnknownNameError
from safe_o2o.types import Verdict

ACTIONS = {
    "info": "what is in a dataset, by behaviour, or in one episode file",
    "hash": "the dataset's content hash: same seeds, same hash",
    "verify": "read everything and compare with the stored hashes",
    "stats": "mean, spread and range of each vector, as the normaliser sees them",
    "replay": "what the filter of an arm's limits would have passed, slowed or stopped, and why",
    "import": "bring bags (rosbag2, MCAP, ROS 1) or HDF5 files of D4RL and DSRL into a dataset",
}


@dataclass(frozen=True)
class Arguments:
    """Show, hash and verify a dataset.

    Attributes:
        path: a dataset's folder, or for `info` an episode file.
        json: print JSON instead of a table.
    """

    path: Annotated[Path, tyro.conf.arg(metavar="PATH"), tyro.conf.Positional]
    json: bool = False


def main(argv: Sequence[str]) -> None:
    """Pick the action, then run it."""
    if not argv:
        raise ConfigError("names no action", where="data", todo=f"known: {', '.join(ACTIONS)}")
    if argv[0] in ("-h", "--help"):
        lines = [f"  {name:<8}{line}" for name, line in ACTIONS.items()]
        print("usage: safe-o2o data ACTION PATH [--json]\n", *lines, sep="\n")
        return
    action = argv[0]
    if action not in ACTIONS:
        raise UnknownNameError("action", action, ACTIONS)
    if action == "replay":
        from safe_o2o.cli import data_replay

        data_replay.main(argv[1:])
        return
    if action == "import":
        from safe_o2o.cli import data_import, data_import_hdf5

        # By what is named: a mapping belongs to bags alone.
        hdf5 = any(Path(word).suffix in data_import_hdf5.SUFFIXES for word in argv[1:])
        (data_import_hdf5 if hdf5 else data_import).main(argv[1:])
        return
    arguments = parse(Arguments, argv[1:], verb=f"data {action}")
    run = {"info": info, "hash": content_hash, "verify": verify, "stats": stats}[action]
    run(arguments)


def info(arguments: Arguments) -> None:
    """Print what is in a dataset or an episode."""
    if arguments.path.is_file():
        facts = episode_facts(Episode(arguments.path))
        print(json.dumps(facts, indent=2) if arguments.json else _lines(facts))
        return
    dataset = Dataset(arguments.path)
    facts, rows = dataset_facts(dataset)
    if arguments.json:
        print(json.dumps({**facts, "behaviors": rows}, indent=2))
        return
    print(_lines(facts))
    if rows:
        body = [
            (
                *(row["behavior"], row["variant"], row["episodes"], row["transitions"]),
                console.percent(row["success"], row["episodes"]),
                console.percent(row["violation"], row["episodes"]),
                console.percent(row["changed"], row["transitions"]),
            )
            for row in rows
        ]
        header = ("behavior", "variant", "episodes", "steps", "success", "violation", "changed")
        print("\n" + console.table(header, body))


def dataset_facts(dataset: Dataset) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a dataset is, and one row for each behaviour and variant in it.

    In the rows `success` and `violation` count episodes (violation: a step with a cost), `changed`
    counts the steps in which the filter did not let the proposal pass as it was.
    """
    counts: dict[tuple[str, str], Counter[str]] = {}
    size = 0
    with console.progress("reading") as update:
        for done, episode in enumerate(dataset):
            size += episode.path.stat().st_size
            meta = episode.meta
            row = counts.setdefault((meta.behavior, meta.variant), Counter())
            row["episodes"] += 1
            row["transitions"] += len(episode)
            row["success"] += episode.success
            row["violation"] += episode.violation
            row["changed"] += int((episode.array("verdict") != int(Verdict.PASS)).sum())
            row["drops"] += episode.drops
            update(done + 1, len(dataset))
    facts: dict[str, Any] = {
        "dataset": str(dataset.directory),
        "task": dataset.task,
        "schema": dataset.header["schema_version"],
        "episodes": len(dataset),
        "transitions": sum(row["transitions"] for row in counts.values()),
        "drops": sum(row["drops"] for row in counts.values()),
        "size": console.megabytes(size),
        "observation": _observation(dataset),
        "action": _action(dataset),
        "hash": dataset.content_hash(),
    }
    keys = ("episodes", "transitions", "success", "violation", "changed")
    rows: list[dict[str, Any]] = [
        {"behavior": behavior or "-", "variant": variant or "-", **{key: row[key] for key in keys}}
        for (behavior, variant), row in sorted(counts.items())
    ]
    return facts, rows


def episode_facts(episode: Episode) -> dict[str, Any]:
    """What one episode file holds."""
    meta = episode.meta
    stamps = episode.array("stamp")
    verdicts = Counter(Verdict(int(v)).name.lower() for v in episode.array("verdict"))
    return {
        "episode": str(episode.path),
        "task": meta.task,
        "variant": meta.variant or "-",
        "behavior": meta.behavior or "-",
        "seed": meta.seed,
        "transitions": len(episode),
        "duration": f"{float(stamps[-1] - stamps[0]):.2f} s",
        "return": float(episode.array("reward").sum()),
        "cost": float(episode.array("cost").sum()),
        "success": episode.success,
        "terminated": bool(episode.array("terminated")[-1]),
        "truncated": bool(episode.array("truncated")[-1]),
        "verdicts": dict(sorted(verdicts.items())),
        "reasons": dict(sorted(Counter(reason for reason in episode.reasons if reason).items())),
        "least margin": round(float(episode.array("margin").min()), 4),
        "drops": episode.drops,
        "hash": episode.content_hash,
    }


def content_hash(arguments: Arguments) -> None:
    """Print the content hash alone, ready for a comparison in a script."""
    print(Dataset(arguments.path).content_hash())


def verify(arguments: Arguments) -> None:
    """Read every byte; the first episode that is not what was written is an error."""
    dataset = Dataset(arguments.path)
    with console.progress("verifying") as update:
        for done, episode in enumerate(dataset):
            episode.verify()
            update(done + 1, len(dataset))
    print(f"{arguments.path}: {len(dataset)} episodes as written, hash {dataset.content_hash()}")


def stats(arguments: Arguments) -> None:
    """Print the moments that the normaliser uses."""
    from safe_o2o.data.statistics import Statistics

    dataset = Dataset(arguments.path)
    if not len(dataset):
        raise DataError("has no episode", where=arguments.path, todo="collect some episodes first")
    with console.progress("reading") as update:
        statistics = Statistics.compute(dataset, update)
    if arguments.json:
        print(json.dumps(statistics.to_json(), indent=2))
        return
    rows = []
    for name, moments in statistics.arrays.items():
        spec = dataset.spec
        array = spec.observation.arrays.get(name)
        names = spec.action.names if name == "action" else array.names if array else ("",)
        for index, (mean, std, low, high) in enumerate(
            zip(moments.mean, moments.std, moments.low, moments.high, strict=True)
        ):
            entry = names[index] if index < len(names) else str(index)
            label = f"{name}.{entry}".rstrip(".")
            rows.append((label, *(f"{v:.4f}" for v in (mean, std, low, high))))
    print(console.table(("array", "mean", "std", "low", "high"), rows))


def _lines(facts: dict[str, Any]) -> str:
    width = max(map(len, facts)) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in facts.items())


def _observation(dataset: Dataset) -> str:
    return ", ".join(
        f"{name} {array.dtype}{list(array.shape)} [{array.unit}]"
        for name, array in dataset.spec.observation.arrays.items()
    )


def _action(dataset: Dataset) -> str:
    action = dataset.spec.action
    return f"{', '.join(action.names)} [{action.unit}] every {action.period} s"

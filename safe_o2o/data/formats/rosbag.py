"""Bags into episodes: rosbag2 (MCAP, SQLite), plain MCAP files, ROS 1 bags.

One bag is one episode, or several where a topic says when one is on. A mapping says which topic is
which array; observations are what was known at each instant of the policy (`alignment`), the action
is what was commanded in the period after it. `rosbags` reads them: no ROS is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import EpisodeMeta
from safe_o2o.data.formats.alignment import Steps, during, held, steps
from safe_o2o.data.formats.bag_map import BagMap, plain
from safe_o2o.data.formats.bag_reader import Bag, Stream, TopicReport
from safe_o2o.errors import DataError
from safe_o2o.spaces import Spec
from safe_o2o.types import Array, Source, Transition

NANO = 1_000_000_000


@dataclass
class ImportReport:
    """What became of a bag.

    Attributes:
        episodes: files that were written.
        known: episodes of this bag that the dataset has already.
        steps: instants that were kept.
        lost: instants that were not, for a topic was too old.
        clipped: entries of actions beyond their range, cut to it.
        topics: by name.
    """

    episodes: list[Path] = field(default_factory=list)
    known: int = 0
    steps: int = 0
    lost: int = 0
    clipped: int = 0
    topics: dict[str, TopicReport] = field(default_factory=dict)


def import_bag(
    path: Path,
    mapping: BagMap,
    dataset: Dataset,
    *,
    behavior: str,
    source: Source = Source.HUMAN,
    success: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Add a bag's episodes to a dataset; those that are in there already are left out.

    Args:
        path: a rosbag2's folder, an `.mcap`, `.db3` or ROS 1 `.bag` file.
        mapping: what its topics are.
        dataset: of `mapping.spec()`.
        behavior: who acted, for the episodes' metadata.
        source: likewise, for each step.
        success: True ends each episode with `terminated`, and with reward 1 where no topic says
            rewards; None leaves it open.
        progress: called with (messages read, in all).

    Raises:
        DataError: a topic is missing or of a kind that cannot become its array, a joint is missing,
            the bag is damaged, or nothing in it lies together in time.
        MissingDependencyError: `rosbags` is not installed.
    """
    report, digest = ImportReport(), _digest(path)
    known = {
        entry.meta.provenance.get("part")
        for entry in dataset
        if entry.meta.provenance.get("bag_sha256") == digest
    }
    with closing(Bag(path)) as bag:
        streams = bag.streams(mapping, report.topics, progress)
        observed = {name: streams[f"observation.{name}"].stamp for name in mapping.observation}
        for part, (start, stop) in enumerate(_parts(streams, mapping)):
            if part in known:
                report.known += 1
                continue
            found = steps(observed, _nano(mapping.period), _nano(mapping.max_age), start, stop)
            report.steps += len(found.stamp)
            report.lost += sum(lost for _, lost in found.gaps)
            # Arrays of one topic are as old as each other.
            stale = {plain(a.topic): found.stale[name] for name, a in mapping.observation.items()}
            for name, count in stale.items():
                report.topics[name].stale += count
            if len(found.stamp) < 2:
                continue
            obs = {
                name: bag.array(entry, streams[f"observation.{name}"], found.rows[name])
                for name, entry in mapping.observation.items()
            }
            transitions = _transitions(dataset.spec, mapping, streams, found, obs, source, report)
            transitions[-1] = _last(transitions[-1], mapping, success)
            provenance = {"bag": path.name, "bag_sha256": digest, "part": part}
            report.episodes.append(
                dataset.append(
                    transitions,
                    {name: rows[-1] for name, rows in obs.items()},
                    _seconds(found, -1),
                    EpisodeMeta(dataset.task, behavior=behavior, provenance=provenance),
                    success=success,
                    gaps=found.gaps,
                )
            )
    if not report.episodes and not report.known:
        raise DataError(
            "has no two instants at which every topic is young enough",
            where=path,
            todo="compare the topics' stamps, or raise max_age in the mapping",
        )
    return report


def _parts(streams: Mapping[str, Stream], mapping: BagMap) -> list[tuple[int, int]]:
    """Beginning and end of each episode, ns."""
    first = min(int(stream.stamp[0]) for stream in streams.values())
    last = max(int(stream.stamp[-1]) for stream in streams.values())
    if not mapping.episode:
        return [(first, last)]
    stream = streams["episode"]
    assert stream.values is not None
    parts, begun = [], None
    for stamp, value in zip(stream.stamp.tolist(), stream.values[:, 0].tolist(), strict=True):
        if value and begun is None:
            begun = stamp
        elif not value and begun is not None:
            parts.append((begun, stamp))
            begun = None
    return parts if begun is None else [*parts, (begun, last)]


def _transitions(
    spec: Spec,
    mapping: BagMap,
    streams: Mapping[str, Stream],
    found: Steps,
    obs: Mapping[str, Array],
    source: Source,
    report: ImportReport,
) -> list[Transition]:
    """One for each instant but the last."""
    begin = found.stamp[:-1]
    end = begin + _nano(mapping.period)
    commands = streams["action"]
    assert commands.values is not None
    # The last one of the period, else the one that is still in force; before any, the first.
    target = commands.values[np.maximum(held(commands.stamp, end), 0)]
    if mapping.action.relative_to:
        target = target - obs[mapping.action.relative_to][:-1]
    action = spec.action.from_si(target)
    report.clipped += int((np.abs(action) > 1.0).sum())
    action = np.clip(action, -1.0, 1.0)
    reward = _gathered(streams.get("reward"), begin, end, np.sum)
    cost = _gathered(streams.get("cost"), begin, end, np.max)
    return [
        Transition(
            obs={name: rows[t] for name, rows in obs.items()},
            action=action[t],
            proposed_action=action[t],
            reward=reward[t],
            cost=cost[t],
            terminated=False,
            truncated=False,
            source=source,
            stamp=_seconds(found, t),
        )
        for t in range(len(begin))
    ]


def _gathered(
    stream: Stream | None, begin: Array, end: Array, how: Callable[[Array], Any]
) -> list[float]:
    """What a topic's numbers amount to in each step."""
    if stream is None:
        return [0.0] * len(begin)
    assert stream.values is not None
    first, last = during(stream.stamp, begin, end)
    return [
        float(how(stream.values[a:b])) if b > a else 0.0
        for a, b in zip(first.tolist(), last.tolist(), strict=True)
    ]


def _last(transition: Transition, mapping: BagMap, success: bool | None) -> Transition:
    """How an episode ends."""
    if not success:
        return replace(transition, truncated=True)
    reward = transition.reward if mapping.reward else 1.0
    return replace(transition, terminated=True, reward=reward)


def _digest(path: Path) -> str:
    """SHA-256 of the bag's files, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as stream:
                for block in iter(lambda: stream.read(1 << 20), b""):
                    digest.update(block)
    return digest.hexdigest()


def _seconds(found: Steps, t: int) -> float:
    """Stamp of an instant since the episode's beginning, s."""
    return round(int(found.stamp[t] - found.stamp[0]) / NANO, 9)


def _nano(seconds: float) -> int:
    return round(seconds * NANO)

"""Bags into episodes: rosbag2 (MCAP, SQLite), plain MCAP files, ROS 1 bags.

One bag is one episode, or several where a topic says when one is on. A mapping says which topic is
which array; observations are what was known at each instant of the policy (`alignment`), the action
is what was commanded in the period after it. `rosbags` reads them: no ROS is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import EpisodeMeta
from safe_o2o.data.formats.alignment import Steps, during, held, steps
from safe_o2o.data.formats.bag_map import ArrayMap, BagMap, plain
from safe_o2o.data.formats.bag_messages import COMPRESSED, IMAGE, VECTORS, picture, stamp_of
from safe_o2o.errors import DataError, MissingDependencyError
from safe_o2o.types import Array, Source, Transition

NANO = 1_000_000_000


@dataclass
class TopicReport:
    """What became of a topic's messages.

    Attributes:
        kind: their type.
        messages: how many there are.
        without_stamp: those whose header says no time: when they were written counts.
        out_of_order: those with a stamp older than one before.
        stale: instants at which the newest was too old.
    """

    kind: str
    messages: int = 0
    without_stamp: int = 0
    out_of_order: int = 0
    stale: int = 0


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


@dataclass
class _Stream:
    """One topic, sorted by stamp.

    Attributes:
        stamp: `[n]` ns.
        values: `[n, ...]`; None for pictures, which are decoded once it is known which.
        order: where each entry stands among the topic's messages in the file `[n]`.
    """

    stamp: Array
    values: Array | None
    order: Array


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
    with closing(_Bag(path)) as bag:
        streams = bag.streams(mapping, report, progress)
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
            transitions = _transitions(mapping, streams, found, obs, source, report)
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


def _parts(streams: Mapping[str, _Stream], mapping: BagMap) -> list[tuple[int, int]]:
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
    mapping: BagMap,
    streams: Mapping[str, _Stream],
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
    action = mapping.spec().action.from_si(target)
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
    stream: _Stream | None, begin: Array, end: Array, how: Callable[[Array], Any]
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


class _Bag:
    """An open bag.

    Raises:
        MissingDependencyError: `rosbags` is not installed.
        DataError: no such bag, or none.
    """

    def __init__(self, path: Path) -> None:
        try:
            from rosbags.highlevel import AnyReader, AnyReaderError
            from rosbags.typesys import Stores, get_typestore
        except ImportError as error:
            raise MissingDependencyError(
                "reading bags needs rosbags", todo="pip install 'safe_o2o[bags]'"
            ) from error
        self.path = path
        try:
            self._reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY))
            self._reader.open()
        except FileNotFoundError as error:
            raise DataError("no such bag", where=path, todo="check the path") from error
        except (AnyReaderError, OSError, ValueError) as error:
            raise DataError(f"is no bag, or a damaged one ({error})", where=path) from error

    def close(self) -> None:
        """Release the files."""
        self._reader.close()

    def streams(
        self,
        mapping: BagMap,
        report: ImportReport,
        progress: Callable[[int, int], None] | None,
    ) -> dict[str, _Stream]:
        """What each topic that the mapping names holds, by its use; pictures but for their stamps.

        Raises:
            DataError: see `import_bag`.
        """
        wanted = mapping.uses
        self._require(wanted, report)
        by_topic: dict[str, list[str]] = {}
        for use, (name, _) in wanted.items():
            by_topic.setdefault(name, []).append(use)
        rows: dict[str, list[tuple[int, Array | None]]] = {use: [] for use in wanted}
        chosen = [c for c in self._reader.connections if plain(c.topic) in by_topic]
        total = sum(c.msgcount for c in chosen)
        messages = self._reader.messages(connections=chosen)
        for number, (connection, written, raw) in enumerate(messages):
            name = plain(connection.topic)
            message = self._reader.deserialize(raw, connection.msgtype)
            said, told = stamp_of(message), report.topics[name]
            stamp = written if said is None else said
            before = rows[by_topic[name][0]]
            told.messages += 1
            told.without_stamp += said is None
            told.out_of_order += bool(before) and stamp < before[-1][0]
            for use in by_topic[name]:
                rows[use].append((stamp, self._vector(use, wanted[use][1], message)))
            if progress is not None:
                progress(number + 1, total)
        for use, found in rows.items():
            if not found:
                raise DataError(f"has no message on {wanted[use][0]!r}", where=self.path)
        return {use: _sorted(found) for use, found in rows.items()}

    def _require(self, wanted: Mapping[str, tuple[str, Any]], report: ImportReport) -> None:
        """Every topic is there, and can become what it is for."""
        kinds = {plain(c.topic): c.msgtype for c in self._reader.connections}
        for use, (name, entry) in wanted.items():
            if name not in kinds:
                raise DataError(
                    f"has no topic {name!r}, only {', '.join(sorted(kinds)) or 'none'}",
                    where=self.path,
                )
            pictures = isinstance(entry, ArrayMap) and entry.size is not None
            if kinds[name] not in ((IMAGE, COMPRESSED) if pictures else VECTORS):
                what = "a picture" if pictures else "a vector (pictures need a size)"
                raise DataError(
                    f"has {kinds[name]} on {name!r}, which cannot become {what} ({use})",
                    where=self.path,
                )
            report.topics[name] = TopicReport(kinds[name])

    def _vector(self, use: str, entry: Any, message: Any) -> Array | None:
        if isinstance(entry, ArrayMap) and entry.size is not None:
            return None
        names, part = (entry.names, entry.field) if entry is not None else ((use,), "position")
        try:
            return VECTORS[message.__msgtype__](message, names, part)
        except DataError as error:
            raise DataError(error.what, where=f"{self.path}, {use}") from error

    def array(self, entry: ArrayMap, stream: _Stream, rows: Array) -> Array:
        """An array of the observation at each instant `[K, ...]`."""
        if entry.size is None:
            assert stream.values is not None
            return np.asarray(stream.values[rows], np.float32)
        wanted, name = stream.order[rows], plain(entry.topic)
        needed, found = set(wanted.tolist()), {}
        chosen = [c for c in self._reader.connections if plain(c.topic) == name]
        for number, (connection, _, raw) in enumerate(self._reader.messages(connections=chosen)):
            if number in needed:
                message = self._reader.deserialize(raw, connection.msgtype)
                try:
                    found[number] = picture(message, connection.msgtype, entry.size)
                except DataError as error:
                    raise DataError(error.what, where=f"{self.path}, topic {name}") from error
        return np.stack([found[number] for number in wanted.tolist()])


def _sorted(rows: Sequence[tuple[int, Array | None]]) -> _Stream:
    stamps = np.asarray([stamp for stamp, _ in rows], np.int64)
    order = np.argsort(stamps, kind="stable")
    values = None
    if rows[0][1] is not None:
        values = np.stack([np.asarray(value) for _, value in rows])[order]
    return _Stream(stamps[order], values, order)


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

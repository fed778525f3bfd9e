"""Messages of a bag as arrays by use: rosbag2 (MCAP, SQLite), plain MCAP files, ROS 1 bags."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from safe_o2o.data.formats.bag_map import ArrayMap, BagMap, plain
from safe_o2o.data.formats.bag_messages import (
    COMPRESSED,
    IMAGE,
    VECTORS,
    OtherJointsError,
    picture,
    require_rosbags,
    stamp_of,
)
from safe_o2o.errors import DataError
from safe_o2o.types import Array

_Row = tuple[int, int, Array | None]
"""Stamp and time of writing, ns, and the vector; None for a picture."""


@dataclass
class TopicReport:
    """What became of a topic's messages.

    Attributes:
        kind: their type.
        messages: how many there are.
        without_stamp: those whose header says no time: when they were written counts.
        out_of_order: those with a stamp older than one before.
        stale: instants at which the newest was too old.
        other_joints: those that name none of the joints: another publisher's, left out.
    """

    kind: str
    messages: int = 0
    other_joints: int = 0
    without_stamp: int = 0
    out_of_order: int = 0
    stale: int = 0


@dataclass
class Stream:
    """One topic, sorted by stamp.

    Attributes:
        stamp: `[n]` ns.
        values: `[n, ...]`; None for pictures, which are decoded once it is known which.
        written: when each entry's message was written `[n]` ns, in the file's order.
        order: where each entry stands in that order `[n]`.
    """

    stamp: Array
    values: Array | None
    written: Array
    order: Array


class Bag:
    """An open bag.

    Raises:
        MissingDependencyError: `rosbags` is not installed.
        DataError: no such bag, or none.
    """

    def __init__(self, path: Path) -> None:
        require_rosbags("reading bags")
        from rosbags.highlevel import AnyReader, AnyReaderError
        from rosbags.typesys import Stores, get_typestore

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
        topics: dict[str, TopicReport],
        progress: Callable[[int, int], None] | None,
    ) -> dict[str, Stream]:
        """What each topic that the mapping names holds, by its use; pictures but for their stamps.

        Raises:
            DataError: see `import_bag`.
        """
        wanted = mapping.uses
        self._require(wanted, topics)
        by_topic: dict[str, list[str]] = {}
        for use, (name, _) in wanted.items():
            by_topic.setdefault(name, []).append(use)
        rows: dict[str, list[_Row]] = {use: [] for use in wanted}
        others: dict[str, OtherJointsError] = {}
        chosen = [c for c in self._reader.connections if plain(c.topic) in by_topic]
        total = sum(c.msgcount for c in chosen)
        messages = self._reader.messages(connections=chosen)
        for number, (connection, written, raw) in enumerate(messages):
            name = plain(connection.topic)
            message = self._reader.deserialize(raw, connection.msgtype)
            said, told = stamp_of(message), topics[name]
            stamp = written if said is None else said
            before = rows[by_topic[name][0]]
            told.messages += 1
            told.without_stamp += said is None
            told.out_of_order += bool(before) and stamp < before[-1][0]
            taken = 0
            for use in by_topic[name]:
                try:
                    vector = self._vector(use, wanted[use][1], message)
                except OtherJointsError as error:
                    others[use] = error
                else:
                    rows[use].append((stamp, written, vector))
                    taken += 1
            told.other_joints += taken == 0
            if progress is not None:
                progress(number + 1, total)
        for use, found in rows.items():
            if not found and use in others:
                raise others[use]
            if not found:
                raise DataError(f"has no message on {wanted[use][0]!r}", where=self.path)
        return {use: _sorted(found) for use, found in rows.items()}

    def _require(
        self, wanted: Mapping[str, tuple[str, Any]], topics: dict[str, TopicReport]
    ) -> None:
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
            topics[name] = TopicReport(kinds[name])

    def _vector(self, use: str, entry: Any, message: Any) -> Array | None:
        if isinstance(entry, ArrayMap) and entry.size is not None:
            return None
        names, part = (entry.names, entry.field) if entry is not None else ((use,), "position")
        try:
            return VECTORS[message.__msgtype__](message, names, part)
        except DataError as error:
            raise type(error)(error.what, where=f"{self.path}, {use}") from error

    def array(self, entry: ArrayMap, stream: Stream, rows: Array) -> Array:
        """An array of the observation at each instant `[K, ...]`."""
        if entry.size is None:
            assert stream.values is not None
            return np.asarray(stream.values[rows], np.float32)
        wanted, name = stream.order[rows], plain(entry.topic)
        needed, found = set(wanted.tolist()), {}
        chosen = [c for c in self._reader.connections if plain(c.topic) == name]
        # Only the stretch of the file that has them: a bag may hold many episodes.
        start, last = (int(stream.written[number]) for number in (wanted.min(), wanted.max()))
        skipped = int(np.searchsorted(stream.written, start))
        messages = self._reader.messages(connections=chosen, start=start, stop=last + 1)
        for number, (connection, _, raw) in enumerate(messages, skipped):
            if number in needed:
                message = self._reader.deserialize(raw, connection.msgtype)
                try:
                    found[number] = picture(message, connection.msgtype, entry.size)
                except DataError as error:
                    raise DataError(error.what, where=f"{self.path}, topic {name}") from error
        return np.stack([found[number] for number in wanted.tolist()])


def _sorted(rows: Sequence[_Row]) -> Stream:
    stamps, written = (np.asarray([row[i] for row in rows], np.int64) for i in (0, 1))
    order = np.argsort(stamps, kind="stable")
    values = None
    if rows[0][2] is not None:
        values = np.stack([np.asarray(value) for _, _, value in rows])[order]
    return Stream(stamps[order], values, written, order)

"""Messages into bags that Foxglove opens and `ros2 bag play` plays: one MCAP an episode.

A bag has what passed on the topics, as it was: also of an episode that came to no file, which is
the one that somebody will want to see. `rosbags` writes them: no ROS is needed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safe_o2o.data.formats.bag_messages import require_rosbags
from safe_o2o.errors import DataError

NANO = 1_000_000_000
VERSION = 8
"""Of the metadata: the newest that Humble reads as well."""
UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class Topic:
    """What is recorded.

    Attributes:
        name: with its namespace.
        kind: type of its messages, `sensor_msgs/msg/Image`.
        latched: each bag begins with its last message, and whoever plays it latches that again.
    """

    name: str
    kind: str
    latched: bool = False


@dataclass
class _Bag:
    """One that is being written.

    Attributes:
        writer: rosbags' own.
        connections: its handles by topic.
        about: what its metadata says of the episode.
    """

    writer: Any
    about: dict[str, str]
    connections: dict[Topic, Any] = field(default_factory=dict)


class EpisodeBags:
    """Bags of a run's episodes, each in a folder named by its time and seed.

    A bag lies in `.unfinished` until it is closed whole; what a killed process left there is moved
    beside the others, without the index that `ros2 bag reindex` and `mcap recover` make again.

    Args:
        folder: where they go; made when missing.
        before: what passed so long before an episode's first decision belongs to it, s.

    Raises:
        MissingDependencyError: `rosbags` is not installed.
    """

    def __init__(self, folder: Path, before: float = 1.0) -> None:
        require_rosbags("writing bags")
        from rosbags.typesys import Stores, get_typestore

        self.folder, self.before = folder, round(before * NANO)
        self._store = get_typestore(Stores.ROS2_JAZZY)
        self._recent: deque[tuple[int, Topic, bytes]] = deque()
        self._latched: dict[Topic, bytes] = {}
        self._open: tuple[int, _Bag] | None = None
        self._ended: dict[int, _Bag] = {}
        (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
        self.found = [self._move(path) for path in sorted((folder / UNFINISHED).iterdir())]

    @property
    def current(self) -> int | None:
        """Number of the episode whose bag is open."""
        return None if self._open is None else self._open[0]

    def knows(self, kind: str) -> bool:
        """Whether messages of a type can be written: the standard ones can."""
        return kind in self._store.types

    def receive(self, topic: Topic, data: bytes, stamp: int) -> None:
        """Take a message.

        Args:
            topic: where it passed.
            data: CDR, as ROS serializes it.
            stamp: when, ns since the epoch.

        Raises:
            DataError: it could not be written; the bag is given up, the next episode has another.
        """
        if topic.latched:
            self._latched[topic] = data
        else:  # also while a bag is open: the next episode may begin before this one was ended
            self._recent.append((stamp, topic, data))
            while stamp - self._recent[0][0] > self.before:
                self._recent.popleft()
        if self._open is not None:
            self._write(self._open[1], topic, data, stamp)

    def begin(self, number: int, seed: int, stamp: int) -> None:
        """An episode's first decision was made; one that was never ended ends here.

        Args:
            number: which one, until it has a name.
            seed: of its layout.
            stamp: now, ns since the epoch.

        Raises:
            DataError: no bag can be begun.
        """
        self.end()
        from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

        when = time.strftime("%Y%m%dT%H%M%S", time.gmtime(stamp / NANO))
        name = f"{when}.{stamp % NANO // 1_000_000:03d}Z_seed_{seed}"
        writer = Writer(
            self.folder / UNFINISHED / name, version=VERSION, storage_plugin=StoragePlugin.MCAP
        )
        # Of chunks inside the file, which every reader of MCAP undoes by itself.
        writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        try:
            writer.open()
        except OSError as error:
            raise DataError(f"cannot be written ({error})", where=writer.path) from error
        bag = _Bag(writer, {"seed": str(seed), "episode": ""})
        self._open = (number, bag)
        first = self._recent[0][0] if self._recent else stamp
        for topic, data in self._latched.items():
            self._write(bag, topic, data, first)
        for at, topic, data in self._recent:
            self._write(bag, topic, data, at)

    def end(self) -> None:
        """The episode is over: its bag waits for `name`; what comes now belongs to the next."""
        if self._open is not None:
            number, bag = self._open
            self._open = None
            self._ended[number] = bag

    def name(self, number: int, episode: str) -> Path | None:
        """Close an episode's bag, and say in it which file the episode became; `""` is none.

        Returns:
            Its folder; None when there is no such bag.

        Raises:
            DataError: it could not be written.
        """
        if self._open is not None and self._open[0] == number:
            self.end()
        bag = self._ended.pop(number, None)
        return None if bag is None else self._finish(bag, {"episode": episode})

    def close(self) -> None:
        """Close every bag, as of an episode that came to no file."""
        self.end()
        for number in list(self._ended):
            with suppress(DataError):
                self.name(number, "")

    def _write(self, bag: _Bag, topic: Topic, data: bytes, stamp: int) -> None:
        try:
            if topic not in bag.connections:
                bag.connections[topic] = bag.writer.add_connection(
                    topic.name,
                    topic.kind,
                    typestore=self._store,
                    offered_qos_profiles=[_quality(topic.latched)],
                )
            bag.writer.write(bag.connections[topic], stamp, data)
        except OSError as error:
            self._give_up(bag, error)

    def _finish(self, bag: _Bag, about: Mapping[str, str]) -> Path:
        try:
            for key, value in {**bag.about, **about}.items():
                bag.writer.set_custom_data(key, value)
            bag.writer.close()
        except OSError as error:
            self._give_up(bag, error)
        return self._move(bag.writer.path)

    def _give_up(self, bag: _Bag, error: OSError) -> None:
        if self._open is not None and self._open[1] is bag:
            self._open = None
        with suppress(OSError):
            bag.writer.abort()
        raise DataError(f"cannot be written any further ({error})", where=bag.writer.path)

    def _move(self, path: Path) -> Path:
        path.rename(self.folder / path.name)
        return self.folder / path.name


def _quality(latched: bool) -> Any:
    """What `ros2 bag play` publishes with."""
    from rosbags.interfaces import (
        Qos,
        QosDurability,
        QosHistory,
        QosLiveliness,
        QosReliability,
        QosTime,
    )

    ever = QosTime(9223372036, 854775807)
    return Qos(
        QosHistory.KEEP_LAST,
        1 if latched else 50,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        ever,
        ever,
        QosLiveliness.AUTOMATIC,
        ever,
        False,
    )

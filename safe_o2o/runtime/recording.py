"""A recorded episode as something to be moved along once more, and how near that came."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from safe_o2o.data.episode import Episode
from safe_o2o.errors import DataError
from safe_o2o.types import Array

POSE = "tcp_pose"


class Recording:
    """The executed actions of an episode of T steps, and the way that the tool went.

    Args:
        path: an episode file whose observations have the tool's pose.

    Attributes:
        episode: the episode.
        actions: `[T, A]` in [-1, 1].
        way: positions of the tool before each step and after the last `[T + 1, 3]`, m.

    Raises:
        DataError: it is missing or damaged, or has no such pose.
    """

    def __init__(self, path: str | Path) -> None:
        self.episode = Episode(path)
        if POSE not in self.episode.spec.observation.arrays:
            raise DataError(f"has no {POSE}: nothing says where its tool was", where=path)
        self.actions: Array = np.array(self.episode.array("action"))
        self.way: Array = np.array(self.episode.array(f"obs.{POSE}"))[:, :3]

    def __len__(self) -> int:
        return len(self.actions)

    def gap(self, step: int, pose: Array) -> float:
        """Distance of a tool with this pose `[5]` from where it was before a step, m."""
        return float(np.linalg.norm(np.asarray(pose)[:3] - self.way[step]))

    def gaps(self, replay: Recording) -> Array:
        """Distance between two ways, step by step, as far as both go `[K]`, m."""
        steps = min(len(self.way), len(replay.way))
        return np.asarray(np.linalg.norm(self.way[:steps] - replay.way[:steps], axis=1))

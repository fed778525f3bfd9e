"""Mean, spread and range of actions and vector observations, in one pass over datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from safe_o2o.data.dataset import Dataset
from safe_o2o.errors import DataError
from safe_o2o.types import Array


@dataclass(frozen=True)
class Moments:
    """Statistics of one vector array with D entries; population variance.

    Attributes:
        count: number of rows behind it.
        mean: `[D]`.
        std: `[D]`, >= 0; 0 where an entry never changes.
        low: smallest value `[D]`.
        high: largest value `[D]`.
    """

    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Moments:
        """Inverse of `dataclasses.asdict`, through JSON."""
        numbers = {key: tuple(map(float, data[key])) for key in ("mean", "std", "low", "high")}
        return cls(count=int(data["count"]), **numbers)


class _Running:
    """Chan, Golub and LeVeque 1979: exact merging of means and squared deviations, in float64."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, rows: Array) -> None:
        rows = np.asarray(rows, np.float64)
        count, mean = len(rows), rows.mean(0)
        squares = ((rows - mean) ** 2).sum(0)
        low, high = rows.min(0), rows.max(0)
        if self.count == 0:
            self.count, self.mean, self.squares = count, mean, squares
            self.low, self.high = low, high
            return
        total, delta = self.count + count, mean - self.mean
        self.squares = self.squares + squares + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.count = total

    def result(self) -> Moments:
        std = np.sqrt(self.squares / self.count)
        columns = (self.mean, std, self.low, self.high)
        return Moments(self.count, *(tuple(map(float, column)) for column in columns))


@dataclass(frozen=True)
class Statistics:
    """`Moments` by array name: each vector observation (no prefix), `action`, `reward`, `return`.

    The rows of `return` are episodes, D = 1; those of the others are records and steps.
    """

    arrays: Mapping[str, Moments]

    @classmethod
    def compute(
        cls,
        datasets: Dataset | Iterable[Dataset],
        progress: Callable[[int, int], None] | None = None,
    ) -> Statistics:
        """One pass over all episodes, reading vectors and actions only.

        Args:
            datasets: one or more datasets of one spec.
            progress: called with (episodes done, episodes in all).

        Raises:
            DataError: there is no episode, or one is damaged.
        """
        chosen = [datasets] if isinstance(datasets, Dataset) else list(datasets)
        total, done = sum(len(dataset) for dataset in chosen), 0
        if total == 0:
            where = chosen[0].directory if chosen else "statistics"
            raise DataError("has no episode", where=where, todo="collect some episodes first")
        names = {name: f"obs.{name}" for name in chosen[0].spec.observation.vector_names}
        names["action"] = "action"
        running = {name: _Running() for name in (*names, "reward", "return")}
        for dataset in chosen:
            for episode in dataset:
                for name, array in names.items():
                    running[name].add(episode.array(array))
                reward = np.asarray(episode.array("reward"), np.float64)[:, None]
                running["reward"].add(reward)
                running["return"].add(reward.sum(0, keepdims=True))
                done += 1
                if progress is not None:
                    progress(done, total)
        return cls({name: moments.result() for name, moments in running.items()})

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {name: asdict(moments) for name, moments in self.arrays.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Statistics:
        """Inverse of `to_json`."""
        return cls({name: Moments.from_json(entry) for name, entry in data.items()})

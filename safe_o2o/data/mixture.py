"""Batches from several replays at fixed shares: half offline, half online, whatever their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safe_o2o.data.batch import Batch
from safe_o2o.data.replay import Replay
from safe_o2o.errors import ConfigError, DataError
from safe_o2o.spaces import Spec


class Mixture:
    """Replays behind the same `sample`; `Index.origin` says which one a row came from.

    Rows come in the order of the replays. A replay without episodes hands its share to the others
    in proportion to theirs, so that a run may start before the first online episode.

    Args:
        replays: replays by name, all of one kind and spec; `origin` counts them in this order.
        fractions: share of each name, > 0; they are normalised to sum 1.
        batch_size: rows B of a batch.

    Raises:
        ConfigError: names differ, a share is not positive, or the replays are of different kinds.
        SpecMismatchError: two replays differ in spec.
    """

    def __init__(
        self, replays: Mapping[str, Replay], fractions: Mapping[str, float], batch_size: int
    ) -> None:
        if not replays or set(replays) != set(fractions):
            raise ConfigError(
                f"names {sorted(fractions)}, the replays are {sorted(replays)}", where="fractions"
            )
        if not all(0.0 < share < float("inf") for share in fractions.values()):
            raise ConfigError(f"must be positive, got {dict(fractions)}", where="fractions")
        if batch_size < 1:
            raise ConfigError(f"must be at least 1, got {batch_size}", where="batch_size")
        self.replays = dict(replays)
        self.fractions = {name: float(fractions[name]) for name in self.replays}
        self.batch_size = batch_size
        (first, head), *others = self.replays.items()
        for name, replay in others:
            head.spec.require_same(replay.spec, mine=f"replay {first}", theirs=f"replay {name}")
            same = type(replay) is type(head) and replay.allocate(1).reward.shape == (
                head.allocate(1).reward.shape
            )
            if not same:
                raise ConfigError(
                    f"{first!r} and {name!r} give batches of other shapes", where="replays"
                )
        self.wants = head.wants

    @property
    def spec(self) -> Spec:
        """Observation and action spec of every batch."""
        return next(iter(self.replays.values())).spec

    @property
    def is_empty(self) -> bool:
        """True while no replay has anything to draw."""
        return all(replay.is_empty for replay in self.replays.values())

    def counts(self, batch_size: int) -> dict[str, int]:
        """Rows of each replay in a batch, by largest remainder among those that have episodes.

        Raises:
            DataError: no replay has an episode.
        """
        shares = {
            name: 0.0 if self.replays[name].is_empty else share
            for name, share in self.fractions.items()
        }
        total = sum(shares.values())
        if total == 0.0:
            raise DataError("no episode to draw from yet", todo="collect some episodes first")
        exact = {name: batch_size * share / total for name, share in shares.items()}
        rows = {name: int(value) for name, value in exact.items()}
        by_remainder = sorted(exact, key=lambda name: rows[name] - exact[name])
        for name in by_remainder[: batch_size - sum(rows.values())]:
            rows[name] += 1
        return rows

    def refresh(self) -> int:
        """Admit episodes committed meanwhile, in every replay."""
        return sum(replay.refresh() for replay in self.replays.values())

    def sample(self, batch_size: int | None = None, rows: slice | None = None) -> Batch:
        """Draw a batch; see `Replay.sample`."""
        size = self.batch_size if batch_size is None else batch_size
        rows = slice(0, size) if rows is None else rows
        counts = self.counts(size)
        batch = next(iter(self.replays.values())).allocate(rows.stop - rows.start)
        first = 0
        for origin, (name, replay) in enumerate(self.replays.items()):
            if counts[name]:
                start, stop = (
                    min(max(edge - first, 0), counts[name]) for edge in (rows.start, rows.stop)
                )
                into = max(first - rows.start, 0)
                replay.fill(batch, into, counts[name], origin, slice(start, stop))
                first += counts[name]
        return batch

    def state_dict(self) -> dict[str, Any]:
        """States of the replays by name, JSON-ready."""
        return {name: replay.state_dict() for name, replay in self.replays.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`; see `Replay.load_state_dict`.

        Raises:
            DataError: other replay names, or episodes that are gone.
        """
        if set(state) != set(self.replays):
            raise DataError(
                f"was saved with replays {sorted(state)}, not {sorted(self.replays)}",
                where="replay state",
            )
        for name, replay in self.replays.items():
            replay.load_state_dict(state[name])

"""From streams with stamps of their own to the steps of a policy: what was known, and how old.

Sample and hold by the stamps in the messages, never by the order they were written in. What is
older than it may be is no observation: the step is lost and counted, not filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from safe_o2o.types import Array


@dataclass(frozen=True)
class Steps:
    """What is known at the instants of a policy.

    Attributes:
        stamp: instants at which every stream is young enough `[K]`, ns.
        rows: entry of each stream at each of them `[K]`, by name.
        gaps: `(k, n)`: n instants were lost right before the k-th.
        stale: instants that a stream was too old at, by name.
    """

    stamp: Array
    rows: dict[str, Array]
    gaps: list[tuple[int, int]]
    stale: dict[str, int]


def held(stamps: Array, at: Array) -> Array:
    """Newest entry of a sorted stream `[n]` that is not younger than each instant `[K]`; -1: none.

    Of equal stamps the one that was written last.
    """
    return np.asarray(np.searchsorted(stamps, at, side="right") - 1)


def steps(streams: Mapping[str, Array], period: int, max_age: int, start: int, stop: int) -> Steps:
    """The instants of a policy between two moments.

    Args:
        streams: sorted stamps `[n]` of each, ns.
        period: of the policy, ns.
        max_age: oldest that an entry may be, ns.
        start: first moment; the first instant is when every stream has begun.
        stop: last moment; the last instant is before the first stream ends for good.
    """
    begun = max([start, *(int(stamps[0]) for stamps in streams.values())])
    ends = min([stop, *(int(stamps[-1]) + max_age for stamps in streams.values())])
    instants = np.arange(begun, ends + 1, period, dtype=np.int64)
    rows = {name: held(stamps, instants) for name, stamps in streams.items()}
    fresh = {
        name: (row >= 0) & (instants - streams[name][row] <= max_age) for name, row in rows.items()
    }
    whole = np.logical_and.reduce([np.ones(len(instants), bool), *fresh.values()])
    kept = np.flatnonzero(whole)
    lost = np.diff(kept) - 1
    return Steps(
        stamp=instants[kept],
        rows={name: row[kept] for name, row in rows.items()},
        gaps=[(int(k) + 1, int(lost[k])) for k in np.flatnonzero(lost)],
        stale={name: int((~good).sum()) for name, good in fresh.items()},
    )


def during(stamps: Array, begin: Array, end: Array) -> tuple[Array, Array]:
    """Entries `first..last-1` of a sorted stream with begin < stamp <= end, `[K]` each."""
    return (
        np.searchsorted(stamps, begin, side="right"),
        np.searchsorted(stamps, end, side="right"),
    )

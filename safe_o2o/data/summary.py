"""One episode in a handful of numbers: what evaluation counts, as JSON or from an episode file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from safe_o2o.data.dataset import episode_index
from safe_o2o.data.episode import NO_GATE, Episode, EpisodeMeta
from safe_o2o.types import STALLED, GateState, Verdict


@dataclass(frozen=True)
class EpisodeSummary:
    """What happened in one episode.

    Attributes:
        index: number of the episode in its run or dataset.
        seed: seed of the reset.
        task: catalogue name of the task.
        variant: scene variant.
        behavior: who acted.
        return_: undiscounted sum of rewards.
        cost: undiscounted sum of costs.
        length: policy steps T.
        success: the task was solved.
        terminated: it ended by itself, not by the clock.
        verdicts: number of steps by verdict, keys `pass`, `corrected`, `stopped`.
        reasons: number of steps by the filter's reason, passed steps left out.
        margin: smallest filter margin of the episode.
        gate: number of steps by what the reachability gate did, keys `pass`, `shape`, `recover`,
            `brake`; empty without one.
        stalled: it was given up because the gate let nothing pass that made progress.
        timings: seconds by stage, one number a step; not compared, since no two runs agree.
    """

    index: int
    seed: int
    task: str
    variant: str
    behavior: str
    return_: float
    cost: float
    length: int
    success: bool
    terminated: bool
    verdicts: Mapping[str, int]
    reasons: Mapping[str, int]
    margin: float
    gate: Mapping[str, int] = field(default_factory=dict)
    stalled: bool = False
    timings: Mapping[str, Sequence[float]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def violation(self) -> bool:
        """Whether any step had a cost."""
        return self.cost > 0

    @classmethod
    def from_columns(
        cls,
        index: int,
        meta: EpisodeMeta,
        *,
        reward: Sequence[float],
        cost: Sequence[float],
        verdict: Sequence[int],
        reason: Sequence[str],
        margin: Sequence[float],
        gate: Sequence[int],
        terminated: bool,
        success: bool,
        timings: Mapping[str, Sequence[float]] | None = None,
    ) -> EpisodeSummary:
        """Sum up columns of one entry a step, rounded to float32 first as the file has them."""
        counts = Counter(int(entry) for entry in verdict)
        states = Counter(int(entry) for entry in gate if entry != NO_GATE)
        return cls(
            index=index,
            seed=int(meta.seed),
            task=meta.task,
            variant=meta.variant,
            behavior=meta.behavior,
            return_=float(np.asarray(reward, np.float32).sum(dtype=np.float64)),
            cost=float(np.asarray(cost, np.float32).sum(dtype=np.float64)),
            length=len(reward),
            success=success,
            terminated=terminated,
            verdicts={kind.name.lower(): counts[kind] for kind in Verdict},
            reasons=dict(sorted(Counter(entry for entry in reason if entry).items())),
            margin=float(np.asarray(margin, np.float32).min()),
            gate={kind.name.lower(): states[kind] for kind in GateState} if states else {},
            stalled=reason[-1] == STALLED,
            timings={name: tuple(values) for name, values in (timings or {}).items()},
        )

    @classmethod
    def from_episode(cls, episode: Episode) -> EpisodeSummary:
        """The summary of a committed episode; equal to the one its rollout returned."""
        columns = {
            name: episode.array(name).tolist() for name in ("reward", "cost", "verdict", "margin")
        }
        return cls.from_columns(
            episode_index(episode.path.name) or 0,
            episode.meta,
            reason=episode.reasons,
            gate=episode.gate.tolist(),
            terminated=bool(episode.array("terminated")[-1]),
            success=episode.success,
            **columns,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready description with `violation`, without timings (pooled elsewhere)."""
        out = asdict(self)
        del out["timings"]
        return {**out, "violation": self.violation}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EpisodeSummary:
        """Inverse of `to_json`, timings apart."""
        return cls(**{key: value for key, value in data.items() if key != "violation"})

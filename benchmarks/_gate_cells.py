"""What episodes say about a gate: who was alarmed, in time or not, how well each score tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from safe_o2o.data.episode import Episode
from safe_o2o.runtime.gate_calibration import Trace, largest
from safe_o2o.safety.calibration import RankScore, false_alarm_rank, order_statistic
from safe_o2o.safety.gate_file import GateFile
from safe_o2o.types import Array, GateState

COMBINED = "combined"
"""The score that is calibrated: the largest rank."""


@dataclass(frozen=True)
class Alarm:
    """A calibrated gate's alarm on episodes that nothing intervened in.

    Attributes:
        rank: the combined score.
        theta: alarm above this.
        stop_ticks: steps a stop takes.
    """

    rank: RankScore
    theta: float
    stop_ticks: int

    @classmethod
    def of(cls, gate: GateFile) -> Alarm:
        """From what lies beside a bundle."""
        facts = gate.calibration
        return cls(RankScore.of(facts), float(facts["theta"]), int(facts["asked"]["stop_ticks"]))

    def maxima(self, trace: Trace) -> dict[str, float]:
        """The largest of each score, and of the combined one, while a stop was still in time."""
        columns = trace.up_to(self.stop_ticks)
        found = {name: float(column.max(initial=-np.inf)) for name, column in columns.items()}
        return {**found, COMBINED: largest(self.rank, columns)}


def judged(alarm: Alarm, traces: Sequence[Trace]) -> dict[str, Any]:
    """Counts and maxima of a cell without a gate, JSON-ready."""
    safe = [alarm.maxima(entry) for entry in traces if entry.violated_at is None]
    violating = [alarm.maxima(entry) for entry in traces if entry.violated_at is not None]
    return {
        "safe": len(safe),
        "alarmed": sum(entry[COMBINED] > alarm.theta for entry in safe),
        "violating": len(violating),
        "timely": sum(entry[COMBINED] > alarm.theta for entry in violating),
        "safe_maxima": _columns(safe),
        "violating_maxima": _columns(violating),
    }


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float | None]]:
    names = rows[0] if rows else {}
    return {name: [row[name] if np.isfinite(row[name]) else None for row in rows] for name in names}


def auroc(violating: Sequence[float | None], safe: Sequence[float | None]) -> float:
    """P(a violating episode scores above a safe one); NaN without one of either.

    A violation before anything could be scored (None) scores below everything.
    """
    above = np.array([-np.inf if x is None else x for x in violating])
    below = np.array([-np.inf if x is None else x for x in safe])
    if not (len(above) and len(below)):
        return float("nan")
    ranks = stats.rankdata(np.r_[above, below])[: len(above)]
    return float((ranks.sum() - len(above) * (len(above) + 1) / 2) / (len(above) * len(below)))


def jerkiness(episode: Episode) -> float:
    """Sum over an episode of |a_t - a_(t-1)| of the executed actions, all entries."""
    return float(np.abs(np.diff(np.asarray(episode.array("action"), np.float64), axis=0)).sum())


def driven(episodes: Sequence[Episode]) -> dict[str, Any]:
    """What became of the episodes of a cell, JSON-ready; one entry an episode."""
    return {
        "n": len(episodes),
        "success": [bool(e.success) for e in episodes],
        "violation": [e.violation for e in episodes],
        "stalled": [e.reasons[-1] == "gate_stalled" for e in episodes],
        "intervened": [bool(np.isin(e.gate, INTERVENTIONS).any()) for e in episodes],
        "steps": [len(e) for e in episodes],
        "change": [jerkiness(e) for e in episodes],
    }


INTERVENTIONS = [int(state) for state in GateState if state is not GateState.PASS]


def redrawn(scores: Array, n: int, alpha: float, draws: int, seed: int) -> list[float]:
    """False-alarm rate of thresholds from n of the scores on all the others, one a draw."""
    generator = np.random.default_rng(seed)
    k, found = false_alarm_rank(n, alpha), []
    for _ in range(draws):
        mixed = generator.permutation(scores)
        found.append(float((mixed[n:] > order_statistic(mixed[:n], k)).mean()))
    return found


def ratio_bound(
    with_gate: Sequence[bool], without: Sequence[bool], seed: int = 0, draws: int = 10_000
) -> tuple[float, float]:
    """Violations with a gate over those without, and its upper 95 % bound: a paired bootstrap."""
    pairs = np.stack([np.asarray(with_gate, float), np.asarray(without, float)], 1)
    if not pairs[:, 1].sum():
        return float("nan"), float("nan")
    rows = np.random.default_rng(seed).integers(len(pairs), size=(draws, len(pairs)))
    sums = pairs[rows].sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = sums[:, 0] / sums[:, 1]
    value = float(pairs[:, 0].sum() / pairs[:, 1].sum())
    return value, float(np.nanquantile(ratios, 0.975))

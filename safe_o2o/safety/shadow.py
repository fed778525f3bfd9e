"""What the filter would have done to a policy that may not move the arm yet.

In shadow mode everything runs and nothing is sent. The report says how often and how much the
filter would have stepped in, how far its commands lie from those of whoever moves the arm, and how
long a tick took. It says what is missing for a promotion; it promotes nobody: a person arms.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import ceil, inf, isfinite, log
from typing import Any

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.intervals import wilson
from safe_o2o.safety.guards import joint_vector
from safe_o2o.safety.supervisor import Mode
from safe_o2o.types import Array, Decision, Verdict

REASONS = 64
"""Reasons that are counted apart; what comes later is "other": the report's size is bounded."""
CLIP_EDGES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""Edges of the clip histogram, rad."""


class Quantiles:
    """Quantiles of any number of values in bounded memory: bins that are 1 % wide.

    An answer is the upper edge of its bin: never too small, and too large by 1 % at most. What is
    not a number counts as infinite.

    Args:
        lowest: values up to this share one bin.
        highest: and so do values beyond this.
    """

    def __init__(self, lowest: float, highest: float) -> None:
        self._lowest = lowest
        self._counts = np.zeros(ceil(log(highest / lowest) / log(1.01)) + 2, np.int64)
        self.n, self.largest = 0, 0.0

    def add(self, value: float) -> None:
        """One more value, >= 0."""
        value = float(value) if value >= 0.0 else inf
        last = len(self._counts) - 1
        place = 0
        if value > self._lowest:
            place = ceil(log(value / self._lowest) / log(1.01)) if value < inf else last
        self._counts[min(place, last)] += 1
        self.n += 1
        self.largest = max(self.largest, value)

    def at(self, share: float) -> float:
        """The value that this share of all lies below or at; NaN without any."""
        if not self.n:
            return float("nan")
        wanted = ceil(share * self.n - 1e-9)
        place = int(np.searchsorted(np.cumsum(self._counts), max(wanted, 1)))
        if place >= len(self._counts) - 1:
            return self.largest
        return float(min(self._lowest * 1.01**place, self.largest))


@dataclass(frozen=True)
class PromotionCriteria:
    """What a policy has to show in shadow mode.

    Attributes:
        max_intervention_rate: the upper end of the rate's 95 % interval must not exceed it. Ticks
            follow from one another, so the interval is narrower than the truth: ask for many.
        max_latency_p99: of a tick, s.
        min_ticks: ticks with a proposal.
        max_disagreement_p95: from the other controller, rad; None where there is none.

    Raises:
        ConfigError: a number is out of range.
    """

    max_intervention_rate: float = 0.05
    max_latency_p99: float = 0.005
    min_ticks: int = 10_000
    max_disagreement_p95: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_intervention_rate <= 1.0:
            raise ConfigError(
                f"must lie in 0..1, got {self.max_intervention_rate}", where="max_intervention_rate"
            )
        if not 0.0 < self.max_latency_p99 < inf:
            raise ConfigError(
                f"must be positive, got {self.max_latency_p99}", where="max_latency_p99"
            )
        if not 1 <= self.min_ticks < inf:
            raise ConfigError(f"must be at least 1, got {self.min_ticks}", where="min_ticks")
        if self.max_disagreement_p95 is not None and not 0.0 < self.max_disagreement_p95 < inf:
            raise ConfigError(
                f"must be positive, got {self.max_disagreement_p95}", where="max_disagreement_p95"
            )


class ShadowReport:
    """Counts over the ticks in SHADOW; ticks in another mode are counted and no more.

    Args:
        clip_edges: edges of the clip histogram, rad, rising. k edges make k + 1 bins; a value that
            lies on an edge belongs to the bin above it.

    Raises:
        ConfigError: the edges are not positive and rising.
    """

    def __init__(self, clip_edges: tuple[float, ...] = CLIP_EDGES) -> None:
        edges = np.asarray(clip_edges, np.float64)
        if not (edges.ndim == 1 and len(edges) and edges[0] > 0.0 and edges[-1] < inf):
            raise ConfigError(f"must be positive and finite, got {clip_edges}", where="clip_edges")
        if not (np.diff(edges) > 0.0).all():
            raise ConfigError(f"must rise, got {clip_edges}", where="clip_edges")
        self._edges = edges
        self._clips = np.zeros(len(edges) + 1, np.int64)
        self._modes: Counter[str] = Counter()
        self._verdicts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._ticks = self._proposed = self._interventions = 0
        self._latency = Quantiles(1e-6, 100.0)
        self._disagreement = Quantiles(1e-6, 100.0)

    def add(
        self,
        target: Any,
        decision: Decision,
        mode: Mode,
        seconds: float,
        other: Any = None,
    ) -> None:
        """One tick; never raises.

        Args:
            target: where the policy wanted the joints at the end of this tick `[n]`, rad; None
                where it wanted nothing. Such a tick is no intervention.
            decision: what the filter decided.
            mode: the supervisor's mode.
            seconds: how long the tick took, s.
            other: what somebody else commanded in this tick `[n]`, rad; None where nobody did.
        """
        self._modes[mode.name] += 1
        if mode is not Mode.SHADOW:
            return
        self._ticks += 1
        self._latency.add(seconds)
        self._verdicts[decision.verdict.name] += 1
        if decision.reason:
            known = decision.reason in self._reasons or len(self._reasons) < REASONS
            self._reasons[decision.reason if known else "other"] += 1
        certified = np.asarray(decision.command.q)
        if target is not None:
            self._proposed += 1
            self._interventions += decision.verdict is not Verdict.PASS
            clip = _distance(target, certified)
            self._clips[np.searchsorted(self._edges, clip, side="right")] += 1
        if other is not None:
            self._disagreement.add(_distance(other, certified))

    def report(self) -> dict[str, Any]:
        """All figures, JSON-ready; None where there is no finite one."""
        count, n = self._interventions, self._proposed
        return {
            "ticks": self._ticks,
            "proposed": n,
            "modes": dict(self._modes),
            "interventions": count,
            "intervention_rate": count / n if n else None,
            "intervention_interval": list(wilson(count, n)),
            "verdicts": dict(self._verdicts),
            "reasons": dict(self._reasons.most_common()),
            "clip_edges_rad": self._edges.tolist(),
            "clip_counts": self._clips.tolist(),
            "disagreement_rad": _summary(self._disagreement, p50=0.5, p95=0.95),
            "latency_s": _summary(self._latency, p50=0.5, p99=0.99),
        }

    def verdict(self, criteria: PromotionCriteria) -> list[str]:
        """What is missing for a promotion, one line each; empty where nothing is."""
        missing = []
        if not self._proposed >= criteria.min_ticks:
            missing.append(f"{self._proposed} ticks with a proposal, needs {criteria.min_ticks}")
        high = wilson(self._interventions, self._proposed)[1]
        if not high <= criteria.max_intervention_rate:
            missing.append(
                f"intervention rate may be {high:.3g}, allows {criteria.max_intervention_rate:.3g}"
            )
        slow = self._latency.at(0.99)
        if not slow <= criteria.max_latency_p99:
            missing.append(f"latency p99 is {slow:.3g} s, allows {criteria.max_latency_p99:.3g} s")
        allowed = criteria.max_disagreement_p95
        if allowed is not None:
            apart = self._disagreement.at(0.95)
            if not apart <= allowed:
                missing.append(f"disagreement p95 is {apart:.3g} rad, allows {allowed:.3g} rad")
        return missing


def _distance(wanted: Any, certified: Array) -> float:
    """Largest distance of any joint, rad; infinite where the two cannot be compared."""
    n = certified.size
    one, two = joint_vector(wanted, n), joint_vector(certified, n)
    if one is None or two is None or not n:
        return inf
    return 2.0 * float(np.abs(0.5 * one - 0.5 * two).max())


def _summary(values: Quantiles, **shares: float) -> dict[str, float | int | None]:
    found = {name: values.at(share) for name, share in shares.items()}
    found["max"] = values.largest if values.n else inf
    out: dict[str, float | int | None] = {"n": values.n}
    return out | {name: value if isfinite(value) else None for name, value in found.items()}

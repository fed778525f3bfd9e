"""Conformal thresholds for an alarm: order statistics of episode maxima, and what they promise.

The unit is the episode: an alarm that is wrong in 5 % of the ticks is wrong in 98 % of the episodes
of 80 ticks. A threshold is an order statistic of the largest score of each of n safe episodes that
nothing was trained on; if the next safe episode is exchangeable with them, it alarms with at most
the nominal probability (Vovk, Gammerman, Shafer 2005; `specs/reachability_gate.md` 6.5). How many
violations an alarm finds is measured, never promised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, inf, isfinite
from typing import Any

import numpy as np
from scipy import stats

from safe_o2o.errors import ConfigError, SafeO2OError
from safe_o2o.types import Array

MIN_FIT = 100
"""Episodes that the rank scores need: fewer make steps of more than a percent."""
NOMINAL = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
"""Rates of false alarms at which an alarm is asked to be reliable."""
_BEYOND = 1e-3
"""What a score gains per unit above all that were seen, so that two such scores never tie."""
_EPS = 1e-9


class CalibrationError(SafeO2OError):
    """There is no threshold with the wanted property, or too little to find it with."""


def false_alarm_rank(n: int, alpha: float) -> int:
    """Which of n sorted scores of safe episodes keeps false alarms at `alpha`, counted from 1.

    P(next safe episode > S_(k)) <= alpha for k = ceil((n + 1)(1 - alpha)), over draws of all n + 1.

    Raises:
        CalibrationError: that is more than n: `alpha` cannot be had from so few.
    """
    _require_share("alpha", alpha)
    k = ceil((n + 1) * (1.0 - alpha) - _EPS)
    if k > n:
        least = ceil((1.0 - alpha) / alpha - _EPS)
        raise CalibrationError(
            f"{n} safe episodes are too few for alpha {alpha:g}",
            todo=f"record at least {least}, or accept more false alarms",
        )
    return max(k, 1)


WIDEST = 0.5
"""Share of safe episodes that a gate may touch, at most; asked for by a larger alpha alone."""


def caution_rate(alpha: float) -> float:
    """Share of safe episodes that a gate may touch before it alarms: four times that of alarms."""
    return max(alpha, min(4.0 * alpha, WIDEST))


def pac_rank(n: int, alpha: float, delta: float) -> int:
    """The smallest k whose rate is at most `alpha` with confidence 1 - `delta` over the n drawn.

    The rate behind S_(k) is Beta(n + 1 - k, k): P(rate > alpha) = P(Bin(n, 1 - alpha) >= k).

    Raises:
        CalibrationError: no k of n has it.
    """
    _require_share("alpha", alpha)
    _require_share("delta", delta)
    # sf(k - 1) = P(Bin >= k), falling in k.
    tail = stats.binom.sf(np.arange(n), n, 1.0 - alpha)
    good = np.flatnonzero(tail <= delta)
    if not len(good):
        least = ceil(np.log(delta) / np.log1p(-alpha) - _EPS)
        raise CalibrationError(
            f"{n} safe episodes cannot show a rate of {alpha:g} with confidence {1.0 - delta:g}",
            todo=f"record at least {least}",
        )
    return int(good[0]) + 1


def miss_rank(n: int, beta: float) -> int:
    """Which of n sorted scores of violating episodes keeps late or missed alarms at `beta`.

    Raises:
        CalibrationError: too few violating episodes.
    """
    _require_share("beta", beta)
    k = floor((n + 1) * beta + _EPS)
    if k < 1:
        raise CalibrationError(
            f"{n} violating episodes are too few for beta {beta:g}",
            todo=f"record at least {ceil(1.0 / beta - 1.0 - _EPS)}",
        )
    return min(k, n)


def rate_interval(n: int, k: int, level: float = 0.95) -> tuple[float, float]:
    """Where the rate of false alarms behind S_(k) lies, over draws of the n: Beta quantiles."""
    tail = (1.0 - level) / 2.0
    low, high = stats.beta.ppf([tail, 1.0 - tail], n + 1 - k, k)
    return float(low), float(high)


def alarms_expected(n: int, k: int, m: int, level: float = 0.975) -> int:
    """So many false alarms among m new safe episodes that only 1 - `level` of draws exceed it.

    Beta-binomial: it has both the luck of the n and that of the m.
    """
    return int(stats.betabinom.ppf(level, m, n + 1 - k, k))


def reliability(safe: Sequence[float] | Array) -> list[tuple[float, int, int]]:
    """Nominal rate, alarms, and episodes judged: each half at the threshold of the other half.

    Args:
        safe: largest combined score of each safe episode, in the order they were recorded `[n]`.
    """
    values = np.asarray(safe, np.float64)
    halves = values[::2], values[1::2]
    found = []
    for alpha in NOMINAL:
        alarmed = judged = 0
        for mine, other in (halves, halves[::-1]):
            try:
                limit = order_statistic(mine, false_alarm_rank(len(mine), alpha))
            except CalibrationError:
                continue  # too few for this rate
            alarmed += int((other > limit).sum())
            judged += len(other)
        if judged:
            found.append((alpha, alarmed, judged))
    return found


def order_statistic(scores: Sequence[float] | Array, k: int) -> float:
    """The k-th smallest, counted from 1.

    Raises:
        CalibrationError: a score is not a number: nothing can be said about where it would stand.
    """
    values = np.sort(np.asarray(scores, np.float64))
    if not np.isfinite(values).all():
        raise CalibrationError("a score is not finite", todo="look at the bundle's outputs")
    return float(values[k - 1])


@dataclass(frozen=True)
class RankScore:
    """Scores of different units as one: the largest of their ranks among episode maxima.

    The distribution function is that of the fit episodes, linear between them; what lies beyond the
    largest gains `1e-3` a unit, so that ties cannot occur there. It is monotone in each score, so
    that one threshold on it is one threshold on each.

    Attributes:
        knots: sorted episode maxima of each score `[m]`, by its name.
        stretch: how many times farther than the others a score has to stray from its median for
            the same rank; 1 where it is not named. Every score takes a part of the false alarms
            that are allowed: one that tells little of danger should not take as much as one that
            tells most of it.
    """

    knots: Mapping[str, tuple[float, ...]]
    stretch: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        maxima: Mapping[str, Sequence[float] | Array],
        stretch: Mapping[str, float] | None = None,
    ) -> RankScore:
        """From the largest score of each of at least `MIN_FIT` safe episodes.

        Raises:
            CalibrationError: too few, or not finite.
        """
        knots = {}
        for name, values in maxima.items():
            array = np.sort(np.asarray(values, np.float64))
            if len(array) < MIN_FIT:
                raise CalibrationError(
                    f"score {name!r} has {len(array)} episodes to be fitted to, needs {MIN_FIT}",
                    todo="record more safe episodes",
                )
            if not np.isfinite(array).all():
                raise CalibrationError(f"score {name!r} is not finite in some episode")
            knots[name] = tuple(float(value) for value in array)
        return cls(knots, dict(stretch or {}))

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> RankScore:
        """From the `knots` and `stretch` that a calibration wrote down.

        Raises:
            KeyError: it did not.
        """
        knots = {name: tuple(values) for name, values in facts["knots"].items()}
        return cls(knots, dict(facts["stretch"]))

    def _median(self, name: str) -> float:
        return float(np.median(self.knots[name]))

    def __call__(self, scores: Mapping[str, float | Array]) -> Array:
        """The combined score of one tick or of many; one that is not a number makes it infinite."""
        ranks = [self.rank(name, scores[name]) for name in self.knots]
        return np.maximum.reduce(ranks)  # type: ignore[no-any-return]

    def rank(self, name: str, value: float | Array) -> Array:
        """One score's share of fit episodes that it exceeds, and a little more beyond them all."""
        knots, middle = np.asarray(self.knots[name]), self._median(name)
        x = middle + (np.asarray(value, np.float64) - middle) / self.stretch.get(name, 1.0)
        shares = np.arange(1, len(knots) + 1) / len(knots)
        inside = np.interp(x, knots, shares, left=0.0)
        found = np.where(x > knots[-1], 1.0 + _BEYOND * (x - knots[-1]), inside)
        return np.where(np.isfinite(found), found, inf)

    def threshold(self, name: str, theta: float) -> float:
        """The largest value of one score whose rank does not exceed `theta`."""
        middle, far = self._median(name), self.stretch.get(name, 1.0)
        inner = self._knot(name, theta)
        return inner if far == 1.0 else middle + far * (inner - middle)

    def _knot(self, name: str, theta: float) -> float:
        """Where a rank is reached without the stretch."""
        knots = np.asarray(self.knots[name])
        if theta >= 1.0:
            return float(knots[-1] + (theta - 1.0) / _BEYOND)
        shares = np.arange(1, len(knots) + 1) / len(knots)
        if theta < shares[0]:
            return float(np.nextafter(knots[0], -inf))
        at = int(np.searchsorted(shares, theta + _EPS, side="right")) - 1
        span = (theta - shares[at]) * len(knots)
        if span <= _EPS or at + 1 == len(knots):
            return float(knots[at])
        return float(knots[at] + span * (knots[at + 1] - knots[at]))


@dataclass(frozen=True)
class Thresholds:
    """What a calibration found.

    Attributes:
        alpha: nominal rate of alarms on safe episodes.
        n: safe episodes it rests on.
        k: the order statistic that is the threshold.
        theta: alarm above this, in units of the combined score.
        theta_off: an alarm ends below this, and caution begins above it: the same at
            `caution_rate`.
        interval: 95 % interval of the true rate, over draws of the n episodes.
        delta: with confidence 1 - `delta` ...
        pac_k: ... this order statistic keeps `alpha`; None where n is too small for it.
        pac_theta: that threshold.
        beta: nominal rate of late or missed alarms.
        n_violating: violating episodes.
        k_miss: their order statistic; None where there are too few.
        theta_miss: alarms above less than this are late or missed in at most `beta`.
    """

    alpha: float
    n: int
    k: int
    theta: float
    theta_off: float
    interval: tuple[float, float]
    delta: float
    pac_k: int | None
    pac_theta: float | None
    beta: float
    n_violating: int
    k_miss: int | None
    theta_miss: float | None

    @property
    def compatible(self) -> bool:
        """Whether one threshold keeps both promises: false alarms at alpha, misses at beta."""
        return self.theta_miss is not None and self.theta < self.theta_miss


def thresholds(
    safe: Sequence[float] | Array,
    violating: Sequence[float] | Array,
    *,
    alpha: float = 0.05,
    beta: float = 0.1,
    delta: float = 0.05,
) -> Thresholds:
    """Both sides of an alarm, from episodes that it was not fitted to.

    Args:
        safe: largest combined score of each safe episode `[n]`.
        violating: largest score of each violating episode until the arm could last be stopped in
            time `[m]`; minus infinity where that was before the episode began.
        alpha: nominal rate of alarms on safe episodes.
        beta: nominal rate of late or missed alarms.
        delta: one minus the confidence of the stricter threshold.

    Raises:
        CalibrationError: too few safe episodes for `alpha`, or a score that is not finite.
    """
    n, m = len(safe), len(violating)
    k = false_alarm_rank(n, alpha)
    try:
        strict: int | None = pac_rank(n, alpha, delta)
    except CalibrationError:
        strict = None
    try:
        last: int | None = miss_rank(m, beta)
    except CalibrationError:
        last = None
    found = np.asarray(violating, np.float64)
    if np.isnan(found).any() or (found == inf).any():
        raise CalibrationError("a score is not finite", todo="look at the bundle's outputs")
    return Thresholds(
        alpha=alpha,
        n=n,
        k=k,
        theta=order_statistic(safe, k),
        theta_off=order_statistic(safe, false_alarm_rank(n, caution_rate(alpha))),
        interval=rate_interval(n, k),
        delta=delta,
        pac_k=strict,
        pac_theta=None if strict is None else order_statistic(safe, strict),
        beta=beta,
        n_violating=m,
        k_miss=last,
        theta_miss=None if last is None else float(np.sort(found)[last - 1]),
    )


class AlphaTracker:
    """Follows the rate of alarms over time (adaptive conformal inference, Gibbs and Candes 2021).

    Advice only: what it says may lower a threshold at once, and raise one by a new calibration.

    Args:
        alpha: the wanted rate, and where it starts.
        gain: how far one episode moves it.
        low: it never goes below this ...
        high: ... nor above this.
    """

    def __init__(
        self, alpha: float, gain: float = 0.05, low: float = 0.01, high: float = 0.3
    ) -> None:
        _require_share("alpha", alpha)
        self.wanted, self.gain, self.low, self.high = alpha, gain, low, high
        self.alpha = alpha

    def update(self, alarmed: bool) -> float:
        """After one more safe episode: the alpha to take the threshold at."""
        moved = self.alpha + self.gain * (self.wanted - float(alarmed))
        self.alpha = min(max(moved, self.low), self.high)
        return self.alpha


def _require_share(name: str, value: float) -> None:
    if not (isfinite(value) and 0.0 < value < 1.0):
        raise ConfigError(f"must lie between 0 and 1, got {value}", where=name)

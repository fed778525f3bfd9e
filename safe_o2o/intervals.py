"""Intervals for what evaluation measures: Wilson for rates, bootstrap for means."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np

from safe_o2o.errors import ConfigError


def wilson(count: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a rate (Wilson 1927, JASA 22, 209); never leaves [0, 1].

    Args:
        count: how often it happened, 0..n.
        n: how often it could have.
        level: coverage, in (0, 1).

    Returns:
        Lower and upper end; (0, 1) for n = 0, where nothing is known.

    Raises:
        ConfigError: the count is not within 0..n.
    """
    if not 0 <= count <= n:
        raise ConfigError(f"must lie in 0..{n}, got {count}", where="count")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    rate = count / n
    centre = rate + z * z / (2 * n)
    half = z * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and n the ends are exact; rounding must not move them.
    low = 0.0 if count == 0 else (centre - half) / scale
    high = 1.0 if count == n else (centre + half) / scale
    return low, high


def bootstrap_mean(
    values: Sequence[float], level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile bootstrap of a mean (Efron 1979); seeded, so that a report is reproducible.

    Args:
        values: at least two numbers.
        level: coverage, in (0, 1).
        draws: resamples.
        seed: seed of the resampling.

    Returns:
        Lower and upper end, or None for fewer than two values, which say nothing about spread.
    """
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return None
    generator = np.random.default_rng(seed)
    means = np.empty(draws)
    for i in range(draws):  # row by row: a long evaluation must not need draws x n of memory
        means[i] = array[generator.integers(0, len(array), len(array))].mean()
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)

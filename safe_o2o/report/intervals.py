"""Rates with intervals, and the ratio of two of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float


def wilson(count: int, n: int) -> Interval:
    """Wilson's score interval of a share (Wilson 1927), which stays inside [0, 1].

    Args:
        count: how often it happened.
        n: how often it could have, >= 1.

    Raises:
        ValueError: n < 1 or count outside 0..n.
    """
    if n < 1 or not 0 <= count <= n:
        raise ValueError(f"needs 0 <= count <= n and n >= 1, got {count} of {n}")
    share, z2 = count / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # Rounding may leave the estimate itself outside by one ulp where the share is 0 or 1.
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def ratio(count: int, n: int, base_count: int, base_n: int) -> Interval:
    """Ratio of two independent shares with Katz's log interval (Katz et al. 1978).

    Where a count is 0 the interval (not the estimate) uses counts and sizes with 1/2 added, as is
    usual; the estimate is `inf` where only the base is 0 and `nan` where both are.
    """
    share, base = count / n, base_count / base_n
    if base > 0:
        value = share / base
    else:
        value = math.inf if share > 0 else math.nan
    shift = 0.5 if 0 in (count, base_count) else 0.0
    a, b, c, d = count + shift, n + shift, base_count + shift, base_n + shift
    centre = math.log((a / b) / (c / d))
    half = Z95 * math.sqrt(max(0.0, 1 / a - 1 / b + 1 / c - 1 / d))
    low, high = math.exp(centre - half), math.exp(centre + half)
    return Interval(value, 0.0 if count == 0 else low, math.inf if base_count == 0 else high)

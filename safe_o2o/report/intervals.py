"""Rates with intervals, and the ratio of two of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from safe_o2o import intervals

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
    """Share with Wilson's 95 % interval; see `safe_o2o.intervals.wilson`, n >= 1."""
    return Interval(count / n, *intervals.wilson(count, n))


def ratio(count: int, n: int, base_count: int, base_n: int) -> Interval:
    """Ratio of two independent shares with Katz's log interval (Katz et al. 1978).

    Where a count is 0 the interval (not the estimate) uses counts and sizes with 1/2 added, as is
    usual; the estimate is `inf` where only the base is 0 and `nan` where both are.
    """
    share, base = count / n, base_count / base_n
    value = share / base if base > 0 else math.inf * share  # inf * 0 is nan
    shift = 0.5 if 0 in (count, base_count) else 0.0
    a, b, c, d = count + shift, n + shift, base_count + shift, base_n + shift
    centre = math.log((a / b) / (c / d))
    half = Z95 * math.sqrt(max(0.0, 1 / a - 1 / b + 1 / c - 1 / d))
    low, high = math.exp(centre - half), math.exp(centre + half)
    return Interval(value, 0.0 if count == 0 else low, math.inf if base_count == 0 else high)

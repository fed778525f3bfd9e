"""Curves through points one unit of time apart, as polynomials of fifth order, piece by piece."""

from __future__ import annotations

from functools import lru_cache
from math import comb, sqrt

import numpy as np

from safe_o2o.types import Array

SWITCH = sqrt(0.5)
"""Where two parabolas meet in a segment: from any start velocity to the segment's mean velocity, no
later switch and no other curve needs less acceleration, (1 + sqrt 2) |change| / period."""


def _control(order: int) -> Array:
    """From a quintic's coefficients on [0, 1] to control points of its derivative of this order."""
    degree, to = 5 - order, np.zeros((6 - order, 6))
    for i in range(degree + 1):
        for j in range(i + 1):
            factors = np.prod(np.arange(j + 1.0, j + order + 1.0))
            to[i, j + order] = factors * comb(i, j) / comb(degree, j)
    return to


CONTROL = tuple(_control(order) for order in range(4))
"""By order: control points, between which the curve or its derivative of that order stays. Where
that is a straight line they are its ends."""


def spline(mean: Array, start: Array, first: float) -> tuple[Array, Array]:
    """Tangents and second derivatives `[H + 1, n]` of the cubic spline through the points.

    Of all curves through them with this start velocity it bends least on the whole, and it gives
    back what was sampled from a smooth motion. Its last segment is a parabola. H >= 2.

    Args:
        mean: mean velocities of the segments `[H, n]`, rad a policy period.
        start: velocity at the start `[n]`, rad a policy period.
        first: length of the first segment, policy periods; all others are 1.
    """
    right = np.vstack([mean[:1] - start, mean[1:] - mean[:-1]])
    bend = np.empty((len(mean) + 1, mean.shape[1]))
    bend[:-1] = _second_derivatives(len(mean), first) @ right
    bend[-1] = bend[-2]
    tangent = np.empty_like(bend)
    tangent[:-1] = mean - (2.0 * bend[:-1] + bend[1:]) / 6.0
    tangent[0] = mean[0] - first * (2.0 * bend[0] + bend[1]) / 6.0
    tangent[-1] = mean[-1] + 0.5 * bend[-1]
    return tangent, bend


@lru_cache(maxsize=64)
def _second_derivatives(count: int, first: float) -> Array:
    """`[H, H]`, from changes of mean velocity to the spline's second derivatives but the last.

    Row i: h b[i-1] + 2 (h + h') b[i] + h' b[i+1] = 6 (mean[i] - mean[i-1]); the last two are equal.
    """
    lengths = np.ones(count)
    lengths[0] = first
    before = np.concatenate([[0.0], lengths[:-1]])
    rows = np.diag(2.0 * (before + lengths))
    rows[-1, -1] += lengths[-1]
    rows += np.diag(lengths[:-1], 1) + np.diag(lengths[:-1], -1)
    return np.asarray(6.0 * np.linalg.inv(rows))


def scaled(values: Array, factor: float) -> tuple[Array, Array]:
    """Values at start and end of each segment, `[H, n]` each, the first segment's scaled."""
    start, end = values[:-1].copy(), values[1:].copy()
    start[0] *= factor
    end[0] *= factor
    return start, end


def quintics(
    point: Array, move: Array, start: Array, end: Array, bend: Array, bend_end: Array
) -> tuple[Array, Array]:
    """One Hermite quintic a segment: starts `[H]` and coefficients `[H, 6, n]`, lowest first."""
    # What position, velocity and acceleration still lack at the end.
    x = move - start - 0.5 * bend
    y = end - start - bend
    z = bend_end - bend
    coefficients = [
        point,
        start,
        0.5 * bend,
        10.0 * x - 4.0 * y + 0.5 * z,
        -15.0 * x + 7.0 * y - z,
        6.0 * x - 3.0 * y + 0.5 * z,
    ]
    return np.arange(float(len(move))), np.stack(coefficients, axis=1)


def parabolas(point: Array, move: Array, start: Array, end: Array) -> tuple[Array, Array]:
    """Two parabolas a segment: starts `[2H]` and coefficients `[2H, 6, n]`, lowest first.

    With accelerations A before and B after `SWITCH` = k: velocities ask for A k + B (1 - k) =
    end - start, positions for A k (1 - k / 2) + B (1 - k)^2 / 2 = move - start.
    """
    k, rest = SWITCH, 1.0 - SWITCH
    change, lag = end - start, move - start
    first = (2.0 * lag - rest * change) / k
    second = (change - k * first) / rest
    zero = np.zeros_like(move)
    before = np.stack([point, start, first / 2.0, zero, zero, zero], axis=1)
    after = np.stack(
        [point + k * start + 0.5 * k * k * first, start + k * first, second / 2.0, *[zero] * 3],
        axis=1,
    )
    n = len(move)
    starts = (np.arange(float(n))[:, None] + np.array([0.0, k])).ravel()
    return starts, np.stack([before, after], axis=1).reshape(2 * n, *before.shape[1:])


def gentle_paces(
    stretch: Array,
    v: Array,
    move: Array,
    period: float,
    tick: float,
    lead: float,
    limits: tuple[Array, Array, Array | None],
    slack: Array,
) -> Array:
    """`JointPath.pace` of the gentle shape for many stretches at once, `[S]`; see there.

    Args:
        stretch: factors `[S]` on the policy period.
        v: start velocity `[n]`, rad/s.
        move: from the start to the first target, and on from target to target, `[H, n]`, rad.
        period: policy period, s.
        tick: control period, s.
        lead: by how many ticks the first segment is longer than the others.
        limits: speed, acceleration and jerk `[n]`; a jerk of None is not looked at.
        slack: factor on the limits for each segment `[H]`.
    """
    speed, acceleration, jerk = limits
    length = np.ones((len(stretch), len(move), 1))
    length[:, 0, 0] += lead * tick / (stretch * period)
    mean, first = move / length, length[:, 0]
    tangent = np.empty((len(stretch), len(move) + 1, len(v)))
    tangent[:, 0] = v * period * stretch[:, None]
    tangent[:, -1] = mean[:, -1]
    if len(move) > 1:
        tangent[:, 1] = (mean[:, 0] + first * mean[:, 1]) / (1.0 + first)
        tangent[:, 2:-1] = 0.5 * (mean[:, 1:-1] + mean[:, 2:])
    seconds = length * (stretch * period)[:, None, None]
    begin, end = tangent[:, :-1] * length, tangent[:, 1:] * length
    k, rest = SWITCH, 1.0 - SWITCH
    before = (2.0 * (move - begin) - rest * (end - begin)) / k
    after = (end - begin - k * before) / rest
    dq = np.stack([begin, begin + k * before, end]) / seconds
    ddq = np.stack([before, after], axis=2) / seconds[:, :, None] ** 2
    slack = slack[:, None]
    pace = np.maximum(
        (np.abs(dq) / (slack * speed)).max(axis=(0, 2, 3)),
        (np.abs(ddq) / (slack[:, None] * acceleration)).max(axis=(1, 2, 3)) ** (1 / 2),
    )
    if jerk is not None:
        jump = np.abs(np.diff(ddq.reshape(len(stretch), -1, len(v)), axis=1)) / tick
        share = jump / (np.repeat(slack, 2, axis=0)[1:] * jerk)
        pace = np.maximum(pace, share.max(axis=(1, 2)) ** (1 / 3))
    return np.asarray(pace)

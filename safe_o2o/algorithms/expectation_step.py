"""CVPO's E-step: which distribution over sampled actions keeps the budgets and gains most.

    max_q E_q[Q_r]   s.t.   E_q[Q_c,j] <= d_j,   KL(q || pi) <= eps,   means over states,

by its convex dual in the temperature eta and the prices lambda_j (Liu et al., *Constrained
Variational Policy Optimization*, ICML 2022; online_safety.md 1.2):

    q = pi exp((Q_r - sum_j lambda_j Q_c,j) / eta) / Z.

Damped Newton in float64 on two to five numbers; the samples' tables are all that costs time. Where
no q within the KL keeps the budgets the dual is unbounded: then the q of least cost is taken, which
is still within the KL. On the host, whatever device the critics are on: one transfer an update.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.types import Array

LOWEST, HIGHEST = 1e-8, 1e8
"""Of eta, in units of the objective's spread."""
PRICE_MAX = 1e4
"""Of a price, in units of the objective's spread over the cost's."""
STEPS, HALVINGS, GROWTH = 40, 30, 8.0
"""Newton steps at most, halvings of one, and the factor that eta may change by in one."""


class Tilt(NamedTuple):
    """What the E-step comes to.

    Attributes:
        weight: q over each state's samples `[B, K]`, rows sum to 1.
        temperature: eta.
        price: lambda `[m]`.
        feasible: whether some q keeps all budgets; where not, `weight` is the one of least cost,
            and temperature and prices are those from before.
        kl: KL(q || pi), mean over states, nat.
        reward: E_q[Q_r].
        cost: E_q[Q_c] `[m]`.
    """

    weight: Array
    temperature: float
    price: Array
    feasible: bool
    kl: float
    reward: float
    cost: Array


class _Point(NamedTuple):
    """The dual at one x = (eta, lambda...): value, slopes, curvature, KL(q || pi)."""

    x: Array
    value: float
    slope: Array
    curvature: Array
    kl: float


class _Dual:
    """g(eta, lambda) of an objective and m costs.

    q is an exponential family in theta = (1, -lambda) / eta with the statistics (Q_r, Q_c): sums
    over the samples give the value, the slopes and the curvature.

    Args:
        statistics: objective and costs, samples before states `[1 + m, K, B]`.
        limit: `[m]`.
        kl_limit: eps.
        log_prior: of the samples `[K, B]`; None where they are equally likely.
    """

    def __init__(
        self, statistics: Array, limit: Array, kl_limit: float, log_prior: Array | None
    ) -> None:
        self.limit, self.kl_limit = limit, kl_limit
        self.statistics, self.log_prior = statistics, log_prior
        self.count, self.samples, self.states = statistics.shape
        self._limits = np.concatenate([[0.0], limit])
        self._largest = np.abs(statistics).max((1, 2))

    def unnormalised(self, x: Array) -> tuple[Array, Array | float]:
        """Pi exp(theta f) `[K, B]`, and the logarithm of what it was divided by `[B]`."""
        share = 1.0 / float(x[0])
        z = share * self.statistics[0]
        reach = share * self._largest[0]
        for number in range(1, self.count):
            price = share * float(x[number])
            if price:
                z -= price * self.statistics[number]
                reach += price * self._largest[number]
        if self.log_prior is not None:
            z += self.log_prior
        top: Array | float = 0.0 if self.log_prior is not None else float(np.log(self.samples))
        if reach > 500.0:  # else no exponential overflows
            most = z.max(0)
            z -= most
            top = top + most if self.log_prior is not None else most - top
        elif self.log_prior is None:
            top = -top
        return np.exp(z, out=z), top

    def weight(self, x: Array) -> Array:
        """Q `[B, K]`."""
        found, _ = self.unnormalised(x)
        return np.ascontiguousarray((found / found.sum(0)).T)

    def at(self, x: Array) -> _Point:
        """The dual at x `[1 + m]`."""
        found, top = self.unnormalised(x)
        total = found.sum(0)
        log_total = float((np.log(total) + top).mean())
        found /= total
        mean, spread = np.empty(self.count), np.empty((self.count, self.count))
        middle = []
        for i, f in enumerate(self.statistics):
            weighed = found * f
            middle.append(weighed.sum(0))
            mean[i] = middle[i].sum() / self.states
            for j in range(i + 1):
                second = float(np.vdot(weighed, self.statistics[j]))
                spread[i, j] = second - float(middle[i] @ middle[j])
                spread[j, i] = spread[i, j]
        spread /= self.states
        eta, price = float(x[0]), x[1:]
        mix = -x
        mix[0] = 1.0
        kl = float(mix @ mean) / eta - log_total
        slope = self._limits - mean
        slope[0] = self.kl_limit - kl
        along = spread @ mix
        spread /= eta
        spread[0] = spread[:, 0] = along / eta**2
        spread[0, 0] = along @ mix / eta**3
        value = eta * (self.kl_limit + log_total) + float(price @ self.limit)
        return _Point(x, value, slope, spread, kl)

    def minimum(self, start: Array, tolerance: float) -> tuple[_Point, bool]:
        """Damped Newton from a start within the bounds, and whether it has arrived."""
        here = self.at(start)
        for _ in range(STEPS):
            free = np.ones(len(here.x), bool)
            free[1:] = (here.x[1:] > 0.0) | (here.slope[1:] < 0.0)
            if (np.abs(here.slope[free]) <= tolerance).all():
                return here, True
            after = self._step(here, free)
            if after is None:
                return here, False
            here = after
        return here, False

    def _step(self, here: _Point, free: Array) -> _Point | None:
        """A Newton step of the free ones, halved until the dual falls; None where nothing helps."""
        block = here.curvature[np.ix_(free, free)]
        damping = 1e-14 * np.trace(block) + 1e-300
        move = np.zeros(len(here.x))
        move[free] = -np.linalg.solve(block + damping * np.eye(len(block)), here.slope[free])
        if not np.isfinite(move).all() or move @ here.slope >= 0.0:
            move = np.where(free, -here.slope, 0.0)
        eta = here.x[0]
        lowest, highest = max(LOWEST, eta / GROWTH), min(HIGHEST, eta * GROWTH)
        share = 1.0
        for _ in range(HALVINGS):
            x = here.x + share * move
            x[0] = min(max(x[0], lowest), highest)
            x[1:] = x[1:].clip(0.0, PRICE_MAX)
            there = self.at(x)
            # What is promised is what is asked for a little of; rounding is not held against it.
            promised = float(here.slope @ (x - here.x))
            if there.value <= here.value + 1e-4 * promised + 1e-13 * abs(here.value):
                return None if (x == here.x).all() else there
            share *= 0.5
        return None


def expectation_step(
    q_reward: Array,
    q_cost: Array,
    limit: Array,
    kl_limit: float,
    *,
    log_prior: Array | None = None,
    start: tuple[float, Array] | None = None,
    tolerance: float = 1e-8,
) -> Tilt:
    """Solve the E-step for one batch.

    Args:
        q_reward: of K samples of the prior in each of B states `[B, K]`.
        q_cost: of the same, for each of m budgets `[m, B, K]`; m may be 0.
        limit: budgets in units of Q_c `[m]`.
        kl_limit: eps, nat; below log K, or no tilt of K samples reaches it.
        log_prior: log-probabilities of the samples, where they are not equally likely `[B, K]`;
            -inf excludes one.
        start: temperature and prices to begin from: those of the last batch.
        tolerance: of the KL, and of the budgets in units of the cost's spread.

    Raises:
        ConfigError: shapes that do not fit, or numbers that are none.
    """
    q_reward = np.asarray(q_reward, np.float64)
    q_cost, limit = np.asarray(q_cost, np.float64), np.asarray(limit, np.float64)
    if q_reward.ndim != 2 or q_cost.shape != (len(limit), *q_reward.shape):
        raise ConfigError(
            f"needs Q_r [B, K] and Q_c [m, B, K] for m budgets, got {q_reward.shape}, "
            f"{q_cost.shape} and {limit.shape}",
            where="E-step",
        )
    if not (np.isfinite(q_reward).all() and np.isfinite(q_cost).all() and kl_limit > 0.0):
        raise ConfigError("a Q is no number, or the KL's limit not positive", where="E-step")
    rows = len(q_reward)
    prior = None
    if log_prior is not None:
        prior = np.ascontiguousarray(np.asarray(log_prior, np.float64).T)
    # Around each state's mean and in units of their spread: nothing below depends on the scale of
    # rewards or costs, and products of them lose no digits.
    statistics = np.ascontiguousarray(np.concatenate([q_reward[None], q_cost]).transpose(0, 2, 1))
    middle = _expected(statistics, prior)
    statistics -= middle[:, None]
    spread = np.sqrt(_expected(statistics**2, prior).mean(1))
    floor = 1e-12 * np.maximum(1.0, np.abs(middle).max(1))
    unit = np.where(spread > floor, spread, 1.0)
    statistics /= unit[:, None, None]
    bound = (limit - middle[1:].mean(1)) / unit[1:]
    dual = _Dual(statistics, bound, kl_limit, prior)
    to_own = np.concatenate([[1.0 / unit[0]], unit[1:] / unit[0]])
    eta = (2.0 * kl_limit) ** -0.5  # where KL is the variance over twice eta squared
    found: _Point | None = None
    feasible, arrived = True, False
    if start is not None and np.asarray(start[1]).any():
        found, arrived = dual.minimum(
            _within(np.concatenate([[start[0]], start[1]]) * to_own), tolerance
        )
    if not arrived:
        free = _alone(statistics[0], kl_limit, prior, tolerance)
        found = dual.at(np.concatenate([free.x, np.zeros(len(limit))]))
        if (found.slope[1:] < -tolerance).any():
            mix, least, feasible = _least_cost(statistics[1:], bound, kl_limit, prior)
            found, _ = dual.minimum(found.x, tolerance) if feasible else (least, True)
            dual = dual if feasible else mix
    assert found is not None
    if feasible:
        own = found.x / to_own
        temperature, price = float(own[0]), own[1:]
    else:
        temperature, price = (eta * unit[0], np.zeros(len(limit))) if start is None else start
    weight = dual.weight(found.x)
    return Tilt(
        weight,
        temperature,
        price,
        feasible,
        found.kl,
        float(np.vdot(weight, q_reward)) / rows,
        np.einsum("bk,mbk->m", weight, q_cost) / rows,
    )


def _expected(x: Array, log_prior: Array | None) -> Array:
    """Means over samples, `[..., K, B] -> [..., B]`."""
    if log_prior is None:
        return x.sum(-2) / x.shape[-2]  # type: ignore[no-any-return]
    return (np.exp(log_prior) * x).sum(-2)  # type: ignore[no-any-return]


def _within(x: Array) -> Array:
    bounded = x.clip(0.0, PRICE_MAX)
    bounded[0] = min(max(x[0], LOWEST), HIGHEST)
    return bounded


def _alone(gain: Array, kl_limit: float, log_prior: Array | None, tolerance: float) -> _Point:
    """The tilt of an objective `[K, B]` without budgets."""
    dual = _Dual(gain[None], np.zeros(0), kl_limit, log_prior)
    return dual.minimum(np.array([(2.0 * kl_limit) ** -0.5]), tolerance)[0]


def _least_cost(
    cost: Array, limit: Array, kl_limit: float, log_prior: Array | None
) -> tuple[_Dual, _Point, bool]:
    """The q within the KL that exceeds its budgets least, and whether it keeps them.

    min_q max_j (E_q[c_j] - d_j) is max over shares u of the budgets of min_q sum_j u_j (...), whose
    inner problem is an E-step with the objective -sum_j u_j c_j and no budget.
    """
    share = np.full(len(limit), 1.0 / len(limit))
    least, best = np.inf, None
    for number in range(1 if len(limit) == 1 else 200):
        gain = -np.tensordot(share, cost, 1)
        spread = float(np.sqrt(_expected(gain**2, log_prior).mean()))
        dual = _Dual(gain[None] / (spread or 1.0), np.zeros(0), kl_limit, log_prior)
        point, _ = dual.minimum(np.array([(2.0 * kl_limit) ** -0.5]), 1e-9)
        over = np.einsum("bk,mkb->m", dual.weight(point.x), cost) / cost.shape[2] - limit
        if over.max() < least:
            best, least = (dual, point), float(over.max())
        if least <= 0.0:
            break
        share = share * np.exp(over / np.abs(over).max() / np.sqrt(number + 1.0))
        share /= share.sum()
    assert best is not None
    return *best, least <= 0.0

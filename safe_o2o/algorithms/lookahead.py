"""Approximate policy iteration with lookahead and rollouts: when it stays bounded, and how far off.

Winnicki, Lubars, Livesay, Srikant, *The Role of Lookahead and Approximate Policy Evaluation in
Reinforcement Learning with Linear Value Function Approximation*, Operations Research 2025
(online_safety.md 4). Values are Phi theta; each round acts greedily on H steps of lookahead, rolls
out m steps from some states, and fits theta to what it saw there. It stays bounded if

    gamma^(m + H - 1) delta < 1,    delta = ||Phi (Phi_D' Phi_D)^-1 Phi_D' P_D||_inf,

delta the gain of the regression in the largest norm. `regression_gain.py` estimates it for a deep
critic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.types import Array


class Mdp(NamedTuple):
    """A finite one.

    Attributes:
        reward: `[S, A]`; -inf where an action does not exist.
        transition: to each state `[S, A, S]`.
        discount: gamma.
    """

    reward: Array
    transition: Array
    discount: float


def backup(mdp: Mdp, values: Array) -> Array:
    """Q of values `[S]` -> `[S, A]`."""
    found: Array = mdp.reward + mdp.discount * mdp.transition @ values
    return found


def look_ahead(mdp: Mdp, values: Array, horizon: int) -> tuple[Array, Array]:
    """The greedy policy at the root of H steps `[S]`, and the values below the root `[S]`.

    Raises:
        ConfigError: a horizon below one.
    """
    if horizon < 1:
        raise ConfigError(f"must be at least 1, got {horizon}", where="horizon")
    for _ in range(horizon - 1):
        values = backup(mdp, values).max(1)
    return backup(mdp, values).argmax(1), values


def roll_out(mdp: Mdp, policy: Array, values: Array, steps: int) -> Array:
    """(T_mu)^m of values `[S]`."""
    rows = np.arange(len(policy))
    for _ in range(steps):
        values = backup(mdp, values)[rows, policy]
    return values


def policy_values(mdp: Mdp, policy: Array) -> Array:
    """J of a policy `[S]`, exactly."""
    rows = np.arange(len(policy))
    chain = mdp.transition[rows, policy]
    found: Array = np.linalg.solve(
        np.eye(len(policy)) - mdp.discount * chain, mdp.reward[rows, policy]
    )
    return found


def best_values(mdp: Mdp) -> Array:
    """J* `[S]`, by policy iteration."""
    policy = np.zeros(len(mdp.reward), np.int64)
    while True:
        values = policy_values(mdp, policy)
        q = backup(mdp, values)
        better = q.argmax(1)
        gains = q[np.arange(len(policy)), better] > q[np.arange(len(policy)), policy] + 1e-12
        if not gains.any():
            return values
        policy = np.where(gains, better, policy)


def regression(features: Array, sampled: Array) -> Array:
    """M: values at the sampled states `[D]` -> fitted values everywhere, `[S, D]`.

    Raises:
        ConfigError: the sampled states do not tell all features apart.
    """
    seen = features[sampled]
    if np.linalg.matrix_rank(seen) < features.shape[1]:
        raise ConfigError(
            f"{len(sampled)} states do not tell {features.shape[1]} features apart",
            where="sampled states",
            todo="sample more of them",
        )
    found: Array = features @ np.linalg.pinv(seen)
    return found


def gain_of(features: Array, sampled: Array) -> float:
    """Delta of linear features `[S, d]` fitted at some states `[D]`: its largest row sum."""
    return float(np.abs(regression(features, sampled)).sum(1).max())


def steps_needed(gain: float, discount: float, margin: float = 1.0) -> int:
    """The least m + H - 1 with gamma^(m + H - 1) gain < margin; at least 1.

    Raises:
        ConfigError: no number of steps is enough for numbers like these.
    """
    if not (gain > 0.0 and math.isfinite(gain) and 0.0 < discount < 1.0 and 0.0 < margin <= 1.0):
        raise ConfigError(
            f"needs a gain above 0, a discount in (0, 1) and a margin in (0, 1], got {gain}, "
            f"{discount} and {margin}",
            where="lookahead",
        )
    needed = max(0.0, math.log(gain / margin) / -math.log(discount))
    return max(1, math.floor(needed + 1e-9) + 1)


def limit_of_loss(
    *,
    gain: float,
    fit_error: float,
    discount: float,
    steps: int,
    horizon: int,
    evaluation_error: float = 0.0,
    lookahead_error: float = 0.0,
) -> float:
    """What ||J_mu - J*|| comes to in the end at most; infinite where the condition fails.

    Args:
        gain: delta_FV.
        fit_error: delta_app, how far off a policy's own values are fitted.
        discount: gamma.
        steps: m.
        horizon: H.
        evaluation_error: of a rollout.
        lookahead_error: of the lookahead.
    """
    far = discount**horizon
    beta = discount ** (steps + horizon - 1) * gain
    if beta >= 1.0:
        return math.inf
    tau = gain * (discount**steps + discount ** (steps + horizon - 1)) / (1.0 - discount)
    tau += fit_error + gain * evaluation_error
    return (2.0 * far * tau / (1.0 - beta) + lookahead_error) / ((1.0 - far) * (1.0 - discount))


class Round(NamedTuple):
    """One round: its policy `[S]`, and theta `[d]` after it."""

    policy: Array
    theta: Array


@dataclass
class LookaheadPolicyIteration:
    """Rounds of lookahead, rollout and least squares.

    Args:
        mdp: the problem.
        features: Phi `[S, d]`; the unit matrix is the tabular version.
        sampled: numbers of the states that are rolled out from `[D]`.
        steps: m.
        horizon: H.
        descent: gradient steps towards the least squares, and their size relative to the largest
            stable one; None fits exactly.
    """

    mdp: Mdp
    features: Array
    sampled: Array
    steps: int
    horizon: int
    descent: tuple[int, float] | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"must be at least 1, got {self.steps}", where="steps")
        self._fit = np.linalg.pinv(self.features[self.sampled])
        regression(self.features, self.sampled)

    @property
    def gain(self) -> float:
        """delta_FV."""
        return gain_of(self.features, self.sampled)

    @property
    def is_bounded(self) -> bool:
        """Whether the sufficient condition holds."""
        return self.mdp.discount ** (self.steps + self.horizon - 1) * self.gain < 1.0

    def round(self, theta: Array) -> Round:
        """One round from theta `[d]`."""
        policy, below = look_ahead(self.mdp, self.features @ theta, self.horizon)
        seen = roll_out(self.mdp, policy, below, self.steps)[self.sampled]
        if self.descent is None:
            return Round(policy, self._fit @ seen)
        count, share = self.descent
        phi = self.features[self.sampled]
        rate = share * 2.0 / float(np.linalg.eigvalsh(phi.T @ phi)[-1])
        for _ in range(count):
            theta = theta - rate * phi.T @ (phi @ theta - seen)
        return Round(policy, theta)

"""How much a critic's regression makes of an error in its targets, in the largest norm.

The lookahead theorem's delta for a critic that is no linear one (online_safety.md 4.4): the targets
of a batch are moved by a little, each up or down as hurts most somewhere else; the critic is fitted
to them for as long as its slow copy takes to follow; how far its values on states that were held
out moved, over how far the targets did, is the gain. Above one errors grow with each round of
bootstrapping, unless n-step returns and lookahead shrink them by gamma^(m + H - 1) in between.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from safe_o2o.algorithms.learner import Learner
from safe_o2o.algorithms.lookahead import steps_needed
from safe_o2o.errors import ConfigError

MARGIN = 0.8
"""gamma^(m + H - 1) gain should stay below it."""


@dataclass(frozen=True)
class Gain:
    """What was measured.

    Attributes:
        constant: gain of moving all targets alike.
        worst: the largest gain, of the constant and of the worst-sign patterns.
        typical: median over held-out values and patterns.
        discount: gamma of the critic.
    """

    constant: float
    worst: float
    typical: float
    discount: float

    @property
    def steps_needed(self) -> int:
        """The least m + H - 1 that keeps errors from growing, with a margin."""
        return steps_needed(self.worst, self.discount, MARGIN)


def regression_gain(
    learner: Learner,
    obs: Tensor,
    action: Tensor,
    *,
    held_out: int = 512,
    patterns: int = 6,
    move: float = 0.1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Gain:
    """The gain of a learner's reward critic around where it is.

    Args:
        learner: one with a critic of single transitions.
        obs: normalised observations `[D, F]`.
        action: what was done there `[D, A]`.
        held_out: how many of them only judge.
        patterns: worst-sign patterns to try, each against another held-out value.
        move: of the targets, in units of the critic's spread over the data.
        seed: of the minibatches, which are the same for all.
        progress: called with (patterns done, of how many).

    Raises:
        ConfigError: no critic, or too few transitions.
    """
    value: Any = dict(learner.net.items()).get("value")
    critic = getattr(value, "critic", None)
    if critic is None:
        raise ConfigError("has no critic of rewards", where=type(learner).__name__.lower())
    if len(obs) < 2 * held_out:
        raise ConfigError(f"needs {2 * held_out} transitions, got {len(obs)}", where="data")
    seen = obs[held_out:], action[held_out:]
    judged = obs[:held_out], action[:held_out]
    with torch.no_grad():
        target = _numbers(critic, *seen)
        step = move * float(target.std().clamp(min=1e-6))
    signs = [torch.ones(len(seen[0]), device=obs.device)]
    generator = torch.Generator().manual_seed(seed)
    for which in torch.randperm(held_out, generator=generator)[:patterns].tolist():
        signs.append(_worst_signs(critic, judged[0][which], judged[1][which], *seen))
    still = _fitted(learner, critic, *seen, target, seed)
    moved = []
    for number, sign in enumerate(signs):
        if progress is not None:
            progress(number + 1, len(signs))
        fitted = _fitted(learner, critic, *seen, target + step * sign, seed)
        with torch.no_grad():
            off = _numbers(fitted, *judged) - _numbers(still, *judged)
        moved.append(off.abs().amax(0) / step)
    each = torch.stack(moved)
    return Gain(
        constant=float(each[0].max()),
        worst=float(each.max()),
        typical=float(each.median()),
        discount=float(learner.config.discount),
    )


def _numbers(critic: nn.Module, obs: Tensor, action: Tensor) -> Tensor:
    """Q of each member `[E, D]`."""
    found: Tensor = critic(obs, action)
    return found


def _worst_signs(
    critic: nn.Module, at_obs: Tensor, at_action: Tensor, obs: Tensor, action: Tensor
) -> Tensor:
    """Which way to move each target to lift one value most: the tangent kernel's sign `[D]`."""
    with torch.enable_grad():
        parameters = [p for p in critic.parameters() if p.requires_grad]
        one = _numbers(critic, at_obs.unsqueeze(0), at_action.unsqueeze(0)).mean()
        gradient = torch.autograd.grad(one, parameters)
    size = torch.stack([g.square().sum() for g in gradient]).sum().sqrt().clamp(min=1e-12)
    other = copy.deepcopy(critic)
    with torch.no_grad():
        known = [p for p in other.parameters() if p.requires_grad]
        for parameter, g in zip(known, gradient, strict=True):
            parameter.add_(g / size, alpha=1e-2)
        rise = _numbers(other, obs, action) - _numbers(critic, obs, action)
    return torch.where(rise.mean(0) >= 0.0, 1.0, -1.0)


def _fitted(
    learner: Learner, critic: nn.Module, obs: Tensor, action: Tensor, target: Tensor, seed: int
) -> nn.Module:
    """A copy of the critic, fitted to targets `[E, D]` for as long as its slow copy's memory."""
    cfg = learner.config
    made = copy.deepcopy(critic).requires_grad_(True)
    optimizer = torch.optim.Adam(made.parameters(), lr=cfg.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(round(1.0 / cfg.tau)):
        rows = torch.randint(len(obs), (cfg.batch_size,), generator=generator).to(obs.device)
        loss = (_numbers(made, obs[rows], action[rows]) - target[:, rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return made.requires_grad_(False)

"""Who acts in a rollout: a policy, a scripted behaviour, or chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from safe_o2o.data.behavior import TrainedBehavior
from safe_o2o.interfaces import Policy
from safe_o2o.safety.reachability_gate import GateDecision
from safe_o2o.types import Array, GateState, Observation, Source

PREVIOUS_ACTION = "previous_action"


class Actor(Protocol):
    """Who chooses the actions of an episode."""

    name: str

    def reset(self, seed: int) -> None:
        """Start an episode; the same seed gives the same choices."""
        ...

    def act(self, obs: Observation) -> tuple[Array, Source]:
        """An action `[A]` in [-1, 1] and who proposes it."""
        ...

    def executed(self, action: Array) -> None:
        """What became of the last action: the executed one `[A]`, after the filter."""
        ...


class Behavior(Protocol):
    """A scripted behaviour of the catalogue."""

    def reset(self, seed: int) -> None:
        """Start an episode."""
        ...

    def act(self, obs: Observation) -> Array:
        """An action `[A]` in [-1, 1]."""
        ...


def with_executed(carry: Any, action: Array) -> Any:
    """A policy's carry with the executed action `[A]` in place of the chosen one.

    Models are trained on what the arm did; a policy whose carry has an entry `previous_action`
    (`[1, A]`) must see the same when the filter has changed its action.
    """
    if not (isinstance(carry, Mapping) and PREVIOUS_ACTION in carry):
        return carry
    old = carry[PREVIOUS_ACTION]
    row = np.asarray(action, np.float32).reshape(tuple(old.shape))
    told = row if isinstance(old, np.ndarray) else old.new_tensor(row)
    return {**carry, PREVIOUS_ACTION: told}


def source_of(gate: GateState | None) -> Source:
    """Who proposed, behind a gate that did this: the policy, or what was put in its place."""
    taken_over = gate is not None and gate >= GateState.RECOVER
    return Source.RECOVERY if taken_over else Source.POLICY


def gate_decision(policy: Policy) -> GateDecision | None:
    """What a policy's reachability gate made of its last action; None without a gate."""
    decisions = getattr(policy, "last_decisions", ())
    return decisions[0] if decisions else None


class PolicyActor:
    """A policy behind the actor's two methods: adds the batch axis, keeps the carry.

    `gate_decision` is what a reachability gate made of the last action, None without one.

    Of an action chunk `[n, H, A]` the first action is executed and the policy asked again. A policy
    with a method `seed(seed)` has its own noise seeded for every episode.

    Args:
        policy: any `Policy`.
        name: what episodes are labelled with.
        deterministic: False lets the policy add its own noise.
    """

    def __init__(self, policy: Policy, name: str = "policy", *, deterministic: bool = True) -> None:
        self.policy, self.name, self.deterministic = policy, name, deterministic
        self._carry = policy.initial_carry(1)
        self.gate_decision: GateDecision | None = None

    def reset(self, seed: int) -> None:
        """Start with the initial carry."""
        reseed = getattr(self.policy, "seed", None)
        if callable(reseed):
            reseed(seed)
        self._carry = self.policy.initial_carry(1)

    def act(self, obs: Observation) -> tuple[Array, Source]:
        """See `Actor`."""
        batched = {name: array[None] for name, array in obs.items()}
        action, self._carry = self.policy.act(batched, self._carry, self.deterministic)
        if hasattr(action, "cpu"):  # a tensor, wherever it lives
            action = action.cpu()
        row = np.asarray(action, np.float32)[0]
        self.gate_decision = gate = gate_decision(self.policy)
        done = None if gate is None else gate.done
        return (row[0] if row.ndim == 2 else row), source_of(done)

    def executed(self, action: Array) -> None:
        """See `Actor`."""
        self._carry = with_executed(self._carry, action)


class BehaviorActor:
    """A scripted behaviour as an actor.

    Args:
        behavior: the behaviour.
        name: what episodes are labelled with.
    """

    def __init__(self, behavior: Behavior, name: str) -> None:
        self.behavior, self.name = behavior, name

    def reset(self, seed: int) -> None:
        """Start an episode."""
        self.behavior.reset(seed)

    def act(self, obs: Observation) -> tuple[Array, Source]:
        """See `Actor`."""
        return np.asarray(self.behavior.act(obs), np.float32), Source.SCRIPT

    def executed(self, action: Array) -> None:
        """See `Actor`; a script looks at the scene instead."""


class TrainedActor:
    """A trained behaviour as an actor: it looks at its own vector, whatever is recorded.

    Args:
        behavior: the behaviour; its noise is drawn, as in its training.
        vector: what it observes `[D]`, now.
    """

    def __init__(self, behavior: TrainedBehavior, vector: Callable[[], Array]) -> None:
        self.behavior, self.name, self._vector = behavior, behavior.name, vector
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Seed the noise; apart from the layout, which the same seed lays out."""
        self._generator = np.random.default_rng([seed, 2])

    def act(self, obs: Observation) -> tuple[Array, Source]:
        """See `Actor`."""
        noise = self._generator.standard_normal(self.behavior.spec.action.dim, np.float32)
        return self.behavior.act(self._vector(), noise), Source.SCRIPT

    def executed(self, action: Array) -> None:
        """See `Actor`; it has no memory."""


class UniformRandomActor:
    """Independent uniform actions: the floor that every policy must beat.

    Args:
        action_dim: number of entries A.
        name: what episodes are labelled with.
    """

    def __init__(self, action_dim: int, name: str = "uniform") -> None:
        self.action_dim, self.name = action_dim, name
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Seed the draws; apart from the layout, which the same seed lays out."""
        self._generator = np.random.default_rng([seed, 1])

    def act(self, obs: Observation) -> tuple[Array, Source]:
        """See `Actor`."""
        action = self._generator.uniform(-1.0, 1.0, self.action_dim)
        return action.astype(np.float32), Source.SCRIPT

    def executed(self, action: Array) -> None:
        """See `Actor`; chance has no memory."""

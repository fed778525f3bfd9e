"""The protocols of the house. NumPy types only: nothing here pulls in torch, ROS or a simulator.

Tensors of training code are typed `Any` here on purpose: the ground must not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from safe_o2o.spaces import Spec
from safe_o2o.types import (
    Array,
    CertifiedCommand,
    Decision,
    Observation,
    Proposal,
    RobotState,
    Source,
    Step,
)

Carry = Any
"""Recurrent state of a policy; empty for a memoryless one."""


@runtime_checkable
class Policy(Protocol):
    """Anything that maps observations to actions in [-1, 1]."""

    def initial_carry(self, n: int = 1) -> Carry:
        """The state at the start of an episode, for `n` parallel environments."""
        ...

    def act(
        self, obs: Mapping[str, Any], carry: Carry, deterministic: bool = True
    ) -> tuple[Any, Carry]:
        """Choose actions.

        Args:
            obs: arrays `[n, ...]` by name.
            carry: state from `initial_carry` or the last call.
            deterministic: False adds the policy's own noise.

        Returns:
            action `[n, A]` (or a chunk `[n, H, A]`) in [-1, 1], and the new carry.
        """
        ...


@runtime_checkable
class Algorithm(Protocol):
    """A learner: batches in, metrics out. Never sees an environment, file, logger or clock."""

    wants: Literal["transitions", "sequences"]
    spec: Spec

    @property
    def policy(self) -> Policy:
        """The policy to deploy."""
        ...

    def update(self, batch: Any) -> dict[str, float]:
        """One gradient step; returns metrics keyed `critic/loss`, `critic/q`, ..."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything: targets, averages, optimisers, duals, normalisers, step, generators."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`; afterwards training goes on bit for bit."""
        ...


@runtime_checkable
class Robot(Protocol):
    """An arm, real, mock or simulated: UNCONFIGURED, INACTIVE (readable) or ACTIVE (movable)."""

    joint_names: tuple[str, ...]
    period: float
    """Control period, s: `write` is called once per period."""

    def connect(self) -> None:
        """UNCONFIGURED -> INACTIVE."""
        ...

    def activate(self) -> None:
        """INACTIVE -> ACTIVE."""
        ...

    def deactivate(self) -> None:
        """ACTIVE -> INACTIVE; the arm holds."""
        ...

    def read(self) -> RobotState:
        """The newest state. Raises `RobotStateError` when UNCONFIGURED."""
        ...

    def write(self, command: CertifiedCommand) -> None:
        """Send one tick's set-point. Raises `RobotStateError` unless ACTIVE."""
        ...

    def stop(self) -> None:
        """Stop moving, from any state, without raising."""
        ...

    def close(self) -> None:
        """Any state -> UNCONFIGURED; idempotent."""
        ...


@runtime_checkable
class Simulated(Protocol):
    """A robot whose time has to be told to pass; a real one's does by itself."""

    def pass_time(self) -> None:
        """One control period without a command; an ACTIVE arm holds."""
        ...


@runtime_checkable
class Camera(Protocol):
    """A source of images."""

    def connect(self) -> None:
        """Open the device."""
        ...

    def read(self) -> tuple[Array, float]:
        """Newest image `[H, W, 3]` uint8 RGB and its stamp, s."""
        ...

    def close(self) -> None:
        """Release the device; idempotent."""
        ...


@runtime_checkable
class Constraint(Protocol):
    """One kind of limit, in the filter's two languages: linear rows and exact clearance."""

    name: str
    range: float
    """Clearance that counts as margin 1, in the constraint's own unit."""
    static: bool
    """Whether `swept` depends on where the arm goes alone, not on when or how fast."""
    exact_rows: bool
    """Whether `rows` is about the next tick alone; else a distance has to last for time `dt`."""

    def rows(self, q: Array, dq: Array, dt: float) -> tuple[Array, Array]:
        """Linear rows on the next joint velocity w: `G w <= h`, shapes `[m, n]` and `[m]`.

        Args:
            q: where the arm is `[n]`, rad.
            dq: how it moves `[n]`, rad/s.
            dt: for how long w will last, s.
        """
        ...

    def fault(self, now: float) -> str:
        """Id of what is wrong with the data it rests on at `now`, s; `""` where nothing is."""
        ...

    def clearance(self, q: Array) -> Array:
        """Signed distances of each configuration `[K, n]` to each limit, `[K, m]`; >= 0 is legal.

        In the constraint's own unit (rad, m). Limit by limit, because an arm that starts outside
        one of them must not pay for its way back with another.
        """
        ...

    def swept(self, motion: Any) -> tuple[Array, Array]:
        """Lower bounds on the clearance along a motion (`safety.motion.Motion`) of K ticks.

        Returns:
            At its start `[m]` and within each tick `[K, m]`, for those m limits that the motion
            comes within `range` of; m may be 0 and differ from motion to motion.
        """
        ...


@runtime_checkable
class SettledByPath(Constraint, Protocol):
    """A constraint that one look at a path can settle for all that is sent on it."""

    def along(self, path: Any, motion: Any) -> float | None:
        """Least clearance of whatever is sent on a path, at its own pace or more slowly.

        Args:
            path: `safety.path.JointPath`.
            motion: all of it at its own pace, with loose bounds between the ticks.

        Returns:
            A lower bound >= 0 in the constraint's own unit; None where each motion has to be looked
            at by itself.
        """
        ...


@runtime_checkable
class RefusedByEnds(Constraint, Protocol):
    """A constraint that can mostly refuse a motion for its ends, without the way between them."""

    def refuses(self, motion: Any) -> bool:
        """Whether a look at all of a motion (`safety.motion.Motion`) is sure to refuse it."""
        ...


class Filter(Protocol):
    """What stands between a proposal and the motors."""

    def reset(self, state: RobotState) -> None:
        """Start from the measured pose, at rest; the next proposal is guarded as a first one."""
        ...

    def certify(self, state: RobotState, proposal: Proposal | None, now: float) -> Decision:
        """One control tick; never raises, never lets a wish pass unchecked. `None` asks to stop."""
        ...


class Task(Protocol):
    """What the arm is to do: observation, reward, cost, ends and reset poses."""

    spec: Spec
    max_steps: int

    def reset(self, seed: int) -> None:
        """Lay out a new episode; the same seed gives the same episode, bit for bit."""
        ...

    def observe(self, state: RobotState) -> Observation:
        """The policy's observation."""
        ...

    def proposal(
        self, action: Array, state: RobotState, source: Source = Source.POLICY
    ) -> Proposal:
        """Turn an action `[A]` in [-1, 1] into joint targets."""
        ...

    def executed_action(self, before: RobotState, after: RobotState) -> Array:
        """The action `[A]` that the certified commands amounted to."""
        ...

    def outcome(self) -> tuple[float, float, bool]:
        """Reward, cost and `terminated` since the last call."""
        ...

    def contact_force(self) -> float:
        """Largest contact force since the last call, N; NaN where nobody measures it."""
        ...

    def clearance(self) -> float:
        """Distance of the arm from what it must not touch, now, m; NaN where nobody knows it.

        0 in contact. A label to train with: no policy and no filter ever reads it.
        """
        ...


class Env(Protocol):
    """Robot + task + filter, or any simulator directly."""

    spec: Spec

    def reset(self, seed: int) -> Step:
        """Start an episode; reward and cost of the returned step are 0."""
        ...

    def step(self, action: Array, source: Source = Source.POLICY, speed: float = 1.0) -> Step:
        """Execute one policy step, at a share of its speed in (0, 1]: a half takes twice as long.

        Raises:
            ConfigError: nothing here can be slowed down, and it is asked for.
        """
        ...

    def close(self) -> None:
        """Release everything; idempotent."""
        ...

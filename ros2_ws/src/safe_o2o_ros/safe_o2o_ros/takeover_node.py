"""A person's device becomes proposals that the robot's side puts before the policy's.

A SpaceMouse, a gamepad, a keyboard or a leader arm, on whatever topic its own driver publishes.
Each proposal starts where the arm was sent last and the filter judges it like any other, so that
neither taking over nor letting go makes the arm jump. Nothing is proposed before the device asks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import Twist, TwistStamped
from sensor_msgs.msg import JointState, Joy
from std_msgs.msg import Bool, String
from trajectory_msgs.msg import JointTrajectory

from safe_o2o.config import require_one_of, require_positive, require_xyz
from safe_o2o.errors import ConfigError
from safe_o2o.runtime.cartesian import CartesianDelta, tool_steps
from safe_o2o.spaces import Spec
from safe_o2o.types import Array, Proposal, RobotState, Source
from safe_o2o_ros import qos
from safe_o2o_ros.conversions import (
    MessageError,
    TaskDescription,
    joints_from_msg,
    proposal_to_msg,
    record_from_text,
    stamp_from_msg,
)
from safe_o2o_ros.described_task import cartesian_of
from safe_o2o_ros.handover import TAKEOVER, let_go, stand
from safe_o2o_ros.node import OK, WARN, GuardedNode, Health, run_node
from safe_o2o_ros.parameters import setting

DEVICES: dict[str, type[Any]] = dict(
    twist=Twist, twist_stamped=TwistStamped, joy=Joy, joint_state=JointState
)
ENGAGE = ("motion", "button", "topic")
AHEAD = 2
"""How many messages long a proposal lasts: one that is lost or late leaves no gap."""


@dataclass(frozen=True)
class TakeoverNodeConfig:
    """Parameters of the takeover node."""

    device: str = setting("twist", f"what the device publishes: {', '.join(DEVICES)}")
    device_topic: str = setting("device", "where it does")
    engage: str = setting(
        "motion", "what takes the arm: motion of the device, a held button, or true on a topic"
    )
    engage_topic: str = setting("engage", "with topic: a Bool, true for as long as it is wanted")
    button: int = setting(0, "with button: number of the joystick's button")
    axes: tuple[int, ...] = setting((1, 0, 3), "joy: its axes for x, y and z of the arm's base")
    directions: tuple[float, ...] = setting(
        (1.0, 1.0, 1.0), "factors of x, y and z, for a person who stands elsewhere"
    )
    full: float = setting(1.0, "twist: what the device says at full deflection")
    speed: float = setting(0.1, "tool speed along an axis at full deflection, m/s")
    joint_speed: float = setting(0.3, "joint_state: most of a joint, rad/s")
    deadband: float = setting(0.05, "share of full deflection that is no motion")
    linger: float = setting(0.5, "with motion: rest of the device after which it lets go, s")
    silent: float = setting(0.3, "silence of the device after which the arm stands, s")
    rate: float = setting(20.0, "proposals a second, Hz")

    def __post_init__(self) -> None:
        require_positive(self, "full", "speed", "joint_speed", "linger", "silent", "rate")
        require_one_of(self, "device", tuple(DEVICES))
        require_one_of(self, "engage", ENGAGE)
        require_xyz(self, "axes", "directions")
        if self.engage == "button" and self.device != "joy":
            raise ConfigError("only joy has buttons", where="engage", todo="engage: topic")
        if self.engage == "motion" and self.device == "joint_state":
            raise ConfigError("a leader arm always moves", where="engage", todo="engage: topic")
        if min(*self.axes, self.button) < 0:
            raise ConfigError("are counted from 0", where="axes, button")
        if not 0.0 <= self.deadband < 1.0:
            raise ConfigError(f"must lie in 0..1, got {self.deadband}", where="deadband")


class TakeoverNode(GuardedNode):
    """Subscribes to the device, `joint_commands` and `task_description`; publishes `takeover`."""

    def __init__(self, **options: Any) -> None:
        super().__init__("takeover_node", TakeoverNodeConfig, **options)
        self.engaged = False
        self._publisher: Any = None

    def on_start(self) -> None:
        """Subscribe; publish from the first command of the arm on."""
        config: TakeoverNodeConfig = self.config
        self.cartesian: CartesianDelta | None = None
        self._command: tuple[Array, float] | None = None
        self._deflection: Array = np.zeros(3)
        self._leader: Array | None = None
        self._clutch: tuple[Array, Array] | None = None
        self._heard = self._moved = -np.inf
        self._wanted = False
        self._publisher = self.create_publisher(JointTrajectory, TAKEOVER, qos.COMMAND)
        device = DEVICES[config.device]
        for kind, topic, callback, profile in (
            (String, "task_description", self._on_task, qos.LATCHED),
            (JointState, "joint_commands", self._on_command, qos.STREAM),
            (device, config.device_topic, self._on_device, qos.SENSOR),
        ):
            self.create_subscription(kind, topic, self.guarded(callback), profile)
        if config.engage == "topic":
            self.create_subscription(
                Bool, config.engage_topic, self.guarded(self._on_engage), qos.COMMAND
            )
        self.create_timer(1.0 / config.rate, self.guarded(self._propose), clock=self.steady)

    def on_hold(self) -> None:
        """The arm is the policy's again."""
        if self._publisher is not None:
            self._let_go()

    def health(self) -> Health:
        """Who has the arm, and whether the device is there."""
        silence = time.monotonic() - self._heard if self.running else np.inf
        values = {"engaged": self.engaged, "device": self.config.device}
        if self.cartesian is None:
            return WARN, "no task yet", values
        if self.engaged and silence > self.config.silent:
            return WARN, "the device is silent: the arm stands", values
        return OK, "a person has the arm" if self.engaged else "stands by", values

    # What comes in.

    def _on_task(self, msg: String) -> None:
        """The arm and its box; the same IK as the policy's, in shorter steps."""
        task, config = record_from_text(TaskDescription, msg), self.config
        period = AHEAD / config.rate
        spec = Spec.from_json(task.spec)
        steps = Spec(spec.observation, tool_steps(config.speed * period, period))
        self.cartesian = cartesian_of(task, steps)

    def _on_command(self, msg: JointState) -> None:
        if self.cartesian is not None:
            q, _ = joints_from_msg(msg, self.cartesian.joint_names)
            self._command = (q, stamp_from_msg(msg.header.stamp))

    def _on_engage(self, msg: Bool) -> None:
        self._wanted = bool(msg.data)

    def _on_device(self, msg: Any) -> None:
        """A reading of the device; one that is not finite is none."""
        config: TakeoverNodeConfig = self.config
        if config.device == "joint_state":
            if self.cartesian is None:
                return
            self._leader, _ = joints_from_msg(msg, self.cartesian.joint_names)
            self._heard = time.monotonic()
            return
        deflection = self._deflection_of(msg)
        if not np.isfinite(deflection).all():
            raise MessageError("is not finite", where=config.device_topic)
        small = np.abs(deflection) <= config.deadband
        self._deflection = np.where(small, 0.0, np.clip(deflection, -1.0, 1.0))
        self._heard = time.monotonic()
        if not small.all():
            self._moved = self._heard
        if config.engage == "button":
            self._wanted = config.button < len(msg.buttons) and bool(msg.buttons[config.button])

    def _deflection_of(self, msg: Any) -> Array:
        """Share of full deflection along x, y and z of the base `[3]`."""
        config: TakeoverNodeConfig = self.config
        if config.device == "joy":
            if max(config.axes) >= len(msg.axes):
                raise MessageError(f"has {len(msg.axes)} axes", where=config.device_topic)
            found = [msg.axes[axis] for axis in config.axes]
        else:
            linear = (msg.twist if config.device == "twist_stamped" else msg).linear
            found = [linear.x / config.full, linear.y / config.full, linear.z / config.full]
        return np.asarray(found, np.float64) * np.asarray(config.directions)

    # What goes out.

    def _propose(self) -> None:
        """Say who has the arm, and where to."""
        if not self.running or self.cartesian is None or self._command is None:
            return
        now, config = time.monotonic(), self.config
        # A device that vanishes while it has the arm leaves it standing, not to the policy, unless
        # rest is what lets go: a keyboard is silent when it rests.
        if config.engage == "motion":
            self.engaged = now - self._moved <= config.linger
        else:
            self.engaged = self._wanted and (self.engaged or now - self._heard <= config.silent)
        if not self.engaged:
            self._let_go()
            return
        proposal = None
        if now - self._heard <= config.silent:
            with self.latency.time("takeover_ik"):
                q, stamp = self._command
                state = RobotState(q, np.zeros_like(q), q, stamp)
                proposal = self._wish(self.cartesian, state)
        names = self.cartesian.joint_names
        self._publisher.publish(stand(names) if proposal is None else proposal_to_msg(proposal))

    def _wish(self, cartesian: CartesianDelta, state: RobotState) -> Proposal | None:
        """Where the device says to go; None to stand."""
        if self.config.device != "joint_state":
            moves = bool(self._deflection.any())
            return cartesian.proposal(self._deflection, state, Source.HUMAN) if moves else None
        if self._leader is None:
            return None
        if self._clutch is None:
            self._clutch = (state.q_command, self._leader)
        arm, leader = self._clutch  # as far from there as the leader from where it was then
        period = cartesian.spec.period
        most = self.config.joint_speed * period
        gap = np.clip(arm + (self._leader - leader) - state.q_command, -most, most)
        q = (state.q_command + gap)[None]
        return Proposal(q, period, state.stamp, cartesian.joint_names, Source.HUMAN)

    def _let_go(self) -> None:
        """Said again and again, so that the loss of one message does not matter."""
        self.engaged, self._clutch = False, None
        self._publisher.publish(let_go())


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    return run_node(TakeoverNode, argv)


if __name__ == "__main__":
    sys.exit(main())

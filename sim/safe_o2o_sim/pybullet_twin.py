"""The twin: a Franka Panda on a table in PyBullet, behind the same methods as the real arm.

Obstacles are sensed, not felt: touching one is reported and costs, but exerts no force. So an
episode with a violation goes on as the policy meant it, nothing is knocked over that the camera's
copy of the scene would not know of, and an episode is the same bit for bit wherever it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from safe_o2o.lifecycle import LifecycleRobot, LifecycleState
from safe_o2o.safety.kinematics import POSTURES, Kinematics
from safe_o2o.types import Array, CertifiedCommand, RobotState
from safe_o2o_sim.bullet import pybullet
from safe_o2o_sim.scene import (
    ARM_JOINTS,
    EMPTY,
    FINGER_JOINTS,
    Block,
    SceneLayout,
    add_block,
    add_capsule,
    load_panda,
    place_arm,
    place_block,
    place_capsule,
)
from safe_o2o_sim.visitor import Visitor

_TABLE = Block("box", (0.80, 1.40, 0.05), (0.60, 0.0), (0.2, 0.2, 0.2))
_TORQUE = [87.0] * 4 + [12.0] * 3  # Nm
_SERVO_GAIN = 0.5  # share of the position error that the drives take away within one tick
_BODY_RADIUS = 0.15  # m: no point of the arm is farther from its chain of joint origins and tool
_STILL = 5e-3  # rad/s: an arm whose joints are all slower stands
_STIFFNESS = 3000.0  # N/m, of a touch: a hard foam block that a stiff arm leans on
_SENSING_RANGE = 0.20  # m: obstacles farther away than this are not looked at more closely


class PybulletTwin(LifecycleRobot):
    """A simulated Panda in a physics world of its own. Time passes with each `write`.

    The drives follow a command with a lag of about one tick.

    Args:
        period: control period, s.
        substeps: physics steps a period.
        continuous_clock: True lets the clock run on over `teleport`, as a graph of nodes needs it;
            False starts it at zero, as reproducible episodes need it.
    """

    joint_names: tuple[str, ...] = tuple(f"panda_joint{i}" for i in range(1, 8))

    def __init__(
        self, period: float = 0.01, substeps: int = 1, *, continuous_clock: bool = False
    ) -> None:
        self.period, self.substeps, self.continuous_clock = period, substeps, continuous_clock
        super().__init__("pybullet twin")
        self.layout = EMPTY
        self.visitors: tuple[Visitor, ...] = ()
        """Who comes and goes; moved on with each period."""
        self._client: int | None = None
        self._ticks = self._began = 0
        # How far any point of the arm moves at most when the joints turn by dq: sum reach |dq|.
        self._reach = Kinematics("panda").reach + _BODY_RADIUS

    def connect(self) -> None:
        """UNCONFIGURED -> INACTIVE: build the world, arm at its resting posture."""
        self.lifecycle.require("connect", LifecycleState.UNCONFIGURED)
        self._client = pybullet.connect(pybullet.DIRECT)
        self._build(self._client)
        super().connect()
        self._ticks = 0
        self.teleport(np.asarray(POSTURES["panda"]))

    def read(self) -> RobotState:
        """The newest state. Raises `RobotStateError` when UNCONFIGURED."""
        self.lifecycle.require_connected("read")
        return RobotState(
            q=self._q, dq=self._dq, q_command=self._q_command, stamp=self._ticks * self.period
        )

    def write(self, command: CertifiedCommand) -> None:
        """Let one period pass under this set-point. Raises `RobotStateError` unless ACTIVE."""
        self.lifecycle.require("write", LifecycleState.ACTIVE)
        self._q_command = np.array(command.q, np.float64)
        self._run()

    def pass_time(self) -> None:
        """One control period without a command: the servos hold what they were told last."""
        self.lifecycle.require_connected("pass time")
        self._run()

    def _run(self) -> None:
        """One control period of physics towards the last command."""
        pybullet.setJointMotorControlArray(
            self._arm,
            ARM_JOINTS,
            pybullet.POSITION_CONTROL,
            targetPositions=self._q_command.tolist(),
            forces=_TORQUE,
            positionGains=self._gains,
            physicsClientId=self._client,
        )
        for _ in range(self.substeps):
            pybullet.stepSimulation(physicsClientId=self._client)
        self._ticks += 1
        before = self._q
        self._measure()
        self._move()
        self._visit(before)
        self._sense(before)

    def set_scene(self, layout: SceneLayout) -> None:
        """Lay out obstacles and goal around the arm as it is; see `place`."""
        self.lifecycle.require_connected("set the scene")
        self.place(self._q, layout)

    def teleport(self, q: Array) -> None:
        """Be at rest at `q` `[7]`, rad, in the same scene; see `place`."""
        self.place(q, self.layout, self.visitors)

    def place(self, q: Array, layout: SceneLayout, visitors: Sequence[Visitor] = ()) -> None:
        """Be at rest at `q` `[7]`, rad, in a scene; what ran before leaves no trace.

        What moves in the scene begins its way at the stamp of the next `read`.

        Args:
            q: joint positions `[7]`, rad.
            layout: what stands on the table.
            visitors: who comes and goes, from now on.
        """
        self.lifecycle.require_connected("be placed")
        self.layout, self.visitors = layout, tuple(visitors)
        self._arrange(np.asarray(q, np.float64))
        if not self.continuous_clock:
            self._ticks = 0
        self._began = self._ticks
        self._measure()
        self._q_command = self._q
        self._touched, self._depth, self._clearance = False, 0.0, 0.0
        self._sense(self._q)

    def take_contact(self) -> bool:
        """Whether any part of the arm touched an obstacle since the last call."""
        touched, self._touched = self._touched, False
        return touched

    def take_force(self) -> float:
        """Largest contact force since the last call, N, as of a spring between arm and obstacle.

        Obstacles of the twin let the arm pass, so that a touch ends no episode: how deep it is
        tells how hard it would have been.
        """
        force, self._depth = _STIFFNESS * self._depth, 0.0
        return force

    def clearance(self) -> float:
        """Distance from the nearest obstacle, m, at most 0.2; 0 in contact.

        Exact, and so slower than what notices a touch: for once a policy step.
        """
        return max(self._nearest_of_all(), 0.0)

    def stop(self) -> None:
        """Stop moving, from any state, without raising; an active arm becomes INACTIVE."""
        if self.lifecycle.connected:
            self.lifecycle.state = LifecycleState.INACTIVE
            # Time passes with `write` alone: at rest here and now is what a stopped arm is.
            with suppress(pybullet.error):
                place_arm(self._client, self._arm, self._q)
            self._q_command, self._dq = self._q, np.zeros_like(self._q)

    def close(self) -> None:
        """Any state -> UNCONFIGURED; idempotent."""
        super().close()
        if self._client is not None:
            pybullet.disconnect(self._client)
            self._client = None

    def _build(self, client: int) -> None:
        """The world that every episode shares: arm and table."""
        pybullet.setTimeStep(self.period / self.substeps, physicsClientId=client)
        pybullet.setGravity(0.0, 0.0, -9.81, physicsClientId=client)
        self._arm = load_panda(client, "collision")
        table = add_block(client, _TABLE, "collision")
        pybullet.resetBasePositionAndOrientation(
            table,
            (*_TABLE.position, -0.5 * _TABLE.size[2]),
            (0.0, 0.0, 0.0, 1.0),
            physicsClientId=client,
        )
        self._obstacles: list[int] = []
        self._bodies: list[int] = []  # of the visitors
        # The same approach per tick for any number of substeps.
        self._gains = [1.0 - (1.0 - _SERVO_GAIN) ** (1.0 / self.substeps)] * len(ARM_JOINTS)

    def _arrange(self, q: Array) -> None:
        """Arm at rest at `q`, motors holding it, obstacles of the layout."""
        client, arm = self._client, self._arm
        while self._bodies:
            pybullet.removeBody(self._bodies.pop(), physicsClientId=client)
        while self._obstacles:
            pybullet.removeBody(self._obstacles.pop(), physicsClientId=client)
        for block in self.layout.obstacles:
            body = add_block(client, block, "collision")
            # No part in the physics; `_sense` asks for the distance all the same.
            pybullet.setCollisionFilterGroupMask(body, -1, 0, 0, physicsClientId=client)
            self._obstacles.append(body)
        for visitor in self.visitors:
            body = add_capsule(client, visitor.radius, visitor.axis)
            place_capsule(client, body, visitor.position, visitor.axis)
            self._bodies.append(body)
        place_arm(client, arm, q)
        hold = dict(controlMode=pybullet.POSITION_CONTROL, physicsClientId=client)
        for joint, value in zip(ARM_JOINTS, q.tolist(), strict=True):
            pybullet.setJointMotorControl2(arm, joint, targetPosition=value, **hold)
        for joint in FINGER_JOINTS:
            pybullet.resetJointState(arm, joint, 0.0, 0.0, physicsClientId=client)
            pybullet.setJointMotorControl2(arm, joint, targetPosition=0.0, force=20.0, **hold)

    def _measure(self) -> None:
        states = pybullet.getJointStates(self._arm, ARM_JOINTS, physicsClientId=self._client)
        self._q = np.array([state[0] for state in states])
        self._dq = np.array([state[1] for state in states])

    def _move(self) -> None:
        """What moves by itself is where its motion says, at the end of this period."""
        for block, body in zip(self.layout.obstacles, self._obstacles, strict=True):
            if block.motion is not None:
                elapsed = (self._ticks - self._began) * self.period
                place_block(self._client, body, block, elapsed)
                self._clearance -= block.motion.speed * self.period

    def _visit(self, before: Array) -> None:
        """Everybody goes on for one period; nobody pushes into an arm that stands."""
        if not self.visitors:
            return
        still = float(np.abs(self._q - before).max()) < _STILL * self.period
        for visitor, body in zip(self.visitors, self._bodies, strict=True):
            gap = self._nearest(body, _SENSING_RANGE) if still else np.inf
            visitor.step(self.period, gap)
            place_capsule(self._client, body, visitor.position, visitor.axis)
        self._clearance -= max(visitor.max_speed for visitor in self.visitors) * self.period

    def _nearest(self, body: int, within: float) -> float:
        """Distance of the arm from a body, m, at most `within`."""
        found = pybullet.getClosestPoints(self._arm, body, within, physicsClientId=self._client)
        return min((point[8] for point in found), default=within)

    def _nearest_of_all(self) -> float:
        """Distance of the arm from everybody and everything, m, at most the sensing range."""
        nearest = _SENSING_RANGE
        for body in (*self._obstacles, *self._bodies):
            nearest = self._nearest(body, nearest)
        return nearest

    def _sense(self, before: Array) -> None:
        """Note a touch and its depth; looks only when the arm may have come that far meanwhile."""
        self._clearance -= float(self._reach @ np.abs(self._q - before))
        if self._clearance > 0.0:
            return
        nearest = self._nearest_of_all()
        self._touched |= nearest <= 0.0
        self._depth = max(self._depth, -nearest)
        self._clearance = max(nearest, 0.0)

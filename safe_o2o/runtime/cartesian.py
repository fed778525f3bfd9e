"""From a Cartesian step of the tool to joint targets and back: differential IK by pink.

The tool points down with a fixed yaw and moves within a box. Every quantity is in the robot's base
frame. Used by the environment, by the ROS nodes and by whoever replays: needs neither a simulator
nor torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pinocchio
from pink import Configuration, solve_ik
from pink.exceptions import PinkError
from pink.limits import ConfigurationLimit
from pink.tasks import FrameTask, PostureTask

from safe_o2o.errors import ConfigError
from safe_o2o.safety.kinematics import POSTURES, Kinematics
from safe_o2o.safety.limits import tool_frame
from safe_o2o.spaces import ActionSpec, ArraySpec, ObservationSpec, Spec
from safe_o2o.types import Array, Observation, Proposal, RobotState, Source

WORKSPACE: tuple[tuple[float, float, float], tuple[float, float, float]] = (
    (0.32, -0.24, 0.03),
    (0.68, 0.24, 0.26),
)
"""Lowest and highest corner of the box of the tool's targets, m. Action, filter and scene all take
it from here; the finger tips reach 9 mm below the tool frame."""

TOOL_POSE = ArraySpec((5,), "float32", "m", names=("x", "y", "z", "sin_yaw", "cos_yaw"))
"""What `CartesianDelta.observe` says of the tool."""


def tool_steps(max_delta: float, period: float) -> ActionSpec:
    """Actions (dx, dy, dz) of at most `max_delta`, m, one every `period`, s."""
    return ActionSpec(("dx", "dy", "dz"), "m", (-max_delta,) * 3, (max_delta,) * 3, period)


def sees_and_steps(image_size: int, max_delta: float, period: float) -> Spec:
    """What a policy sees and does that moves the tool after one camera, on a twin or a real arm.

    Args:
        image_size: height and width of the picture, pixels.
        max_delta: farthest that one action moves the tool along an axis, m.
        period: policy period, s.
    """
    shape = (image_size, image_size, 3)
    image = ArraySpec(shape, "uint8", "intensity", low=0.0, high=255.0)
    observation = ObservationSpec({"image": image, "tcp_pose": TOOL_POSE})
    return Spec(observation, tool_steps(max_delta, period))


STOP_ROOM = 0.02
"""How much larger than the box of targets the filter's box is, m: joints that move in a line let
the tool sag between two targets, and an arm that arrives at a wall must still be able to stop;
without it every visit to the wall would be a stop."""


def certified_box(
    workspace: tuple[tuple[float, ...], tuple[float, ...]] = WORKSPACE,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The filter's box around a box of targets."""
    low, high = workspace
    return tuple(x - STOP_ROOM for x in low), tuple(x + STOP_ROOM for x in high)


REACHED = 1e-3
"""The tool counts as in the middle of the workspace when it is this close, m."""
POSITION_TOLERANCE = 1e-5
"""IK goes on until the tool is this close, m, or until its iterations are used up."""


class CartesianDelta:
    """Actions that move the tool by (dx, dy, dz).

    Args:
        action: the action's spec; names must be dx, dy, dz in m.
        robot: name of a shipped arm, or the text of a URDF.
        workspace: lowest and highest corner of the tool's box, m.
        frame: the tool frame; empty for the arm's own.
        yaw: rotation of the tool about the vertical, rad.
        iterations: most steps of differential IK a decision.
        posture: where the arm rests `[n]`, rad; empty for that of a shipped arm that has one.

    Raises:
        ConfigError: the spec is of another action, the box is empty, its middle out of reach, or
            the arm has no posture.
    """

    def __init__(
        self,
        action: ActionSpec,
        robot: str = "panda",
        *,
        workspace: tuple[tuple[float, ...], tuple[float, ...]] = WORKSPACE,
        frame: str = "",
        yaw: float = 0.0,
        iterations: int = 4,
        posture: Sequence[float] = (),
    ) -> None:
        if action.names != ("dx", "dy", "dz") or action.unit != "m":
            raise ConfigError(
                f"must be dx, dy, dz in m, got {', '.join(action.names)} in {action.unit}",
                where="action spec",
            )
        if not len(posture) and robot not in POSTURES:
            raise ConfigError(
                f"no posture for the arm {robot[:20]!r}",
                todo=f"give one (`home`), or take one of {list(POSTURES)}",
            )
        low, high = (np.asarray(corner, np.float64) for corner in workspace)
        if not (low.shape == high.shape == (3,) and (low < high).all()):
            raise ConfigError(f"needs low < high on three axes, got {workspace}", where="workspace")
        frame = frame or tool_frame(robot)
        self.spec, self.robot, self.frame, self.iterations = action, robot, frame, iterations
        self.low, self.high, self.yaw = low, high, yaw
        self.kinematics = Kinematics(robot, (frame,))
        self.joint_names = self.kinematics.joint_names
        model = self.kinematics.model
        # A hair inside, because pink complains about configurations on the limit itself.
        self._q_low, self._q_high = model.lowerPositionLimit + 1e-6, model.upperPositionLimit - 1e-6
        cosine, sine = np.cos(yaw), np.sin(yaw)
        self._rotation = np.array([[cosine, sine, 0.0], [sine, -cosine, 0.0], [0.0, 0.0, -1.0]])
        rest = np.asarray(posture if len(posture) else POSTURES[robot], np.float64)
        if rest.shape != (len(self.joint_names),):
            raise ConfigError(
                f"needs {len(self.joint_names)} joint positions, got {rest.size}", where="home"
            )
        self._tool = FrameTask(frame, position_cost=1.0, orientation_cost=0.5)
        # Settles the elbow and nothing else: its bias on the tool stays below a micrometre.
        self._posture = PostureTask(cost=1e-3, gain=0.3)
        self._posture.set_target(rest)
        self._limits = [ConfigurationLimit(model, config_limit_gain=0.9)]
        self._configuration = Configuration(model, self.kinematics.data, rest, copy_data=False)
        middle = 0.5 * (low + high)
        self.posture: Array = self.solve(middle, rest, 50)
        off = float(np.linalg.norm(self.position(self.posture) - middle))
        if off > REACHED:
            raise ConfigError(
                f"the arm does not reach its middle {np.round(middle, 3).tolist()} with the tool "
                f"pointing down: {1e3 * off:.0f} mm are missing",
                where="workspace",
                todo="measure the cell, or give another posture to start from (`home`)",
            )

    def proposal(
        self, action: Array, state: RobotState, source: Source = Source.POLICY
    ) -> Proposal:
        """Joint targets for an action `[3]` in [-1, 1], counted from the last certified command.

        The target is clamped to the workspace. An action that is not finite becomes a proposal that
        is not finite, so that it is the filter that refuses it; one that IK cannot solve becomes a
        proposal to stay.
        """
        delta = self.spec.to_si(action)
        if np.isfinite(delta).all():
            target = self.position(state.q_command) + delta
            q = self.solve(np.minimum(np.maximum(target, self.low), self.high), state.q_command)
        else:
            q = np.full(len(self.joint_names), np.nan)
        return Proposal(
            q=q[None],
            period=self.spec.period,
            stamp=state.stamp,
            joint_names=self.joint_names,
            source=source,
        )

    def solve(self, target: Array, q: Array, iterations: int | None = None) -> Array:
        """Joint positions `[n]` with the tool at `target` `[3]`, pointing down, found from `q`.

        Args:
            target: tool position, m.
            q: where the search starts `[n]`, rad.
            iterations: most steps; by default the instance's.

        Returns:
            The solution; `q` itself where pink finds none.
        """
        goal = pinocchio.SE3(self._rotation, np.asarray(target, np.float64))
        self._tool.set_target(goal)
        configuration, found = self._configuration, np.clip(q, self._q_low, self._q_high)
        for step in range(self.iterations if iterations is None else iterations):
            configuration.update(found)
            if step:
                at = configuration.get_transform_frame_to_world(self.frame)
                if np.abs(at.translation - goal.translation).max() < POSITION_TOLERANCE:
                    break
            try:
                velocity = solve_ik(
                    configuration,
                    (self._tool, self._posture),
                    1.0,
                    solver="daqp",
                    limits=self._limits,
                    safety_break=False,
                )
            except PinkError:
                return np.array(q, np.float64)
            found = np.clip(found + velocity, self._q_low, self._q_high)
        return np.asarray(found)

    def executed_action(self, before: RobotState, after: RobotState) -> Array:
        """The action `[3]`, float32, that the commands between two readings amounted to."""
        moved = self.position(after.q_command) - self.position(before.q_command)
        return self.spec.from_si(moved)

    def observe(self, state: RobotState, image: Array | None) -> Observation:
        """The policy's observation: `image` `[H, W, 3]` and `tcp_pose` `[5]` of the measured arm.

        Without an image there is none in it.
        The pose is x, y, z of the tool, m, then sine and cosine of its yaw.
        """
        rotation = self.kinematics.rotation(state.q, self.frame)
        position = self.position(state.q)
        norm = float(np.hypot(rotation[0, 0], rotation[1, 0])) or 1.0
        sine, cosine = rotation[1, 0] / norm, rotation[0, 0] / norm
        pose = np.array([*position, sine, cosine], np.float32)
        return {"tcp_pose": pose} if image is None else {"image": image, "tcp_pose": pose}

    def position(self, q: Array) -> Array:
        """Position `[3]` of the tool at joint positions `[n]`, m."""
        return self.kinematics.position(q, self.frame)

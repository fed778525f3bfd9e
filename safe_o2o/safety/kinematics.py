"""Where the arm's frames are: positions, rotations and reach, by pinocchio.

Every quantity is in the robot's base frame. One instance holds the scratch memory of its queries
and therefore belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pinocchio

from safe_o2o.errors import ConfigError
from safe_o2o.safety.shipped import shipped_text
from safe_o2o.types import Array

POSTURES: dict[str, tuple[float, ...]] = dict(
    panda=(0.0, 0.06, 0.0, -2.35, 0.0, 2.41, 0.785),
    fr3=(0.0, 0.06, 0.0, -2.35, 0.0, 2.41, 0.785),
    ur3e=(-0.487, -1.515, 2.315, -2.371, -1.571, -2.058),
    ur5e=(-0.301, -1.431, 2.24, -2.38, -1.571, -1.872),
    ur10e=(-0.294, -1.457, 2.289, -2.404, -1.571, -1.865),
    xarm6=(0.0, -0.064, -0.461, 0.0, 0.526, 0.0),
    xarm7=(0.0, 0.107, 0.0, 0.639, 0.0, 0.532, 0.0),
)
"""Where a shipped arm rests, rad: elbow up, tool pointing down over the middle of its table."""


def robot_model(robot: str) -> pinocchio.Model:
    """The pinocchio model of a shipped arm, by its name, or of the text of a URDF.

    Raises:
        UnknownNameError: no such arm; the message names the near miss.
        ConfigError: the text is no URDF.
    """
    if not robot.lstrip().startswith("<"):
        return pinocchio.buildModelFromXML(shipped_text("robot_models", robot, ".urdf"))
    try:
        return pinocchio.buildModelFromXML(robot)
    except (ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"is no robot ({text})", where="URDF") from error


def chain_reach(model: pinocchio.Model, points: Iterable[tuple[int, Array]]) -> Array:
    """Upper bound `[n]`, m, on the distance of points fixed to joints from each joint's axis.

    The first link of a chain counts only across the axis, along which its end cannot leave the
    axis; all others count in full, which bounds their sum at every configuration.

    Args:
        model: the arm.
        points: index of a joint of the model, 0 for the base, and where the point lies in its
            frame `[3]`, m.
    """
    reach = np.zeros(model.nv)
    for joint, offset in points:
        beyond = 0.0
        while joint > 0:
            axis = model.joints[joint].createData().S[3:].ravel()
            across = offset - axis * float(axis @ offset)
            reach[joint - 1] = max(reach[joint - 1], beyond + float(np.linalg.norm(across)))
            beyond += float(np.linalg.norm(offset))
            offset = model.jointPlacements[joint].translation
            joint = int(model.parents[joint])
    return reach


class Kinematics:
    """Forward kinematics of named frames of an arm with n joints.

    Args:
        robot: name of a shipped arm ("panda").
        frames: the F frames that `positions` and `reach` speak of.

    Raises:
        UnknownNameError: no such arm.
        ConfigError: the arm has no such frame.
    """

    def __init__(self, robot: str = "panda", frames: tuple[str, ...] = ("panda_hand_tcp",)) -> None:
        self.robot, self.frames = robot, tuple(frames)
        self.model = robot_model(robot)
        self.data = self.model.createData()
        self.joint_names: tuple[str, ...] = tuple(self.model.names)[1:]
        self.n: int = self.model.nv
        self._ids = {frame.name: i for i, frame in enumerate(self.model.frames)}
        self._frame_ids = [self._id(name) for name in self.frames]
        found = (self.model.frames[i] for i in self._frame_ids)
        self.reach: Array = chain_reach(
            self.model, ((f.parentJoint, f.placement.translation) for f in found)
        )
        """Upper bound `[n]`, m, on the distance of any of `frames` from joint i's axis."""

    def position(self, q: Array, frame: str) -> Array:
        """Position `[3]`, m, of a frame at joint positions `[n]`, rad."""
        placement = pinocchio.updateFramePlacement
        pinocchio.forwardKinematics(self.model, self.data, q)
        return np.array(placement(self.model, self.data, self._id(frame)).translation)

    def rotation(self, q: Array, frame: str) -> Array:
        """Rotation `[3, 3]` that turns a vector of the frame into the base frame."""
        pinocchio.forwardKinematics(self.model, self.data, q)
        placement = pinocchio.updateFramePlacement(self.model, self.data, self._id(frame))
        return np.array(placement.rotation)

    def jacobian(self, q: Array, frame: str) -> Array:
        """Linear and angular velocity of a frame per joint velocity `[6, n]`, base axes."""
        where = pinocchio.ReferenceFrame.LOCAL_WORLD_ALIGNED
        found = pinocchio.computeFrameJacobian(self.model, self.data, q, self._id(frame), where)
        return np.array(found)

    def positions(self, q: Sequence[Array] | Array) -> Array:
        """Positions `[K, F, 3]`, m, of all `frames` at each of the configurations `[K, n]`."""
        model, data = self.model, self.data
        forward, placement = pinocchio.forwardKinematics, pinocchio.updateFramePlacement
        out = np.empty((len(q), len(self._frame_ids), 3))
        for k, configuration in enumerate(q):
            forward(model, data, configuration)
            for f, frame in enumerate(self._frame_ids):
                out[k, f] = placement(model, data, frame).translation
        return out

    def _id(self, frame: str) -> int:
        try:
            return self._ids[frame]
        except KeyError:
            raise ConfigError(
                f"the arm {self.robot!r} has no frame {frame!r}", todo=f"known: {sorted(self._ids)}"
            ) from None

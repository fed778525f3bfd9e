"""Limits of a robot: numbers with units and a source, validated when they are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from safe_o2o.errors import ConfigError
from safe_o2o.safety.kinematics import robot_model
from safe_o2o.safety.shipped import shipped_text
from safe_o2o.safety.urdf import refuse_unlimited_joints
from safe_o2o.types import Array

MEASURED = "measured_by_you"
"""What a file says in place of a number that the maker does not publish."""
UNLIMITED = "unlimited"
"""What a file says in place of a jerk that need not be limited."""

_UNITS = dict(
    position_low="rad",
    position_high="rad",
    velocity="rad/s",
    acceleration="rad/s^2",
    jerk="rad/s^3",
    velocity_offset="rad/s",
    velocity_deceleration="rad/s^2",
    tool_velocity="m/s",
)
_OPTIONAL = ("velocity_offset", "velocity_deceleration", "tool_velocity")
_RISING = ("position_low", "velocity_offset")  # the larger number is the stricter one
_TEXT = ("robot", "source", "joint_names", "tool_frame", "elbow_frame", "ceiling")
# For the reader of a file; nothing here uses them.
_UNUSED = (
    *("torque", "torque_rate", "tool_acceleration", "tool_jerk", "tool_angular_velocity"),
    *("tool_angular_acceleration", "tool_angular_jerk"),
)
_KNOWN = {*_UNITS, *_TEXT, *_UNUSED}


def tool_frame(robot: str) -> str:
    """The tool's frame of a shipped arm, also of one whose limits have not been measured yet.

    Raises:
        UnknownNameError: no such arm; the message names the near miss.
    """
    return str(yaml.safe_load(shipped_text("robot_limits", robot, ".yaml"))["tool_frame"])


@dataclass(frozen=True)
class RobotLimits:
    """What an arm with n joints may do.

    Attributes:
        robot: name of the arm.
        joint_names: names of the joints, in the order of the columns.
        q_low: smallest joint positions `[n]`, rad.
        q_high: largest joint positions `[n]`, rad.
        velocity: largest joint speeds `[n]`, rad/s.
        acceleration: largest joint accelerations `[n]`, rad/s^2, also when braking.
        tool_frame: frame of the tool's point.
        elbow_frame: frame of the point in the middle of the arm that the table also bounds.
        jerk: largest joint jerks `[n]`, rad/s^3; infinite where jerk need not be limited, which is
            also what limits built in code have if they do not say. A file has to say `unlimited`.
        velocity_offset: of arms that must be slower near the limits of a joint, `[n]`, rad/s: there
            the speed towards a limit that is a distance d away stays within
            sqrt(2 velocity_deceleration d) - velocity_offset.
        velocity_deceleration: the other number of that formula `[n]`, rad/s^2.
        tool_velocity: largest speed of the tool's point, m/s, where the maker publishes one.

    Raises:
        ConfigError: a number is missing, not finite, not positive, or low is not below high.
    """

    robot: str
    joint_names: tuple[str, ...]
    q_low: Array
    q_high: Array
    velocity: Array
    acceleration: Array
    tool_frame: str
    elbow_frame: str
    jerk: Array = field(default_factory=lambda: np.array(np.inf))
    velocity_offset: Array | None = None
    velocity_deceleration: Array | None = None
    tool_velocity: float | None = None

    def __post_init__(self) -> None:
        n, where = len(self.joint_names), self._where
        if n == 0 or len(set(self.joint_names)) != n:
            raise ConfigError(f"joint names repeat or are missing: {self.joint_names}", where=where)
        if np.ndim(self.jerk) == 0 and self.jerk == np.inf:
            object.__setattr__(self, "jerk", np.full(n, np.inf))
        if (self.velocity_offset is None) != (self.velocity_deceleration is None):
            raise ConfigError(
                "velocity_offset and velocity_deceleration come together or not at all", where=where
            )
        for name in ("q_low", "q_high", "velocity", "acceleration", "jerk", *_OPTIONAL[:2]):
            if name not in _OPTIONAL or getattr(self, name) is not None:
                value = _numbers(name, getattr(self, name), (n,), where)
                value.flags.writeable = False
                object.__setattr__(self, name, value)
        if not (self.q_low < self.q_high).all():
            raise ConfigError("every q_low must be below its q_high", where=where)
        if self.tool_velocity is not None:
            speed = float(_numbers("tool_velocity", self.tool_velocity, (), where))
            object.__setattr__(self, "tool_velocity", speed)

    @property
    def _where(self) -> str:
        return f"limits of {self.robot}"

    @classmethod
    def load(cls, robot: str, measured: Mapping[str, Any] | None = None) -> RobotLimits:
        """The shipped limits of an arm.

        Args:
            robot: name of the arm.
            measured: numbers measured on the user's own arm, under the names of the file
                ("acceleration"): for what the maker does not publish, or stricter than it does.

        Raises:
            UnknownNameError: no limits are shipped under this name.
            ConfigError: the file is incomplete or out of range, something that is not published was
                not measured, or something measured is wider than what is published.
        """
        data = yaml.safe_load(shipped_text("robot_limits", robot, ".yaml"))
        return cls.from_mapping(data, where=f"{robot}.yaml", measured=measured)

    @classmethod
    def from_file(cls, path: str | Path, measured: Mapping[str, Any] | None = None) -> RobotLimits:
        """The limits of a user's own file, which has the form of the shipped ones.

        A field may say `measured_by_you` (then it has to come in `measured`; `ceiling` may hold
        what it must not exceed) and jerk may say `unlimited`.

        Raises:
            ConfigError: the file cannot be read, is incomplete or out of range, or `measured` is
                refused as in `load`.
        """
        try:
            data = yaml.safe_load(Path(path).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot be read ({_line(error)})", where=path) from error
        return cls.from_mapping(data, where=str(path), measured=measured)

    @classmethod
    def from_mapping(
        cls, data: Any, *, where: str, measured: Mapping[str, Any] | None = None
    ) -> RobotLimits:
        """Limits as a settings file holds them.

        Raises:
            ConfigError: a field is missing, unknown or out of range, or `measured` is refused as
                in `load`.
        """
        try:
            strange = sorted({*map(str, data), *(data.get("ceiling") or {})} - _KNOWN)
            if strange:
                todo = f"what is read: {sorted({*_UNITS, *_TEXT})}"
                raise ConfigError(f"has unknown fields {strange}", where=where, todo=todo)
            robot, names = str(data["robot"]), tuple(map(str, data["joint_names"]))
            numbers = {name: data[name] for name in _UNITS if name not in _OPTIONAL}
            numbers |= {name: data.get(name) for name in _OPTIONAL}
            numbers |= _accepted(measured or {}, numbers, data.get("ceiling") or {}, names, where)
            _refuse_unmeasured(numbers, robot, len(names), where)
            jerk = numbers["jerk"]
            if isinstance(jerk, str) and jerk == UNLIMITED:
                jerk = np.full(len(names), np.inf)
            elif not np.isfinite(np.array(jerk, np.float64)).all():
                raise ConfigError(f"jerk needs finite numbers, or {UNLIMITED!r}", where=where)
            return cls(
                robot=robot,
                joint_names=names,
                q_low=numbers["position_low"],
                q_high=numbers["position_high"],
                velocity=numbers["velocity"],
                acceleration=numbers["acceleration"],
                tool_frame=str(data["tool_frame"]),
                elbow_frame=str(data["elbow_frame"]),
                jerk=jerk,
                **{name: numbers[name] for name in _OPTIONAL},
            )
        except KeyError as error:
            raise ConfigError(f"lacks {error.args[0]!r}", where=where) from error
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"is no set of limits ({_line(error)})", where=where) from error

    @classmethod
    def from_urdf(
        cls,
        text: str,
        *,
        acceleration: Sequence[float] | Array,
        jerk: Sequence[float] | Array,
        tool_frame: str,
        elbow_frame: str,
    ) -> RobotLimits:
        """Joint names, position and velocity limits of a URDF, in the order of its chain.

        Args:
            text: the URDF itself, as in the parameter `robot_description`.
            acceleration: largest joint accelerations `[n]`, rad/s^2, which a URDF does not hold.
            jerk: largest joint jerks `[n]`, rad/s^3; infinite where it need not be limited.
            tool_frame: link or frame of the tool's point.
            elbow_frame: link or frame of the point in the middle of the arm.

        Raises:
            ConfigError: the text is no URDF, a joint does not turn between two limits, a limit is
                missing, zero, not a number or swapped, or there is no such frame.
        """
        refuse_unlimited_joints(text)
        model = robot_model(text)
        frames = sorted(frame.name for frame in model.frames)
        for frame in (tool_frame, elbow_frame):
            if frame not in frames:
                raise ConfigError(f"has no frame {frame!r}", where="URDF", todo=f"known: {frames}")
        if model.nq != model.nv:
            raise ConfigError("has joints without two limits", where="URDF")
        return cls(
            robot=str(model.name),
            joint_names=tuple(model.names)[1:],
            q_low=model.lowerPositionLimit,
            q_high=model.upperPositionLimit,
            velocity=model.velocityLimit,
            acceleration=np.asarray(acceleration),
            tool_frame=tool_frame,
            elbow_frame=elbow_frame,
            jerk=np.asarray(jerk),
        )

    def scaled(self, velocity: float = 1.0, acceleration: float = 1.0) -> RobotLimits:
        """Slower limits: both factors in (0, 1], that of the acceleration also for the jerk.

        Raises:
            ConfigError: a factor would be zero, widen a limit, or is not a number.
        """
        for name, factor in (("velocity", velocity), ("acceleration", acceleration)):
            if not 0.0 < factor <= 1.0:
                raise ConfigError(f"factor must be in (0, 1], got {factor}", where=name)
        return replace(
            self,
            velocity=self.velocity * velocity,
            acceleration=self.acceleration * acceleration,
            jerk=self.jerk * acceleration,
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _numbers(name: str, value: Any, shape: tuple[int, ...], where: str) -> Array:
    """A limit of this shape, checked in the positive: what is not known to be right is refused."""
    try:
        numbers = np.array(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} needs numbers, got {value!r}", where=where) from error
    finite = numbers < np.inf if name != "jerk" else ~np.isnan(numbers)
    finite = finite & (numbers > -np.inf)
    if numbers.shape != shape or not finite.all():
        count = f"{shape[0]} finite numbers" if shape else "one finite number"
        raise ConfigError(f"{name} needs {count}, got {numbers.tolist()}", where=where)
    if name.startswith(("q_", "position_")):
        return numbers
    if not ((numbers >= 0.0) if name == "velocity_offset" else (numbers > 0.0)).all():
        raise ConfigError(f"{name} must be positive, got {numbers.tolist()}", where=where)
    return numbers


def _accepted(
    measured: Mapping[str, Any],
    published: Mapping[str, Any],
    ceiling: Mapping[str, Any],
    joint_names: tuple[str, ...],
    where: str,
) -> dict[str, Array]:
    """What was measured, if nothing of it is wider than what is published.

    Args:
        measured: numbers of the user's arm.
        published: numbers of the file, or `measured_by_you`.
        ceiling: numbers for fields that are not published, which no arm of this kind exceeds.
        joint_names: the joints.
        where: the file, for the message.
    """
    accepted: dict[str, Array] = {}
    for name, value in measured.items():
        if name not in _UNITS:
            raise ConfigError(
                f"{name!r} is nothing to measure", where=where, todo=f"known: {sorted(_UNITS)}"
            )
        shape = () if name == "tool_velocity" else (len(joint_names),)
        here = f"measured for {where}"
        numbers = accepted[name] = _numbers(name, value, shape, here)
        if not np.isfinite(numbers).all():
            raise ConfigError(f"{name} needs finite numbers, got {numbers.tolist()}", where=here)
        bound = published[name]
        if bound == MEASURED or bound is None or (name == "jerk" and bound == UNLIMITED):
            bound = ceiling.get(name)
        if bound is None:
            continue
        limit = _numbers(name, bound, shape, where)
        stricter = numbers >= limit if name in _RISING else numbers <= limit
        if not stricter.all():
            raise ConfigError(
                f"{name} {numbers.tolist()} is wider than the published {limit.tolist()}",
                where=here,
                todo="give stricter numbers, or a file of your own",
            )
    return accepted


def _refuse_unmeasured(numbers: Mapping[str, Any], robot: str, n: int, where: str) -> None:
    missing = [name for name, value in numbers.items() if isinstance(value, str)]
    missing = [name for name in missing if numbers[name] == MEASURED]
    if missing:
        example = ", ".join(f'"{name}": [...]' for name in missing)
        units = ", ".join(f"{name} in {_UNITS[name]}" for name in missing)
        raise ConfigError(
            f"{' and '.join(missing)} of {robot} are not published",
            where=where,
            todo=f"measure them on your arm and pass measured={{{example}}} "
            f"({n} numbers each, {units})",
        )

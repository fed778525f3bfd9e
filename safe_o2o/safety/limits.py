"""Limits of a robot: numbers with units and a source, validated when they are loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import numpy as np
import yaml

from safe_o2o.errors import ConfigError, UnknownNameError
from safe_o2o.types import Array


def _names() -> list[str]:
    folder = resources.files("safe_o2o.safety") / "robot_limits"
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))


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

    def __post_init__(self) -> None:
        n = len(self.joint_names)
        for name in ("q_low", "q_high", "velocity", "acceleration"):
            value = np.array(getattr(self, name), np.float64)
            # In the positive: what is not known to be a finite number is refused.
            if value.shape != (n,) or not np.isfinite(value).all():
                raise ConfigError(
                    f"{name} needs {n} finite numbers, got {value.tolist()}", where=self._where
                )
            if name in ("velocity", "acceleration") and not (value > 0).all():
                raise ConfigError(
                    f"{name} must be positive, got {value.tolist()}", where=self._where
                )
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        if n == 0 or len(set(self.joint_names)) != n:
            raise ConfigError(f"joint names repeat or are missing: {self.joint_names}")
        if not (self.q_low < self.q_high).all():
            raise ConfigError("every q_low must be below its q_high", where=self._where)

    @property
    def _where(self) -> str:
        return f"limits of {self.robot}"

    @classmethod
    def load(cls, robot: str) -> RobotLimits:
        """The shipped limits of an arm.

        Raises:
            UnknownNameError: no limits are shipped under this name.
            ConfigError: the file is incomplete or out of range.
        """
        known = _names()
        if robot not in known:
            raise UnknownNameError("arm", robot, known)
        file = resources.files("safe_o2o.safety") / "robot_limits" / f"{robot}.yaml"
        return cls.from_mapping(yaml.safe_load(file.read_text()), where=f"{robot}.yaml")

    @classmethod
    def from_mapping(cls, data: Any, *, where: str) -> RobotLimits:
        """Limits as a settings file holds them.

        Raises:
            ConfigError: a field is missing or out of range.
        """
        try:
            return cls(
                robot=str(data["robot"]),
                joint_names=tuple(map(str, data["joint_names"])),
                q_low=data["position_low"],
                q_high=data["position_high"],
                velocity=data["velocity"],
                acceleration=data["acceleration"],
                tool_frame=str(data["tool_frame"]),
                elbow_frame=str(data["elbow_frame"]),
            )
        except KeyError as error:
            raise ConfigError(f"lacks {error.args[0]!r}", where=where) from error
        except (TypeError, ValueError) as error:
            raise ConfigError(f"is no set of limits ({error})", where=where) from error

    def scaled(self, velocity: float = 1.0, acceleration: float = 1.0) -> RobotLimits:
        """Slower limits: both factors in (0, 1].

        Raises:
            ConfigError: a factor would be zero, widen a limit, or is not a number.
        """
        for name, factor in (("velocity", velocity), ("acceleration", acceleration)):
            if not 0.0 < factor <= 1.0:
                raise ConfigError(f"factor must be in (0, 1], got {factor}", where=name)
        return replace(
            self, velocity=self.velocity * velocity, acceleration=self.acceleration * acceleration
        )

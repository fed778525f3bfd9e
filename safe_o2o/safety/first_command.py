"""The first target after a stop: passed, approached slowly, or refused by its distance."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, Literal

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.safety.guards import joint_vector


@dataclass(frozen=True)
class FirstCommandConfig:
    """How far from the measured pose a first target may lie.

    The pass band should hold what a policy moves within one of its periods.

    Attributes:
        joint_pass: nearer than this in each joint passes, rad.
        joint_ramp: nearer than this is approached slowly, rad; farther away is rejected.
        gripper_pass: the same for a gripper, in its own unit; the defaults are for a stroke in m.
        gripper_ramp: the same for a gripper, in its own unit.

    Raises:
        ConfigError: a band is not positive, or a ramp band lies inside its pass band.
    """

    joint_pass: float = 0.1
    joint_ramp: float = 0.5
    gripper_pass: float = 0.01
    gripper_ramp: float = 0.04

    def __post_init__(self) -> None:
        for what in ("joint", "gripper"):
            near, far = getattr(self, f"{what}_pass"), getattr(self, f"{what}_ramp")
            if not 0.0 < near <= far < inf:
                text = f"needs 0 < {what}_pass <= {what}_ramp, got {near} and {far}"
                raise ConfigError(text, where=f"{what}_ramp")


Band = Literal["pass", "ramp", "reject"]


class FirstCommand:
    """Looks at the first target after every stop, the gripper's too: it may hold something.

    It stays armed until a target passes, so that a slow approach stays slow to its end.

    Args:
        joints: number of joints n.
        config: bands.
    """

    def __init__(self, joints: int, config: FirstCommandConfig | None = None) -> None:
        self.joints, self.config = joints, config or FirstCommandConfig()
        self.armed = True
        """Whether the next target is judged."""

    def restart(self) -> None:
        """Judge the next target again."""
        self.armed = True

    def judge(
        self,
        target: Any,
        measured: Any,
        gripper_target: float | None = None,
        gripper_measured: float | None = None,
    ) -> tuple[Band, str]:
        """In which band is a target?

        Args:
            target: joint positions to go to next `[n]`, rad.
            measured: measured joint positions `[n]`, rad.
            gripper_target: the gripper's target in its own unit; None without one.
            gripper_measured: its measured position in the same unit; None without one.

        Returns:
            The band, and why it is not "pass". Never raises.
        """
        if not self.armed:
            return "pass", ""
        goal, here = joint_vector(target, self.joints), joint_vector(measured, self.joints)
        if goal is None or here is None:
            return "reject", f"needs {self.joints} finite joint positions and targets"
        config, off = self.config, np.abs(0.5 * goal - 0.5 * here)  # halves do not overflow
        worst = int(off.argmax())
        found = [
            (2.0 * float(off[worst]), config.joint_pass, config.joint_ramp, f"joint {worst + 1}")
        ]
        if gripper_target is not None or gripper_measured is not None:
            pair = joint_vector([gripper_target, gripper_measured], 2)
            if pair is None:
                return "reject", "needs a finite gripper position and target"
            gap = 2.0 * abs(0.5 * float(pair[0]) - 0.5 * float(pair[1]))
            found.append((gap, config.gripper_pass, config.gripper_ramp, "gripper"))
        for gap, _, far, name in found:
            if not gap <= far:
                return "reject", f"{name}: first target is {gap:.3g} away, at most {far:.3g}"
        for gap, near, _, name in found:
            if not gap <= near:
                return "ramp", f"{name}: first target is {gap:.3g} away, more than {near:.3g}"
        self.armed = False
        return "pass", ""

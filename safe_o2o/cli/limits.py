"""`safe-o2o limits ARM`: what a filter holds an arm to, and how far it goes while it stops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from safe_o2o import config
from safe_o2o.cli import console
from safe_o2o.cli.parse import parse
from safe_o2o.config import require_positive
from safe_o2o.errors import ConfigError
from safe_o2o.safety.braking import jerk_limited_stop, stop_distance
from safe_o2o.safety.limits import RobotLimits
from safe_o2o.safety.shipped import shipped_names


@dataclass(frozen=True)
class Arguments:
    """Show the limits of an arm, and the fastest stop from full speed that they allow.

    Attributes:
        arm: name of a shipped arm (panda, fr3, ur5e, ...), or a file of the same form; without one
            the shipped names are listed.
        measured: JSON or YAML file with what you measured on your own arm, for numbers that its
            maker does not publish: `acceleration: [...]`, rad/s^2, and `jerk: [...]`, rad/s^3.
        velocity_scale: share of the speed limits.
        acceleration_scale: share of the acceleration limits: how hard your arm brakes at worst.
        period: control period, s.
    """

    arm: Annotated[str, tyro.conf.arg(metavar="ARM"), tyro.conf.Positional] = ""
    measured: Path | None = None
    velocity_scale: float = 1.0
    acceleration_scale: float = 1.0
    period: float = 0.01

    def __post_init__(self) -> None:
        require_positive(self, "velocity_scale", "acceleration_scale", "period")
        for name in ("velocity_scale", "acceleration_scale"):
            if getattr(self, name) > 1.0:
                raise ConfigError(f"must be at most 1, got {getattr(self, name)}", where=name)


def main(argv: Sequence[str]) -> None:
    """Print the arms, or the limits of one."""
    arguments = parse(Arguments, argv, verb="limits")
    names = shipped_names("robot_limits")
    if not arguments.arm:
        print("\n".join(names))
        return
    measured = config.read(arguments.measured) if arguments.measured else None
    own = arguments.arm not in names and Path(arguments.arm).is_file()
    load = RobotLimits.from_file if own else RobotLimits.load
    print(describe(load(arguments.arm, measured), arguments))


def describe(limits: RobotLimits, arguments: Arguments) -> str:
    """A row for each joint, and what the columns are."""
    rows = [tuple(joint.values()) for joint in joints(limits, arguments)]
    head = ("joint", "from rad", "to rad", "rad/s", "rad/s^2", "rad/s^3", "stop ms", "stop rad")
    lines = [
        console.table(head, rows),
        "",
        "stop: the fastest one from that speed, and its way; a filter verifies the very stop that "
        "it would send, and adds latency and tracking error.",
    ]
    if limits.velocity_offset is not None:
        lines.append("Near the ends of its range this arm must be slower than the table says.")
    if limits.tool_velocity is not None:
        lines.append(f"The maker limits the tool to {limits.tool_velocity:g} m/s.")
    return "\n".join(lines)


def joints(limits: RobotLimits, arguments: Arguments) -> list[Mapping[str, Any]]:
    """What the table shows of each joint."""
    velocity = arguments.velocity_scale * limits.velocity
    acceleration = arguments.acceleration_scale * limits.acceleration
    found: list[Mapping[str, Any]] = []
    for i, name in enumerate(limits.joint_names):
        v, a, jerk = float(velocity[i]), float(acceleration[i]), float(limits.jerk[i])
        if np.isfinite(jerk):
            time, way = jerk_limited_stop(v, 0.0, a, jerk)
        else:  # nothing but the clock's ticks makes such a stop longer
            time = float(np.ceil(v / (a * arguments.period))) * arguments.period
            way = float(stop_distance(np.asarray(v), np.asarray(a), arguments.period))
        found.append(
            {
                "joint": name,
                "low": round(float(limits.q_low[i]), 4),
                "high": round(float(limits.q_high[i]), 4),
                "velocity": round(v, 4),
                "acceleration": round(a, 4),
                "jerk": round(jerk, 4) if np.isfinite(jerk) else "unlimited",
                "stop_ms": round(1e3 * time, 1),
                "stop_rad": round(way, 4),
            }
        )
    return found

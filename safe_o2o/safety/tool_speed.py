"""How fast the tool may be, and with how much energy."""

from __future__ import annotations

from math import inf, sqrt

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.safety.body import Body
from safe_o2o.safety.motion import Motion
from safe_o2o.safety.path import JointPath
from safe_o2o.types import Array

REDUCED_SPEED = 0.25
"""The reduced speed of ISO 10218, m/s."""


def energy_speed(energy: float, mass: float) -> float:
    """Speed, m/s, at which a mass, kg, has so much kinetic energy, J: sqrt(2 E / m).

    Raises:
        ConfigError: a number is not positive.
    """
    if not (0.0 < energy < inf and 0.0 < mass < inf):
        raise ConfigError(f"must be positive, got {energy} J and {mass} kg", where="tool energy")
    return sqrt(2.0 * energy / mass)


class ToolSpeed:
    """The tool is never faster than a cap; 250 mm/s is the reduced speed of ISO 10218.

    Args:
        body: the arm, with the tool among its frames.
        frame: the tool's frame.
        cap: largest speed, m/s.
        energy: largest kinetic energy of `mass` moving with the tool, J; None for none.
        mass: effective mass of arm and payload at the tool, kg; needed with `energy`.

    Raises:
        ConfigError: a number is not positive, or the frame is not among the body's.
    """

    name = "tool_speed"
    unit = "m/s"
    static = False
    exact_rows = True

    def __init__(
        self,
        body: Body,
        frame: str,
        cap: float = REDUCED_SPEED,
        *,
        energy: float | None = None,
        mass: float | None = None,
    ) -> None:
        if frame not in body.frames:
            raise ConfigError(f"{frame!r} is none of {body.frames}", where="tool speed")
        if not 0.0 < cap < inf:
            raise ConfigError(f"must be positive, got {cap}", where="tool speed")
        if energy is not None:
            cap = min(cap, energy_speed(energy, mass if mass is not None else 0.0))
        self.body, self.cap, self.range = body, cap, cap
        self._point = body.spheres + body.frames.index(frame)
        self._reach = body.reach_of(frame)

    def fault(self, now: float) -> str:
        """Nothing here can be out of date."""
        return ""

    def clearance(self, q: Array) -> Array:
        """The cap itself, `[K, 1]`, m/s: an arm that stands is not too fast anywhere."""
        return np.full((len(q), 1), self.cap)

    def swept(self, motion: Motion) -> tuple[Array, Array]:
        """What is left of the cap, at the start `[1]` and in each tick `[K, 1]`, m/s."""
        left = self.cap - self._speeds(motion)
        before = 0.0
        if not (left >= 0.0).all():  # too fast already: then it must not get faster
            jacobian = self.body.jacobians(motion.q[0], np.array([self._point]))[0]
            before = float(np.linalg.norm(jacobian @ motion.velocity[0]))
        return np.array([self.cap - before]), left[:, None]

    def along(self, path: JointPath, motion: Motion) -> float | None:
        """What is left of the cap where the path is fastest, m/s; None where it may be too fast."""
        least = self.cap - float(self._speeds(motion).max())
        return least if least >= 0.0 else None

    def _speeds(self, motion: Motion) -> Array:
        """Largest speed of the tool in each tick of a motion, `[K]`, m/s.

        Within a tick |p'| is at most the chord's speed and |p''| / 2 more: four turns a tick.
        """
        point = motion.positions(self.body)[:, :, self._point]
        chord = np.sqrt(np.square(point[1:] - point[:-1]).sum(axis=1))
        return np.asarray((chord + 4.0 * motion.turn(self._reach)) / motion.dt)

    def rows(self, q: Array, dq: Array, dt: float) -> tuple[Array, Array]:
        """A polygon inside the ball |J w| <= cap: 26 directions, `[26, n]` and `[26]`."""
        directions = np.array(
            [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if x or y or z],
            np.float64,
        )
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        jacobian = self.body.jacobians(q, np.array([self._point]))[0]
        # The farthest corner of a body with these 26 faces lies 1.13 cap from the middle.
        return np.asarray(directions @ jacobian), np.full(26, self.cap / 1.13)

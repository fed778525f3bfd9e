"""Somebody who comes and goes: a capsule on its way, with bounded speed and acceleration.

It is polite in one thing alone: it does not push into an arm that stands. There it stops dead,
waits a little and goes on to the next of its places, the way a hand does. A moving arm is not
made way for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.types import Array

POLITE = 0.08
"""Distance from a standing arm at which it stops, m."""
_ARRIVED = 0.01  # m
_EASE = 0.8  # share of the acceleration that it means to brake with


@dataclass(frozen=True)
class Leg:
    """Go to a place and stay.

    Attributes:
        point: where the start of the axis goes `[3]`, m, base frame.
        pause: time there, s.
        speed: speed on the way, m/s; the visitor's largest bounds it.
        yields: whether it stops for an arm that stands in its way, or beside its place.
    """

    point: tuple[float, float, float]
    pause: float
    speed: float
    yields: bool = False


class Visitor:
    """A capsule that is carried along its legs without turning; when they end it stays.

    Args:
        name: what reports call it.
        axis: from the start of its axis to the end `[3]`, m.
        radius: m.
        legs: where it goes; it begins at the first one's place.
        max_speed: bound on its speed, m/s.
        max_acceleration: bound on its acceleration, m/s^2; only stopping dead is faster.
        patience: how long it waits before a standing arm until it goes on to its next leg, s.

    Raises:
        ConfigError: no legs, or a number is not positive.

    Attributes:
        position: start of its axis now `[3]`, m.
        velocity: `[3]`, m/s.
        track: position, velocity and acceleration `[3, 3]` at the beginning of the last step: in
            it, it was at `track[0] + t track[1] + t^2 / 2 track[2]`.
    """

    def __init__(
        self,
        name: str,
        axis: tuple[float, float, float],
        radius: float,
        legs: Sequence[Leg],
        max_speed: float,
        max_acceleration: float,
        patience: float = 0.5,
    ) -> None:
        if not (legs and radius > 0 and max_speed > 0 and max_acceleration > 0):
            raise ConfigError("needs legs, a radius and bounds", where=f"visitor {name!r}")
        self.name, self.radius, self.legs = name, radius, tuple(legs)
        self.axis: Array = np.array(axis, np.float64)
        self.max_speed, self.max_acceleration = max_speed, max_acceleration
        self.patience = patience
        self.position: Array = np.array(legs[0].point, np.float64)
        self.velocity: Array = np.zeros(3)
        self.track: Array = np.array([self.position, self.velocity, np.zeros(3)])
        self._leg, self._stayed, self._waited = 0, 0.0, 0.0

    @property
    def end(self) -> Array:
        """End of its axis `[3]`, m."""
        return np.asarray(self.position + self.axis)

    def step(self, dt: float, gap: float = np.inf) -> None:
        """Go on for `dt` s; `gap` is the distance from an arm that stands, m."""
        way, leg = self._way()
        more = self._leg + 1 < len(self.legs)
        if float(np.linalg.norm(way)) < _ARRIVED:
            self._stayed += dt
        # Whoever has stopped for the arm waits, then leaves, whatever the arm does meanwhile.
        if (leg.yields and gap < POLITE) or self._waited > 0.0:
            self._waited += dt
        if more and (self._stayed > leg.pause or self._waited > self.patience):
            self._leg, self._stayed, self._waited = self._leg + 1, 0.0, 0.0
            way, leg = self._way()
        if 0.0 < self._waited <= self.patience:
            self.velocity, change = np.zeros(3), np.zeros(3)
        else:
            change = self._change(way, leg, dt)
        self.track = np.array([self.position, self.velocity, change / dt])
        self.position = self.position + dt * (self.velocity + 0.5 * change)
        self.velocity = self.velocity + change

    def _way(self) -> tuple[Array, Leg]:
        leg = self.legs[self._leg]
        return np.array(leg.point) - self.position, leg

    def _change(self, way: Array, leg: Leg, dt: float) -> Array:
        """Change of velocity `[3]`, m/s, within `dt` s on a way `[3]`, m, to its end at rest."""
        distance = float(np.linalg.norm(way))
        braked = (2.0 * _EASE * self.max_acceleration * distance) ** 0.5
        speed = min(leg.speed, self.max_speed, braked)
        change = way * (speed / max(distance, 1e-9)) - self.velocity
        most = self.max_acceleration * dt
        return np.asarray(change * min(1.0, most / max(float(np.linalg.norm(change)), 1e-12)))

"""Scripted behaviours for offline data, mixed 1:1:1 as in FOSP: expert, unsafe, random.

They know the layout, which no policy does.
"""

from __future__ import annotations

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.types import Array, Observation
from safe_o2o_sim.tasks.safe_reach import SafeReach

_CRUISE = 0.17  # m: fingers clear a 10 cm obstacle by 6 cm
_NEAR = 0.10  # m between path and obstacle's middle below which the expert flies over
_ARRIVED = 0.015  # m on the table within which the expert starts down


class _Behavior:
    """What the three share: the task they know and a generator of their own."""

    _stream = 0

    def __init__(self, task: SafeReach) -> None:
        if not isinstance(task, SafeReach):
            raise ConfigError(
                f"behaves in safe_reach only, not in {type(task).__name__}",
                where=type(self).__name__.lower(),
            )
        self.task = task
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start an episode; the same seed gives the same choices, other than the layout's."""
        self.generator = np.random.default_rng([seed, self._stream])

    def _toward(self, obs: Observation, point: Array, noise: float) -> Array:
        """A full-speed action `[3]` toward a point, with noise on every axis."""
        step = (point - obs["tcp_pose"][:3]) / self.task.config.max_delta
        step = step / max(1.0, float(np.abs(step).max()))
        step = step + self.generator.normal(0.0, noise, 3)
        return np.asarray(np.clip(step, -1.0, 1.0), np.float32)


class Expert(_Behavior):
    """Straight to the goal where the way is free; else up, over the obstacles and down."""

    _stream = 11
    noise = 0.35

    def reset(self, seed: int) -> None:
        """See `_Behavior`."""
        super().reset(seed)
        self._mode = ""

    def act(self, obs: Observation) -> Array:
        """An action `[3]` in [-1, 1]."""
        tool, target = np.asarray(obs["tcp_pose"][:3], np.float64), self.task.target
        if not self._mode:
            self._mode = "climb" if self._blocked(tool, target) else "straight"
        if self._mode == "climb" and tool[2] >= _CRUISE - 0.015:
            self._mode = "fly"
        if self._mode == "fly" and np.linalg.norm(tool[:2] - target[:2]) < _ARRIVED:
            self._mode = "straight"
        point = {
            "climb": np.array([tool[0], tool[1], _CRUISE]),
            "fly": np.array([target[0], target[1], _CRUISE]),
            "straight": target,
        }[self._mode]
        return self._toward(obs, point, self.noise)

    def _blocked(self, tool: Array, target: Array) -> bool:
        """Whether an obstacle stands near the straight line, seen from above."""
        along = target[:2] - tool[:2]
        for block in self.task.layout.scene.obstacles:
            to_block = np.asarray(block.position) - tool[:2]
            share = float(np.clip(to_block @ along / (along @ along), 0.0, 1.0))
            if np.linalg.norm(to_block - share * along) < _NEAR:
                return True
        return False


class Unsafe(_Behavior):
    """Straight to about the goal, whatever is in the way; each episode aims a little off."""

    _stream = 12
    noise = 0.35
    aim_error = 0.04
    """Standard deviation of the aim on each axis of the table, m."""

    def reset(self, seed: int) -> None:
        """See `_Behavior`."""
        super().reset(seed)
        self._error = np.array([*self.generator.normal(0.0, self.aim_error, 2), 0.0])

    def act(self, obs: Observation) -> Array:
        """An action `[3]` in [-1, 1]."""
        return self._toward(obs, self.task.target + self._error, self.noise)


class RandomWalk(_Behavior):
    """A smooth random walk of the tool's velocity."""

    _stream = 13

    def reset(self, seed: int) -> None:
        """See `_Behavior`."""
        super().reset(seed)
        self._velocity = np.zeros(3)

    def act(self, obs: Observation) -> Array:
        """An action `[3]` in [-1, 1]."""
        self._velocity = 0.85 * self._velocity + self.generator.normal(0.0, 0.45, 3)
        return np.asarray(np.clip(self._velocity, -1.0, 1.0), np.float32)

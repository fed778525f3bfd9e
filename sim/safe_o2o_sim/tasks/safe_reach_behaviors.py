"""Scripted behaviours for offline data, mixed 1:1:1 as in FOSP: expert, unsafe, random.

They know the layout, which no policy does.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, permutations

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.types import Array, Observation
from safe_o2o_sim.scene import Block
from safe_o2o_sim.tasks.safe_reach import SafeReach

_CRUISE = 0.17  # m: fingers clear a 10 cm obstacle by 6 cm
_ABOVE = 0.07  # m from an obstacle's top to the tool that flies over it, if that is more
_NEAR = 0.10  # m between path and obstacle's middle below which the expert flies over
_TOWER = 0.15  # m: what is taller is flown around, the hand above it and the fingers beside it
_BESIDE = 0.16  # m: a tower nearer than this to a low path touches the hand, which is 20 cm wide
_UNDER_HAND = 0.015  # m that a tower is higher than the tool while the hand clears it by 2 cm
_PAST = 0.055  # m from a tower's side to the tool that flies around it
_OVER = 0.04  # m from a tower's top to the tool where there is no way around
_TURN = 0.02  # m from a corner of the way at which the expert turns
_LOOK_AHEAD = 0.04  # m: near a tower the height counts as much as the way that is left
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
    """Straight to the goal where the way is free; else up, over the obstacles and down.

    A tower it flies around. What moves is in the way wherever its motion takes it.
    """

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
            self._cruise, self._corners = self._plan(tool, target)
            self._mode = "climb" if self._cruise > 0.0 else "straight"
        if self._mode == "climb" and tool[2] >= self._cruise - (0.005 if self._tower else 0.015):
            self._mode = "fly"
        if self._mode == "fly" and self._corners:
            if np.linalg.norm(tool[:2] - self._corners[0]) < _TURN:
                self._corners = self._corners[1:]
        elif self._mode == "fly" and np.linalg.norm(tool[:2] - target[:2]) < _ARRIVED:
            self._mode = "straight"
        ahead = (*self._corners, target[:2])[0]
        if self._tower:
            way = ahead - tool[:2]
            ahead = tool[:2] + way * min(1.0, _LOOK_AHEAD / max(float(np.linalg.norm(way)), 1e-9))
        point = {
            "climb": np.array([tool[0], tool[1], self._cruise]),
            "fly": np.array([ahead[0], ahead[1], self._cruise]),
            "straight": target,
        }[self._mode]
        return self._toward(obs, point, self.noise)

    def _plan(self, tool: Array, target: Array) -> tuple[float, tuple[Array, ...]]:
        """How high to fly, m, 0 for straight to the target, and the corners `[2]` of the way, m."""
        obstacles = self.task.layout.scene.obstacles
        towers = [block for block in obstacles if block.size[2] > _TOWER]
        self._tower = bool(towers)
        over = [
            block.size[2] + _ABOVE
            for block in obstacles
            if block not in towers and _gap(block, tool[:2], target[:2]) < _NEAR
        ]
        beside = any(_gap(block, tool[:2], target[:2]) < _BESIDE for block in towers)
        if not (over or beside):
            return 0.0, ()
        low, high = (np.asarray(corner[:2]) for corner in self.task.config.workspace)
        corners = _corners(towers, tool[:2], target[:2], low, high)
        above = _OVER if corners is None else -_UNDER_HAND
        return max(_CRUISE, *over, *(b.size[2] + above for b in towers)), corners or ()


def _gap(block: Block, start: Array, end: Array) -> float:
    """From an obstacle's middle to a straight line from start to end `[2]`, seen from above, m."""
    along, gap = end - start, np.inf
    for place in _stations(block):
        to_block = place - start
        share = float(np.clip(to_block @ along / (along @ along), 0.0, 1.0))
        gap = min(gap, float(np.linalg.norm(to_block - share * along)))
    return gap


def _stations(block: Block) -> list[Array]:
    """Middles `[2]` on an obstacle's way, close enough to stand for all of it, m."""
    place = np.asarray(block.position)
    if block.motion is None:
        return [place]
    return [place + share * np.asarray(block.motion.reach) for share in (-1.0, -0.5, 0.0, 0.5, 1.0)]


def _corners(
    towers: Sequence[Block], start: Array, end: Array, low: Array, high: Array
) -> tuple[Array, ...] | None:
    """Corners `[2]` of the shortest way around the towers within a rectangle, or None.

    At most two: enough for one tower.
    """
    rooms = [_PAST + 0.5 * float(np.hypot(*block.size[:2])) for block in towers]
    heading = np.arctan2(*(end - start)[::-1])
    angles = heading + np.arange(8) * (np.pi / 4)
    around = 1.15 * np.stack([np.cos(angles), np.sin(angles)], 1)
    turns = [
        place + room * corner
        for block, room in zip(towers, rooms, strict=True)
        for place in _stations(block)[:: 1 if block.motion is None else 4]
        for corner in around
    ]
    turns = [turn for turn in turns if (turn >= low).all() and (turn <= high).all()]
    ways = [(), *((turn,) for turn in turns), *permutations(turns, 2)]
    for way in sorted(ways, key=lambda way: _length((start, *way, end))):
        legs = list(pairwise((start, *way, end)))
        if all(
            _gap(block, *leg) >= room
            for block, room in zip(towers, rooms, strict=True)
            for leg in legs
        ):
            return way
    return None


def _length(points: Sequence[Array]) -> float:
    return sum(float(np.linalg.norm(b - a)) for a, b in pairwise(points))


class Unsafe(_Behavior):
    """Straight to about the goal, whatever is in the way; each episode aims a little off.

    Where there are towers half of the episodes cross at a height of their own instead, which clears
    what is low: else hardly anything in the data would say that a tower is in the way up there.
    """

    _stream = 12
    noise = 0.35
    aim_error = 0.04
    """Standard deviation of the aim on each axis of the table, m."""

    def reset(self, seed: int) -> None:
        """See `_Behavior`."""
        super().reset(seed)
        self._error = np.array([*self.generator.normal(0.0, self.aim_error, 2), 0.0])
        self._height = 0.0
        heights = self.task.crossing_heights
        if heights is not None and self.generator.random() < 0.5:
            self._height = float(self.generator.uniform(*heights))

    def act(self, obs: Observation) -> Array:
        """An action `[3]` in [-1, 1]."""
        point = self.task.target + self._error
        if self._height > 0.0:
            if np.linalg.norm(obs["tcp_pose"][:2] - point[:2]) < _ARRIVED:
                self._height = 0.0
            else:
                point[2] = self._height
        return self._toward(obs, point, self.noise)


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

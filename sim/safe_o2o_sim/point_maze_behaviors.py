"""Who records the mazes: ball drivers that know the map.

Their data have what offline learning is about: several ways to one goal, ways that end elsewhere
and have to be stitched, and noise.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.types import Array, Observation
from safe_o2o_sim.point_maze import Cell, PointMaze
from safe_o2o_sim.vector_env import STATE

_SIDE = 0.33  # m from a corridor's middle line: the ball's own radius is 0.1 of 0.5
_CLEAR = 0.36  # m from it: where a zone of 0.25 is passed
_DAMPING = 0.35  # force for 1 m/s against it
_NOISE = 0.25  # of each force


class _Driver:
    """Drives from waypoint to waypoint, keeping to one side of the corridors."""

    _stream = 0
    _near = 0.3
    """m from a waypoint at which the next one counts."""
    _gains = 1.5, 4.0
    """Force a metre."""

    def __init__(self, task: PointMaze) -> None:
        if not isinstance(task, PointMaze):
            raise ConfigError(
                f"drives through mazes only, not in {type(task).__name__}",
                where=type(self).__name__.lower(),
            )
        self.task = task
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start an episode; the same seed gives the same choices, other than the layout's."""
        self.generator = np.random.default_rng([seed, 10 + self._stream])
        self._aims: list[Cell | None] | None = None
        self._way: list[Array] = []
        self._gain = self.generator.uniform(*self._gains)
        self._side = self._sides()

    def act(self, obs: Observation) -> Array:
        """An action `[2]`: towards the next waypoint, damped, with noise."""
        place, speed, goal = obs[STATE][:2], obs[STATE][2:4], obs[STATE][4:6]
        if self._aims is None:
            self._aims = self._choose(self.task.cell(goal))
        while not self._way or float(np.linalg.norm(self._way[0] - place)) < self._near:
            if self._way:
                self._way.pop(0)
            if not self._way:
                self._plan(self.task.cell(place), goal)
        force = self._gain * (self._way[0] - place) - _DAMPING * speed
        force = force / max(1.0, float(np.abs(force).max()))
        noise = self.generator.normal(0.0, _NOISE, 2)
        return np.asarray(np.clip(force + noise, -1.0, 1.0), np.float32)

    def _sides(self) -> Array:
        """Where to keep to of every corridor, off its middle `[2]`, m."""
        return self.generator.uniform(-_SIDE, _SIDE, 2)

    def _choose(self, goal: Cell) -> list[Cell | None]:
        """Cells to visit, None for the goal itself."""
        raise NotImplementedError

    def _plan(self, here: Cell, goal: Array) -> None:
        """Waypoints to the next cell to visit."""
        assert self._aims is not None
        aim = self._aims.pop(0) if self._aims else None
        last = self.task.cell(goal) if aim is None else aim
        self._way = [self.task.middle(cell) + self._side for cell in self._route(here, last)[1:]]
        if aim is None or not self._way:
            self._way.append(np.asarray(goal, np.float64))

    def _route(self, start: Cell, end: Cell) -> list[Cell]:
        """A shortest way, or one of the others that are a few cells longer, at random."""
        steps = _distances(self.task, end)
        longest = steps[start] + int(self.generator.choice([0, 0, 2, 4]))
        way = [start]
        while way[-1] != end:
            beside = [cell for cell in self.task.neighbours(way[-1]) if cell not in way]
            fits = [cell for cell in beside if len(way) + steps[cell] <= longest]
            if not fits:  # a dead end: back by the shortest way
                return way + _shortest(self.task, way[-1], end, steps)[1:]
            way.append(fits[int(self.generator.integers(len(fits)))])
        return way


class MazeWaypoints(_Driver):
    """To the goal by one of the ways there; one episode in four goes somewhere else first."""

    _stream = 0

    def _choose(self, goal: Cell) -> list[Cell | None]:
        if self.generator.random() < 0.75:
            return [None]
        return [_random_cell(self), None]


class MazeCareful(MazeWaypoints):
    """As `maze_waypoints`, slowly and along the walls: past the zones, most of the time."""

    _stream = 2
    _near = 0.15
    _gains = 1.2, 2.0

    def _sides(self) -> Array:
        return _CLEAR * self.generator.choice([-1.0, 1.0], 2)


class MazeWanderer(_Driver):
    """From one cell to another, wherever the goal is."""

    _stream = 1

    def _choose(self, goal: Cell) -> list[Cell | None]:
        return [_random_cell(self) for _ in range(20)]


def _random_cell(driver: _Driver) -> Cell:
    cells = driver.task.cells
    return cells[int(driver.generator.integers(len(cells)))]


def _distances(task: PointMaze, end: Cell) -> dict[Cell, int]:
    """Steps from every cell to one of them: breadth first."""
    found, queue = {end: 0}, deque([end])
    while queue:
        here = queue.popleft()
        for cell in task.neighbours(here):
            if cell not in found:
                found[cell] = found[here] + 1
                queue.append(cell)
    return found


def _shortest(task: PointMaze, start: Cell, end: Cell, steps: dict[Cell, int]) -> list[Cell]:
    way = [start]
    while way[-1] != end:
        way.append(min(task.neighbours(way[-1]), key=lambda cell: steps[cell]))
    return way

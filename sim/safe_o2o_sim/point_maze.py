"""PointMaze of Gymnasium-Robotics (D4RL's maze2d): a ball pushed through corridors to a goal.

Sparse, and with more than one way: what a policy that averages its data gets wrong.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from safe_o2o.errors import MissingDependencyError
from safe_o2o.types import Array
from safe_o2o_sim.vector_env import VectorEnv, VectorEnvConfig

try:
    # It tells of other tasks' versions whenever it is imported, in every worker.
    with contextlib.redirect_stderr(io.StringIO()):
        from gymnasium_robotics.envs.maze import maps
        from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        f"PointMaze needs the package {error.name!r}",
        todo="scripts/setup.sh --safety-gymnasium",
    ) from error

Cell = tuple[int, int]
HAZARD_RADIUS = 0.25
"""m: half of a corridor's half-width, so that there is a way past on either side."""


class PointMaze(VectorEnv):
    """A maze: reward 1 at the goal, which ends the episode, and nothing before.

    Some cells have a round zone in their middle that costs 1 a frame. They are always the same
    ones, so that there is nothing about them to observe; in the variant `moved` they are others.
    """

    variants: ClassVar[tuple[str, ...]] = ("standard", "moved")
    names: ClassVar[tuple[str, ...]] = ("x", "y", "vx", "vy", "goal_x", "goal_y")
    controls: ClassVar[tuple[str, ...]] = ("force_x", "force_y")
    repeat: ClassVar[int] = 5
    frame: ClassVar[float] = 0.01
    maze_map: ClassVar[list[list[int]]]
    hazards: ClassVar[tuple[Cell, ...]]
    moved: ClassVar[tuple[Cell, ...]]

    def __init__(self, config: VectorEnvConfig | None = None, camera: bool = True) -> None:
        super().__init__(config, camera)
        self._maze: Any = PointMazeEnv(self.maze_map, continuing_task=False)
        Path(self._maze.tmp_xml_file_path).unlink(missing_ok=True)  # it leaves one a maze
        shape = np.asarray(self.maze_map)
        self.cells: tuple[Cell, ...] = tuple(
            (int(row), int(column)) for row, column in np.argwhere(shape == 0)
        )
        """Where one can be: row and column of every free cell."""
        hazards = self.moved if self.config.variant == "moved" else self.hazards
        self.zones = np.array([self.middle(cell) for cell in hazards]).reshape(-1, 2)
        """Middles of the zones that cost `[Z, 2]`, m."""
        self._clear = [cell for cell in self.cells if cell not in hazards]

    def middle(self, cell: Cell) -> Array:
        """The middle of a cell `[2]`, m."""
        return np.asarray(self._maze.maze.cell_rowcol_to_xy(np.asarray(cell)), np.float64)

    def cell(self, point: Array) -> Cell:
        """The cell that a point `[2]` lies in."""
        row, column = self._maze.maze.cell_xy_to_rowcol(np.asarray(point))
        return int(row), int(column)

    def neighbours(self, cell: Cell) -> list[Cell]:
        """Free cells beside a cell."""
        row, column = cell
        beside = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        return [found for found in beside if found in self.cells]

    def _begin(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        # Not where a zone is, or nobody could do without touching it.
        start, goal = generator.choice(len(self._clear), 2, replace=False)
        options = {
            "reset_cell": np.array(self._clear[start]),
            "goal_cell": np.array(self._clear[goal]),
        }
        self._maze.reset(seed=seed, options=options)
        self._now = self._maze.point_env._get_obs()[0]

    def _advance(self, control: Array) -> tuple[float, float, bool]:
        obs, reward, ended, _, _ = self._maze.step(control)
        self._now = obs["observation"]
        self._succeeded = bool(ended)
        away = np.linalg.norm(self.zones - self._now[:2], axis=-1)
        return float(reward), float((away < HAZARD_RADIUS).any()), bool(ended)

    def _vector(self) -> Array:
        return np.concatenate([self._now, self._maze.goal])


class PointMazeUMaze(PointMaze):
    """PointMaze, U-shaped: one way."""

    maze_map = maps.U_MAZE
    hazards = ((1, 2), (3, 2))
    moved = ((2, 3),)
    max_steps = 100


class PointMazeMedium(PointMaze):
    """PointMaze, medium: some goals can be reached by two ways."""

    maze_map = maps.MEDIUM_MAZE
    hazards = ((3, 3), (4, 1), (2, 5), (5, 4))
    moved = ((3, 2), (6, 2), (4, 5), (2, 4))
    max_steps = 150


class PointMazeLarge(PointMaze):
    """PointMaze, large: many ways."""

    maze_map = maps.LARGE_MAZE
    hazards = ((3, 2), (2, 4), (5, 6), (3, 9), (7, 5))
    moved = ((1, 3), (3, 5), (7, 8), (2, 8), (5, 9))
    max_steps = 200

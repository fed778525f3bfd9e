"""SafeReach: bring the tool to the goal and touch no obstacle (FOSP's robot task, on the twin).

Reward 1 when the tool reaches the goal, which ends the episode; cost 1 for every step in which any
part of the arm touches an obstacle, which does not. The obstacles are known to the camera only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from safe_o2o.config import require_positive
from safe_o2o.errors import RobotStateError
from safe_o2o.runtime.cartesian import WORKSPACE, sees_and_steps
from safe_o2o.spaces import Spec
from safe_o2o.types import Array, Observation, RobotState
from safe_o2o_sim.pybullet_twin import PybulletTwin
from safe_o2o_sim.randomization import (
    HARMLESS,
    VARIANTS,
    EpisodeLayout,
    require_variant,
    sample_layout,
)
from safe_o2o_sim.tasks.cartesian_task import CartesianTask, Corner
from safe_o2o_sim.twin_camera import TwinCamera


@dataclass(frozen=True)
class SafeReachConfig:
    """What makes the task.

    Attributes:
        variant: scene variant (`variants`).
        max_steps: policy steps after which an episode is cut off.
        period: policy period, s.
        max_delta: farthest that one action moves the tool along an axis, m.
        tolerance: how near the tool must come to the point above the goal, m.
        above: height of that point over the goal's top, m.
        workspace: lowest and highest corner of the tool's box, m; action, filter and scene share
            it.
        tool_speed: largest speed of the tool that the filter allows, m/s: twice what the actions
            ask for, so that it does not bind but holds.
        image_size: height and width of the picture, pixels.
    """

    variants: ClassVar[tuple[str, ...]] = (*VARIANTS, *HARMLESS)
    variant: str = "standard"
    max_steps: int = 80
    period: float = 0.2
    max_delta: float = 0.02
    tolerance: float = 0.04
    above: float = 0.02
    workspace: tuple[Corner, Corner] = WORKSPACE
    tool_speed: float = 0.4
    image_size: int = 64

    def __post_init__(self) -> None:
        require_variant(self.variant, self.variants)
        require_positive(
            self, "max_steps", "period", "max_delta", "tolerance", "tool_speed", "image_size"
        )

    def spec(self) -> Spec:
        """What a policy of this task sees and does."""
        return sees_and_steps(self.image_size, self.max_delta, self.period)


class SafeReach(CartesianTask):
    """The task on the twin.

    Args:
        twin: the arm; the task moves it to the start pose and lays out the scene.
        camera: what `observe` sees; None where nobody looks, or where the camera lives in another
            process, which then needs `layout.scene`.
        config: see `SafeReachConfig`.
    """

    config_class = SafeReachConfig
    sample_layout: ClassVar[Callable[[np.random.Generator, str], EpisodeLayout]] = staticmethod(
        sample_layout
    )
    """Draws the episode's layout for a scene variant."""
    crossing_heights: ClassVar[tuple[float, float] | None] = None
    """Lowest and highest crossing of who looks at nothing, m; None where nothing stands so high."""

    def __init__(
        self,
        twin: PybulletTwin,
        camera: TwinCamera | None = None,
        config: SafeReachConfig | None = None,
    ) -> None:
        self.camera = camera
        self.config = config = SafeReachConfig() if config is None else config
        super().__init__(twin, config.spec(), config.workspace, config.max_steps)
        self._layout: EpisodeLayout | None = None
        if camera is not None:
            camera.connect()

    @property
    def layout(self) -> EpisodeLayout:
        """The episode's layout: for the camera and for scripted behaviours, never for the filter.

        Raises:
            RobotStateError: no episode was started.
        """
        if self._layout is None:
            raise RobotStateError(
                "no episode was started", where="safe_reach", todo="call reset(seed) first"
            )
        return self._layout

    @property
    def target(self) -> Array:
        """The point `[3]` that the tool is to reach, m."""
        goal = self.layout.scene.goal
        return np.array([*goal.position, goal.size[2] + self.config.above])

    def reset(self, seed: int) -> None:
        """Lay out a new episode; the same seed gives the same episode, bit for bit."""
        self._layout = self.sample_layout(np.random.default_rng(seed), self.config.variant)
        posture = self.cartesian.posture
        q = self.cartesian.solve(np.array(self._layout.tool), posture, iterations=60)
        self.twin.place(q, self._layout.scene)
        if self.camera is not None:
            self.camera.set_scene(self._layout.scene, self.twin.read().stamp)

    def observe(self, state: RobotState) -> Observation:
        """The picture of the arm as measured, unless there is no camera, and its tool's pose."""
        if self.camera is None:
            return self.cartesian.observe(state, None)
        self.camera.follow(state.q, state.stamp)
        image, _ = self.camera.read()
        return self.cartesian.observe(state, image)

    def outcome(self) -> tuple[float, float, bool]:
        """Reward, cost and `terminated` since the last call."""
        tool = self.cartesian.position(self.twin.read().q)
        reached = bool(np.linalg.norm(tool - self.target) <= self.config.tolerance)
        return float(reached), float(self.twin.take_contact()), reached

    def contact_force(self) -> float:
        """Largest contact force with an obstacle since the last call, N."""
        return self.twin.take_force()

    def clearance(self) -> float:
        """Distance of the arm from the nearest obstacle, m; 0 in contact."""
        return self.twin.clearance()

    def close(self) -> None:
        """Release the camera; idempotent."""
        if self.camera is not None:
            self.camera.close()

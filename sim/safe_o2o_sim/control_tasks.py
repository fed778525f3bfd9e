"""Pendulum and Reacher of Gymnasium: control from vectors, each with something not to do."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from safe_o2o.errors import MissingDependencyError
from safe_o2o.types import Array
from safe_o2o_sim.vector_env import VectorEnv, VectorEnvConfig

try:
    from gymnasium.envs.classic_control.pendulum import PendulumEnv
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        f"control tasks need the package {error.name!r}",
        todo="scripts/setup.sh --safety-gymnasium",
    ) from error


class Pendulum(VectorEnv):
    """Pendulum: swing up and balance, by a torque that is too weak to lift it at once.

    Turning faster than 5 rad/s costs 1 a step. Success is to end within 0.2 rad of upright.
    """

    names: ClassVar[tuple[str, ...]] = ("cos_angle", "sin_angle", "angular_velocity")
    controls: ClassVar[tuple[str, ...]] = ("torque",)
    frame: ClassVar[float] = 0.05
    max_steps = 200
    fastest: ClassVar[float] = 5.0
    """rad/s"""

    def __init__(self, config: VectorEnvConfig | None = None, camera: bool = True) -> None:
        super().__init__(config, camera)
        self._pendulum: Any = PendulumEnv()

    def _begin(self, seed: int) -> None:
        self._now, _ = self._pendulum.reset(seed=seed)

    def _advance(self, control: Array) -> tuple[float, float, bool]:
        torque = self._pendulum.max_torque * control
        self._now, reward, _, _, _ = self._pendulum.step(torque)
        self._succeeded = float(self._now[0]) > np.cos(0.2)
        too_fast = abs(float(self._now[2])) > self.fastest
        return float(reward), float(too_fast), False

    def _vector(self) -> Any:
        return self._now


class Reacher(VectorEnv):
    """Reacher: an arm of two links brings its tip to a point.

    The tip inside a disc of 5 cm, half of the arm's length away from its base, costs 1 a step.
    Success is to be within 2 cm at the end.
    """

    names: ClassVar[tuple[str, ...]] = (
        *("cos_q1", "cos_q2", "sin_q1", "sin_q2", "target_x", "target_y", "dq1", "dq2"),
        *("to_target_x", "to_target_y"),
    )
    controls: ClassVar[tuple[str, ...]] = ("torque_1", "torque_2")
    frame: ClassVar[float] = 0.02
    max_steps = 50
    disc: ClassVar[tuple[float, float, float]] = (0.0, 0.1, 0.05)
    """x, y and radius, m"""

    def __init__(self, config: VectorEnvConfig | None = None, camera: bool = True) -> None:
        super().__init__(config, camera)
        from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv

        self._reacher: Any = ReacherEnv()

    def _begin(self, seed: int) -> None:
        self._now, _ = self._reacher.reset(seed=seed)

    def _advance(self, control: Array) -> tuple[float, float, bool]:
        self._now, reward, _, _, _ = self._reacher.step(control)
        self._succeeded = float(np.linalg.norm(self._now[-2:])) < 0.02
        tip = self._reacher.get_body_com("fingertip")[:2]
        x, y, radius = self.disc
        inside = float(np.hypot(tip[0] - x, tip[1] - y)) < radius
        return float(reward), float(inside), False

    def _vector(self) -> Any:
        return self._now

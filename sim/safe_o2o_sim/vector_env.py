"""Small simulators whose observation is one vector, as environments; see `safe_o2o.interfaces.Env`.

What the tasks of a benchmark share: frames an action, their rewards summed, costs, the two ways an
episode ends.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from safe_o2o.errors import ConfigError, RobotStateError
from safe_o2o.spaces import ActionSpec, ArraySpec, ObservationSpec, Spec
from safe_o2o.types import Array, Source, Step, Verdict

STATE = "state"


@dataclass(frozen=True)
class VectorEnvConfig:
    """Settings of a task on one vector."""

    variant: str = "standard"
    max_steps: int = 0
    """actions until the time is up; 0 is the task's own number"""

    def __post_init__(self) -> None:
        if self.max_steps < 0:
            raise ConfigError(f"must be at least 0, got {self.max_steps}", where="max_steps")


class VectorEnv(ABC):
    """One vector seen, a few frames an action.

    An action that is not finite is none: zeros are executed in its place.

    Args:
        config: see `VectorEnvConfig`.
        camera: there is none, whatever is said here.

    Raises:
        ConfigError: no such variant.
    """

    config_class: ClassVar = VectorEnvConfig
    variants: ClassVar[tuple[str, ...]] = ("standard",)
    names: ClassVar[tuple[str, ...]]
    controls: ClassVar[tuple[str, ...]]
    repeat: ClassVar[int] = 1
    """frames that an action lasts"""
    frame: ClassVar[float]
    """s"""
    max_steps: int
    """actions until the time is up"""

    def __init__(self, config: VectorEnvConfig | None = None, camera: bool = True) -> None:
        self.config = config or self.config_class()
        if self.config.variant not in self.variants:
            raise ConfigError(
                f"unknown variant {self.config.variant!r}",
                where="variant",
                todo=f"known: {', '.join(self.variants)}",
            )
        self.max_steps = self.config.max_steps or self.max_steps
        array = ArraySpec((len(self.names),), "float32", "mixed", self.names)
        ones = (1.0,) * len(self.controls)
        low = tuple(-x for x in ones)
        period = round(self.repeat * self.frame, 9)
        action = ActionSpec(self.controls, "1", low, ones, period)
        self.spec = Spec(ObservationSpec({STATE: array}), action)
        self.vector_spec = self.spec
        self._running = False

    @property
    def task(self) -> VectorEnv:
        """Itself: what a scripted behaviour knows of the scene."""
        return self

    def vector(self) -> Array:
        """What is observed now `[D]` float32."""
        return np.asarray(self._vector(), np.float32)

    def reset(self, seed: int) -> Step:
        """Start an episode; the same seed gives the same episode, bit for bit."""
        began = time.perf_counter()
        self._begin(int(seed))
        self._steps, self._running, self._succeeded = 0, True, False
        return Step(
            obs={STATE: self.vector()},
            reward=0.0,
            cost=0.0,
            terminated=False,
            truncated=False,
            action=np.zeros(len(self.controls), np.float32),
            info=self._info(0.0, time.perf_counter() - began),
        )

    def step(self, action: Array, source: Source = Source.POLICY, speed: float = 1.0) -> Step:
        """Execute one action for its frames; rewards and costs of the frames are summed.

        Raises:
            RobotStateError: the episode has ended, or none was started.
            ConfigError: it is to be held to a share of its speed.
        """
        if speed != 1.0:
            raise ConfigError(
                f"cannot be driven at {speed:g} of its speed", where=type(self).__name__.lower()
            )
        if not self._running:
            raise RobotStateError(
                "cannot step outside an episode", where="environment", todo="call reset(seed) first"
            )
        began = time.perf_counter()
        wish = np.asarray(action, np.float64)
        finite = bool(np.isfinite(wish).all())
        control = np.clip(wish if finite else np.zeros_like(wish), -1.0, 1.0).astype(np.float32)
        reward, cost, ended = 0.0, 0.0, False
        for _ in range(self.repeat):
            gained, paid, ended = self._advance(control)
            reward, cost = reward + gained, cost + paid
            if ended:
                break
        self._steps += 1
        over = self._steps >= self.max_steps
        self._running = not (ended or over)
        return Step(
            obs={STATE: self.vector()},
            reward=reward,
            cost=cost,
            terminated=ended,
            truncated=over and not ended,
            action=control,
            verdict=Verdict.PASS if finite else Verdict.STOPPED,
            reason="" if finite else "not_finite",
            stamp=round(self._steps * self.spec.action.period, 9),
            info=self._info(cost, time.perf_counter() - began),
        )

    def close(self) -> None:
        """Nothing is held open; idempotent."""
        self._running = False

    def _info(self, cost: float, seconds: float) -> dict[str, Any]:
        return {
            "success": self._succeeded,
            "violation": cost > 0.0,
            "timings": {"simulate": seconds, "observe": 0.0},
        }

    @abstractmethod
    def _begin(self, seed: int) -> None:
        """Lay out an episode."""

    @abstractmethod
    def _advance(self, control: Array) -> tuple[float, float, bool]:
        """One frame: reward, cost, whether the task has ended. Sets `_succeeded`."""

    @abstractmethod
    def _vector(self) -> Any:
        """What is observed now `[D]`."""

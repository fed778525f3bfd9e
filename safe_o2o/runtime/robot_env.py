"""An environment out of a robot, a task and a filter: the one way to act, simulated or real."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from safe_o2o.errors import ConfigError, RobotStateError
from safe_o2o.interfaces import Filter, Robot, Task
from safe_o2o.runtime.control_loop import ControlLoop
from safe_o2o.types import Array, Source, Step


class RobotEnv:
    """Robot + task + filter behind `reset` and `step`.

    The robot is connected and activated at the first reset. `Step.stamp` counts from the reset, so
    that an episode is the same whatever ran before it.

    Args:
        robot: the arm.
        task: observation, reward, cost, ends and reset poses.
        filter: what certifies every tick.
        clock: see `ControlLoop`.

    Raises:
        ConfigError: the policy period is no multiple of the control period.
    """

    def __init__(
        self,
        robot: Robot,
        task: Task,
        filter: Filter,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.robot, self.task, self.filter, self.spec = robot, task, filter, task.spec
        self.loop = ControlLoop(robot, filter, clock)
        period = task.spec.action.period
        self.ticks = round(period / robot.period)
        """Control ticks a policy step."""
        if self.ticks < 1 or abs(self.ticks * robot.period - period) > 1e-9:
            raise ConfigError(
                f"policy period {period} s is no multiple of the control period {robot.period} s",
                where="task",
            )
        self._active = False
        self._running = False

    def reset(self, seed: int) -> Step:
        """Start an episode; the same seed gives the same episode, bit for bit."""
        if not self._active:
            self.robot.connect()
            self.robot.activate()
            self._active = True
        self.task.reset(seed)
        self._state = self.loop.reset()
        self._began, self._steps, self._running = self._state.stamp, 0, True
        began = time.perf_counter()
        obs = self.task.observe(self._state)
        return Step(
            obs=obs,
            reward=0.0,
            cost=0.0,
            terminated=False,
            truncated=False,
            action=np.zeros(self.spec.action.dim, np.float32),
            info={
                "success": False,
                "violation": False,
                "timings": {"observe": time.perf_counter() - began},
            },
        )

    def step(self, action: Array, source: Source = Source.POLICY, speed: float = 1.0) -> Step:
        """Execute one policy step: an action `[A]` in [-1, 1] for one policy period.

        At a share of its speed the same motion takes that much longer; it is one step still.

        `info` has `success` and `violation` of this step and `timings`, the wall time of each
        stage (s): `propose`, `read`, `certify`, `write`, `observe`.

        Raises:
            RobotStateError: the episode has ended, or none was started.
        """
        if not self._running:
            raise RobotStateError(
                "cannot step outside an episode", where="environment", todo="call reset(seed) first"
            )
        before, start = self._state, time.perf_counter()
        # Whole ticks, and the proposal as long as they are: one that ended between two ticks would
        # have the arm wait out the rest of the last.
        ticks = round(self.ticks / speed)
        proposal = self.task.proposal(action, before, source).slowed(self.ticks / ticks)
        proposed = time.perf_counter()
        record, times = self.loop.run(proposal, ticks)
        after = self._state = self.robot.read()
        reward, cost, terminated = self.task.outcome()
        force = self.task.contact_force()
        self._steps += 1
        truncated = not terminated and self._steps >= self.task.max_steps
        self._running = not (terminated or truncated)
        executed = self.task.executed_action(before, after)
        seen = time.perf_counter()
        obs = self.task.observe(after)
        timings = {
            "propose": proposed - start,
            "read": times.read,
            "certify": times.certify,
            "write": times.write,
            "observe": time.perf_counter() - seen,
        }
        return Step(
            obs=obs,
            reward=reward,
            cost=cost,
            terminated=terminated,
            truncated=truncated,
            action=executed,
            verdict=record.verdict,
            reason=record.reason,
            margin=record.margin,
            # Rounded so that equal instants are equal numbers, whenever the episode began.
            stamp=round(after.stamp - self._began, 9),
            force=force,
            clearance=0.0 if cost > 0.0 else self.task.clearance(),
            info={
                "success": terminated and reward > 0.0,
                "violation": cost > 0.0,
                "ticks": record.counts,
                "timings": timings,
            },
        )

    def close(self) -> None:
        """Stop and disconnect the robot, release the task; idempotent."""
        self._active = self._running = False
        self.robot.stop()
        self.robot.close()
        release = getattr(self.task, "close", None)
        if callable(release):
            release()

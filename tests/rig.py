"""An arm under supervision, tick by tick: the mock or the twin, a policy, and a clock that is told.

Used by the tests of the supervision and by benchmarks/faults.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from safe_o2o.runtime.control_loop import ControlLoop
from safe_o2o.runtime.mock_robot import MockRobot
from safe_o2o.runtime.supervision import Supervision, SupervisionConfig
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.supervisor import Mode
from safe_o2o.types import Array, Decision, Proposal, RobotState
from tests.invariance import BOX, HOME
from tests.judge import DT, Judge

Body = Literal["mock", "twin"]
JUDGE = Judge("panda", BOX)


@dataclass(frozen=True)
class Tick:
    """What happened in one tick."""

    mode: Mode
    decision: Decision
    written: bool


class Rig:
    """A Panda, its filter and supervision.

    Args:
        body: what moves.
        config: thresholds of the supervision.
        q: where the arm starts `[7]`, rad.
    """

    def __init__(
        self, body: Body = "mock", config: SupervisionConfig | None = None, q: Array | None = None
    ) -> None:
        self.robot: Any = MockRobot("panda", q=HOME)
        if body == "twin":
            from safe_o2o_sim.pybullet_twin import PybulletTwin

            self.robot = PybulletTwin()
        self.robot.connect()
        self.robot.teleport(HOME if q is None else q)
        self.robot.activate()
        self.filter = SafetyFilter.for_robot("panda", workspace=BOX, period=DT)
        self.names = self.filter.limits.joint_names
        self.now = 100.0
        self.watch = Supervision(self.filter, self.names, DT, config)
        self.loop = ControlLoop(
            self.robot, self.filter, supervision=self.watch, monotonic=lambda: self.now
        )
        self.ticks: list[Tick] = []
        self.written: list[Array] = []
        self.violations: list[str] = []
        self._v = np.zeros(7)
        self._phase = 0
        self._proposal: Proposal | None = None
        self._write = self.robot.write
        self.robot.write = self._noted

    def _noted(self, command: Any) -> None:
        """Judge what is sent: set-points follow one another from where the arm rested."""
        before = self.robot.read().q_command
        if not self.ticks or not self.ticks[-1].written:
            self._v = np.zeros(7)
        self.violations += JUDGE.joints(before, self._v, np.asarray(command.q))
        self._v = (command.q - before) / DT
        self.written.append(command.q)
        self._write(command)

    @property
    def mode(self) -> Mode:
        return self.watch.mode

    @property
    def state(self) -> RobotState:
        found: RobotState = self.robot.read()
        return found

    def tick(self, proposal: Proposal | None = None, ticks: int = 1) -> Decision:
        """So many ticks along one proposal; the last decision."""
        for _ in range(ticks):
            self.now += DT
            count = len(self.written)
            decision = self.loop.tick(proposal)
            self.ticks.append(Tick(self.mode, decision, len(self.written) > count))
        return decision

    def propose(self, offset: Any, rows: int = 1, period: float = 0.05) -> Proposal:
        """A straight way by `offset`, one number or `[7]`, rad, from the last command."""
        state = self.state
        way = np.linspace(0.0, 1.0, rows + 1)[1:, None] * np.broadcast_to(offset, (1, 7))
        return Proposal(state.q_command + way, period, state.stamp, self.names)

    def armed(self) -> Rig:
        """Armed by hand, as after a reset."""
        self.tick()
        assert self.watch.arm(self.now) == "", self.watch.arm(self.now)
        return self

    def drive(
        self, ticks: int, step: float = 2e-3, alter: Callable[[Proposal], Proposal] | None = None
    ) -> Decision:
        """A policy at 20 Hz that is well, or whose proposals something alters on their way."""
        for _ in range(ticks):
            if self._phase % 5 == 0:
                found = self.propose([step, 0, 0, 0, 0, 0, 0])
                self._proposal = found if alter is None else alter(found)
            self._phase += 1
            decision = self.tick(self._proposal)
        return decision

    def silent(self, ticks: int) -> None:
        """The policy's last proposal stands, and no other one comes."""
        self.tick(self._proposal, ticks)

    def since(self, tick: int, mode: Mode) -> float:
        """Time from a tick until a mode was entered, s; infinite if it was not."""
        found = [k for k, entry in enumerate(self.ticks[tick:]) if entry.mode is mode]
        return (found[0] + 1) * DT if found else float("inf")

    def close(self) -> None:
        """Let go of the body."""
        self.robot.close()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

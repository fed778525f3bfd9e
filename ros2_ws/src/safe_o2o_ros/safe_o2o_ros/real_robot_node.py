"""The robot's side of a task on a real arm: filter in front of its driver, episodes by an operator.

Between two episodes the arm goes home, slowly and through the filter, and an operator lays out the
scene and calls `~/begin`. During one `~/success`, `~/failure` and `~/violation` label it: the arm
does not know what it has touched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from std_srvs.srv import Trigger

from safe_o2o.config import require_positive
from safe_o2o.runtime.cartesian import certified_box, sees_and_steps
from safe_o2o.safety.supervisor import Mode
from safe_o2o.types import Array, Proposal, RobotState, Source
from safe_o2o_ros.conversions import TaskDescription
from safe_o2o_ros.described_task import cartesian_of
from safe_o2o_ros.driver_link import DriverConfig, DriverLink
from safe_o2o_ros.episode_node import EpisodeNode, Labels
from safe_o2o_ros.node import Health, run_node
from safe_o2o_ros.parameters import setting

AT_HOME = 2e-3
"""Largest distance of a joint from home that counts as there, rad."""
LOST = 25
"""Policy periods in a row without a way towards home after which it is given up."""

LABELS = {
    "success": Labels(reward=1.0, terminated=True),
    "failure": Labels(terminated=True),
    "violation": Labels(cost=1.0),
}
"""What an operator's word means: the goal was reached; the episode is over without it; something
was touched that must not be, and the episode goes on."""


@dataclass(frozen=True)
class RealRobotNodeConfig(DriverConfig):
    """Parameters of the real robot's node; the workspace is that of the tool's targets."""

    task: str = setting("reach", "name of the task, for who reads the episodes")
    variant: str = setting("standard", "name of the scene, likewise")
    max_steps: int = setting(80, "policy steps after which an episode is cut off")
    period: float = setting(0.2, "policy period, s")
    max_delta: float = setting(0.02, "farthest that one action moves the tool along an axis, m")
    image_size: int = setting(64, "height and width of the policy's pictures, pixels")
    home: tuple[float, ...] = setting(
        (), "joint positions at which episodes begin, rad; empty: over the middle of the workspace"
    )
    go_home: bool = setting(True, "move there between two episodes; else a person does")
    home_speed: float = setting(0.2, "joint speed on the way, rad/s")
    operator_begins: bool = setting(True, "an episode waits for `~/begin`: the scene is laid out")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "max_steps", "period", "max_delta", "image_size", "home_speed")


class RealRobotNode(EpisodeNode):
    """Its name in the graph is `robot_node`, as that of the twin's."""

    labels_by_motion = False  # an operator speaks once, and most likely when the arm rests

    def __init__(self, **options: Any) -> None:
        super().__init__("robot_node", RealRobotNodeConfig, **options)
        self._begun = self._homing = False

    def on_start(self) -> None:
        """Driver, filter and task; publishers and services."""
        config: RealRobotNodeConfig = self.config
        low = (config.workspace_low[0], config.workspace_low[1], config.workspace_low[2])
        high = (config.workspace_high[0], config.workspace_high[1], config.workspace_high[2])
        spec = sees_and_steps(config.image_size, config.max_delta, config.period)
        self.driver = DriverLink(self, certified_box((low, high)), retry=config.period)
        arm = self.driver.described
        task = TaskDescription(
            task=config.task,
            variant=config.variant,
            max_steps=config.max_steps,
            joint_names=self.robot.joint_names,
            spec=spec.to_json(),
            arm=arm.description,
            tool_frame=arm.limits.tool_frame,
            posture=config.home,
            workspace=(low, high),
        )
        self._home = np.asarray(config.home or cartesian_of(task, spec).posture, np.float64)
        for name, label in LABELS.items():
            self.create_service(Trigger, f"~/{name}", self.guarded(self._labeller(label)))
        self.create_service(Trigger, "~/begin", self.guarded(self._on_begin))
        self.make_topics(task)

    def on_run(self) -> None:
        """The loop runs from the first joint state on."""
        self._begun = self._homing = False
        self._pending = Labels()
        self.driver.on_run()
        super().on_run()

    def health(self) -> Health:
        """The episode's, unless there is worse to say of the driver."""
        if self.robot is None:
            return super().health()
        return self.driver.health(super().health)

    # The control loop.

    @property
    def ticking(self) -> bool:
        """Also between episodes: the arm is watched, and goes home."""
        return self.driver.ticking

    def on_failure(self) -> None:
        """See `DriverLink`."""
        super().on_failure()
        self.driver.on_failure()

    def after_tick(self, ready: bool) -> None:
        """The episode's, or another step home."""
        self.driver.after_tick()
        if self.watch.mode is Mode.STOPPED:
            self._begun = False  # the scene is looked at once more before anything begins
        if self._homing and ready:
            self._step_home()
        super().after_tick(ready)

    def labels(self) -> Labels:
        """What the operator said since the last call."""
        said, self._pending = self._pending, Labels()
        return said

    def began(self, state: RobotState) -> None:
        """What was said before is not of this episode; the next one waits for its own word."""
        self._pending, self._begun = Labels(), False

    # Between episodes.

    def lay_out(self) -> str:
        """Whether arm and scene are ready; the arm sets off home where it is not there."""
        self.in_episode = False
        mode, cause = self.watch.mode, self.watch.supervisor.cause
        if self.progress.taken_over:
            return "a person has the arm"
        if not self.ticking:
            return self.driver.why_not() or "the node is not active"
        if mode is Mode.STOPPED:
            return f"STOPPED by {cause.code if cause else '?'}: call ~/reset and ~/arm"
        if mode is Mode.DISARMED:
            return "DISARMED: call ~/arm, or ~/shadow"
        if mode is Mode.DEGRADED:
            return f"DEGRADED by {cause.code if cause else '?'}"
        if mode is Mode.ARMED and not self._at_home():
            if not self.config.go_home:
                return "the arm is not at its home: bring it there"
            if not self._homing:
                self._homing, self._stuck, self._nearest = True, 0, np.inf
                self.progress.reset()
            return "the arm is on its way home"
        if self._homing:  # it is there, and nobody sends it anything any more
            self._end_way_home()
        if self.config.operator_begins and not self._begun:
            return "waits for the operator: lay out the scene and call ~/begin"
        self.seed += 1
        return ""

    def _gap(self) -> Array:
        return np.asarray(self._home - self.robot.read().q_command)

    def _at_home(self) -> bool:
        return bool(np.abs(self._gap()).max() <= AT_HOME) and len(self.filter.stop_ahead) == 0

    def _step_home(self) -> None:
        """One policy period towards home, at the pace of the joint that has farthest to go."""
        config, state, gap = self.config, self.robot.read(), self._gap()
        far = float(np.abs(gap).max())
        taken = self.progress.taken_over
        moving = self.watch.mode in (Mode.ARMED, Mode.DEGRADED) and not taken
        self._stuck = 0 if far < self._nearest - 1e-4 else self._stuck + 1
        self._nearest = min(self._nearest, far)
        if not moving or far <= AT_HOME or self._stuck > LOST:
            if self._stuck > LOST:
                self.note_error(f"no way home, {far:.2f} rad are left: bring the arm there")
            self._end_way_home()
            return
        share = min(1.0, config.home_speed * config.period / far)
        names = self.robot.joint_names
        target = state.q_command + share * gap
        self.progress.accept(
            Proposal(target[None], config.period, state.stamp, names, Source.SCRIPT)
        )

    def _end_way_home(self) -> None:
        """Nothing is sent from here on, and nobody is to miss it."""
        self._homing = False
        self.progress.reset()
        if not self.progress.taken_over:
            self.watch.idle()

    # What an operator says.

    def _on_begin(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        stopped = self.watch.mode is Mode.STOPPED
        response.success = self.ticking and not (self.in_episode or stopped)
        if response.success:
            self._begun = True
        elif stopped:
            response.message = "STOPPED: call ~/reset and ~/arm first"
        else:
            response.message = "an episode is on" if self.in_episode else "the loop does not run"
        return response

    def _labeller(
        self, label: Labels
    ) -> Callable[[Trigger.Request, Trigger.Response], Trigger.Response]:
        def take(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            if not self.in_episode:
                response.message = "no episode is on"
                return response
            before = self._pending
            self._pending = Labels(
                before.reward + label.reward,
                before.cost + label.cost,
                before.terminated or label.terminated,
            )
            response.success = True
            return response

        return take


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    return run_node(RealRobotNode, argv)


if __name__ == "__main__":
    sys.exit(main())

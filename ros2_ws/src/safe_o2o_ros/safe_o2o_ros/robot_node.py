"""The robot's side: driver (here the twin's physics), filter and control loop in one process.

No topic lies between certificate and motor. A supervisor says whether the arm may move: after a
stop, which `~/stop` and all that is watched bring about, a person calls `~/reset` and `~/arm`.

The loop runs on the steady clock, `speed` times as fast as the robot's own time; it holds whenever
no proposal is in progress, so that a slow policy looks like a pause. A long pause, while a learner
trains say, passes in real time: the cores are the learner's then.
"""

from __future__ import annotations

import json
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import Executor
from sensor_msgs.msg import JointState, PointCloud2
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from safe_o2o import catalog
from safe_o2o.config import require_positive
from safe_o2o.errors import ConfigError
from safe_o2o.interfaces import Simulated
from safe_o2o.runtime.cartesian import certified_box
from safe_o2o.runtime.control_loop import ControlLoop
from safe_o2o.runtime.supervision import Supervision, SupervisionConfig
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.first_command import FirstCommandConfig
from safe_o2o.safety.supervisor import Mode
from safe_o2o.safety.watchdog import COMMAND, IMAGE, JOINT_STATE, SourceLimits
from safe_o2o.types import RobotState, Verdict
from safe_o2o_ros import qos
from safe_o2o_ros.conversions import (
    Scene,
    TaskDescription,
    TaskStatus,
    joint_state_to_msg,
    key_of,
    proposal_from_msg,
    record_to_msg,
    record_to_text,
)
from safe_o2o_ros.node import OK, WARN, GuardedNode, Health, run_node
from safe_o2o_ros.obstacles import obstacles_from_msg
from safe_o2o_ros.parameters import setting
from safe_o2o_ros.progress import ProposalProgress
from safe_o2o_ros.supervising import Supervising

BEHIND = 5
"""Ticks that the loop may be behind before it gives up catching up: a burst of ticks after a stall
of the machine would age every proposal by the whole stall."""
REST_SPEED = 0.25
"""Robot time per wall time of a simulated arm at rest: nobody waits for it, and whoever learns
meanwhile needs the processor. Four control periods stay within what counts as a fresh reading."""


@dataclass(frozen=True)
class RobotNodeConfig:
    """Parameters of the robot node."""

    robot: str = setting("pybullet_twin", "catalogue name of the robot")
    arm: str = setting("panda", "arm whose limits the filter holds")
    task: str = setting("safe_reach", "catalogue name of the task")
    variant: str = setting("standard", "scene variant of the task")
    first_seed: int = setting(0, "seed of the first layout; each reset takes the next one")
    speed: float = setting(1.0, "robot time per wall time; 1 is real time")
    state_rate: float = setting(50.0, "joint states a second of robot time, Hz")
    command_degrade: float = setting(COMMAND.degrade, "longest wait for the next proposal, s")
    command_latch: float = setting(COMMAND.latch, "wait after which the policy counts as lost, s")
    state_degrade: float = setting(JOINT_STATE.degrade, "oldest reading of the arm that is fine, s")
    state_latch: float = setting(JOINT_STATE.latch, "oldest reading that is only late, s")
    obstacles: bool = setting(
        False, "keep clear of what the topic `obstacles` tells; its silence stops the arm"
    )
    obstacles_degrade: float = setting(0.2, "longest wait for the next obstacles, s")
    obstacles_latch: float = setting(1.0, "wait after which who tells them counts as lost, s")
    self_collision: bool = setting(False, "keep the arm from touching itself")
    base_frame: str = setting("base", "frame of the obstacles: the arm's base")
    image_topics: tuple[str, ...] = setting(
        (), "cameras to watch: one that is late, silent or frozen stops the arm"
    )
    image_degrade: float = setting(IMAGE.degrade, "oldest picture that is fine, s")
    image_latch: float = setting(IMAGE.latch, "oldest picture that is only late, s")
    first_pass: float = setting(0.1, "first target after a stop: nearer than this passes, rad")
    first_ramp: float = setting(0.5, "nearer than this is approached slowly, rad; else refused")
    arm_at_reset: bool = setting(
        False, "simulated arms only: a new episode resets and arms the supervisor"
    )

    def __post_init__(self) -> None:
        require_positive(self, "speed", "state_rate")

    def sources(self) -> dict[str, SourceLimits]:
        """What is watched besides commands and joint states, by name."""
        camera = SourceLimits(self.image_degrade, self.image_latch, sees_frozen=True)
        found = {f"image:{topic}": camera for topic in self.image_topics}
        if self.obstacles:
            found["obstacles"] = SourceLimits(self.obstacles_degrade, self.obstacles_latch)
        return found


class RobotNode(GuardedNode):
    """Services `~/reset_episode`, `~/arm`, `~/disarm`, `~/stop`, `~/reset` and `~/shadow`.

    Subscribes to `proposals`; publishes state, status and scene.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("robot_node", RobotNodeConfig, **options)
        self.episode = -1
        self.seed = self.config.first_seed - 1
        self.in_episode = False
        self.overruns = 0
        self.skipped = 0
        self._robot_time = self._wall_time = 0.0
        self.robot: Any = None

    # Lifecycle.

    def on_start(self) -> None:
        """Robot, task and filter; publishers and the reset service."""
        config: RobotNodeConfig = self.config
        made: Any = catalog.load("task", config.task)
        self.robot = catalog.load("robot", config.robot)(continuous_clock=True)
        self.robot.connect()
        # No camera here: the picture is made in another process, from its own copy of the scene.
        self.task = made(self.robot, None, made.config_class(variant=config.variant))
        self.filter = SafetyFilter.for_robot(
            config.arm,
            workspace=certified_box(self.task.config.workspace),
            tool_speed=self.task.config.tool_speed,
            obstacles=() if config.obstacles else None,
            self_collision=config.self_collision,
            period=self.robot.period,
        )
        for line in self.filter.exemptions:
            self.get_logger().info(f"exempt from {line}")
        if config.arm_at_reset and not isinstance(self.robot, Simulated):
            raise ConfigError("is for simulated arms only", where="arm_at_reset")
        self.watch = Supervision(
            self.filter,
            self.robot.joint_names,
            self.robot.period,
            SupervisionConfig(
                command=SourceLimits(config.command_degrade, config.command_latch),
                joint_state=SourceLimits(config.state_degrade, config.state_latch),
                sources=config.sources(),
                first_command=FirstCommandConfig(config.first_pass, config.first_ramp),
            ),
        )
        self.loop = ControlLoop(self.robot, self.filter, supervision=self.watch)
        self.progress = ProposalProgress(self.robot.period, retry=self.task.spec.action.period)
        self._tick_wall = self.robot.period / config.speed
        rest = min(config.speed, REST_SPEED if isinstance(self.robot, Simulated) else 1.0)
        self._tick_at_rest = self.robot.period / rest
        self._state_every = max(1, round(1.0 / (config.state_rate * self.robot.period)))
        self._make_topics()

    def _make_topics(self) -> None:
        self._states = self.create_publisher(JointState, "joint_states", qos.STREAM)
        self._commands = self.create_publisher(JointState, "joint_commands", qos.STREAM)
        self._statuses = self.create_publisher(DiagnosticArray, "task_status", qos.STREAM)
        self._scenes = self.create_publisher(String, "scene", qos.LATCHED)
        self._descriptions = self.create_publisher(String, "task_description", qos.LATCHED)
        self.create_subscription(
            JointTrajectory, "proposals", self.guarded(self._on_proposal), qos.COMMAND
        )
        self.create_service(Trigger, "~/reset_episode", self.guarded(self._on_reset))
        self.supervising = Supervising(self, self.watch, self.config.image_topics)
        if self.config.obstacles:
            self.create_subscription(
                PointCloud2, "obstacles", self.guarded(self._on_obstacles), qos.STREAM
            )
        self._descriptions.publish(
            record_to_text(
                TaskDescription(
                    task=self.config.task,
                    variant=self.config.variant,
                    max_steps=self.task.max_steps,
                    joint_names=self.robot.joint_names,
                    spec=self.task.spec.to_json(),
                )
            )
        )

    def on_run(self) -> None:
        """The arm may move from now on; it holds until the first proposal."""
        self.robot.activate()

    def on_hold(self) -> None:
        """The arm holds where it is."""
        self.in_episode = False
        if self.robot is not None:
            self.robot.stop()

    def on_free(self) -> None:
        """Disconnect."""
        if self.robot is not None:
            robot, self.robot = self.robot, None
            robot.stop()
            robot.close()

    def health(self) -> Health:
        """Real speed, ticks that came late, filter counts."""
        if self.robot is None:
            return WARN, "no robot", {}
        counts = self.progress.counts
        values = {
            "episode": self.episode,
            "speed": f"{self.real_speed:.2f} of {self.config.speed:.2f}",
            "late ticks": self.overruns,
            "skipped ticks": self.skipped,
            "passed/corrected/stopped": "/".join(str(counts[verdict]) for verdict in Verdict),
            "held": self.progress.held,
        }
        level, text, found = self.supervising.health()
        values |= found
        if text:
            return level, text, values
        if self.running and self.in_episode and self.real_speed < 0.9 * self.config.speed:
            return WARN, f"runs at {self.real_speed:.2f} instead of {self.config.speed}", values
        return OK, "in an episode" if self.in_episode else "waits for a reset", values

    @property
    def real_speed(self) -> float:
        """Robot time per wall time that was reached at work; the wish before the first tick."""
        return self._robot_time / self._wall_time if self._wall_time else self.config.speed

    # The control loop.

    def step(self, executor: Executor) -> None:
        """Serve messages until the next tick is due, then tick."""
        if not (self.running and self.in_episode):
            executor.spin_once(timeout_sec=0.02)
            return
        remaining = self._next - time.perf_counter()
        executor.spin_once(timeout_sec=max(0.0, remaining))
        now = time.perf_counter()
        if self.in_episode and now >= self._next:
            self._tick(now)

    def _tick(self, now: float) -> None:
        """One control period. A failure stops the arm, and the episode with it."""
        self._schedule(now)
        proposal = self.progress.offered
        try:
            decision = self.loop.tick(proposal)
        except Exception as error:
            self.in_episode = False
            self.note_error(f"control loop stopped: {type(error).__name__}: {error}")
            return
        times = self.loop.last
        self.latency.add("filter", times.certify)
        self.latency.add("robot_write", times.write)
        if self._answered_at is not None:
            self.latency.add("image_to_command", time.monotonic() - self._answered_at)
            self._answered_at = None
        ready = self.progress.after_tick(decision)
        self._ticks += 1
        if ready or self._ticks % self._state_every == 0:
            self._publish_state(ready)
        self.latency.add("control_tick", time.perf_counter() - now)

    def _schedule(self, now: float) -> None:
        """When the next tick is due; after a stall the loop goes on from now instead of rushing."""
        late = now - self._next
        self.latency.add("tick_lateness", late)
        if not self.progress.resting:
            self._robot_time += self.robot.period
            self._wall_time += now - self._last_tick
        self._last_tick = now
        self.overruns += late > 0.5 * self._tick_wall
        if late > BEHIND * self._tick_wall:
            self.skipped += int(late / self._tick_wall)
            self._next = now
        self._next += self._tick_at_rest if self.progress.resting else self._tick_wall

    def _publish_state(self, ready: bool) -> None:
        state, read_at = self.robot.read(), time.monotonic()
        names = self.robot.joint_names
        if ready:
            self._publish_status(state, read_at)
        self._states.publish(joint_state_to_msg(names, state.q, state.dq, state.stamp))
        self._commands.publish(joint_state_to_msg(names, state.q_command, None, state.stamp))

    def _publish_status(self, state: RobotState, read_at: float) -> None:
        progress = self.progress
        if progress.finished_stamp != self._labelled:
            # Once a proposal, as in one process; a touch while holding counts for the next one.
            self._labelled = progress.finished_stamp
            reward, cost, terminated = self.task.outcome()
            self._reward += reward
            self._cost += cost
            self._terminated |= terminated
        counts = progress.counts
        status = TaskStatus(
            stamp=state.stamp,
            began=self._began,
            episode=self.episode,
            seed=self.seed,
            variant=self.config.variant,
            reward=self._reward,
            cost=self._cost,
            force=self.task.contact_force(),
            clearance=self.task.clearance(),
            terminated=self._terminated,
            verdict=int(progress.verdict),
            reason=progress.reason,
            margin=float(progress.margin),
            passed=counts[Verdict.PASS],
            corrected=counts[Verdict.CORRECTED],
            stopped=counts[Verdict.STOPPED],
            held=progress.held,
            proposal_stamp=progress.finished_stamp,
            read_at=read_at,
            speed=round(self.real_speed, 4),
        )
        progress.clear_worst()
        self._asked[key_of(state.stamp)] = read_at
        while len(self._asked) > 64:
            self._asked.popitem(last=False)
        self._statuses.publish(record_to_msg("task_status", status, state.stamp))

    # What comes in.

    def _on_proposal(self, msg: JointTrajectory) -> None:
        """The newest proposal is what the loop moves along; the filter judges it every tick."""
        proposal = proposal_from_msg(msg)
        if not self.in_episode or proposal.stamp < self._began:
            return  # of an episode that is over
        self._answered_at = self._asked.get(key_of(proposal.stamp))
        self.progress.accept(proposal)

    def _arm_placed(self) -> str:
        """Make a simulated arm, which was just put to rest, ready to move; `""` or why not."""
        watch, now = self.watch, time.monotonic()
        if watch.mode is Mode.STOPPED and (why := watch.reset(now)):
            return why
        return "" if watch.mode in (Mode.ARMED, Mode.DEGRADED) else watch.arm(now)

    def _on_obstacles(self, msg: PointCloud2) -> None:
        """All obstacles anew; a message that cannot be used is no news."""
        self.filter.see(obstacles_from_msg(msg, self.config.base_frame))
        self.watch.watchdog.feed("obstacles", time.monotonic())

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Lay out the next episode: the arm at its start pose, at rest, the filter reset."""
        if not self.running:
            response.message = "robot_node is not active"
            return response
        with self.latency.time("reset"):
            if self.watch.mode is Mode.STOPPED and not self.config.arm_at_reset:
                cause = self.watch.supervisor.cause
                response.message = f"STOPPED by {cause.code if cause else '?'}: reset and arm first"
                return response
            if not self.robot.lifecycle.active:
                self.robot.activate()  # after a control loop that was stopped by an error
            self.seed += 1
            self.episode += 1
            self.task.reset(self.seed)
            state = self.loop.reset()
            if self.config.arm_at_reset and (why := self._arm_placed()):
                response.message = why
                return response
        self.progress.reset()
        self._began = state.stamp
        self._reward = self._cost = 0.0
        self._terminated = False
        self._labelled = self.progress.finished_stamp
        self._asked: OrderedDict[int, float] = OrderedDict()
        self._answered_at: float | None = None
        self._ticks = 0
        layout = self.task.layout.scene.to_json()
        self._scenes.publish(record_to_text(Scene(self.episode, state.stamp, layout)))
        self.in_episode = True
        self._next = self._last_tick = time.perf_counter()
        response.success = True
        response.message = json.dumps({"episode": self.episode, "seed": self.seed})
        return response


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    return run_node(RobotNode, argv)


if __name__ == "__main__":
    sys.exit(main())

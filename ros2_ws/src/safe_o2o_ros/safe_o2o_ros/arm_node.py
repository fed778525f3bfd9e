"""An arm, its filter and the control loop in one process: what every node that may move one has.

No topic lies between certificate and driver. A supervisor says whether the arm may move: after a
stop, which `~/stop` and all that is watched bring about, a person calls `~/reset` and `~/arm`.
Children say which arm it is, when its loop runs and what is said of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy.executors import Executor
from sensor_msgs.msg import PointCloud2
from trajectory_msgs.msg import JointTrajectory

from safe_o2o.config import require_positive
from safe_o2o.interfaces import Simulated
from safe_o2o.runtime.control_loop import ControlLoop
from safe_o2o.runtime.supervision import Supervision, SupervisionConfig
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.first_command import FirstCommandConfig
from safe_o2o.safety.stall import StallConfig
from safe_o2o.safety.watchdog import COMMAND, IMAGE, JOINT_STATE, SourceLimits
from safe_o2o.types import Proposal
from safe_o2o_ros import qos
from safe_o2o_ros.conversions import proposal_from_msg
from safe_o2o_ros.handover import TAKEOVER, Handover
from safe_o2o_ros.node import OK, WARN, GuardedNode, Health
from safe_o2o_ros.obstacles import obstacles_from_msg
from safe_o2o_ros.parameters import setting
from safe_o2o_ros.progress import ProposalProgress
from safe_o2o_ros.supervising import Supervising

PROPOSALS = "proposals"
"""Topic of the policy's proposals."""
BEHIND, BEHIND_REAL = 5.0, 0.5
"""Ticks that the loop of a simulated arm, and of a real one, may be behind before it gives up
catching up: a burst of ticks after a stall of the machine would age every proposal by the whole
stall, and would move a real arm faster than it was certified to."""
REST_SPEED = 0.25
"""Robot time per wall time of a simulated arm at rest: nobody waits for it, and whoever learns
meanwhile needs the processor. Four control periods stay within what counts as a fresh reading."""


@dataclass(frozen=True)
class ArmNodeConfig:
    """Parameters of a node that moves an arm."""

    arm: str = setting("panda", "arm whose limits the filter holds")
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
    takeover: bool = setting(False, "a person may take over, on the topic `takeover`")
    image_topics: tuple[str, ...] = setting(
        (), "cameras to watch: one that is late, silent or frozen stops the arm"
    )
    image_degrade: float = setting(IMAGE.degrade, "oldest picture that is fine, s")
    image_latch: float = setting(IMAGE.latch, "oldest picture that is only late, s")
    first_pass: float = setting(0.1, "first target after a stop: nearer than this passes, rad")
    first_ramp: float = setting(0.5, "nearer than this is approached slowly, rad; else refused")

    def __post_init__(self) -> None:
        require_positive(self, "state_rate")

    def sources(self) -> dict[str, SourceLimits]:
        """What is watched besides commands and joint states, by name."""
        camera = SourceLimits(self.image_degrade, self.image_latch, sees_frozen=True)
        found = {f"image:{topic}": camera for topic in self.image_topics}
        if self.obstacles:
            found["obstacles"] = SourceLimits(self.obstacles_degrade, self.obstacles_latch)
        return found

    def supervision(self, stall: StallConfig) -> SupervisionConfig:
        """Thresholds of what stands around the filter."""
        return SupervisionConfig(
            stall=stall,
            command=SourceLimits(self.command_degrade, self.command_latch),
            joint_state=SourceLimits(self.state_degrade, self.state_latch),
            sources=self.sources(),
            first_command=FirstCommandConfig(self.first_pass, self.first_ramp),
        )


class ArmNode(GuardedNode):
    """Subscribes to `proposals`; services `~/arm`, `~/disarm`, `~/stop`, `~/reset`, `~/shadow`.

    Children call `make_loop` in `on_start`, say in `ticking` when the loop runs, and in
    `after_tick` what came of a tick. The loop runs on the steady clock and holds whenever no
    proposal is in progress, so that a slow policy looks like a pause.
    """

    robot: Any = None
    """A `Robot`, once `on_start` has connected it."""

    def make_loop(
        self,
        filter: SafetyFilter,
        *,
        retry: float,
        speed: float = 1.0,
        clock: Callable[[], float] | None = None,
        stall: StallConfig | None = None,
    ) -> None:
        """Put supervision, loop, services and subscriptions around `robot`, which is connected.

        Args:
            filter: of that arm.
            retry: time between two offers of an observation while the arm holds, s.
            speed: robot time per wall time.
            clock: see `ControlLoop`.
            stall: tolerances of tracking.
        """
        config: ArmNodeConfig = self.config
        robot, self.filter, self.speed = self.robot, filter, speed
        for line in filter.exemptions:
            self.get_logger().info(f"exempt from {line}")
        thresholds = config.supervision(stall or StallConfig())
        self.watch = Supervision(filter, robot.joint_names, robot.period, thresholds)
        self.loop = ControlLoop(robot, filter, clock, supervision=self.watch)
        self.progress = ProposalProgress(robot.period, retry=retry)
        self.overruns = self.skipped = self._ticks = 0
        self._robot_time = self._wall_time = 0.0
        self._behind = BEHIND if isinstance(robot, Simulated) else BEHIND_REAL
        self._tick_wall = robot.period / speed
        rest = min(speed, REST_SPEED if isinstance(robot, Simulated) else 1.0)
        self._tick_at_rest = robot.period / rest
        self.state_every = max(1, round(1.0 / (config.state_rate * robot.period)))
        self.create_subscription(
            JointTrajectory, PROPOSALS, self.guarded(self._on_proposal), qos.COMMAND
        )
        self.handover = Handover(self.watch, self.progress)
        if config.takeover:
            self.create_subscription(
                JointTrajectory, TAKEOVER, self.guarded(self._on_takeover), qos.COMMAND
            )
        self.supervising = Supervising(self, self.watch, config.image_topics, self._proposer)
        if config.obstacles:
            self.create_subscription(
                PointCloud2, "obstacles", self.guarded(self._on_obstacles), qos.STREAM
            )

    # What children fill in.

    @property
    def ticking(self) -> bool:
        """Whether the control loop runs."""
        return self.running

    def takes(self, proposal: Proposal) -> bool:
        """Whether a proposal is one for now."""
        return True

    def after_tick(self, ready: bool) -> None:
        """Say what there is to say.

        Args:
            ready: whether the robot is ready for a decision.
        """

    def on_failure(self) -> None:
        """The control loop has stopped with an error; it was noted."""

    # Lifecycle.

    def on_run(self) -> None:
        """The arm may move from now on; it holds until the first proposal."""
        self.robot.activate()
        self.start_ticking()

    def on_hold(self) -> None:
        """The arm comes to rest and holds."""
        if self.robot is not None:
            self._come_to_rest()
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
        report = self.progress.report
        values = {
            "speed": f"{self.real_speed:.2f} of {self.speed:.2f}",
            "ticks": self._ticks,
            "late ticks": self.overruns,
            "skipped ticks": self.skipped,
            "passed/corrected/stopped": f"{report.passed}/{report.corrected}/{report.stopped}",
            "held": report.held,
            "moved by": "a person" if self.progress.taken_over else "the policy",
            "takeovers": self.handover.takeovers,
        }
        level, text, found = self.supervising.health()
        values |= found
        if text:
            return level, text, values
        if self.ticking and self.real_speed < 0.9 * self.speed:
            return WARN, f"runs at {self.real_speed:.2f} instead of {self.speed}", values
        return OK, "", values

    @property
    def real_speed(self) -> float:
        """Robot time per wall time that was reached at work; the wish before the first tick."""
        return self._robot_time / self._wall_time if self._wall_time else self.speed

    # The control loop.

    def start_ticking(self) -> None:
        """The next tick is due now."""
        self._next = self._last_tick = time.perf_counter()

    def step(self, executor: Executor) -> None:
        """Serve messages until the next tick is due, then tick."""
        if not self.ticking:
            executor.spin_once(timeout_sec=0.02)
            return
        remaining = self._next - time.perf_counter()
        executor.spin_once(timeout_sec=max(0.0, remaining))
        now = time.perf_counter()
        if self.ticking and now >= self._next:
            self._tick(now)

    def _tick(self, now: float) -> None:
        """One control period. A failure stops the arm."""
        self._schedule(now)
        try:
            decision = self.loop.tick(self.progress.offered)
        except Exception as error:
            self.on_failure()
            self.note_error(f"control loop stopped: {type(error).__name__}: {error}")
            return
        times = self.loop.last
        self.latency.add("filter", times.certify)
        self.latency.add("robot_write", times.write)
        self._ticks += 1
        self.handover.look()
        self.after_tick(self.progress.after_tick(decision))
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
        if late > self._behind * self._tick_wall:
            self.skipped += int(late / self._tick_wall)
            self._next = now
        self._next += self._tick_at_rest if self.progress.resting else self._tick_wall

    def _come_to_rest(self) -> None:
        """Play the verified stop: an arm that is let go of in motion stops as hard as it can."""
        for _ in range(len(self.filter.stop_ahead)):
            if not self.watch.supervisor.may_write:
                return
            self.loop.tick(None)
            time.sleep(self._tick_wall)

    def _proposer(self) -> str:
        """Topic of whoever moves the arm."""
        return TAKEOVER if self.progress.taken_over else PROPOSALS

    @property
    def telling(self) -> bool:
        """Whether a state is due to be published after this tick."""
        return self._ticks % self.state_every == 0

    # What comes in.

    def _on_proposal(self, msg: JointTrajectory) -> None:
        """The newest proposal is what the loop moves along; the filter judges it every tick."""
        proposal = proposal_from_msg(msg)
        if self.ticking and self.takes(proposal):
            self.progress.accept(proposal)

    def _on_takeover(self, msg: JointTrajectory) -> None:
        """A person's, who goes before any policy; who holds on between episodes is known too."""
        if self.running:
            self.handover.hear(msg)

    def _on_obstacles(self, msg: PointCloud2) -> None:
        """All obstacles anew; a message that cannot be used is no news."""
        self.filter.see(obstacles_from_msg(msg, self.config.base_frame))
        self.watch.watchdog.feed("obstacles", time.monotonic())

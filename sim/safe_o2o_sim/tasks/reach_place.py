"""ReachPlace: take a workpiece, carry it across the table, put it down, while people reach in.

The tool holds the workpiece after resting at it, and lets go after resting at the goal: reward 1,
which ends the episode. Cost 1 for every step in which any part of the arm touches a visitor, which
does not. Visitors are hands that reach over the table and withdraw, and somebody who walks past it.
Filter and policy know them as a tracker sees them: late, thirty times a second, and not exactly.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from safe_o2o.config import require_positive
from safe_o2o.errors import ConfigError
from safe_o2o.runtime.cartesian import TOOL_POSE, WORKSPACE, tool_steps
from safe_o2o.safety.obstacle import Obstacle
from safe_o2o.spaces import ArraySpec, ObservationSpec, Spec
from safe_o2o.types import Array, Observation, RobotState
from safe_o2o_sim.pybullet_twin import PybulletTwin
from safe_o2o_sim.scene import EMPTY
from safe_o2o_sim.tasks.cartesian_task import CartesianTask, Corner
from safe_o2o_sim.twin_camera import TwinCamera
from safe_o2o_sim.visitor import Leg, Visitor

VARIANTS = ("standard", "crowded", "alone")
"""One hand and a walker; two hands and a walker; nobody."""
GRASP_HEIGHT = 0.045
"""Height at which the workpiece is held, m."""
_HANDS = {"standard": 1, "crowded": 2, "alone": 0}
_START = ((0.40, -0.08, 0.14), (0.52, 0.08, 0.22))
_PLACE = ((0.42, 0.08), (0.60, 0.20))  # x, |y|: object and goal lie on different sides
_HAND_SPEED, _HAND_ACCELERATION = 0.8, 3.0  # m/s, m/s^2: the bounds that the filter is told
_WALKER_SPEED, _WALKER_ACCELERATION = 1.4, 2.0
_FOREARM, _FOREARM_RADIUS = 0.30, 0.05  # m
_AWAY = 0.70  # m from where a hand reaches to where it waits
_REACHES = 12  # more than fit into an episode


@dataclass(frozen=True)
class ReachPlaceConfig:
    """What makes the task.

    Attributes:
        variant: who is there (`VARIANTS`).
        max_steps: policy steps after which an episode is cut off.
        period: policy period, s.
        max_delta: farthest that one action moves the tool along an axis, m.
        tolerance: how near the tool must rest to workpiece and goal, m.
        dwell: policy steps that it has to rest there.
        workspace: lowest and highest corner of the tool's box, m.
        tool_speed: largest speed of the tool that the filter allows, m/s.
        seen_period: time between two looks of the tracker, s.
        seen_latency: age of a look when it arrives, s.
        seen_error: bound on the error of a seen position, m.
        seen_speed_error: bound on the error of a seen speed, m/s; added to what is reported.
    """

    variant: str = "standard"
    max_steps: int = 200
    period: float = 0.1
    max_delta: float = 0.02
    tolerance: float = 0.015
    dwell: int = 3
    workspace: tuple[Corner, Corner] = WORKSPACE
    tool_speed: float = 0.5
    seen_period: float = 1.0 / 30.0
    seen_latency: float = 0.03
    seen_error: float = 0.01
    seen_speed_error: float = 0.05

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ConfigError(
                f"unknown scene variant {self.variant!r}", todo=f"known: {', '.join(VARIANTS)}"
            )
        positive = ("max_steps", "period", "max_delta", "tolerance", "dwell", "tool_speed")
        require_positive(self, *positive, "seen_period")
        for name in ("seen_latency", "seen_error", "seen_speed_error"):
            if not 0.0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"must not be negative, got {getattr(self, name)}", where=name)

    def spec(self) -> Spec:
        """What a policy of this task sees and does."""
        people = _HANDS[self.variant] + (self.variant != "alone")
        arrays = {
            "tcp_pose": TOOL_POSE,
            "object": ArraySpec((3,), "float32", "m", names=("x", "y", "z")),
            "goal": ArraySpec((3,), "float32", "m", names=("x", "y", "z")),
            "holding": ArraySpec((1,), "float32", "1", names=("holding",), low=0.0, high=1.0),
        }
        if people:  # both ends of each axis, as seen last
            arrays["visitors"] = ArraySpec((people, 6), "float32", "m")
        return Spec(ObservationSpec(arrays), tool_steps(self.max_delta, self.period))


class ReachPlace(CartesianTask):
    """The task on the twin.

    Args:
        twin: the arm; the task moves it to the start pose and lets people in.
        camera: not used; there is nothing to see that `visitors` does not tell.
        config: see `ReachPlaceConfig`.

    Attributes:
        object: where the workpiece is held, or is to be held `[3]`, m.
        goal: where it is to be let go `[3]`, m.
        holding: whether the tool holds it.
    """

    config_class = ReachPlaceConfig

    def __init__(
        self,
        twin: PybulletTwin,
        camera: TwinCamera | None = None,
        config: ReachPlaceConfig | None = None,
    ) -> None:
        self.config = config = ReachPlaceConfig() if config is None else config
        super().__init__(twin, config.spec(), config.workspace, config.max_steps)
        self.object, self.goal = np.zeros(3), np.zeros(3)
        self.holding, self._rested, self._tool = False, 0, np.zeros(3)
        self._generator = np.random.default_rng(0)
        self._looks: deque[tuple[float, Array, tuple[Obstacle, ...]]] = deque()

    def reset(self, seed: int) -> None:
        """Lay out a new episode; the same seed gives the same episode, bit for bit."""
        generator = np.random.default_rng(seed)
        side = generator.choice([-1.0, 1.0])
        (x0, y0), (x1, y1) = _PLACE
        ends = generator.uniform((x0, y0), (x1, y1), (2, 2)) * [[1.0, side], [1.0, -side]]
        self.object, self.goal = (np.array([*end, GRASP_HEIGHT]) for end in ends)
        self.holding, self._rested = False, 0
        tool = generator.uniform(*_START)
        q = self.cartesian.solve(tool, self.cartesian.posture, iterations=60)
        self.twin.place(q, EMPTY, self._visitors(generator, tool))
        self._tool = self.cartesian.position(self.twin.read().q)
        self._generator = np.random.default_rng([seed, 1])
        self._looks.clear()
        self.seen(self.twin.read().stamp)

    def observe(self, state: RobotState) -> Observation:
        """The tool's pose, the workpiece, the goal, and everybody as seen last."""
        obs = dict(self.cartesian.observe(state, None))
        obs["object"] = self.object.astype(np.float32)
        obs["goal"] = self.goal.astype(np.float32)
        obs["holding"] = np.array([self.holding], np.float32)
        if self.twin.visitors:
            people = self.seen(state.stamp)
            obs["visitors"] = np.array([(*p.centre, *(p.end or p.centre)) for p in people], "f4")
        return obs

    def outcome(self) -> tuple[float, float, bool]:
        """Reward, cost and `terminated` since the last call, which is a policy period ago."""
        tool, config = self.cartesian.position(self.twin.read().q), self.config
        rests = float(np.linalg.norm(tool - self._tool)) < 0.3 * config.tolerance
        self._tool = tool
        if self.holding:
            self.object = tool
        target = self.goal if self.holding else self.object
        there = float(np.linalg.norm(tool - target)) <= config.tolerance
        self._rested = self._rested + 1 if rests and there else 0
        placed = False
        if self._rested >= config.dwell:
            placed, self.holding, self._rested = self.holding, True, 0
        return float(placed), float(self.twin.take_contact()), placed

    def contact_force(self) -> float:
        """Largest contact force with an obstacle since the last call, N."""
        return self.twin.take_force()

    def clearance(self) -> float:
        """Distance of the arm from the nearest obstacle, m; 0 in contact."""
        return self.twin.clearance()

    def seen(self, now: float) -> tuple[Obstacle, ...]:
        """Everybody, as the tracker told it by `now`, s; called at least once a control period."""
        return self._look(now)[2]

    def seen_velocity(self, now: float) -> Array:
        """Velocities `[V, 3]`, m/s, as seen with it; the filter does without."""
        return self._look(now)[1]

    def _look(self, now: float) -> tuple[float, Array, tuple[Obstacle, ...]]:
        """The newest look that has arrived; the tracker looks again when it is time to."""
        looks, config = self._looks, self.config
        if not looks or now - looks[-1][0] >= config.seen_period - 1e-9:
            looks.append(self._take(now))
        while len(looks) > 1 and now - looks[1][0] >= config.seen_latency - 1e-9:
            looks.popleft()
        return looks[0]

    def _take(self, now: float) -> tuple[float, Array, tuple[Obstacle, ...]]:
        config, found = self.config, []
        velocities = np.zeros((len(self.twin.visitors), 3))
        for k, visitor in enumerate(self.twin.visitors):
            wrong = _within(self._generator, config.seen_error)
            velocities[k] = visitor.velocity + _within(self._generator, config.seen_speed_error)
            speed = float(np.linalg.norm(velocities[k])) + config.seen_speed_error
            found.append(
                Obstacle(
                    visitor.name,
                    _point(visitor.position + wrong),
                    visitor.radius,
                    end=_point(visitor.end + wrong),
                    error=config.seen_error,
                    speed=min(speed, visitor.max_speed),
                    max_speed=visitor.max_speed,
                    max_acceleration=visitor.max_acceleration,
                    stamp=now,
                )
            )
        return now, velocities, tuple(found)

    def _visitors(self, generator: np.random.Generator, tool: Array) -> list[Visitor]:
        if self.config.variant == "alone":
            return []
        hands = _HANDS[self.config.variant]
        first = generator.uniform(-1.4, 1.4)
        # Two people do not stand in the same place.
        angles = [first, first - np.sign(first) * generator.uniform(1.0, 1.6)][:hands]
        ways = np.array([[tool, self.object], [self.object, self.goal]])
        people = [_hand(f"hand{k}", generator, angle, ways) for k, angle in enumerate(angles)]
        return [*people, _walker(generator)]


def _hand(name: str, generator: np.random.Generator, angle: float, ways: Array) -> Visitor:
    """A forearm that reaches onto the arm's ways `[2, 2, 3]` from a direction, and withdraws."""
    outward = np.array([np.cos(angle), np.sin(angle), 0.25])
    outward /= np.linalg.norm(outward)
    legs: list[Leg] = []
    for reach in range(_REACHES):
        way = ways[min(reach, 1)]
        aim = way[0] + generator.uniform(0.15, 0.85) * (way[1] - way[0])
        aim[:2] += generator.uniform(-0.04, 0.04, 2)
        aim[2] = generator.uniform(0.08, 0.24)
        speed = generator.uniform(0.4, _HAND_SPEED)
        away = generator.uniform(0.1, 1.0) if reach == 0 else generator.uniform(0.5, 2.0)
        home, stay = _point(aim + _AWAY * outward), float(generator.uniform(0.3, 1.2))
        # In and out on one line: no arm that stands is brushed away.
        legs.append(Leg(home, float(away), _HAND_SPEED))
        legs.append(Leg(_point(aim), stay, float(speed), yields=True))
        legs.append(Leg(home, 0.0, _HAND_SPEED))
    axis = _point(_FOREARM * outward)
    patience = float(generator.uniform(0.3, 0.8))
    return Visitor(
        name, axis, _FOREARM_RADIUS, legs, _HAND_SPEED, _HAND_ACCELERATION, patience=patience
    )


def _walker(generator: np.random.Generator) -> Visitor:
    """Somebody who walks past the far end of the table and comes back."""
    x, side = generator.uniform(1.05, 1.2), generator.choice([-1.0, 1.0])
    here, there = (x, 2.0 * side, 0.3), (x, -2.0 * side, 0.3)
    legs = [Leg(here, float(generator.uniform(0.2, 3.0)), _WALKER_SPEED)]
    for turn in range(4):
        speed, pause = generator.uniform(0.7, _WALKER_SPEED), generator.uniform(0.5, 4.0)
        legs.append(Leg(here if turn % 2 else there, float(pause), float(speed)))
    return Visitor("walker", (0.0, 0.0, 1.2), 0.2, legs, _WALKER_SPEED, _WALKER_ACCELERATION)


def _within(generator: np.random.Generator, bound: float) -> Array:
    """A random vector `[3]` no longer than `bound`."""
    direction = generator.normal(size=3)
    return np.asarray(direction / np.linalg.norm(direction) * bound * generator.random())


def _point(values: Array) -> Corner:
    x, y, z = (float(value) for value in values)
    return x, y, z

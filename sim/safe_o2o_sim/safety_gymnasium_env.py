"""Safety-Gymnasium's vision tasks of the FOSP paper as environments (fosp.md 1.2)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from safe_o2o.errors import ConfigError, MissingDependencyError, RobotStateError
from safe_o2o.spaces import ActionSpec, ArraySpec, ObservationSpec, Spec
from safe_o2o.types import Array, Observation, Source, Step, Verdict
from safe_o2o_sim.safety_gymnasium_lookups import number_bodies
from safe_o2o_sim.safety_gymnasium_package import TODO, builder_class

try:
    import mujoco

    from safe_o2o_sim.safety_gymnasium_renderer import Renderer
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        f"Safety-Gymnasium needs the package {error.name!r}", todo=TODO
    ) from error

LIDAR = "lidar"
CAMERAS = {"front": "vision", "back": "vision_back"}
"""Name in the observation -> name of the camera on the agent; both look 90 degrees wide."""


@dataclass(frozen=True)
class SafetyGymnasiumConfig:
    """Settings of a Safety-Gymnasium task; the defaults are the paper's."""

    variant: str = "standard"
    image_size: int = 64
    """height and width of both pictures, pixels"""
    repeat: int = 4
    """frames that an action lasts; their rewards and costs are summed"""
    max_steps: int = 250
    """policy steps until the time is up: 1000 frames"""

    def __post_init__(self) -> None:
        if self.variant != "standard":
            raise ConfigError(
                f"unknown variant {self.variant!r}", where="variant", todo="known: standard"
            )
        for name, low in (("image_size", 8), ("repeat", 1), ("max_steps", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"must be at least {low}, got {getattr(self, name)}", where=name)


class SafetyGymnasiumEnv:
    """A task of Safety-Gymnasium behind `reset` and `step`; see `safe_o2o.interfaces.Env`.

    Observations are two pictures, `front` and `back`, `[S, S, 3]` uint8, without the red ball that
    the package draws round an agent that pays a cost. An episode is a function of its seed, bit for
    bit, whatever ran before or beside it and whether or not somebody looks.

    Args:
        config: see `SafetyGymnasiumConfig`.
        camera: False draws nothing; the observation is then `lidar`, the package's own vector.

    Raises:
        MissingDependencyError: the package, or (at the first picture) OpenGL, is not installed.
    """

    config_class: ClassVar = SafetyGymnasiumConfig
    task_id: ClassVar[str]
    agent: ClassVar[str]
    controls: ClassVar[tuple[str, ...]]

    def __init__(self, config: SafetyGymnasiumConfig | None = None, camera: bool = True) -> None:
        self.config = config or SafetyGymnasiumConfig()
        self._builder = self._build()
        self._task = self._builder.task
        number_bodies(self._task)
        self._task.num_steps = self.config.max_steps * self.config.repeat
        self._task.obs = self._observe_frame  # of this one object, not of its class
        self._last_frame, self._running = True, False
        self._renderer: Renderer | None = None
        self.vector_spec = Spec(ObservationSpec({LIDAR: self._lidar_array()}), self._action_spec())
        """What `vector()` returns, with the same actions: the spec of the recorded behaviours."""
        size = self.config.image_size
        picture = ArraySpec((size, size, 3), "uint8", "intensity", low=0, high=255)
        self._pictures = tuple(CAMERAS) if camera else ()
        self.spec = (
            Spec(ObservationSpec(dict.fromkeys(CAMERAS, picture)), self.vector_spec.action)
            if camera
            else self.vector_spec
        )

    def reset(self, seed: int) -> Step:
        """Start an episode; the same seed gives the same episode, bit for bit."""
        began = time.perf_counter()
        self._last_frame = True
        self._builder.reset(seed=int(seed))
        # The first episode is built twice inside and the others once: what the contact solver
        # remembers of it must not reach the first step.
        self._task.data.qacc_warmstart[:] = 0.0
        mujoco.mj_forward(self._task.model, self._task.data)
        self._vector = self._task.obs()
        self._steps, self._goals, self._running = 0, 0, True
        built = time.perf_counter()
        obs = self._observe()
        return Step(
            obs=obs,
            reward=0.0,
            cost=0.0,
            terminated=False,
            truncated=False,
            action=np.zeros(self.spec.action.dim, np.float32),
            info=self._info(0.0, 0, built - began, time.perf_counter() - built),
        )

    def step(self, action: Array, source: Source = Source.POLICY, speed: float = 1.0) -> Step:
        """Execute one policy step: an action `[2]` in [-1, 1] for `repeat` frames, clipped first.

        Reward and cost are sums over the frames; a frame costs 1 or nothing. An action that is not
        finite switches the motors off. `info` has `success` (a goal was reached in this episode),
        `goals` (how many), `violation` (of this step), `frames` and `timings`.

        Raises:
            RobotStateError: the episode has ended, or none was started.
            ConfigError: a gate that holds it to a share of its speed: a force is no motion that
                could take longer.
        """
        if speed != 1.0:
            raise ConfigError(
                f"cannot be driven at {speed:g} of its speed",
                where="safety-gymnasium",
                todo="use --gate shadow, or thresholds that do not ask for it",
            )
        if not self._running:
            raise RobotStateError(
                "cannot step outside an episode", where="environment", todo="call reset(seed) first"
            )
        began = time.perf_counter()
        wish = np.asarray(action, np.float64)
        finite = bool(np.isfinite(wish).all())
        control = np.clip(wish if finite else np.zeros(2), -1.0, 1.0).astype(np.float32)
        reward, cost, frames = 0.0, 0.0, 0
        while frames < self.config.repeat and not self._builder.done:
            self._last_frame = frames == self.config.repeat - 1
            vector, gained, paid, _, _, info = self._builder.step(control)
            reward, cost, frames = reward + float(gained), cost + float(paid), frames + 1
            self._goals += bool(info.get("goal_met", False))
        self._vector = vector
        self._steps += 1
        # No task here has an end of its own: that the next goal finds no place is no outcome.
        terminated = not self._task.agent.is_alive()
        self._running = not self._builder.done
        simulated = time.perf_counter()
        obs = self._observe()
        return Step(
            obs=obs,
            reward=reward,
            cost=cost,
            terminated=terminated,
            truncated=not (self._running or terminated),
            action=control,
            verdict=Verdict.PASS if finite else Verdict.STOPPED,
            reason="" if finite else "not_finite",
            stamp=round(self._steps * self.spec.action.period, 9),
            info=self._info(cost, frames, simulated - began, time.perf_counter() - simulated),
        )

    def vector(self) -> Array:
        """The package's own observation `[D]` float32, lidar and proprioception: see `vector_spec`.

        Of the same instant as the pictures; free of charge, since it is computed anyhow.
        """
        return np.asarray(self._vector, np.float32)

    def close(self) -> None:
        """Free the renderer; idempotent."""
        self._running = False
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _build(self) -> Any:
        """The package's simulation; it draws a seed of its own from NumPy's global generator."""
        known = np.random.get_state()
        try:
            with np.errstate(over="ignore"):  # of infinite bounds, cast
                return builder_class()(task_id=self.task_id, config={"agent_name": self.agent})
        finally:
            np.random.set_state(known)

    def _observe_frame(self) -> Any:
        """What the package observes after each frame, which takes as long as the frame itself.

        Between the frames of one action nobody looks: then only the physics of it are done, so that
        the episode is the same to the bit.
        """
        if self._last_frame or self._builder.done:
            return type(self._task).obs(self._task)
        mujoco.mj_forward(self._task.model, self._task.data)
        return None

    def _observe(self) -> Observation:
        if not self._pictures:
            return {LIDAR: self.vector()}
        if self._renderer is None:
            self._renderer = Renderer(self.config.image_size)
        pictures = self._renderer.render(
            self._task.model, self._task.data, [CAMERAS[name] for name in self._pictures]
        )
        return dict(zip(self._pictures, pictures, strict=True))

    def _info(self, cost: float, frames: int, simulate: float, observe: float) -> dict[str, Any]:
        return {
            "success": self._goals > 0,
            "goals": self._goals,
            "violation": cost > 0.0,
            "frames": frames,
            "timings": {"simulate": simulate, "observe": observe},
        }

    def _lidar_array(self) -> ArraySpec:
        spaces = self._task.obs_info.obs_space_dict.spaces
        names = tuple(
            f"{name}_{i}" for name, space in spaces.items() for i in range(np.prod(space.shape))
        )
        return ArraySpec((len(names),), "float32", "mixed", names)

    def _action_spec(self) -> ActionSpec:
        """Controls of the two motors: dimensionless, the agent's XML turns them into forces."""
        ones = (1.0, 1.0)
        # The agent's own model: the scene's has the same time step and does not exist yet.
        frame = self._task.agent.engine.model.opt.timestep * self._task.sim_conf.frameskip_binom_n
        period = round(float(frame) * self.config.repeat, 9)
        return ActionSpec(self.controls, "1", (-1.0, -1.0), ones, period)


class _Point(SafetyGymnasiumEnv):
    """A point that drives forwards and backwards and turns."""

    agent = "Point"
    controls = ("drive", "turn")


class PointGoal1(_Point):
    """Safety-Gymnasium: a point drives to goals, past eight hazards."""

    task_id = "SafetyPointGoal1-v0"


class PointGoal2(_Point):
    """Safety-Gymnasium: a point drives to goals, past ten hazards and ten vases."""

    task_id = "SafetyPointGoal2-v0"


class PointButton1(_Point):
    """Safety-Gymnasium: a point presses the right one of four buttons, among moving gremlins."""

    task_id = "SafetyPointButton1-v0"


class PointPush1(_Point):
    """Safety-Gymnasium: a point pushes a box to goals, past two large hazards."""

    task_id = "SafetyPointPush1-v0"


class CarGoal2(SafetyGymnasiumEnv):
    """Safety-Gymnasium: a car with two wheels drives to goals, past ten hazards and ten vases."""

    task_id = "SafetyCarGoal2-v0"
    agent = "Car"
    controls = ("left_wheel", "right_wheel")


class PointGoal1Lidar(PointGoal1):
    """Safety-Gymnasium: PointGoal1 seen by the package's lidar instead of pictures."""

    def __init__(self, config: SafetyGymnasiumConfig | None = None, camera: bool = True) -> None:
        super().__init__(config, camera=False)


class PointGoal2Lidar(PointGoal2):
    """Safety-Gymnasium: PointGoal2 seen by the package's lidar instead of pictures."""

    def __init__(self, config: SafetyGymnasiumConfig | None = None, camera: bool = True) -> None:
        super().__init__(config, camera=False)

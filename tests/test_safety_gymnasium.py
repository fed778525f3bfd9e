"""Safety-Gymnasium as an environment: the package's own numbers, our pictures, nobody disturbed."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from safe_o2o.errors import ConfigError, MissingDependencyError, RobotStateError
from safe_o2o.types import Verdict

try:
    from safe_o2o_sim import safety_gymnasium_env as tasks
    from safe_o2o_sim.safety_gymnasium_package import builder_class
    from safe_o2o_sim.safety_gymnasium_renderer import context_class

    builder_class()
except MissingDependencyError as error:
    pytest.skip(str(error), allow_module_level=True)
import mujoco

from safe_o2o_sim import safety_gymnasium_renderer

ALL = [
    tasks.CarGoal2,
    tasks.PointButton1,
    tasks.PointGoal1,
    tasks.PointGoal2,
    tasks.PointPush1,
]


@pytest.fixture
def opengl() -> None:
    try:
        context_class()
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture
def made() -> Iterator[Any]:
    """Makes environments and closes them."""
    envs = []

    def make(kind: Any, **settings: Any) -> Any:
        envs.append(kind(**settings))
        return envs[-1]

    yield make
    for env in envs:
        env.close()


def actions(n: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (n, 2)).astype(np.float32)


def film(env: Any, seed: int, n: int = 5) -> list[Any]:
    """Everything that an episode shows, step by step."""
    steps = [env.reset(seed), *(env.step(action) for action in actions(n, seed))]
    return [[step.reward, step.cost, *(step.obs[name] for name in step.obs)] for step in steps]


def same(a: list[Any], b: list[Any]) -> bool:
    return all(
        np.array_equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


@pytest.mark.parametrize("kind", ALL)
def test_a_step_is_four_frames_of_the_package_itself(kind: Any, made: Any) -> None:
    env = made(kind, camera=False)
    with np.errstate(over="ignore"):
        inner = builder_class()(task_id=kind.task_id, config={"agent_name": kind.agent})
    env.reset(7)
    inner.reset(seed=7)
    inner.task.data.qacc_warmstart[:] = 0.0
    mujoco.mj_forward(inner.task.model, inner.task.data)
    assert np.array_equal(env.vector(), inner.task.obs().astype(np.float32))
    costs = 0.0
    for action in actions(15):
        step = env.step(action)
        frames = [inner.step(action) for _ in range(4)]
        assert step.reward == sum(frame[1] for frame in frames)
        assert step.cost == sum(frame[2] for frame in frames)
        assert np.array_equal(step.obs["lidar"], frames[-1][0].astype(np.float32))
        costs += step.cost
    assert env.spec.action.period == pytest.approx(inner.task.data.time / 15)


def test_costs_are_summed_over_the_frames(made: Any) -> None:
    env = made(tasks.PointGoal1, camera=False)
    env.reset(0)
    task = env._task
    task.model.body("hazard0").pos[:2] = task.agent.pos[:2]
    mujoco.mj_forward(task.model, task.data)
    step = env.step(np.zeros(2))
    assert step.cost == 4.0
    assert step.info["violation"] and not step.info["success"]


@pytest.mark.parametrize("kind", ALL)
def test_an_episode_is_a_function_of_its_seed(kind: Any, made: Any, opengl: None) -> None:
    """Whatever ran before it, and beside it in the same process."""
    one, other = made(kind), made(kind)
    alone = film(one, 3)
    assert not same(film(one, 4), alone)
    other.reset(5)
    beside = [one.reset(3)]
    for i, action in enumerate(actions(5, 3)):
        if i < 2:
            other.step(-action)
        else:
            other.close()  # frees its textures while the first one goes on
        beside.append(one.step(action))
    assert same([[s.reward, s.cost, *s.obs.values()] for s in beside], alone)


def test_looking_changes_nothing(made: Any, opengl: None) -> None:
    seen, unseen = made(tasks.PointGoal1), made(tasks.PointGoal1, camera=False)
    seen.reset(2)
    unseen.reset(2)
    for action in actions(10):
        a, b = seen.step(action), unseen.step(action)
        assert (a.reward, a.cost) == (b.reward, b.cost)
        assert np.array_equal(seen.vector(), b.obs["lidar"])
    assert seen.vector_spec == unseen.spec


@pytest.mark.parametrize("kind", [tasks.PointGoal1, tasks.CarGoal2])
def test_the_cameras_look_ahead_and_back(kind: Any, made: Any, opengl: None) -> None:
    """What stands ahead is in one picture only, what stands behind in the other."""
    env = made(kind)
    first = env.reset(0)
    assert set(first.obs) == {"front", "back"}
    assert not np.array_equal(first.obs["front"], first.obs["back"])
    assert all(picture.std() > 10.0 for picture in first.obs.values())
    task = env._task
    ahead = np.array([1.0, 0.0] if kind is tasks.PointGoal1 else [0.0, -1.0])
    turn = task.agent.mat[:2, :2]

    def seen(direction: Any) -> dict[str, Any]:
        task.model.body("goal").pos[:2] = task.agent.pos[:2] + turn @ direction
        mujoco.mj_forward(task.model, task.data)
        return dict(env._observe())

    far, before, behind = seen(ahead * 50.0), seen(ahead), seen(-ahead)

    def changed(a: dict[str, Any], name: str) -> int:
        return int((np.abs(a[name].astype(int) - far[name]).max(-1) > 10).sum())

    assert changed(before, "front") > 50 > 5 >= changed(before, "back")
    assert changed(behind, "back") > 50 > 5 >= changed(behind, "front")


def test_time_running_out_is_no_end(made: Any) -> None:
    env = made(tasks.PointGoal1, camera=False)
    env.reset(0)
    steps = [env.step(np.zeros(2)) for _ in range(250)]
    assert steps[-1].truncated and not steps[-1].terminated
    assert not any(step.truncated for step in steps[:-1])
    assert sum(step.info["frames"] for step in steps) == 1000
    with pytest.raises(RobotStateError, match="reset"):
        env.step(np.zeros(2))


def test_what_is_recorded_is_what_was_done(made: Any) -> None:
    env, clipped = made(tasks.PointGoal1, camera=False), made(tasks.PointGoal1, camera=False)
    env.reset(1)
    clipped.reset(1)
    step, other = env.step(np.array([7.0, -3.0])), clipped.step(np.array([1.0, -1.0]))
    assert np.array_equal(step.action, [1.0, -1.0])
    assert np.array_equal(step.obs["lidar"], other.obs["lidar"])
    step, other = env.step(np.array([np.nan, 1.0])), clipped.step(np.zeros(2))
    assert step.verdict is Verdict.STOPPED and step.reason == "not_finite"
    assert np.array_equal(step.action, [0.0, 0.0])
    assert np.array_equal(step.obs["lidar"], other.obs["lidar"])


def test_a_goal_that_was_reached_counts(made: Any) -> None:
    env = made(tasks.PointGoal1, camera=False)
    env.reset(0)
    task = env._task
    task.model.body("goal").pos[:2] = task.agent.pos[:2] + 0.1
    mujoco.mj_forward(task.model, task.data)
    step = env.step(np.zeros(2))
    assert step.info["success"] and step.info["goals"] == 1
    assert step.reward > 0.9


def test_nobody_else_notices_the_package(made: Any) -> None:
    before = np.random.get_state()
    jnt = mujoco.MjModel.jnt
    builder_class.cache_clear()
    made(tasks.CarGoal2, camera=False).reset(0)
    after = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert not [name for name in sys.modules if name.startswith("safety_gymnasium")]
    assert dataclasses.dataclass.__module__ == "dataclasses"
    assert mujoco.MjModel.jnt is jnt
    with pytest.raises(ValueError, match="mutable default"):

        @dataclasses.dataclass
        class _Usual:
            names: list[str] = []  # noqa: RUF008


def test_without_opengl_the_reason_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def refuse(name: str) -> Any:
        if name in ("mujoco.egl", "mujoco.osmesa"):
            raise ImportError(f"no {name}\nat all")
        return real(name)

    monkeypatch.setattr(safety_gymnasium_renderer.importlib, "import_module", refuse)
    context_class.cache_clear()
    try:
        with pytest.raises(MissingDependencyError, match=r"egl.*osmesa.*setup\.sh") as caught:
            context_class()
    finally:
        context_class.cache_clear()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"variant": "colour"}, {"repeat": 0}, {"image_size": 1}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        tasks.SafetyGymnasiumConfig(**settings)

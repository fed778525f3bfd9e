"""What every task of the catalogue must do, played through its environment."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from safe_o2o import catalog
from safe_o2o.errors import ConfigError, MissingDependencyError, RobotStateError
from safe_o2o.interfaces import Env, Task
from safe_o2o.runtime.robot_env import RobotEnv
from safe_o2o.types import Source, Step, Verdict

pytest.importorskip("safe_o2o_sim.bullet")
from safe_o2o_sim.make import make_env

STEPS = 12


@pytest.fixture(scope="module", params=sorted(catalog.tasks))
def env(request: pytest.FixtureRequest) -> Iterator[Env]:
    try:
        made = make_env(request.param, max_steps=STEPS)
        made.reset(0)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    yield made
    made.close()


@pytest.fixture
def on_robot(env: Env) -> RobotEnv:
    if not isinstance(env, RobotEnv):
        pytest.skip("no robot and no filter in this task")
    return env


def play(env: Env, seed: int) -> list[Step]:
    generator = np.random.default_rng(seed)
    steps = [env.reset(seed)]
    while not (steps[-1].terminated or steps[-1].truncated):
        action = generator.uniform(-1.0, 1.0, env.spec.action.dim)
        steps.append(env.step(action, Source.SCRIPT))
    return steps


def test_observations_fit_the_spec_and_costs_are_not_negative(env: Env) -> None:
    for seed in range(3):
        for step in play(env, seed):
            env.spec.observation.check(step.obs)
            assert step.cost >= 0.0
            assert np.isfinite(step.reward)
            assert step.action.shape == (env.spec.action.dim,)
            assert np.isfinite(step.action).all()
            assert step.verdict in Verdict
            assert 0.0 <= step.margin <= 1.0
            assert (step.reason == "") == (step.verdict is Verdict.PASS)


def test_terminated_is_not_truncated(env: Env) -> None:
    for seed in range(3):
        steps = play(env, seed)
        last = steps[-1]
        assert last.terminated != last.truncated
        assert not any(step.terminated or step.truncated for step in steps[:-1])
        if last.truncated:
            assert len(steps) - 1 == STEPS


def test_the_first_step_owes_nothing(env: Env) -> None:
    first = env.reset(0)
    assert (first.reward, first.cost, first.terminated, first.truncated) == (0.0, 0.0, False, False)
    assert first.stamp == 0.0


def test_stamps_are_one_policy_period_apart(env: Env) -> None:
    stamps = [step.stamp for step in play(env, 1)]
    assert stamps == [round(k * env.spec.action.period, 9) for k in range(len(stamps))]


def test_reset_is_seeded(env: Env) -> None:
    first, other, again = env.reset(5), env.reset(6), env.reset(5)
    same = [np.array_equal(first.obs[name], again.obs[name]) for name in first.obs]
    assert all(same)
    assert not all(np.array_equal(first.obs[name], other.obs[name]) for name in first.obs)


def test_executed_actions_add_up_to_the_way_of_the_tool(on_robot: RobotEnv) -> None:
    env = on_robot
    env.reset(2)
    task: Task = env.task
    began = env.robot.read()
    total = np.zeros(env.spec.action.dim)
    for _ in range(6):
        step = env.step(np.ones(env.spec.action.dim) * 0.5)
        total += env.spec.action.to_si(step.action)
    whole = task.executed_action(began, env.robot.read())
    assert 0.5 * (whole + 1.0) * 0.04 - 0.02 == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize("speed", [0.5, 0.3])
def test_at_a_share_of_its_speed_the_same_motion_takes_longer(
    on_robot: RobotEnv, speed: float
) -> None:
    env, found = on_robot, {}
    for share in (1.0, speed):
        env.reset(3)
        poses = []
        for action in np.linspace(-0.6, 0.6, 4):
            step = env.step(np.full(env.spec.action.dim, action), speed=share)
            poses.append(env.robot.read().q_command)
        found[share] = np.array(poses), step.stamp
    assert found[speed][0] == pytest.approx(found[1.0][0], abs=1e-3)
    ticks = round(env.ticks / speed)
    assert found[speed][1] == pytest.approx(4 * ticks * env.robot.period, abs=1e-9)


def test_what_cannot_be_slowed_down_says_so(env: Env) -> None:
    if isinstance(env, RobotEnv):
        pytest.skip("a robot can")
    env.reset(0)
    with pytest.raises(ConfigError, match=r"cannot be driven at 0\.5 of its speed"):
        env.step(np.zeros(env.spec.action.dim), speed=0.5)


def test_a_wish_that_is_not_finite_moves_nothing(on_robot: RobotEnv) -> None:
    env = on_robot
    env.reset(4)
    before = env.robot.read().q_command
    step = env.step(np.full(env.spec.action.dim, np.nan))
    assert step.verdict is Verdict.STOPPED
    assert step.reason
    assert np.array_equal(env.robot.read().q_command, before)
    assert np.abs(step.action).max() < 1e-6
    assert env.step(np.zeros(env.spec.action.dim)).verdict is not Verdict.STOPPED


def test_stepping_outside_an_episode_is_refused(env: Env) -> None:
    play(env, 0)
    with pytest.raises(RobotStateError, match="reset"):
        env.step(np.zeros(env.spec.action.dim))

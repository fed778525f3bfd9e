"""Trained behaviours from batches of episodes to a file that records data."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safe_o2o.algorithms.ppo_lagrangian import PpoLagrangian, PpoLagrangianConfig
from safe_o2o.cli import main as cli
from safe_o2o.cli.actors import BehaviorMaker, looks, resolve
from safe_o2o.data.behavior import FILE, read_behavior
from safe_o2o.data.dataset import Dataset
from safe_o2o.errors import CheckpointError, ConfigError, DataError, SpecMismatchError
from safe_o2o.runtime.env_pool import EnvPool
from safe_o2o.runtime.rollout import WorkerCrashError
from safe_o2o.spaces import ArraySpec, ObservationSpec, Spec
from safe_o2o.training.behavior import network, train_behavior
from safe_o2o.training.logger import read_metrics
from tests.data_fakes import LineEnv

CONFIG = PpoLagrangianConfig(total_updates=6, hidden_dims=(16,), minibatch_size=64, epochs=4)
line = partial(LineEnv, 8, 10)


class BrokenEnv(LineEnv):
    def step(self, action: Any, *_: Any) -> Any:
        raise DataError("is broken", where="line")


def line_spec() -> Spec:
    whole = line().spec
    return Spec(ObservationSpec({"pose": whole.observation.arrays["pose"]}), whole.action)


def train(
    out: Path, config: PpoLagrangianConfig = CONFIG, make_env: Any = line, **settings: Any
) -> Any:
    pool = EnvPool(make_env, "pose", 5)
    try:
        return train_behavior(
            "unsafe",
            config,
            pool,
            lambda first, n: range(first, first + n),
            out,
            task="line",
            spec=line_spec(),
            **settings,
        )
    finally:
        pool.close()


def test_the_pool_runs_the_very_episodes_and_pads_the_short_ones() -> None:
    def act(obs: Any) -> Any:
        return 0.4 + 0.6 * obs[:, :1]

    pool = EnvPool(line, "pose", 4)
    found = pool.run(act, [3, 1, 4, 1])
    lengths = found.valid.sum(0)
    for i, seed in enumerate([3, 1, 4, 1]):
        env = line()
        step, t = env.reset(seed), 0
        while not (step.terminated or step.truncated):
            assert np.array_equal(found.obs[t, i], step.obs["pose"])
            step = env.step(act(step.obs["pose"][None])[0])
            assert (found.reward[t, i], found.cost[t, i]) == (step.reward, step.cost)
            assert found.terminated[t, i] == step.terminated
            t += 1
        assert lengths[i] == t
        assert found.valid[:t, i].all() and not found.valid[t:, i].any()
        assert not found.reward[t:, i].any() and not found.terminated[t:, i].any()
        assert np.array_equal(found.obs[t, i], step.obs["pose"])
    assert len(set(lengths.tolist())) > 1


def test_workers_change_no_bit_and_tell_what_went_wrong() -> None:
    def act(obs: Any) -> Any:
        return 0.3 + 0.5 * obs[:, :1]

    here, there = EnvPool(line, "pose", 3), EnvPool(line, "pose", 3, workers=2)
    broken = EnvPool(partial(BrokenEnv, 8, 10), "pose", 1, workers=1)
    try:
        for seeds in ([0, 1, 2], [3, 4, 5]):
            a, b = here.run(act, seeds), there.run(act, seeds)
            for name in vars(a):
                assert np.array_equal(getattr(a, name), getattr(b, name))
        with pytest.raises(DataError, match="is broken"):
            broken.run(act, [0])
        there._parts[1]._process.kill()  # type: ignore[union-attr]
        there._parts[1]._process.join()  # type: ignore[union-attr]
        with pytest.raises(WorkerCrashError, match="worker process died"):
            there.run(act, [0, 1, 2])
    finally:
        for pool in (here, there, broken):
            pool.close()
    with pytest.raises(ConfigError):
        EnvPool(line, "pose", 1, workers=2)


class SpeedEnv(LineEnv):
    """Speed is reward, and above 0.3 it is cost too."""

    def step(self, action: Any, *_: Any) -> Any:
        step = super().step(action)
        speed = float(step.action[0])
        ends = self.steps >= self.limit
        return replace(
            step, reward=speed, cost=float(speed > 0.3), terminated=False, truncated=ends
        )


def test_it_learns_and_a_limit_on_costs_is_kept(tmp_path: Path) -> None:
    config = replace(CONFIG, total_updates=25, actor_rate=2e-2, critic_rate=1e-2)
    make = partial(SpeedEnv, 8, 10)
    unsafe = train(tmp_path / "unsafe", config, make)
    dear = replace(config, cost_limit=1.0, multiplier_rate=0.1, gain_after=5)
    safe = train(tmp_path / "safe", dear, make)
    start = read_metrics(tmp_path / "unsafe" / "metrics.jsonl")["episode/reward"][0]
    assert start < 3.0 < 5.0 < unsafe.reward
    assert unsafe.cost > 7.0
    assert safe.cost < 4.0
    assert safe.reward < unsafe.reward


def test_a_resumed_training_ends_in_the_same_file(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop_at_five(done: int, total: int) -> None:
        if done == 5:
            raise Stopped

    whole = train(tmp_path / "whole", checkpoint_every=3)
    with pytest.raises(Stopped):
        train(tmp_path / "part", checkpoint_every=3, progress=stop_at_five)
    assert read_behavior(tmp_path / "part").provenance["steps"] < whole.steps
    resumed = train(tmp_path / "part", checkpoint_every=3)
    assert (whole.resumed_at, resumed.resumed_at) == (0, 3)
    for name in (FILE, "metrics.jsonl"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(CheckpointError):
        train(tmp_path / "part", replace(CONFIG, clip=0.1))


def test_the_file_acts_as_the_network_it_came_from(tmp_path: Path) -> None:
    train(tmp_path)
    behavior = read_behavior(tmp_path)
    algorithm = PpoLagrangian(CONFIG, "pose", 2, 1)
    from safe_o2o.training import checkpoint

    algorithm.load_state_dict(checkpoint.load(tmp_path)["algorithm"])
    for name, array in network(algorithm).items():
        assert np.array_equal(behavior.arrays[name], array)
    for x in np.random.default_rng(0).uniform(-1, 2, (20, 2)).astype(np.float32):
        mean = algorithm.policy.act({"pose": x[None]}, ())[0].numpy()[0]
        assert behavior.act(x) == pytest.approx(np.clip(mean, -1.0, 1.0), abs=1e-6)
        sigma = np.exp(behavior.arrays["log_std"])
        noisy = behavior.act(x, np.array([0.3], np.float32))
        assert noisy == pytest.approx(np.clip(mean + 0.3 * sigma, -1.0, 1.0), abs=1e-6)


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    train(tmp_path)
    path = tmp_path / FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="hash"):
        read_behavior(tmp_path)
    path.write_bytes(bytes(data[:100]))
    with pytest.raises(DataError, match="readable"):
        BehaviorMaker((str(tmp_path),))
    with pytest.raises(DataError, match="no trained behaviour"):
        read_behavior(tmp_path / "nowhere")


class LineWithVector(LineEnv):
    """A line of which pictures are recorded, and a vector offered beside them."""

    def __init__(self) -> None:
        super().__init__(8, 10)
        self.vector_spec = line_spec()

    def vector(self) -> Any:
        return self._obs()["pose"]


def test_behaviours_act_on_their_own_vector_and_chance_knows_nothing(tmp_path: Path) -> None:
    train(tmp_path)
    env = LineWithVector()
    trained, chance = BehaviorMaker((str(tmp_path), "random"))(env)
    assert (trained.name, chance.name) == ("unsafe", "random")
    step = env.reset(0)
    trained.reset(1)
    first = trained.act({})[0]
    trained.reset(1)
    assert np.array_equal(trained.act(step.obs)[0], first)
    assert not np.array_equal(trained.act(step.obs)[0], first)
    name, maker = resolve(str(tmp_path))
    assert name == "unsafe" and not looks(maker)
    with pytest.raises(ConfigError, match="lidar"):
        BehaviorMaker((str(tmp_path),))(line())
    with pytest.raises(ConfigError, match="safe-o2o behaviors"):
        BehaviorMaker(("expert",))(env)
    env.vector_spec = Spec(
        ObservationSpec({"pose": ArraySpec((3,), "float32", "m")}), env.spec.action
    )
    with pytest.raises(SpecMismatchError, match="shape"):
        BehaviorMaker((str(tmp_path),))(env)


@pytest.mark.slow
def test_from_the_command_line_to_a_dataset_of_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safe_o2o.errors import MissingDependencyError

    try:
        from safe_o2o_sim.make import make_env

        make_env("safety_point_goal1").reset(0)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    base = ["--task", "safety_point_goal1"]
    trained = ["behaviors", *base, "--out", f"{tmp_path}/b", "--which", "safe", "--frames", "1000"]
    assert cli.main([*trained, "--envs", "1", "--workers", "0"]) == 0
    recorded = ["collect", *base, "--behaviors", f"{tmp_path}/b/safe,random", "--workers", "0"]
    assert cli.main([*recorded, "--episodes", "2", "--out", f"{tmp_path}/data"]) == 0
    dataset = Dataset(tmp_path / "data")
    episodes = [dataset.open(name) for name in dataset.names]
    assert [episode.meta.behavior for episode in episodes] == ["safe", "random"]
    assert [len(episode) for episode in episodes] == [250, 250]
    assert set(dataset.spec.observation.image_names) == {"front", "back"}
    assert "safe: 1 updates" in capsys.readouterr().out
    assert cli.main(["behaviors", "--task", "safe_reach", "--out", f"{tmp_path}/no"]) == 2
    assert "no single vector" in capsys.readouterr().err


def test_levels_are_kept_on_the_way(tmp_path: Path) -> None:
    """Worse and better behaviours of one training, the last of them the whole one's."""
    report = train(tmp_path / "a", levels=3)
    assert [path.parent.name for path in report.levels] == ["level_1", "level_2", "level_3"]
    first, second, last = (read_behavior(path) for path in report.levels)
    assert first.name == "unsafe_level_1" and last.name == "unsafe_level_3"
    whole = read_behavior(report.path)
    assert all(np.array_equal(last.arrays[name], array) for name, array in whole.arrays.items())
    assert any(not np.array_equal(first.arrays[n], a) for n, a in second.arrays.items())
    again = train(tmp_path / "a", levels=3)  # a run that is done stays as it is
    assert again.levels == report.levels and again.resumed_at == 6
    train(tmp_path / "b")
    with pytest.raises(CheckpointError, match="into another folder"):
        train(tmp_path / "b", levels=3)

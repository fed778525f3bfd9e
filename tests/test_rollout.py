"""Episodes do not depend on who runs them, where, or how often they were interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import EpisodeMeta
from safe_o2o.data.recorder import DirectRecorder
from safe_o2o.data.summary import EpisodeSummary
from safe_o2o.errors import DataError, SpecMismatchError, UnknownNameError
from safe_o2o.interfaces import Env
from safe_o2o.runtime.actors import (
    Actor,
    BehaviorActor,
    PolicyActor,
    UniformRandomActor,
    with_executed,
)
from safe_o2o.runtime.rollout import WorkerCrashError, rollout, run_episodes
from safe_o2o.types import Observation, Source, Step
from tests.data_fakes import LineEnv, Walker, files_in, make_dataset

SEEDS = [11, 22, 33, 44, 55]
META = EpisodeMeta("line")


def walker(env: Env) -> Actor:
    return BehaviorActor(Walker(), "walker")


def three(env: Env) -> Sequence[Actor]:
    return [
        BehaviorActor(Walker(0.9, 0.0), "fast"),
        BehaviorActor(Walker(0.3), "slow"),
        UniformRandomActor(env.spec.action.dim),
    ]


class Counting:
    """A policy whose action is the number of calls since the start of the episode."""

    def __init__(self, chunk: bool) -> None:
        self.chunk, self.seeds = chunk, list[int]()

    def seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def initial_carry(self, n: int = 1) -> Any:
        return np.zeros((n, 1), np.float32)

    def act(self, obs: Any, carry: Any, deterministic: bool = True) -> tuple[Any, Any]:
        assert obs["image"].shape == (1, 8, 8, 3) and obs["pose"].shape == (1, 2)
        action = carry / 10
        return (np.stack([action, action + 5], 1) if self.chunk else action), carry + 1


def test_an_episode_is_recorded_as_executed(tmp_path: Path) -> None:
    """From x0 with 0.1 * 0.8 a step (the fake clips the wish of 0.9): by hand."""
    dataset = make_dataset(tmp_path, [])
    actor = BehaviorActor(Walker(0.9, 0.0), "fast")
    summary = rollout(LineEnv(), actor, 4, DirectRecorder(dataset), meta=META, index=3)
    x0 = np.random.default_rng(4).uniform(0, 0.4)
    steps = int(np.ceil((1 - x0) / 0.08))
    dataset.refresh()
    episode = dataset.open("episode_000003.safetensors")
    assert len(episode) == steps == summary.length
    assert episode.array("action")[:, 0] == pytest.approx([0.8] * steps)
    assert episode.array("proposed_action")[:, 0] == pytest.approx([0.9] * steps)
    assert episode.obs["pose"][:, 0] == pytest.approx(
        np.minimum(x0 + 0.08 * np.arange(steps + 1), 1), abs=1e-6
    )
    assert episode.array("stamp") == pytest.approx(0.2 * np.arange(steps + 1))
    assert summary.success and summary.terminated and summary.return_ == 1.0
    assert summary.cost == (episode.obs["pose"][1:, 0] > 0.8).sum() and summary.violation
    assert summary.verdicts == {"pass": 0, "corrected": steps, "stopped": 0}
    assert summary.reasons == {"speed": steps} and summary.margin == pytest.approx(0.2)
    assert set(summary.timings) == {"act", "step", "physics"}
    assert all(len(seconds) == steps for seconds in summary.timings.values())
    assert (episode.array("source") == Source.SCRIPT).all()
    assert (episode.meta.behavior, episode.meta.seed) == ("fast", 4)
    assert EpisodeSummary.from_episode(episode) == summary


@pytest.mark.parametrize("chunk", [False, True])
def test_a_policy_keeps_its_carry_within_an_episode_only(tmp_path: Path, chunk: bool) -> None:
    policy, dataset = Counting(chunk), make_dataset(tmp_path, [])
    actor = PolicyActor(policy, "counting")
    for index in range(2):
        recorder = DirectRecorder(dataset)
        rollout(LineEnv(limit=5), actor, index, recorder, meta=META, index=index)
    for episode in Dataset(dataset.directory):
        assert episode.array("proposed_action")[:, 0] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
        assert (episode.array("source") == Source.POLICY).all()
    assert policy.seeds == [0, 1]


def test_a_torch_policy_is_understood() -> None:
    torch = pytest.importorskip("torch")

    class Constant(Counting):
        def act(self, obs: Any, carry: Any, deterministic: bool = True) -> tuple[Any, Any]:
            return torch.full((1, 1), 0.5), carry

    action, source = PolicyActor(Constant(False)).act(LineEnv().reset(0).obs)
    assert action.tolist() == [0.5] and action.dtype == np.float32 and source == Source.POLICY


def test_uniform_actions_depend_on_the_seed_alone() -> None:
    actor = UniformRandomActor(3)
    draws = []
    for seed in (5, 6, 5):
        actor.reset(seed)
        draws.append(np.stack([actor.act({})[0] for _ in range(500)]))
    assert np.array_equal(draws[0], draws[2]) and not np.array_equal(draws[0], draws[1])
    assert np.abs(draws[0]).max() <= 1 and draws[0].std() == pytest.approx(1 / 3**0.5, abs=0.03)


class Fragile(LineEnv):
    """Fails in a chosen way at its fourth step."""

    def __init__(self, how: str, seed: int | None = None) -> None:
        super().__init__()
        self.how, self.only = how, seed

    def reset(self, seed: int) -> Step:
        self.bad = self.only is None or seed == self.only
        return super().reset(seed)

    def step(self, action: Any, source: Source = Source.POLICY, speed: float = 1.0) -> Step:
        if self.bad and self.steps == 3:
            if self.how == "interrupt":
                raise KeyboardInterrupt
            if self.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise UnknownNameError("thing", "abd", ["abc"])
        return super().step(action, source)


@pytest.mark.parametrize(
    ("how", "kind"), [("interrupt", KeyboardInterrupt), ("raise", UnknownNameError)]
)
def test_an_interrupted_episode_leaves_nothing(
    tmp_path: Path, how: str, kind: type[BaseException]
) -> None:
    dataset = make_dataset(tmp_path, [])
    recorder = DirectRecorder(dataset)
    with pytest.raises(kind):
        rollout(Fragile(how), walker(LineEnv()), 0, recorder)
    assert files_in(tmp_path) == ["dataset.json"]
    with pytest.raises(DataError, match="no episode was started"):
        recorder.commit({}, 0.0)


def test_results_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    results, hashes = [], []
    for workers in (0, 2):
        dataset = make_dataset(tmp_path / str(workers), [])
        calls: list[tuple[int, int]] = []
        results.append(
            run_episodes(
                LineEnv,
                three,
                SEEDS,
                workers=workers,
                dataset=dataset,
                progress=lambda *call, calls=calls: calls.append(call),
            )
        )
        hashes.append(dataset.content_hash())
        assert calls == [(done, 5) for done in range(1, 6)]
    assert results[0] == results[1] and hashes[0] == hashes[1]
    assert [summary.seed for summary in results[0]] == SEEDS
    names = [summary.behavior for summary in results[0]]
    assert names == ["fast", "slow", "uniform", "fast", "slow"]


def test_a_repeated_call_runs_only_what_is_missing(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [])
    run_episodes(LineEnv, three, SEEDS[:2], workers=0, dataset=dataset, first_index=4)
    stamps = {name: os.stat(tmp_path / name).st_mtime_ns for name in files_in(tmp_path)}
    calls: list[tuple[int, int]] = []
    resumed = run_episodes(
        LineEnv, three, SEEDS, workers=0, dataset=dataset, first_index=4,
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    assert calls == [(2, 5), (3, 5), (4, 5), (5, 5)]
    assert all(os.stat(tmp_path / name).st_mtime_ns == at for name, at in stamps.items())
    assert dataset.indices() == {4, 5, 6, 7, 8}
    fresh = run_episodes(LineEnv, three, SEEDS, workers=0, first_index=4, meta=META)
    assert resumed == fresh
    with pytest.raises(DataError, match="recorded with seed 11, this run wants 12"):
        run_episodes(LineEnv, three, [12], workers=0, dataset=dataset, first_index=4)


def test_a_missing_dataset_and_a_wrong_spec_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such dataset folder"):
        run_episodes(LineEnv, walker, [1], workers=0, dataset=tmp_path / "nowhere")
    dataset = make_dataset(tmp_path / "big", [], size=16)
    for workers in (0, 1):
        with pytest.raises(SpecMismatchError, match="image"):
            run_episodes(LineEnv, walker, [1], workers=workers, dataset=dataset)


def test_a_dying_worker_is_a_clear_error_and_commits_stay(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [])
    with pytest.raises(WorkerCrashError, match="worker process died") as caught:
        run_episodes(partial(Fragile, "die", seed=33), walker, SEEDS, workers=1, dataset=dataset)
    assert "\n" not in str(caught.value)
    assert Dataset(tmp_path).indices() == {0, 1}
    run_episodes(LineEnv, walker, SEEDS, workers=0, dataset=dataset)
    assert dataset.indices() == set(range(5)) and len(files_in(tmp_path)) == 6


def test_an_error_in_a_worker_arrives_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'abc'"):
        run_episodes(partial(Fragile, "raise"), walker, [1], workers=1)


class Slow(LineEnv):
    def step(self, action: Any, source: Source = Source.POLICY, speed: float = 1.0) -> Step:
        time.sleep(0.02)
        return super().step(np.zeros(1), source)


class Probe(LineEnv):
    """Reports in `info` what its process was started with."""

    def reset(self, seed: int) -> Step:
        assert os.environ["OMP_NUM_THREADS"] == "1"
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        return super().reset(seed)


def test_workers_are_single_threaded_and_deaf_to_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    run_episodes(Probe, walker, [1], workers=1)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ending_a_collection_ends_its_workers_and_keeps_whole_episodes(
    tmp_path: Path, how: int
) -> None:
    make_dataset(tmp_path / "ds", [])
    script = f"""
        import multiprocessing, sys
        from tests.test_rollout import Slow, walker
        from safe_o2o.runtime.rollout import run_episodes

        def progress(done, total):
            pids = [child.pid for child in multiprocessing.active_children()]
            print(done, *pids, flush=True)

        if __name__ == "__main__":
            try:
                run_episodes(
                    Slow, walker, range(50), workers=2, dataset={str(tmp_path / "ds")!r},
                    progress=progress,
                )
            except KeyboardInterrupt:
                sys.exit(7)
    """
    (tmp_path / "main.py").write_text(textwrap.dedent(script))
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None
    pids = [int(pid) for pid in process.stdout.readline().split()[1:]]
    assert len(pids) == 2
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does: to every process of the group
    else:
        process.kill()
    began = time.monotonic()
    code = process.wait(20)
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") and not zombie(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers live on"
        time.sleep(0.01)
    if how == signal.SIGINT:
        assert code == 7 and time.monotonic() - began < 3
        assert "Traceback" not in process.stderr.read()
        assert all("tmp" not in name for name in files_in(tmp_path / "ds"))
    process.stdout.close()
    process.stderr.close()
    dataset = Dataset(tmp_path / "ds")
    assert 1 <= len(dataset) < 50
    for episode in dataset:
        episode.verify()


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_importing_the_rollout_needs_no_torch() -> None:
    code = "import sys, safe_o2o.runtime.rollout; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_environment_that_is_over_at_once_is_an_error() -> None:
    class Over(LineEnv):
        def reset(self, seed: int) -> Step:
            obs: Observation = super().reset(seed).obs
            return Step(obs, 0.0, 0.0, False, True, np.zeros(1))

    with pytest.raises(DataError, match="ended at its reset"):
        rollout(Over(), walker(LineEnv()), 0)


def test_policy_is_told_what_was_executed() -> None:
    carry = {"previous_action": np.zeros((1, 2), np.float32), "deter": np.ones((1, 3))}
    told = with_executed(carry, np.array([0.5, -0.5]))
    assert told["previous_action"].tolist() == [[0.5, -0.5]]
    assert told["deter"] is carry["deter"] and not carry["previous_action"].any()
    assert with_executed((), np.zeros(2)) == ()

"""Several environments stepped together, here or over worker processes: whole episodes at once.

For learners that want many actions from one call of their policy. Episodes are functions of their
seeds and of the actions, so that the number of processes changes no bit of them.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from safe_o2o.errors import ConfigError
from safe_o2o.interfaces import Env
from safe_o2o.runtime.rollout import MakeEnv, WorkerCrashError
from safe_o2o.types import Array
from safe_o2o.workers import end_with_parent, started_quietly

Act = Callable[[Array], Array]
"""Observations `[N, D]` to actions `[N, A]`."""


@dataclass(frozen=True)
class EpisodeArrays:
    """N whole episodes side by side, padded to the longest one's T steps.

    Attributes:
        obs: `[T + 1, N, D]` float32; past an episode's end its last observation.
        action: `[T, N, A]` float32, as `act` gave them.
        reward: `[T, N]` float32.
        cost: `[T, N]` float32.
        terminated: `[T, N]` bool.
        valid: `[T, N]` bool: the step happened.
    """

    obs: Array
    action: Array
    reward: Array
    cost: Array
    terminated: Array
    valid: Array


class EnvPool:
    """N environments with one vector observation, stepped together.

    Args:
        make_env: makes one; picklable where there are workers.
        name: name of the vector in the observation.
        envs: N.
        workers: processes that share them; 0 steps all of them in this one.
    """

    def __init__(self, make_env: MakeEnv, name: str, envs: int, workers: int = 0) -> None:
        if envs < 1 or not 0 <= workers <= envs:
            raise ConfigError(
                f"needs at least one environment and no more workers than those, "
                f"got {envs} and {workers}",
                where="environments",
            )
        self.envs = envs
        shares = [len(part) for part in np.array_split(np.arange(envs), max(workers, 1))]
        self._ends = np.cumsum(shares)[:-1]
        self._parts: list[_Lanes | _Remote] = []
        try:
            for share in shares:
                part = _Remote(make_env, name, share) if workers else _Lanes(make_env, name, share)
                self._parts.append(part)
        except BaseException:
            self.close()
            raise

    def run(self, act: Act, seeds: Sequence[int]) -> EpisodeArrays:
        """One episode in each environment, from its seed to its end.

        Args:
            act: called with the observations of all of them until the last one has ended.
            seeds: N seeds.

        Raises:
            WorkerCrashError: a worker process died.
        """
        obs = [self._all("reset", np.split(np.asarray(seeds), self._ends))[0]]
        actions, columns = [], []
        while True:
            action = np.asarray(act(obs[-1]), np.float32)
            after, *column, running = self._all("step", np.split(action, self._ends))
            obs.append(after)
            actions.append(action)
            columns.append(column)
            if not running.any():
                break
        reward, cost, terminated, valid = (
            np.stack([column[i] for column in columns]) for i in range(4)
        )
        return EpisodeArrays(np.stack(obs), np.stack(actions), reward, cost, terminated, valid)

    def close(self) -> None:
        """Close the environments and end the processes; idempotent."""
        for part in self._parts:
            part.close()
        self._parts = []

    def _all(self, what: str, shares: Sequence[Array]) -> list[Array]:
        """Ask all parts, then collect: workers are busy at the same time."""
        for part, share in zip(self._parts, shares, strict=True):
            part.begin(what, share)
        answers = [part.finish() for part in self._parts]
        return [np.concatenate(columns) for columns in zip(*answers, strict=True)]


class _Lanes:
    """Environments of one process."""

    def __init__(self, make_env: MakeEnv, name: str, envs: int) -> None:
        self._envs: list[Env] = [make_env() for _ in range(envs)]
        self._name = name

    def begin(self, what: str, argument: Array) -> None:
        self._answer = self.reset(argument) if what == "reset" else self.step(argument)

    def finish(self) -> tuple[Array, ...]:
        return self._answer

    def reset(self, seeds: Array) -> tuple[Array, ...]:
        """Start an episode in each: observations `[n, D]`."""
        steps = [env.reset(int(seed)) for env, seed in zip(self._envs, seeds, strict=True)]
        self._obs = np.stack([step.obs[self._name] for step in steps])
        self._running = np.ones(len(steps), bool)
        return (self._obs.copy(),)

    def step(self, actions: Array) -> tuple[Array, ...]:
        """Observations `[n, D]`, reward, cost, terminated, valid and still running `[n]`."""
        valid = self._running.copy()
        reward, cost = np.zeros((2, len(valid)), np.float32)
        terminated = np.zeros(len(valid), bool)
        for i in np.flatnonzero(valid):
            step = self._envs[i].step(actions[i])
            self._obs[i] = step.obs[self._name]
            reward[i], cost[i], terminated[i] = step.reward, step.cost, step.terminated
            self._running[i] = not (step.terminated or step.truncated)
        return self._obs.copy(), reward, cost, terminated, valid, self._running.copy()

    def close(self) -> None:
        for env in self._envs:
            env.close()


class _Remote:
    """Environments of a worker process, behind a pipe."""

    def __init__(self, make_env: MakeEnv, name: str, envs: int) -> None:
        multiprocessing.set_forkserver_preload([__name__, *getattr(make_env, "imports", ())])
        context = multiprocessing.get_context("forkserver")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, make_env, name, envs), daemon=True
        )
        with started_quietly():
            self._process.start()
        theirs.close()

    def begin(self, what: str, argument: Array) -> None:
        try:
            self._pipe.send((what, argument))
        except OSError as error:
            raise _died() from error

    def finish(self) -> tuple[Array, ...]:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise _died() from error
        if isinstance(answer, BaseException):
            raise answer
        result: tuple[Array, ...] = answer
        return result

    def close(self) -> None:
        self._pipe.close()  # the worker's next read ends it
        self._process.join(10.0)
        if self._process.is_alive():
            self._process.terminate()


def _died() -> WorkerCrashError:
    return WorkerCrashError(
        "a worker process died in the middle of an episode (out of memory, or killed)",
        todo="run the same command again to resume",
    )


def _serve(pipe: Connection, make_env: MakeEnv, name: str, envs: int) -> None:
    """A worker's life: answer until the pipe is closed; an error is an answer as well."""
    end_with_parent()
    lanes: _Lanes | None = None
    try:
        while True:
            what, argument = pipe.recv()
            try:
                if lanes is None:
                    lanes = _Lanes(make_env, name, envs)
                lanes.begin(what, argument)
                pipe.send(lanes.finish())
            except Exception as error:
                pipe.send(error)
    except (EOFError, OSError):
        if lanes is not None:
            lanes.close()

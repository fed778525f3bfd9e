"""Episodes: one here, or many over worker processes with results that do not depend on them.

An episode is a function of its seed alone: the environment and the actor are reset with it, so that
neither the number of workers nor an interruption changes a bit of what is recorded.
"""

from __future__ import annotations

import atexit
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

from safe_o2o.data.dataset import Dataset, episode_name
from safe_o2o.data.episode import NO_GATE, EpisodeMeta
from safe_o2o.data.recorder import DirectRecorder, Recorder
from safe_o2o.data.summary import EpisodeSummary
from safe_o2o.errors import ConfigError, DataError, SafeO2OError
from safe_o2o.interfaces import Env
from safe_o2o.runtime.actors import Actor
from safe_o2o.types import STALLED, Transition
from safe_o2o.workers import end_with_parent, started_quietly

Progress = Callable[[int, int], None]


class WorkerCrashError(SafeO2OError):
    """A worker process died: out of memory, killed, or a crash in native code."""


class RolloutStopped(Exception):
    """An episode was given up because its `should_stop` said so."""


def rollout(
    env: Env,
    actor: Actor,
    seed: int,
    recorder: Recorder | None = None,
    *,
    meta: EpisodeMeta | None = None,
    index: int = 0,
    should_stop: Callable[[], bool] | None = None,
) -> EpisodeSummary:
    """Run one episode to its end.

    Args:
        env: the environment.
        actor: who acts.
        seed: seed of both resets, the environment's first.
        recorder: gets every transition and commits the episode; None records nothing.
        meta: task, variant and provenance; behaviour and seed are filled in here.
        index: number of the episode in its dataset.
        should_stop: asked before every step.

    Returns:
        The summary; an episode that a reachability gate has stalled ends there. `timings` has
        `act`, `step` and whatever `Step.info["timings"]` offers (s).

    Raises:
        RolloutStopped: `should_stop` said so. This and any other exception, Ctrl-C included,
            discards the episode.
    """
    meta = replace(meta or EpisodeMeta(task=""), behavior=actor.name, seed=seed)
    timings: dict[str, list[float]] = {"act": [], "step": []}
    transitions: list[Transition] = []
    step = env.reset(seed)
    actor.reset(seed)
    if recorder is not None:
        recorder.start(meta, index)
    try:
        while not (step.terminated or step.truncated):
            if should_stop is not None and should_stop():
                raise RolloutStopped
            began = time.perf_counter()
            action, source = actor.act(step.obs)
            acted = time.perf_counter()
            gate = getattr(actor, "gate_decision", None)
            before, step = step, env.step(action, source, 1.0 if gate is None else gate.speed)
            stalled = gate is not None and gate.stalled and not step.terminated
            timings["act"].append(acted - began)
            timings["step"].append(time.perf_counter() - acted)
            actor.executed(step.action)
            for stage, seconds in step.info.get("timings", {}).items():
                timings.setdefault(stage, []).append(float(seconds))
            transition = Transition(
                obs=before.obs,
                action=step.action,
                proposed_action=action if gate is None else gate.wish,
                reward=step.reward,
                cost=step.cost,
                terminated=step.terminated,
                truncated=step.truncated or stalled,
                verdict=step.verdict,
                reason=STALLED if stalled else step.reason,
                margin=step.margin,
                source=source,
                stamp=before.stamp,
                force=step.force,
                clearance=step.clearance,
                gate=None if gate is None else gate.done,
            )
            if recorder is not None:
                recorder.append(transition)
            transitions.append(replace(transition, obs={}))  # the frames are the recorder's
            if stalled:
                break
        if not transitions:
            raise DataError("ended at its reset", where=f"episode of seed {seed}")
        success = bool(step.info.get("success", step.terminated and step.reward > 0))
        if recorder is not None:
            recorder.commit(step.obs, step.stamp, success=success)
    except BaseException:
        if recorder is not None:
            recorder.discard()
        raise
    names = ("reward", "cost", "verdict", "reason", "margin")
    columns = {name: [getattr(entry, name) for entry in transitions] for name in names}
    columns["gate"] = [NO_GATE if t.gate is None else int(t.gate) for t in transitions]
    return EpisodeSummary.from_columns(
        index, meta, terminated=step.terminated, success=success, timings=timings, **columns
    )


MakeEnv = Callable[[], Env]
MakeActor = Callable[[Env], Actor | Sequence[Actor]]


def run_episodes(
    make_env: MakeEnv,
    make_actor: MakeActor,
    seeds: Sequence[int],
    *,
    workers: int = 2,
    dataset: Dataset | str | Path | None = None,
    first_index: int = 0,
    meta: EpisodeMeta | None = None,
    progress: Progress | None = None,
) -> list[EpisodeSummary]:
    """Run one episode a seed, over worker processes.

    Episode i has the number `first_index + i`. Those that the dataset holds already are not run
    again but read, so that an interrupted call is resumed by repeating it.

    Args:
        make_env: makes the environment, once a worker; picklable (a function or a partial). Modules
            that its attribute `imports` names are imported once for all workers.
        make_actor: makes the actor from the environment, or several: then number n is acted by
            `actors[n % len(actors)]`, which mixes behaviours 1:1:1. Picklable.
        seeds: one episode each.
        workers: processes; 0 runs everything in this one.
        dataset: an existing dataset to record into; None records nothing.
        first_index: number of the first episode.
        meta: task (default: the dataset's), variant, provenance.
        progress: called with (episodes done, episodes in all).

    Returns:
        Summaries in the order of `seeds`, the same for any number of workers.

    Raises:
        DataError: the dataset is missing, or holds an episode of another seed under a number.
        WorkerCrashError: a worker process died; what it committed before stays.
        KeyboardInterrupt: after the workers have given up their episodes; nothing half-written.
    """
    if workers < 0:
        raise ConfigError(f"must be 0 or more, got {workers}", where="workers")
    opened = (
        Dataset(dataset.directory if isinstance(dataset, Dataset) else dataset)
        if (dataset is not None)
        else None
    )
    if meta is None:
        meta = EpisodeMeta(task="" if opened is None else opened.task)
    results: dict[int, EpisodeSummary] = {}
    numbered = {first_index + i: int(seed) for i, seed in enumerate(seeds)}
    if opened is not None:
        results = _committed(opened, numbered)
    todo = [(index, seed) for index, seed in numbered.items() if index not in results]
    report = _reporter(progress, len(results), len(numbered))
    job = _Job(make_env, make_actor, None if opened is None else opened.directory, meta)
    if workers == 0 or not todo:
        _run_here(job, todo, results, report)
    else:
        _run_in_workers(job, todo, min(workers, len(todo)), results, report)
    if isinstance(dataset, Dataset):
        dataset.refresh()
    return [results[index] for index in numbered]


class _Job:
    """What a worker needs to know; picklable."""

    def __init__(
        self,
        make_env: MakeEnv,
        make_actor: MakeActor,
        directory: Path | None,
        meta: EpisodeMeta,
    ) -> None:
        self.make_env, self.make_actor = make_env, make_actor
        self.directory, self.meta = directory, meta


class _Runner:
    """An environment and its actors, ready for any episode of a job."""

    def __init__(self, job: _Job, should_stop: Callable[[], bool] | None = None) -> None:
        self._meta, self._should_stop = job.meta, should_stop
        self._recorder = None if job.directory is None else DirectRecorder(Dataset(job.directory))
        self.env = job.make_env()
        try:
            made = job.make_actor(self.env)
            self._actors: list[Actor] = list(made) if isinstance(made, Sequence) else [made]
            if self._recorder is not None:
                self._recorder.dataset.require(self.env.spec)
        except BaseException:
            self.env.close()
            raise

    def run(self, index: int, seed: int) -> EpisodeSummary:
        actor = self._actors[index % len(self._actors)]
        return rollout(
            self.env,
            actor,
            seed,
            self._recorder,
            meta=self._meta,
            index=index,
            should_stop=self._should_stop,
        )


def _committed(dataset: Dataset, numbered: Mapping[int, int]) -> dict[int, EpisodeSummary]:
    """Summaries of the wanted episodes that exist already."""
    found = {}
    for index in sorted(dataset.indices() & numbered.keys()):
        summary = EpisodeSummary.from_episode(dataset.open(episode_name(index)))
        if summary.seed != numbered[index]:
            raise DataError(
                f"was recorded with seed {summary.seed}, this run wants {numbered[index]}",
                where=dataset.directory / episode_name(index),
                todo="repeat the first call's seeds or collect into a new folder",
            )
        found[index] = summary
    return found


def _reporter(progress: Progress | None, done: int, total: int) -> Callable[[], None]:
    def report() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    if progress is not None and done:
        progress(done, total)
    return report


def _run_here(
    job: _Job,
    todo: Sequence[tuple[int, int]],
    results: dict[int, EpisodeSummary],
    report: Callable[[], None],
) -> None:
    if not todo:
        return
    runner = _Runner(job)
    try:
        for index, seed in todo:
            results[index] = runner.run(index, seed)
            report()
    finally:
        runner.env.close()


def _run_in_workers(
    job: _Job,
    todo: Sequence[tuple[int, int]],
    workers: int,
    results: dict[int, EpisodeSummary],
    report: Callable[[], None],
) -> None:
    # Forked from a process that has imported and done nothing else: a fork of this one would copy
    # locks and simulator state, and a fresh one imports for two seconds. It stays for later calls.
    multiprocessing.set_forkserver_preload([__name__, *getattr(job.make_env, "imports", ())])
    context = multiprocessing.get_context("forkserver")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (job, stop))
    try:
        with started_quietly():
            futures: dict[Future[EpisodeSummary], int] = {
                pool.submit(_run_in_worker, index, seed): index for index, seed in todo
            }
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            report()
    except BrokenProcessPool as error:
        raise WorkerCrashError(
            "a worker process died in the middle of an episode (out of memory, or killed)",
            todo="run the same command again to resume, with fewer workers if memory is short",
        ) from error
    finally:
        # After success this is a formality; after an error or Ctrl-C the episodes in progress are
        # given up at their next step, and those not begun never start.
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


_worker: dict[str, Any] = {}
"""The worker process's job, stop event and, once the first episode came, runner."""


def _start_worker(job: _Job, stop: Any) -> None:
    _worker.update(job=job, stop=stop)
    end_with_parent()


def _run_in_worker(index: int, seed: int) -> EpisodeSummary:
    # Built here and not in _start_worker, so that its errors reach the caller as they are.
    if "runner" not in _worker:
        runner = _Runner(_worker["job"], _worker["stop"].is_set)
        atexit.register(runner.env.close)
        _worker["runner"] = runner
    ready: _Runner = _worker["runner"]
    return ready.run(index, seed)

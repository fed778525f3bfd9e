"""Training a behaviour on-policy: batches of whole episodes in, checkpoints and one file out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from safe_o2o import config as settings
from safe_o2o.algorithms.ppo_lagrangian import Episodes, PpoLagrangian, PpoLagrangianConfig
from safe_o2o.data.behavior import FILE, TrainedBehavior, write_behavior
from safe_o2o.errors import CheckpointError
from safe_o2o.spaces import Spec
from safe_o2o.training import checkpoint
from safe_o2o.training.logger import MetricLog
from safe_o2o.types import Array

LAST = 10
"""Updates whose episodes make up the figures that a behaviour carries."""
Progress = Callable[[int, int], None]


class Pool(Protocol):
    """N environments that run whole episodes; `safe_o2o.runtime.env_pool.EnvPool`."""

    envs: int

    def run(self, act: Callable[[Array], Array], seeds: Sequence[int]) -> Any:
        """One episode a seed, as arrays with the names of `Episodes`."""
        ...


@dataclass(frozen=True)
class BehaviorReport:
    """What a call of `train_behavior` did.

    Attributes:
        path: the behaviour's file.
        step: updates in all.
        resumed_at: update that this call started from.
        seconds: wall time of this call's updates.
        steps: policy steps behind the behaviour.
        reward: mean return of the episodes of the last updates.
        cost: mean cost of them.
        levels: the behaviour's files on its way, worst first; see `train_behavior`.
    """

    path: Path
    step: int
    resumed_at: int
    seconds: float
    steps: int
    reward: float
    cost: float
    levels: tuple[Path, ...] = ()


def train_behavior(
    name: str,
    config: PpoLagrangianConfig,
    pool: Pool,
    seeds: Callable[[int, int], Sequence[int]],
    out: Path,
    *,
    task: str,
    spec: Spec,
    checkpoint_every: int = 10,
    threads: int = 1,
    levels: int = 0,
    progress: Progress | None = None,
) -> BehaviorReport:
    """Train until `config.total_updates`, from the newest checkpoint in `out` if there is one.

    Batches are whole episodes, so that a run that was killed and resumed ends in the same file, bit
    for bit, as one that was not. The behaviour is written with every checkpoint, and says how many
    policy steps are behind it.

    Args:
        name: what the behaviour is called.
        config: settings of PPO-Lagrangian.
        pool: where the episodes happen.
        seeds: first number and count to seeds of episodes.
        out: checkpoints, `metrics.jsonl` and the behaviour.
        task: catalogue name of the task.
        spec: one vector of observation, and the actions.
        checkpoint_every: updates between checkpoints.
        threads: threads of PyTorch.
        levels: behaviours to keep at equal distances, the last one at the end, each in a folder
            `level_1`, `level_2`, ... of `out` and named after it.
        progress: called with (updates, in all).

    Raises:
        CheckpointError: `out` holds checkpoints of other settings, or from beyond a level that was
            not asked for then, or training diverged.
    """
    torch.set_num_threads(threads)
    vector = spec.observation.vector_names[0]
    algorithm = PpoLagrangian(
        config, vector, spec.observation.arrays[vector].shape[0], spec.action.dim
    )
    meta = checkpoint.Meta("ppo_lagrangian", settings.to_json(config), spec.to_json())
    newest, recent, steps = checkpoint.latest(out), [], 0
    if newest is not None:
        state = checkpoint.load(newest, expect=meta)
        algorithm.load_state_dict(state["algorithm"])
        recent, steps = state["recent"], state["steps"]
    start, began = algorithm.step, time.perf_counter()
    due = level_files(out, config.total_updates, levels)
    for update, path in due.items():
        if update < start and not path.exists():
            raise CheckpointError(
                f"is at update {start} and has no behaviour of update {update}",
                where=out,
                todo="train with --levels into another folder",
            )

    def act(obs: Array) -> Array:
        return np.asarray(algorithm.policy.act({vector: obs}, (), deterministic=False)[0])

    with MetricLog(out / "metrics.jsonl", resume_at=start) as log:
        while algorithm.step < config.total_updates:
            ran = pool.run(act, seeds(algorithm.step * pool.envs, pool.envs))
            row = algorithm.update(
                Episodes(**{key: torch.as_tensor(value) for key, value in vars(ran).items()})
            )
            steps += int(ran.valid.sum())
            if not all(np.isfinite(value) for value in row.values()):
                raise CheckpointError(
                    f"training diverged at update {algorithm.step}",
                    where=out,
                    todo="the last checkpoint is still good; lower the learning rates",
                )
            recent = [*recent[1 - LAST :], [row["episode/reward"], row["episode/cost"]]]
            log.append(algorithm.step, {"steps": float(steps), **row})
            if progress is not None:
                progress(algorithm.step, config.total_updates)
            if algorithm.step in due:
                path = due[algorithm.step]
                label = f"{name}_{path.parent.name}"
                path.parent.mkdir(exist_ok=True)
                _write(path, label, task, spec, algorithm, recent, steps)
            if algorithm.step % checkpoint_every == 0 or algorithm.step == config.total_updates:
                state = {"algorithm": algorithm.state_dict(), "recent": recent, "steps": steps}
                checkpoint.save(out, state, meta, step=algorithm.step, keep=2)
                _write(out / FILE, name, task, spec, algorithm, recent, steps)
    reward, cost = np.mean(recent, axis=0).tolist()
    seconds = time.perf_counter() - began
    kept = tuple(due.values())
    return BehaviorReport(out / FILE, algorithm.step, start, seconds, steps, reward, cost, kept)


def level_files(out: Path, updates: int, levels: int) -> dict[int, Path]:
    """After which update which file of a level is written; levels of the same update are one.

    Args:
        out: the behaviour's folder.
        updates: in all.
        levels: how many.
    """
    return {
        max(1, round(updates * number / levels)): out / f"level_{number}" / FILE
        for number in range(1, levels + 1)
    }


def _write(
    path: Path,
    name: str,
    task: str,
    spec: Spec,
    algorithm: PpoLagrangian,
    recent: Sequence[Sequence[float]],
    steps: int,
) -> None:
    reward, cost = np.mean(recent, axis=0).tolist()
    figures = {"episode_reward": reward, "episode_cost": cost, "steps": steps}
    provenance = {**settings.to_json(algorithm.config), **figures}
    write_behavior(path, TrainedBehavior(name, task, spec, network(algorithm), provenance))


def network(algorithm: PpoLagrangian) -> Mapping[str, Array]:
    """The policy's numbers by the names of a behaviour's file."""
    mean, std = algorithm.policy.normalizer.scale()
    arrays = {"mean": mean, "std": std, "log_std": algorithm.policy.log_std}
    linear = [layer for layer in algorithm.policy.mean if isinstance(layer, torch.nn.Linear)]
    for i, layer in enumerate(linear):
        arrays |= {f"weight.{i}": layer.weight, f"bias.{i}": layer.bias}
    return {name: tensor.detach().numpy() for name, tensor in arrays.items()}

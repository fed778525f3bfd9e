"""`safe-o2o behaviors`: train the behaviours that offline data are recorded with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from safe_o2o.algorithms.ppo_lagrangian import PpoLagrangianConfig
from safe_o2o.cli import console
from safe_o2o.cli.actors import SceneMaker
from safe_o2o.cli.parse import parse
from safe_o2o.cli.seeds import episode_seeds
from safe_o2o.errors import ConfigError, UnknownNameError
from safe_o2o.runtime.env_pool import EnvPool
from safe_o2o.training.behavior import BehaviorReport, train_behavior

KINDS = ("unsafe", "safe")


@dataclass(frozen=True)
class Arguments:
    """Train an unsafe and a safe behaviour with PPO-Lagrangian; repeated, it goes on where it was.

    They see a vector, also where the policies trained on their data see pictures: `safe-o2o collect
    --behaviors OUT/safe,OUT/unsafe,random` records them through the cameras, if there are any.

    Attributes:
        out: each goes to a folder of its own in here: checkpoints, metrics, behavior.safetensors.
        task: catalogue name of a task that has such a vector.
        variant: its variant; what costs may depend on it.
        which: unsafe (reward alone), safe (with a cost limit), separated by commas.
        frames: simulated frames for each of them.
        cost_limit: mean cost an episode that the safe one is held to.
        levels: behaviours to keep on the way, equally far apart and the last one at the end, in
            OUT/KIND/level_1, level_2, ...: data of several qualities; 0 keeps the end alone.
        envs: episodes a batch, stepped together.
        workers: processes that share them; 0 runs everything in this one.
        threads: threads of PyTorch; the same number gives the same behaviours.
        algo: settings of the learner; its limit and its number of updates follow from the above.
    """

    out: Path
    task: str = "safety_point_goal1"
    variant: str = "standard"
    which: str = ",".join(KINDS)
    frames: int = 1_200_000
    cost_limit: float = 2.0
    levels: int = 0
    envs: int = 8
    workers: int = 2
    threads: int = 1
    algo: PpoLagrangianConfig = field(default_factory=PpoLagrangianConfig)


def main(argv: Sequence[str]) -> None:
    """Train one after the other; one line each."""
    arguments = parse(Arguments, argv, verb="behaviors")
    kinds = [kind.strip() for kind in arguments.which.split(",")]
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownNameError("behavior to train", kind, KINDS)
    for kind in kinds:
        with console.progress(f"training {kind}") as progress:
            print(describe(kind, train(arguments, kind, progress)))


def train(
    arguments: Arguments, kind: str, progress: console.Progress | None = None
) -> BehaviorReport:
    """Train one behaviour, or go on with it.

    Args:
        arguments: see `Arguments`.
        kind: `unsafe` or `safe`.
        progress: called with (updates done, in all).

    Raises:
        ConfigError: the task has no vector to learn from.
        CheckpointError: its folder holds a run with other settings.
    """
    if arguments.levels < 0:
        raise ConfigError(f"must be at least 0, got {arguments.levels}", where="--levels")
    scene = SceneMaker(arguments.task, arguments.variant, camera=False)
    env = scene()
    spec = env.spec
    settings = env if hasattr(env, "max_steps") else getattr(env, "config", None)
    frames_a_step = int(getattr(settings, "repeat", 1))
    max_steps = int(getattr(settings, "max_steps", 0))
    env.close()
    if len(spec.observation.arrays) != 1 or not spec.observation.vector_names or not max_steps:
        raise ConfigError(
            "has no single vector that a behaviour could learn from", where=arguments.task
        )
    updates = max(1, round(arguments.frames / (arguments.envs * max_steps * frames_a_step)))
    if updates < arguments.levels:
        raise ConfigError(
            f"makes {updates} updates, fewer than {arguments.levels} levels",
            where="--frames",
            todo=f"give at least {arguments.levels * arguments.envs * max_steps * frames_a_step}",
        )
    config = replace(
        arguments.algo,
        total_updates=updates,
        cost_limit=arguments.cost_limit if kind == "safe" else None,
    )
    seeds = episode_seeds("behaviors", config.seed, updates * arguments.envs)
    pool = EnvPool(
        scene,
        spec.observation.vector_names[0],
        arguments.envs,
        min(arguments.workers, arguments.envs),
    )
    try:
        return train_behavior(
            kind,
            config,
            pool,
            lambda first, n: seeds[first : first + n],
            arguments.out / kind,
            task=arguments.task.replace("-", "_"),
            spec=spec,
            threads=arguments.threads,
            levels=arguments.levels,
            progress=progress,
        )
    finally:
        pool.close()


def describe(kind: str, report: BehaviorReport) -> str:
    """The one-line result."""
    done = report.step - report.resumed_at
    pace = f", {report.seconds / done:.2f} s each" if done else ""
    levels = "".join(f", {path.parent}" for path in report.levels)
    return (
        f"{kind}: {report.step} updates ({done} now{pace}), {report.steps} policy steps; episodes "
        f"of late: reward {report.reward:.1f}, cost {report.cost:.1f}; {report.path}{levels}"
    )

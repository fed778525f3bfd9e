"""The deployment without ROS: the same loop, filter, policy and files in this one process.

For machines without ROS wheels. The twin waits for the policy, so the latency table has the stages
of the computation and nothing of the transport.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_o2o import config as settings
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import EpisodeMeta
from safe_o2o.data.recorder import DirectRecorder
from safe_o2o.data.summary import EpisodeSummary
from safe_o2o.errors import MissingDependencyError
from safe_o2o.interfaces import Env
from safe_o2o.runtime.actors import PolicyActor
from safe_o2o.runtime.latency import StageLatency
from safe_o2o.runtime.live_policy import LivePolicy
from safe_o2o.runtime.rollout import rollout
from safe_o2o.runtime.rounds import RoundRunner, count_episodes
from safe_o2o.types import Array, Observation, Source

if TYPE_CHECKING:
    from safe_o2o.runtime.deployment import DeployConfig

STAGES = {"act": "inference", "propose": "ik", "observe": "camera_render"}
"""The environment's names for what the ROS graph's latency table calls otherwise."""


class _Actor(PolicyActor):
    """Keeps what the graph said beside each action."""

    def __init__(self, live: LivePolicy, deterministic: bool) -> None:
        super().__init__(live.policy, f"policy {live.version}", deterministic=deterministic)
        self.live = live
        self.outputs: list[dict[str, float]] = []

    def act(self, obs: Observation) -> tuple[Array, Source]:
        """See `Actor`."""
        chosen = super().act(obs)
        self.outputs.append(self.live.figures())
        return chosen


def twin_env(task: str, variant: str) -> Env:
    """The twin's environment, by name: the simulator is no dependency of the runtime.

    Raises:
        MissingDependencyError: the simulator is not installed.
    """
    try:
        module = importlib.import_module("safe_o2o_sim.make")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the twin needs the package {error.name!r}", todo="pip install 'safe_o2o[sim]'"
        ) from error
    env: Env = module.make_env(task, variant)
    return env


def run_in_process(
    run_dir: str | Path,
    config: DeployConfig,
    *,
    first_seed: int,
    progress: Callable[[int, int], None] | None = None,
    make_env: Callable[[str, str], Env] = twin_env,
) -> None:
    """Run episodes, and rounds of learning between them, until the run is complete.

    Args:
        run_dir: the run; episodes to `online`, figures to `deploy`.
        config: what to run.
        first_seed: seed of the next layout.
        progress: called with (committed episodes, wanted episodes).
        make_env: makes the environment from task and variant.

    Raises:
        BundleError: no bundle was promoted, or it belongs to another task.
    """
    run_dir = Path(run_dir)
    env = make_env(config.task, config.variant)
    try:
        assert config.bundles is not None  # a policy's; see DeployConfig
        live = LivePolicy(config.bundles, env.spec, gate=config.gate)
        dataset = Dataset.create(run_dir / "online", env.spec, task=config.task, exist_ok=True)
        learner = _learner(run_dir, config) if config.learner else None
        latency = StageLatency()
        seed = first_seed
        while True:
            while learner is not None and (index := learner.due()) is not None:
                learner.run(index)
            done = count_episodes(run_dir)
            if progress is not None:
                progress(min(done, config.total), config.total)
            if done >= config.total:
                break
            live.swap()
            _episode(run_dir, config, env, live, dataset, latency, seed)
            seed += 1
        if latency:
            latency.write(run_dir / "deploy" / "latency" / "process.json")
    finally:
        env.close()


def _learner(run_dir: Path, config: DeployConfig) -> RoundRunner:
    return RoundRunner(
        run_dir,
        episodes_per_round=config.episodes_per_round,
        rounds=config.rounds,
        fine_tuner=config.fine_tuner,
        config=settings.read(config.learner_config) if config.learner_config else None,
    )


def _episode(
    run_dir: Path,
    config: DeployConfig,
    env: Env,
    live: LivePolicy,
    dataset: Dataset,
    latency: StageLatency,
    seed: int,
) -> None:
    """One recorded episode, and its line in `episodes.jsonl`."""
    done = count_episodes(run_dir)
    number = done // config.episodes_per_round if config.learner else 0
    provenance = {**live.provenance, "round": number, "deployment": "process"}
    actor = _Actor(live, config.deterministic)
    index = max(dataset.indices(), default=-1) + 1
    summary: EpisodeSummary = rollout(
        env,
        actor,
        seed,
        DirectRecorder(dataset),
        meta=EpisodeMeta(config.task, config.variant, provenance=provenance),
        index=index,
    )
    _add_timings(latency, summary.timings, ticks=round(env.spec.action.period / 0.01))
    line: dict[str, Any] = {
        "episode": f"episode_{index:06d}.safetensors",
        "seed": seed,
        "bundle": live.version,
        "round": number,
        "outputs": actor.outputs,
        "refused": dict(live.refused),
    }
    with open(run_dir / "deploy" / "episodes.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def _add_timings(latency: StageLatency, timings: Mapping[str, Sequence[float]], ticks: int) -> None:
    for stage, name in STAGES.items():
        for seconds in timings.get(stage, ()):
            latency.add(name, seconds)
    for stage, name in (("certify", "filter"), ("write", "robot_write")):
        for seconds in timings.get(stage, ()):
            latency.add(name, seconds / ticks)  # the mean over a policy step's ticks

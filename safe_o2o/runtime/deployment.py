"""Deploy a policy bundle: on the twin as ROS processes or in this process, on a real arm over ROS.

Both ways leave the same files: committed episodes in `<run>/online`, `<run>/deploy/latency.json`,
and one line an episode in `<run>/deploy/episodes.jsonl`. Running it again goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from safe_o2o import catalog
from safe_o2o.config import require_positive
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.formats.bag_messages import require_rosbags
from safe_o2o.data.summary import EpisodeSummary
from safe_o2o.errors import ConfigError, MissingDependencyError, UnknownNameError
from safe_o2o.files import write_atomic
from safe_o2o.runtime.latency import read_summaries
from safe_o2o.runtime.process_group import (
    RANGE,
    DeploymentError,
    NodeSpec,
    ProcessGroup,
    free_domain,
    read_graph,
    ros_missing,
)
from safe_o2o.runtime.rounds import FINE_TUNER, RoundResult, count_episodes, read_rounds
from safe_o2o.safety.reachability_gate import GateMode

Progress = Callable[[int, int], None]
STALL_TIMEOUT = 120.0
"""No new episode of a twin and no round for so long: something hangs, s."""
Drive = Literal["policy", "demonstrate", "replay"]
FOLDERS: Mapping[Drive, str] = dict(policy="online", demonstrate="dataset", replay="replays")
"""Folder of a run that episodes go to, by who drives them: demonstrations are training data."""
REAL_NAMESPACE = "/safe_o2o"
"""Of a real arm's graph: the driver's own topics have none."""


@dataclass(frozen=True)
class DeployReport:
    """What a deployment came to.

    Attributes:
        ros: True when the ROS graph ran, False for the one-process fallback.
        cause: why it was the fallback, one line; `""` otherwise.
        episodes: one summary a committed episode of the run, oldest first.
        bundles: bundle version behind each episode.
        rounds: results of the learner.
        latency: per stage `n, p50_ms, p99_ms, max_ms`.
        speed: twin time per wall time that was reached while the arm moved.
        wall: duration of this call, s.
        dropped: episodes that were begun but not committed.
        learner_failed: the learner's last words when it died on the way; `""` otherwise.
        learner_restarts: how often it was started again after that.
        bags_failed: likewise, of whoever keeps the bags.
    """

    ros: bool
    cause: str
    episodes: tuple[EpisodeSummary, ...]
    bundles: tuple[str, ...]
    rounds: tuple[RoundResult, ...]
    latency: Mapping[str, Mapping[str, float]]
    speed: float
    wall: float
    dropped: int = 0
    learner_failed: str = ""
    learner_restarts: int = 0
    bags_failed: str = ""


@dataclass(frozen=True)
class DeployConfig:
    """What to deploy and how.

    Attributes:
        bundles: folder of versioned bundles, or one bundle; for a policy.
        drive: who drives the episodes: a policy, a person who demonstrates (with `takeover`), or a
            recorded episode. The last two over ROS only.
        episode: the recording to replay.
        task: catalogue name of the task.
        episodes: committed episodes wanted in the run's folder, without a learner.
        rounds: rounds of online learning; with a learner, `rounds * episodes_per_round` episodes.
        episodes_per_round: episodes before each fine-tuning.
        variant: scene variant.
        speed: twin time per wall time.
        seed: seed of the first layout.
        learner: fine-tune online.
        bags: beside each episode keep what passed on the topics, in RUN/bags.
        takeover: a person's device may take the arm from the policy; see `takeover_node`.
        deterministic: mean action.
        wait_for_learner: longest wait after a round before the actor goes on alone, s.
        gate: what a bundle's reachability gate does; see `GateMode`.
        fine_tuner: `"module:Class"` of the learner.
        learner_config: settings file for it.
        graph: `twin`, or `real`: an arm behind its own driver, whose operator begins and labels
            episodes. There task, variant, speed and seed are the parameter file's.
        use_mock_hardware: with `real`: no arm and no camera.
        params_file: parameters of the nodes; by default those that the graph comes with.
        parameters: further ROS parameters by node name; these win.
    """

    bundles: Path | None = None
    drive: Drive = "policy"
    episode: Path | None = None
    task: str = "safe_reach"
    episodes: int = 10
    rounds: int = 0
    episodes_per_round: int = 10
    variant: str = "standard"
    speed: float = 8.0
    seed: int = 0
    learner: bool = False
    bags: bool = False
    takeover: bool = False
    deterministic: bool = True
    wait_for_learner: float = 300.0
    gate: GateMode = "on"
    fine_tuner: str = FINE_TUNER
    learner_config: Path | None = None
    graph: Literal["twin", "real"] = "twin"
    use_mock_hardware: bool = False
    params_file: Path | None = None
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("episodes", "rounds", "seed", "wait_for_learner"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"must be 0 or more, got {getattr(self, name)}", where=name)
        require_positive(self, "episodes_per_round", "speed")
        if self.task.replace("-", "_") not in catalog.tasks:
            raise UnknownNameError("task", self.task, catalog.tasks)
        if self.use_mock_hardware and self.graph != "real":
            raise ConfigError("is for a real arm's graph", where="use_mock_hardware")

        for needed, where, drive in (
            (self.bundles, "bundles", "policy"),
            (self.takeover, "takeover", "demonstrate"),
            (self.episode, "episode", "replay"),
        ):
            if self.drive == drive and not needed:
                raise ConfigError("is needed", where=where)
        if self.learner and self.drive != "policy":
            raise ConfigError("learns from a policy's episodes", where="learner")

    @property
    def folder(self) -> str:
        """Folder of the run that its episodes go to."""
        return FOLDERS[self.drive]

    @property
    def over_ros(self) -> str:
        """The setting that cannot be had in one process; `""` without one."""
        asked = dict(bags=self.bags, takeover=self.takeover, drive=self.drive != "policy")
        return next((name for name, given in asked.items() if given), "")

    @property
    def total(self) -> int:
        """Committed episodes wanted in the run."""
        return self.rounds * self.episodes_per_round if self.learner else self.episodes


def deploy(
    run_dir: str | Path,
    *,
    bundles: str | Path | None = None,
    episodes: int = 10,
    rounds: int = 0,
    episodes_per_round: int = 10,
    variant: str = "standard",
    speed: float = 8.0,
    seed: int = 0,
    ros: bool | None = None,
    learner: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> DeployReport:
    """Run a policy through the safety filter until the run has the wanted episodes.

    Args:
        run_dir: the run; see the module.
        bundles: folder of versioned bundles, or one bundle; a policy needs them.
        episodes: committed episodes wanted, without a learner.
        rounds: rounds of online learning, with one.
        episodes_per_round: episodes before each fine-tuning.
        variant: scene variant.
        speed: twin time per wall time (ROS only; in one process the twin waits for nobody).
        seed: seed of the first layout.
        ros: True insists on the ROS graph, False on one process, None takes what is there.
        learner: fine-tune online.
        progress: called with (committed episodes, wanted episodes).
        settings: further fields of `DeployConfig`, `task` among them.

    Raises:
        UnknownNameError: no such task.
        MissingDependencyError: `ros=True`, and ROS is not there; or `bags` without rosbags.
        ConfigError: `bags`, `takeover` or another `drive` than a policy in one process.
        DeploymentError: a node that the graph needs died, or nothing happened for two minutes.
        BundleError: there is no usable bundle.
    """
    config = DeployConfig(
        bundles=None if bundles is None else Path(bundles).resolve(),
        episodes=episodes,
        rounds=rounds,
        episodes_per_round=episodes_per_round,
        variant=variant,
        speed=speed,
        seed=seed,
        learner=learner,
        **settings,
    )
    run_dir = Path(run_dir).resolve()
    (run_dir / "deploy").mkdir(parents=True, exist_ok=True)
    missing = ros_missing()
    if ros and missing:
        raise MissingDependencyError(missing, where="--ros")
    if config.graph != "real" and (alone := _without_robot(config.task)):
        if ros:
            raise ConfigError(alone, where="--ros", todo="leave it out, or --ros no")
        missing = missing or alone
    if config.graph == "real" and (missing or ros is False):
        raise MissingDependencyError(missing or "a real arm is reached over ROS 2", where="graph")
    if config.over_ros and (missing or ros is False):
        raise ConfigError(
            "there are no topics in one process", where=config.over_ros, todo="deploy over ROS 2"
        )
    if config.bags:
        require_rosbags("writing bags")
    start = time.perf_counter()
    fates: dict[str, _Fate] = {}
    if not _complete(run_dir, config):
        if ros is not False and not missing:
            fates = _run_graph(run_dir, config, progress)
        else:
            from safe_o2o.runtime.local_deployment import run_in_process

            run_in_process(
                run_dir, config, first_seed=next_seed(run_dir, config), progress=progress
            )
    cause = "" if ros is not False and not missing else (missing or "asked for one process")
    wall = time.perf_counter() - start
    report = read_report(run_dir, cause=cause, wall=wall, folder=config.folder)
    trained = fates.get("learner_node", _Fate())
    return replace(
        report,
        learner_failed=trained.failed,
        learner_restarts=trained.restarts,
        bags_failed=fates.get("bag_node", _Fate()).failed,
    )


def _without_robot(task: str) -> str:
    """Why a task has no graph, `""` where it has one: it is an environment by itself."""
    made = catalog.load("task", task)
    return f"{task} has no robot that a graph could drive" if hasattr(made, "step") else ""


@dataclass
class _Fate:
    """What became of a node that the run can do without."""

    failed: str = ""
    restarts: int = 0


def _complete(run_dir: Path, config: DeployConfig) -> bool:
    return _learned(run_dir, config) and _recorded(run_dir, config) >= config.total


def _recorded(run_dir: Path, config: DeployConfig) -> int:
    return count_episodes(run_dir, config.folder)


def _learned(run_dir: Path, config: DeployConfig) -> bool:
    return not config.learner or len(read_rounds(run_dir)) >= config.rounds


def next_seed(run_dir: Path, config: DeployConfig) -> int:
    """Seed of the next layout: one after the largest of the committed episodes."""
    if not _recorded(run_dir, config):
        return config.seed
    recorded = Dataset(run_dir / config.folder)
    return max(config.seed - 1, *(episode.meta.seed for episode in recorded)) + 1


def graph_parameters(
    run_dir: Path, config: DeployConfig, defaults: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Parameters of every node: the file's, then this deployment's, then the caller's."""
    driving = {
        "run_dir": str(run_dir),
        "episodes": max(0, config.total - _recorded(run_dir, config)),
        "exit_when_done": True,
    }
    ours: dict[str, dict[str, Any]] = {
        "robot_node": {
            "takeover": config.takeover,
            **(_twin_parameters(run_dir, config) if config.graph == "twin" else {}),
        },
        "camera_node": {"camera": "mock"} if config.use_mock_hardware else {},
        "demonstration_node": driving,
        "replay_node": {**driving, "episode": str(config.episode or "")},
        "policy_node": {
            **driving,
            "bundles": str(config.bundles or ""),
            "deterministic": config.deterministic,
            "gate": config.gate,
            "episodes_per_round": config.episodes_per_round if config.learner else 0,
            "wait_for_learner": float(config.wait_for_learner if config.learner else 0.0),
        },
        "recorder_node": {"run_dir": str(run_dir), "folder": config.folder},
        "bag_node": {"run_dir": str(run_dir)},
        "learner_node": {
            "run_dir": str(run_dir),
            "episodes_per_round": config.episodes_per_round,
            "rounds": config.rounds,
            "fine_tuner": config.fine_tuner,
            "config_file": str(config.learner_config or ""),
        },
    }
    shared = {"latency_dir": str(run_dir / "deploy" / "latency")}
    return {
        name: {**shared, **block, **ours.get(name, {}), **config.parameters.get(name, {})}
        for name, block in defaults.items()
    }


def _twin_parameters(run_dir: Path, config: DeployConfig) -> dict[str, Any]:
    return {
        "task": config.task,
        "variant": config.variant,
        "first_seed": config.seed if config.drive == "replay" else next_seed(run_dir, config),
        "speed": float(config.speed),
    }


@contextlib.contextmanager
def _processes(
    run_dir: Path,
    config: DeployConfig,
    nodes: tuple[NodeSpec, ...],
    parameters: Mapping[str, Mapping[str, Any]],
) -> Iterator[ProcessGroup]:
    """The graph's processes: a twin's among themselves, others where driver or device are."""
    real, folder = config.graph == "real", run_dir / "deploy"
    if not (real or config.takeover):
        with free_domain() as domain, ProcessGroup(nodes, parameters, folder, domain) as group:
            yield group
        return
    domain = int(os.environ.get("ROS_DOMAIN_ID") or 0)
    reach = {RANGE: os.environ.get(RANGE, "SUBNET" if real else "LOCALHOST")}
    namespace = REAL_NAMESPACE if real else "/"
    with ProcessGroup(nodes, parameters, folder, domain, reach, namespace) as group:
        yield group


def _run_graph(run_dir: Path, config: DeployConfig, progress: Progress | None) -> dict[str, _Fate]:
    """Run the ROS graph until the node that drives it is done.

    A learner that was killed is started again, beside an actor that goes on meanwhile; so is
    whoever keeps the bags.

    Returns:
        What became of the nodes that are not required, by name.
    """
    graph, defaults = read_graph(config.graph, config.params_file)
    nodes = tuple(node for node in graph.nodes if node.wanted(config))
    parameters = graph_parameters(run_dir, config, defaults)
    watch = _Watch(run_dir, config, progress)
    actor_done: float | None = None
    by_name = {node.name: node for node in nodes}
    fates = {node.name: _Fate() for node in nodes if not (node.required or node.drives)}
    learner = fates.get("learner_node", _Fate())
    with _processes(run_dir, config, nodes, parameters) as group:
        while True:
            ended = group.wait(0.2)
            watch.look(group)
            if ended is not None:
                node, code = by_name[ended], group.processes[ended].returncode
                if node.drives and code == 0:
                    actor_done = time.monotonic()
                elif node.required or node.drives:
                    group.require(ended)
                elif code < 0 and fates[ended].restarts < node.restarts:
                    fates[ended].restarts += 1
                    group.start(node)
                else:  # the actor goes on with the last good bundle
                    fates[ended].failed = group.last_words(ended)
            if actor_done is not None:
                # Whoever was started again may be behind with the last round.
                behind = bool(learner.restarts) and not learner.failed
                behind &= not _learned(run_dir, config)
                if not behind or time.monotonic() > actor_done + config.wait_for_learner:
                    return fates


class _Watch:
    """Reports committed episodes, and notices when nothing happens any more."""

    def __init__(self, run_dir: Path, config: DeployConfig, progress: Progress | None) -> None:
        self.run_dir, self.config, self.progress = run_dir, config, progress
        self.seen = (-1, -1)
        self.changed = time.monotonic()

    def look(self, group: ProcessGroup) -> None:
        """Look at the disk once.

        Raises:
            DeploymentError: nothing has changed for too long; says what who drives said last.
        """
        seen = (_recorded(self.run_dir, self.config), len(read_rounds(self.run_dir)))
        now = time.monotonic()
        if seen != self.seen:
            if self.progress is not None and seen[0] != self.seen[0]:
                self.progress(min(seen[0], self.config.total), self.config.total)
            self.seen, self.changed = seen, now
        patience = STALL_TIMEOUT + (self.config.wait_for_learner if self.config.learner else 0.0)
        waits_for_people = self.config.graph == "real" or self.config.drive == "demonstrate"
        if not waits_for_people and now - self.changed > patience:
            said = [f"{n.name}: {group.last_words(n.name)}" for n in group.nodes if n.drives]
            raise DeploymentError(
                f"no new episode for {patience:.0f} s ({'; '.join(said)})",
                todo=f"see {self.run_dir / 'deploy' / 'logs'}",
            )


def read_report(
    run_dir: str | Path, *, cause: str = "", wall: float = 0.0, folder: str = "online"
) -> DeployReport:
    """What a run directory says about its deployment; also writes the merged `latency.json`."""
    run_dir = Path(run_dir)
    episodes = run_dir / folder
    recorded = list(Dataset(episodes)) if (episodes / "dataset.json").exists() else []
    latency = read_summaries(run_dir / "deploy" / "latency")
    if latency:
        text = json.dumps(latency, indent=2) + "\n"
        write_atomic(run_dir / "deploy" / "latency.json", text.encode())
    lines = read_episode_lines(run_dir)
    figures = [line for line in lines if line.get("speed")]
    return DeployReport(
        ros=not cause,
        cause=cause,
        episodes=tuple(EpisodeSummary.from_episode(episode) for episode in recorded),
        bundles=tuple(str(e.meta.provenance.get("bundle", "")) for e in recorded),
        rounds=tuple(read_rounds(run_dir)),
        latency=latency,
        speed=float(figures[-1]["speed"]) if figures else 0.0,
        wall=wall,
        dropped=int(lines[-1].get("dropped_episodes", 0)) if lines else 0,
    )


def read_episode_lines(run_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of `deploy/episodes.jsonl`; a torn last line is left out."""
    path = Path(run_dir) / "deploy" / "episodes.jsonl"
    if not path.exists():
        return []
    lines: list[dict[str, Any]] = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines

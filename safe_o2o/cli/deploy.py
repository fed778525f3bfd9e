"""`safe-o2o deploy`: run a bundle through the safety filter, on the twin or on a real arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safe_o2o.cli import console
from safe_o2o.cli.parse import parse
from safe_o2o.cli.seeds import episode_seeds
from safe_o2o.data.dataset import Dataset
from safe_o2o.runtime.deployment import DeployReport, deploy
from safe_o2o.safety.reachability_gate import GateMode
from safe_o2o.training.evaluate import summarize


@dataclass(frozen=True, kw_only=True)
class Where:
    """Which arm, for every verb that moves one.

    Attributes:
        graph: `twin`, or `real`: an arm behind its own ROS 2 driver. Nothing moves there before a
            person calls `/safe_o2o/robot_node/arm`.
        mock: `yes` with `--graph real`: a mock driver and a mock camera.
        params_file: parameters of the nodes; copy launch/params/real.yaml and measure your cell.
    """

    graph: Literal["twin", "real"] = "twin"
    mock: Literal["yes", "no"] = "no"
    params_file: Path | None = None

    def where(self) -> dict[str, Any]:
        """The same as settings of `deploy`."""
        return {
            "graph": self.graph,
            "use_mock_hardware": self.mock == "yes",
            "params_file": self.params_file,
        }


@dataclass(frozen=True)
class Arguments(Where):
    """Run a policy until the run has so many recorded episodes.

    Attributes:
        run: the run's folder; episodes go to RUN/online, latencies to RUN/deploy/latency.json.
        bundles: a bundle or a folder of versions (default: RUN/bundles).
        episodes: recorded episodes wanted in all.
        task: catalogue name of the task (default: that of RUN/dataset, else safe_reach).
        variant: scene variant.
        speed: twin time per wall time; 1 is real time.
        seed: which layouts; collected and evaluated episodes never share them.
        ros: `yes` insists on the ROS graph, `no` on one process, `auto` takes what is there.
        bags: `yes` keeps what passed on the topics beside each episode, in RUN/bags (ROS graph).
        takeover: `yes` lets a person's device take the arm from the policy (ROS graph); which one,
            and how, says `takeover_node` in the parameter file.
        gate: the bundle's reachability gate: `on`; `shadow`, it decides and does nothing; or `off`.
    """

    run: Path
    bundles: Path | None = None
    episodes: int = 10
    task: str | None = None
    variant: str = "standard"
    speed: float = 1.0
    seed: int = 0
    ros: str = "auto"
    bags: Literal["yes", "no"] = "no"
    takeover: Literal["yes", "no"] = "no"
    gate: GateMode = "on"


def main(argv: Sequence[str]) -> None:
    """Deploy, then say in one line what came of it."""
    arguments = parse(Arguments, argv, verb="deploy")
    with console.progress("deploying") as progress:
        report = deploy(
            arguments.run,
            bundles=arguments.bundles or arguments.run / "bundles",
            episodes=arguments.episodes,
            task=task_of(arguments.run, arguments.task),
            variant=arguments.variant,
            speed=arguments.speed,
            seed=episode_seeds("online", arguments.seed, 1)[0],
            ros=ros_choice(arguments.ros),
            bags=arguments.bags == "yes",
            takeover=arguments.takeover == "yes",
            gate=arguments.gate,
            **arguments.where(),
            progress=progress,
        )
    print(describe(report))


def task_of(run: Path, named: str | None) -> str:
    """The named task, or that of the run's offline data, or `safe_reach`.

    Raises:
        DataError: the run's dataset is damaged.
    """
    if named is not None:
        return named
    dataset = run / "dataset"
    return Dataset(dataset).task if (dataset / "dataset.json").exists() else "safe_reach"


def ros_choice(text: str) -> bool | None:
    """`yes`, `no` or `auto`.

    Raises:
        ConfigError: anything else.
    """
    from safe_o2o.errors import ConfigError

    choices = {"yes": True, "no": False, "auto": None}
    if text not in choices:
        raise ConfigError(f"must be yes, no or auto, got {text!r}", where="--ros")
    return choices[text]


def describe(report: DeployReport, did: str = "deployed") -> str:
    """The one-line result."""
    how = f"ROS 2 graph, {report.speed:.1f} x real time" if report.ros else "one process"
    if report.cause:
        how += f" ({report.cause})"
    if not report.episodes:
        return f"{did} over {how}: no episode recorded"
    figures = summarize(list(report.episodes))
    stages = [
        f"{stage} {values['p50_ms']:.1f}/{values['p99_ms']:.1f}"
        for stage, values in report.latency.items()
    ]
    stages = stages or ["-"]
    died = f"; who keeps the bags died: {report.bags_failed}" if report.bags_failed else ""
    return (
        f"{did} over {how}: {figures['n']} episodes, success "
        f"{100 * figures['success']['rate']:.0f} %, violation "
        f"{100 * figures['violation']['rate']:.0f} %; p50/p99 in ms: {', '.join(stages)}{died}"
    )

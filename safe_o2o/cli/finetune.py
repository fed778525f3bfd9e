"""`safe-o2o finetune`: rounds of episodes and training in a scene the policy has never seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safe_o2o import config
from safe_o2o.cli import console
from safe_o2o.cli.deploy import ros_choice, task_of
from safe_o2o.cli.parse import parse
from safe_o2o.cli.seeds import episode_seeds
from safe_o2o.files import write_atomic
from safe_o2o.runtime.deployment import DeployReport, deploy
from safe_o2o.training.finetune import FineTunerConfig

Progress = console.Progress


@dataclass(frozen=True)
class Arguments:
    """Deploy, record, train, promote, swap; a killed run is resumed by the same command.

    Attributes:
        run: a run with dataset, checkpoints and bundles in it.
        rounds: rounds of episodes, each followed by training.
        episodes_per_round: episodes before each training.
        task: catalogue name of the task (default: that of RUN/dataset, else safe_reach).
        variant: scene variant.
        speed: twin time per wall time.
        deterministic: the mean action in the rounds too, without the policy's own noise: a policy
            that stands still at a wrong place then never learns what lies beside it.
        seed: which layouts.
        ros: `yes` insists on the ROS graph, `no` on one process, `auto` takes what is there.
        learner: how the learner trains and what a bundle must show to go live.
    """

    run: Path
    rounds: int = 4
    episodes_per_round: int = 10
    task: str | None = None
    variant: str = "colour"
    speed: float = 8.0
    deterministic: bool = False
    seed: int = 0
    ros: str = "auto"
    learner: FineTunerConfig = field(default_factory=FineTunerConfig)


def main(argv: Sequence[str]) -> None:
    """Fine-tune, then say round by round what came of it."""
    arguments = parse(Arguments, argv, verb="finetune")
    with console.progress("fine-tuning") as progress:
        report = finetune(arguments, progress)
    print("\n".join(describe(report, arguments.episodes_per_round)))


def finetune(arguments: Arguments, progress: Progress | None = None) -> DeployReport:
    """Run the graph with a learner until all rounds are done."""
    folder = arguments.run / "finetune"
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "config.json"
    write_atomic(settings, json.dumps(config.to_json(arguments.learner), indent=1).encode())
    return deploy(
        arguments.run,
        bundles=arguments.run / "bundles",
        rounds=arguments.rounds,
        episodes_per_round=arguments.episodes_per_round,
        task=task_of(arguments.run, arguments.task),
        variant=arguments.variant,
        speed=arguments.speed,
        deterministic=arguments.deterministic,
        seed=episode_seeds("online", arguments.seed, 1)[0],
        ros=ros_choice(arguments.ros),
        learner=True,
        learner_config=settings,
        progress=progress,
    )


def describe(report: DeployReport, size: int) -> list[str]:
    """One line a round: success, violation, which bundle acted, what became of the new one."""
    lines = []
    for start in range(0, len(report.episodes), size):
        part = report.episodes[start : start + size]
        number = start // size
        bundle = report.bundles[start] if start < len(report.bundles) else "?"
        line = (
            f"round {number + 1} with {bundle}: success {sum(e.success for e in part)}/{len(part)},"
            f" violation {sum(e.violation for e in part)}/{len(part)}"
        )
        if number < len(report.rounds):
            result = report.rounds[number]
            became = result.bundle or f"no new bundle: {result.refusal}"
            line += f" -> {became} ({result.seconds:.0f} s)"
        lines.append(line)
    if report.learner_restarts:
        again = "once" if report.learner_restarts == 1 else f"{report.learner_restarts} times"
        lines.append(f"the learner was killed and started again {again}")
    if report.learner_failed:
        lines.append(f"the learner died: {report.learner_failed}")
    return lines

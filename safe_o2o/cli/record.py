"""`safe-o2o record`: a person demonstrates on the twin or a real arm; training data come of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safe_o2o.cli import console
from safe_o2o.cli.deploy import Where, describe, task_of
from safe_o2o.cli.parse import parse
from safe_o2o.cli.seeds import episode_seeds
from safe_o2o.runtime.deployment import deploy


@dataclass(frozen=True)
class Arguments(Where):
    """Record demonstrations until the run's dataset has so many episodes; needs ROS 2.

    A person moves the arm with a SpaceMouse, a gamepad, a keyboard or a leader arm; which, says
    `takeover_node` in the parameter file. An episode begins with the first motion.

    Attributes:
        run: the run's folder; episodes go to RUN/dataset, where `train` finds them.
        episodes: episodes in all, those already there included.
        task: catalogue name of the task (default: that of RUN/dataset, else safe_reach).
        variant: scene variant.
        seed: which layouts; evaluated and online episodes never share them.
        bags: `yes` keeps what passed on the topics beside each episode, in RUN/bags.
    """

    run: Path
    episodes: int = 50
    task: str | None = None
    variant: str = "standard"
    seed: int = 0
    bags: Literal["yes", "no"] = "no"


def main(argv: Sequence[str]) -> None:
    """Record, then say in one line what came of it."""
    arguments = parse(Arguments, argv, verb="record")
    with console.progress("recording") as progress:
        report = deploy(
            arguments.run,
            drive="demonstrate",
            takeover=True,
            ros=True,
            speed=1.0,
            episodes=arguments.episodes,
            task=task_of(arguments.run, arguments.task),
            variant=arguments.variant,
            seed=episode_seeds("collect", arguments.seed, 1)[0],
            bags=arguments.bags == "yes",
            **arguments.where(),
            progress=progress,
        )
    print(describe(report, "recorded"))

"""`safe-o2o operate [RUN]`: an operator's console: arm, begin, label, stop and drive by keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from safe_o2o.cli.beside import run_beside
from safe_o2o.cli.parse import parse


@dataclass(frozen=True)
class Arguments:
    """Arm, begin, label, stop and drive by single keys, in a terminal of its own: until `q`.

    Attributes:
        run: a run that `deploy`, `record` or `finetune` is at; without one, the ROS domain that is
            set.
        namespace: of the graph, where no run is given; `/safe_o2o` is that of `real.launch.py`.
        robot: node that moves the arm.
        device_topic: where `takeover_node` listens; its device has to be `twist`.
        full: what the keys say there, `takeover_node`'s own `full`.
    """

    run: Annotated[Path | None, tyro.conf.arg(metavar="RUN"), tyro.conf.Positional] = None
    namespace: str = "/"
    robot: str = "robot_node"
    device_topic: str = "/spacenav/twist"
    full: float = 0.7


def main(argv: Sequence[str]) -> int:
    """Operate."""
    arguments = parse(Arguments, argv, verb="operate")
    words = ["--robot", arguments.robot, "--device-topic", arguments.device_topic]
    words += ["--full", str(arguments.full)]
    return run_beside(
        "safe_o2o_ros.operate", arguments.run, arguments.namespace, words, verb="operate"
    )

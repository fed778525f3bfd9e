"""`safe-o2o watch [RUN]`: a running graph at a glance, in the terminal and in the Rerun viewer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from safe_o2o.cli.parse import parse
from safe_o2o.errors import DataError, MissingDependencyError
from safe_o2o.runtime.process_group import (
    GRAPH_FILE,
    RANGE,
    launch_folder,
    ros_missing,
    where_it_runs,
)

CLOSING = 10.0
"""Longest that the picture's process may take to write what it has, s."""


@dataclass(frozen=True)
class Arguments:
    """Who is well, may the arm move, what does the filter do: until Ctrl-C.

    Attributes:
        run: a run that `deploy` or `finetune` is at; without one, the ROS domain that is set.
        namespace: of the graph, where no run is given; `/safe_o2o` is that of `real.launch.py`.
        once: one picture; the exit code is 1 where something is wrong.
        rerun: also stream to the Rerun viewer: `viewer` starts one, `FILE.rrd` is written to be
            opened later, `rerun+http://HOST:9876/proxy` is one that runs already.
    """

    run: Annotated[Path | None, tyro.conf.arg(metavar="RUN"), tyro.conf.Positional] = None
    namespace: str = "/"
    once: bool = False
    rerun: str = ""


def main(argv: Sequence[str]) -> int:
    """Watch; the picture is made by a process of its own, which may speak ROS."""
    arguments = parse(Arguments, argv, verb="watch")
    if missing := ros_missing():
        raise MissingDependencyError(missing, where="watch")
    environment, namespace = dict(os.environ), arguments.namespace
    if arguments.run is not None:
        found = where_it_runs(arguments.run)
        if found is None:
            raise DataError(
                f"has no {GRAPH_FILE}: no graph runs there",
                where=arguments.run,
                todo="start one with `safe-o2o deploy`, or watch without a run",
            )
        environment |= {"ROS_DOMAIN_ID": str(found.domain), RANGE: found.reach}
        namespace = found.namespace
    profile = launch_folder() / "dds" / "quick_discovery.xml"
    environment.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(profile))
    command = [sys.executable, "-m", "safe_o2o_ros.watch", "--namespace", namespace]
    command += ["--once"] if arguments.once else []
    command += ["--rerun", arguments.rerun] if arguments.rerun else []
    process = subprocess.Popen(command, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)  # a terminal has told it already; `kill` has not
    try:
        return process.wait(CLOSING)
    except subprocess.TimeoutExpired:
        process.kill()
        raise

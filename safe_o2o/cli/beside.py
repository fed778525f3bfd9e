"""A process beside a running graph, which may speak ROS: for `watch` and `operate`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from safe_o2o.errors import DataError, MissingDependencyError
from safe_o2o.runtime.process_group import (
    GRAPH_FILE,
    RANGE,
    launch_folder,
    ros_missing,
    where_it_runs,
)

CLOSING = 10.0
"""Longest that it may take to write what it has, s."""


def run_beside(
    module: str, run: Path | None, namespace: str, words: Sequence[str], *, verb: str
) -> int:
    """Run a module of the ROS package where a graph runs, in this terminal.

    Args:
        module: `python -m` this.
        run: a run that has a graph; None is the ROS domain that is set.
        namespace: of the graph, where no run is given.
        words: further arguments.
        verb: who asks, for messages.

    Returns:
        Its exit code; 1 where it did not end in time after Ctrl-C.

    Raises:
        MissingDependencyError: there is no ROS here.
        DataError: no graph runs there.
    """
    if missing := ros_missing():
        raise MissingDependencyError(missing, where=verb)
    environment = dict(os.environ)
    if run is not None:
        found = where_it_runs(run)
        if found is None:
            raise DataError(
                f"has no {GRAPH_FILE}: no graph runs there",
                where=run,
                todo=f"start one with `safe-o2o deploy`, or {verb} without a run",
            )
        environment |= {"ROS_DOMAIN_ID": str(found.domain), RANGE: found.reach}
        namespace = found.namespace
    profile = launch_folder() / "dds" / "quick_discovery.xml"
    environment.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(profile))
    command = [sys.executable, "-m", module, "--namespace", namespace, *words]
    process = subprocess.Popen(command, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)  # a terminal has told it already; `kill` has not
    try:
        return process.wait(CLOSING)
    except subprocess.TimeoutExpired:
        process.kill()
        return 1

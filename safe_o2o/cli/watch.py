"""`safe-o2o watch [RUN]`: a running graph at a glance, in the terminal and in the Rerun viewer."""

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
    """Watch."""
    arguments = parse(Arguments, argv, verb="watch")
    words = ["--once"] if arguments.once else []
    words += ["--rerun", arguments.rerun] if arguments.rerun else []
    return run_beside("safe_o2o_ros.watch", arguments.run, arguments.namespace, words, verb="watch")

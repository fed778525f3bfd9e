"""`safe-o2o replay EPISODE`: a recorded episode once more, open loop and through the filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from safe_o2o.cli.deploy import Where, describe
from safe_o2o.cli.parse import parse
from safe_o2o.data.dataset import Dataset
from safe_o2o.runtime.deployment import FOLDERS, deploy
from safe_o2o.runtime.recording import Recording
from safe_o2o.runtime.rounds import count_episodes


@dataclass(frozen=True)
class Arguments(Where):
    """Move an arm, or the twin, as it moved in a recording, each command through the filter.

    Shows whether a cell is still what it was: same start, same way? What a filter would have made
    of a recording, without moving anything, says `safe-o2o data replay`. The twin lays the
    recording's scene out; at a real arm a person does, and calls `/safe_o2o/robot_node/begin`.
    Needs ROS 2.

    Attributes:
        episode: an episode file.
        run: the run's folder; what happens goes to RUN/replays (default: that of the episode).
        speed: twin time per wall time; 1 is real time.
    """

    episode: Annotated[Path, tyro.conf.arg(metavar="EPISODE"), tyro.conf.Positional]
    run: Path | None = None
    speed: float = 1.0


def main(argv: Sequence[str]) -> None:
    """Replay, then say how near it came."""
    arguments = parse(Arguments, argv, verb="replay")
    recording = Recording(arguments.episode)
    path, meta = recording.episode.path.resolve(), recording.episode.meta
    run = arguments.run or path.parent.parent
    before = count_episodes(run, FOLDERS["replay"])
    report = deploy(
        run,
        drive="replay",
        episode=path,
        ros=True,
        speed=arguments.speed,
        episodes=before + 1,
        task=meta.task,
        variant=meta.variant,
        seed=meta.seed,
        **arguments.where(),
    )
    print(describe(report, "replayed"))
    print(compare(recording, Recording(list(Dataset(run / FOLDERS["replay"]))[-1].path)))


def compare(recording: Recording, replay: Recording) -> str:
    """One line: how far the tool was from the recording's way, step by step."""
    gap = recording.gaps(replay)
    filtered = int((np.asarray(replay.episode.array("verdict")) > 0).sum())
    return (
        f"{len(replay)} of {len(recording)} steps: the tool was at most {1e3 * gap.max():.1f} mm "
        f"from the recording's way and ended {1e3 * gap[-1]:.1f} mm from it; the filter changed "
        f"{filtered} steps"
    )

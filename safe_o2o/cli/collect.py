"""`safe-o2o collect`: record episodes of scripted behaviours, mixed one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safe_o2o import config
from safe_o2o.cli import console
from safe_o2o.cli.actors import MIXTURE, BehaviorMaker, SceneMaker
from safe_o2o.cli.parse import parse
from safe_o2o.cli.seeds import episode_seeds
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import EpisodeMeta
from safe_o2o.data.summary import EpisodeSummary
from safe_o2o.runtime.rollout import run_episodes
from safe_o2o.training.evaluate import summarize_by_behavior


@dataclass(frozen=True)
class Arguments:
    """Record episodes of behaviours; repeated, it goes on where it was.

    Attributes:
        out: the dataset's folder; made when missing, filled up when begun.
        episodes: episodes in all, those already there included.
        task: catalogue name of the task.
        variant: scene variant of the task.
        behaviors: who acts, separated by commas; they take turns, episode by episode. Scripted ones
            go by their names, trained ones (`safe-o2o behaviors`) by their folders.
        seed: which layouts; evaluation and online episodes never share them.
        workers: processes; 0 runs everything in this one.
    """

    out: Path
    episodes: int = 600
    task: str = "safe_reach"
    variant: str = "standard"
    behaviors: str = ",".join(MIXTURE)
    seed: int = 0
    workers: int = 2


def main(argv: Sequence[str]) -> None:
    """Record, then say in one line a behaviour what came of it."""
    arguments = parse(Arguments, argv, verb="collect")
    with console.progress("collecting") as progress:
        episodes = collect(arguments, progress)
    print(describe(arguments.out, episodes))


def collect(arguments: Arguments, progress: console.Progress | None = None) -> list[EpisodeSummary]:
    """Record what is missing of the asked-for episodes.

    Args:
        arguments: see `Arguments`.
        progress: called with (episodes done, in all).

    Returns:
        Summaries of all episodes asked for, in order, the recorded ones included.

    Raises:
        UnknownNameError: no such task or behaviour.
        DataError, SpecMismatchError: the folder holds another dataset.
        StorageError: the disk refused.
    """
    seeds = episode_seeds("collect", arguments.seed, arguments.episodes)
    scene = SceneMaker(arguments.task, arguments.variant)
    actors = BehaviorMaker(tuple(name.strip() for name in arguments.behaviors.split(",")))
    dataset = Dataset.create(
        arguments.out,
        scene.spec(),
        task=arguments.task,
        provenance={"collect": config.to_json(arguments)},
        exist_ok=True,
    )
    return run_episodes(
        scene,
        actors,
        seeds,
        workers=arguments.workers,
        dataset=dataset,
        meta=EpisodeMeta(arguments.task, arguments.variant),
        progress=progress,
    )


def describe(directory: Path, episodes: Sequence[EpisodeSummary]) -> str:
    """The one-line result: success and violation of each behaviour, and the dataset's hash."""
    parts = [
        f"{name} {100 * figures['success']['rate']:.0f}/{100 * figures['violation']['rate']:.0f}"
        for name, figures in summarize_by_behavior(episodes).items()
    ]
    dataset = Dataset(directory)
    steps = sum(episode.length for episode in episodes)
    return (
        f"collected {len(episodes)} episodes, {steps} steps; success/violation in %: "
        f"{', '.join(parts)}; {directory}, hash {dataset.content_hash()[:16]}"
    )

"""`safe-o2o evaluate WHO ...`: run policies and behaviours on fresh layouts and count."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from safe_o2o.cli import console
from safe_o2o.cli.actors import SceneMaker, looks, resolve
from safe_o2o.cli.parse import parse
from safe_o2o.cli.seeds import episode_seeds
from safe_o2o.data.episode import EpisodeMeta
from safe_o2o.data.summary import EpisodeSummary
from safe_o2o.errors import ConfigError
from safe_o2o.files import storage_error, write_atomic
from safe_o2o.runtime.rollout import MakeActor, run_episodes
from safe_o2o.safety.reachability_gate import GateMode
from safe_o2o.training.evaluate import summarize


@dataclass(frozen=True)
class Arguments:
    """Run policies and behaviours on fresh layouts; all of them meet the same ones.

    Attributes:
        who: any of: a bundle, a folder of bundles (the live one), a checkpoint, a folder of
            checkpoints (the newest), a behaviour's name, `mixture` (expert, unsafe and random in
            turn), `uniform` (independent uniform actions).
        out: the run's folder; results go to OUT/eval/NAME.json.
        name: what to call the result, where only one is evaluated.
        episodes: episodes for each of them.
        task: catalogue name of the task.
        variant: scene variant of the task.
        seed: which layouts; collected and online episodes never share them.
        workers: processes; 0 runs everything in this one.
        gate: a bundle's reachability gate: `on`; `shadow`, it decides and does nothing; or `off`.
    """

    who: Annotated[tuple[str, ...], tyro.conf.arg(metavar="WHO ..."), tyro.conf.Positional]
    out: Path
    name: str | None = None
    episodes: int = 100
    task: str = "safe_reach"
    variant: str = "standard"
    seed: int = 0
    workers: int = 2
    gate: GateMode = "on"


def main(argv: Sequence[str]) -> None:
    """Evaluate one after the other; one line each."""
    arguments = parse(Arguments, argv, verb="evaluate")
    if not arguments.who:
        raise ConfigError("names nobody to evaluate", where="evaluate", todo="see --help")
    if arguments.name is not None and len(arguments.who) != 1:
        raise ConfigError("names one result, but several are evaluated", where="--name")
    # Refused before any has run.
    cast = [resolve(who, arguments.name, arguments.gate) for who in arguments.who]
    for who, (name, make_actor) in zip(arguments.who, cast, strict=True):
        with console.progress(f"evaluating {name}") as progress:
            result = evaluate(arguments, who, name, make_actor, progress)
        print(f"{describe(result)} -> {write(arguments, result)}")


def evaluate(
    arguments: Arguments,
    who: str,
    name: str,
    make_actor: MakeActor,
    progress: console.Progress | None = None,
    known: Sequence[EpisodeSummary] = (),
) -> dict[str, Any]:
    """Run one actor.

    Args:
        arguments: see `Arguments`.
        who: what the user named, for the command that makes the result again.
        name: the result's name.
        make_actor: makes the actor, or several that take turns.
        progress: called with (episodes done, in all).
        known: episodes that this actor has run already, by their numbers: an episode is a function
            of its actor and its seed, so that none is run twice. They bring no timings.

    Returns:
        `summarize` of the episodes with `name`, `who`, `task`, `variant`, `seed` (of the first
        layout), `command`, `verdict_share` and `episodes`, JSON-ready.
    """
    seeds = episode_seeds("evaluate", arguments.seed, arguments.episodes)
    found = {
        episode.index: episode
        for episode in known
        if 0 <= episode.index < len(seeds) and episode.seed == seeds[episode.index]
    }
    missing = [index for index in range(len(seeds)) if index not in found]
    ran = run_episodes(
        SceneMaker(arguments.task, arguments.variant, camera=looks(make_actor)),
        make_actor,
        [seeds[index] for index in missing],
        workers=arguments.workers,
        meta=EpisodeMeta(arguments.task, arguments.variant),
        progress=progress,
    )
    found |= {i: replace(episode, index=i) for i, episode in zip(missing, ran, strict=True)}
    summaries = [found[index] for index in range(len(seeds))]
    figures = summarize(summaries)
    words = ["safe-o2o", "evaluate", who, "--out", str(arguments.out), "--name", name]
    for flag in ("episodes", "task", "variant", "seed"):
        words += [f"--{flag}", str(getattr(arguments, flag))]
    if arguments.gate != "on":
        words += ["--gate", arguments.gate]
    return {
        "name": name,
        "who": who,
        "task": arguments.task,
        "variant": arguments.variant,
        "seed": seeds[0],
        "command": shlex.join(words),
        **figures,
        "verdict_share": {key: figures["filter"][key] for key in ("pass", "corrected", "stopped")},
        "episodes": [summary.to_json() for summary in summaries],
    }


def write(arguments: Arguments, result: Mapping[str, Any]) -> Path:
    """Write a result to `<out>/eval`, under its name and, unless it is the default, its variant."""
    path = result_path(arguments, str(result["name"]))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error
    write_atomic(path, (json.dumps(result, indent=1) + "\n").encode())
    return path


def result_path(arguments: Arguments, name: str) -> Path:
    """Where the result of an actor goes."""
    stem = name if arguments.variant == "standard" else f"{name}-{arguments.variant}"
    return arguments.out / "eval" / f"{stem}.json"


def describe(result: Mapping[str, Any]) -> str:
    """The one-line result, rates with their 95 % intervals."""

    def rate(key: str) -> str:
        found = result[key]
        low, high = 100 * found["low"], 100 * found["high"]
        return f"{key} {100 * found['rate']:.1f} % [{low:.1f}, {high:.1f}]"

    line = (
        f"{result['name']}: {rate('success')}, {rate('violation')}, "
        f"return {result['return']['mean']:.2f}, cost {result['cost']['mean']:.2f}, "
        f"n = {result['n']}, {result['variant']}"
    )
    if "gate" in result:
        held, stalled = (100 * result["gate"][key]["rate"] for key in ("intervened", "stalled"))
        line += f"; gate: stepped in in {held:.1f} % of the episodes, stalled {stalled:.1f} %"
    return line

"""`safe-o2o data replay EPISODE --limits ARM`: what a filter would have passed, slowed, stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from safe_o2o.cli import console
from safe_o2o.cli.parse import parse
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import Episode
from safe_o2o.errors import DataError
from safe_o2o.runtime.cartesian import WORKSPACE, certified_box
from safe_o2o.runtime.episode_replay import ReplayReport, replay_episode
from safe_o2o.safety.filter import SafetyFilter
from safe_o2o.safety.tool_speed import REDUCED_SPEED

Corner = tuple[float, float, float]
SHOWN = 20
"""Steps that are listed one by one."""


@dataclass(frozen=True)
class Arguments:
    """Send recorded proposals through a filter once more, on an arm with perfect servos.

    Attributes:
        path: an episode file, or a dataset's folder for all of its episodes.
        limits: the arm whose limits the filter holds.
        velocity_scale: share of the arm's speed limits.
        acceleration_scale: share of its acceleration limits.
        tool_speed: largest speed of the tool, m/s.
        workspace_low: lowest corner of the tool's box, m; by default the task's with room to stop.
        workspace_high: its highest corner, m.
        self_collision: also keep the arm from touching itself.
        json: print JSON instead of a table.
    """

    path: Annotated[Path, tyro.conf.arg(metavar="PATH"), tyro.conf.Positional]
    limits: str = "panda"
    velocity_scale: float = 1.0
    acceleration_scale: float = 1.0
    tool_speed: float = REDUCED_SPEED
    workspace_low: Corner = certified_box(WORKSPACE)[0]  # type: ignore[assignment]
    workspace_high: Corner = certified_box(WORKSPACE)[1]  # type: ignore[assignment]
    self_collision: bool = True
    json: bool = False


def main(argv: Sequence[str]) -> None:
    """Replay one episode, or all of a dataset."""
    arguments = parse(Arguments, argv, verb="data replay")
    found = [arguments.path]
    if not arguments.path.is_file():
        found = [episode.path for episode in Dataset(arguments.path)]
        if not found:
            raise DataError("has no episode", where=arguments.path)
    guard = SafetyFilter.for_robot(
        arguments.limits,
        workspace=(arguments.workspace_low, arguments.workspace_high),
        tool_speed=arguments.tool_speed,
        self_collision=arguments.self_collision,
        velocity_scale=arguments.velocity_scale,
        acceleration_scale=arguments.acceleration_scale,
    )
    reports: dict[Path, ReplayReport] = {}
    with console.progress("replaying") as update:
        for done, path in enumerate(found):
            reports[path] = replay_episode(Episode(path), guard, arguments.limits)
            update(done + 1, len(found))
    if arguments.json:
        print(json.dumps({str(path): report.to_json() for path, report in reports.items()}))
    elif len(reports) == 1:
        print(describe(next(iter(reports.values()))))
    else:
        print(summary(reports))


def describe(report: ReplayReport) -> str:
    """One episode: shares, reasons, and the first steps that were changed."""
    facts = report.to_json()
    total = max(1, sum(facts["ticks"].values()))
    lines = [
        f"{report.steps} steps, {total} control ticks: "
        + ", ".join(f"{name} {console.percent(n, total)}" for name, n in facts["ticks"].items())
        + f"; least margin {report.margin:.3f}"
    ]
    if report.reasons:
        why = ", ".join(f"{name} {count}" for name, count in facts["reasons"].items())
        lines.append(f"ticks that did not pass, by reason: {why}")
    rows = [
        (entry["step"], f"{entry['stamp']:.2f}", entry["verdict"], entry["reason"],
         f"{1e3 * entry['behind_m']:.1f}")
        for entry in facts["changed"][:SHOWN]
    ]  # fmt: skip
    if rows:
        lines += ["", console.table(("step", "time s", "verdict", "reason", "behind mm"), rows)]
    left = len(facts["changed"]) - len(rows)
    return "\n".join([*lines, f"... and {left} more steps" if left > 0 else ""]).rstrip()


def summary(reports: dict[Path, ReplayReport]) -> str:
    """A dataset: a row for each episode, and one for all."""
    rows, whole = [], ReplayReport()
    for path, report in reports.items():
        rows.append(_row(path.name, report))
        whole.steps += report.steps
        whole.ticks.update(report.ticks)
        whole.reasons.update(report.reasons)
        whole.margin = min(whole.margin, report.margin)
    header = ("episode", "steps", "passed %", "slowed %", "stopped %", "margin", "reasons")
    return console.table(header, [*rows, _row("all", whole)])


def _row(name: str, report: ReplayReport) -> tuple[object, ...]:
    ticks = report.to_json()["ticks"]
    total = max(1, sum(ticks.values()))
    shares = (f"{100 * count / total:.1f}" for count in ticks.values())
    why = ", ".join(f"{reason} {count}" for reason, count in report.reasons.most_common(3))
    return (name, report.steps, *shares, f"{report.margin:.3f}", why)

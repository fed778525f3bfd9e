"""One table of what every method came to, beside the paper's figures.

A line of the file is one measurement: a method and a seed, in a scene, before, during or after
fine-tuning. Lines are added and never changed, so that an interrupted comparison loses nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from safe_o2o.errors import DataError
from safe_o2o.files import storage_error
from safe_o2o.intervals import wilson

SEEN = "standard"
PHASES = ("before", "during", "after")
LEARNING = "learning"
"""Phase of a policy on its way through offline training."""
UNMASKED = "unmasked"
"""Phase of an offline policy as if its safety critic were not there."""
BY_RETURN = ("safety_", "pendulum", "reacher")
"""What the names of tasks begin with that are judged by return and cost, not by success."""

ROBOT = {
    "obstacle shape": ((40, 50), (45, 40), (50, 30)),
    "goal shape": ((30, 50), (35, 45), (35, 40)),
    "number of obstacles": ((20, 60), (40, 40), (50, 30)),
}
"""FOSP, arXiv v1, table 2: success and violation in % before, during and after 40 steps of
fine-tuning on the real arm, 20 tests each (fosp.md 6.2)."""
PAPER = {
    "safety_point_goal1": {
        "dreamer": ((17.4, 82.3), (25.8, 85.1)),
        "safedreamer": ((12.7, 1.5), (19.2, 0.02)),
        "fosp": ((18.7, 1.4), (21.5, 0.2)),
    },
    "safety_point_button1": {
        "dreamer": ((15.1, 167.7), (20.8, 157.9)),
        "safedreamer": ((8.9, 10.2), (10.7, 4.5)),
        "fosp": ((14.7, 9.5), (18.1, 2.1)),
    },
    "safety_point_push1": {
        "dreamer": ((2.3, 30.9), (14.6, 26.3)),
        "safedreamer": ((1.3, 17.8), (10.3, 0.12)),
        "fosp": ((4.0, 18.1), (13.2, 0.1)),
    },
    "safety_point_goal2": {
        "dreamer": ((9.5, 367.1), (18.9, 290.2)),
        "safedreamer": ((3.6, 8.6), (12.7, 0.3)),
        "fosp": ((8.1, 7.5), (13.5, 0.23)),
    },
    "safety_car_goal2": {
        "dreamer": ((16.7, 231.0), (24.1, 287.9)),
        "safedreamer": ((6.9, 0.7), (9.8, 0.09)),
        "fosp": ((10.1, 1.6), (14.5, 0.07)),
    },
}
"""FOSP, arXiv v1, table 1: return and cost an episode, offline and after fine-tuning, 1 M + 0.5 M
steps, mean of 3 seeds (fosp.md 6.1)."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        task: catalogue name.
        method: who was measured.
        seed: of data, layouts, networks and draws.
        scene: variant of the task.
        phase: `before`, `during` or `after` fine-tuning in that scene, or `learning`.
        settings: everything else that was chosen, JSON-ready: what makes two rows comparable.
        n: episodes.
        success: how many of them reached the goal.
        violation: how many of them had a cost.
        return_: undiscounted return of each, mean.
        cost: undiscounted cost of each, mean.
        updates: gradient steps up to here.
        seconds: wall time of the training behind it.
        cpu_seconds: processor time of the same.
        made_by: commit, versions and machine.
        return_sd: standard deviation of the episodes' returns; None in older lines.
        cost_sd: likewise, of their costs.
    """

    task: str
    method: str
    seed: int
    scene: str
    phase: str
    settings: Mapping[str, Any]
    n: int
    success: int
    violation: int
    return_: float
    cost: float
    updates: int
    seconds: float
    cpu_seconds: float
    made_by: Mapping[str, Any]
    return_sd: float | None = None
    cost_sd: float | None = None

    @property
    def key(self) -> str:
        """What must differ between two lines of a file."""
        named = [self.task, self.method, self.seed, self.scene, self.phase, self.settings]
        on_the_way = [self.updates] if self.phase == LEARNING else []
        return json.dumps([*named, *on_the_way], sort_keys=True)


def read(path: str | Path) -> list[Row]:
    """The measurements of a file, oldest first; none where there is no file yet.

    Raises:
        DataError: a line is damaged.
    """
    path = Path(path)
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(Row(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise DataError(
                f"line {number} is damaged ({error})", where=path, todo="remove that line"
            ) from error
    return rows


def append(path: str | Path, row: Row) -> None:
    """Add a line, whole or not at all; several processes may write to one file.

    Raises:
        StorageError: the disk refused.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            file.write((json.dumps(asdict(row), sort_keys=True) + "\n").encode())
            os.fsync(file.fileno())
    except OSError as error:
        raise storage_error(error, path) from error


def table(rows: Sequence[Row], task: str) -> str:
    """Markdown: the task's measurements, seeds pooled, and the paper's figures.

    Methods with other settings are other lines: nothing is pooled that was not made alike.
    """
    ours = [row for row in rows if row.task == task]
    if not ours:
        return f"Nothing was measured of {task} yet."
    outcomes = [row for row in ours if row.phase not in (LEARNING, UNMASKED)]
    parts = [(_returns(outcomes, task) if task.startswith(BY_RETURN) else _rates(outcomes))]
    for phase, more in ((UNMASKED, _masks), (LEARNING, _learning)):
        if any(row.phase == phase for row in ours):
            parts.append(more(ours, task))
    return "\n\n".join(parts)


def curve(rows: Sequence[Row]) -> list[Row]:
    """Judgements of one run in the seen scene along its offline training, the last at its end."""
    found = [row for row in rows if row.scene == SEEN and row.phase in (LEARNING, PHASES[0])]
    return sorted(found, key=lambda row: row.updates)


def groups(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """By method and settings, in the order of their first line."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        settings = {name: value for name, value in row.settings.items()}
        found.setdefault((row.method, json.dumps(settings, sort_keys=True)), []).append(row)
    return found


def _rates(rows: Sequence[Row]) -> str:
    scenes = list(dict.fromkeys(row.scene for row in rows if row.scene != SEEN))
    head = ["method", "seeds", "n", "seen", *scenes, "updates", "training, processor min"]
    lines = [_line(head), _line(["---"] * len(head))]
    for (method, _), group in groups(rows).items():
        offline = [row for row in group if row.scene == SEEN]
        settings = group[0].settings
        name = method + ", on latents" * bool(settings.get("latents"))
        name += ", over ROS" * bool(settings.get("ros"))
        cells = [name, _seeds(group), _n(group), _rate(_only(offline, "before"))]
        for scene in scenes:
            there = [row for row in group if row.scene == scene]
            cells.append(" → ".join(_rate(_only(there, phase), short=True) for phase in PHASES))
        cells += [_span(row.updates for row in offline)]
        cells += [_span(row.cpu_seconds / 60 for row in offline)]
        lines.append(_line(cells))
    lines += ["", "Success/violation in %, 95 % Wilson intervals of the seen scene in brackets;"]
    lines += ["unseen scenes: before → during → after fine-tuning.", ""]
    lines += [_line(["the paper's arm (n 20)", "before", "during", "after"]), _line(["---"] * 4)]
    for scene, figures in ROBOT.items():
        lines.append(_line([scene, *(f"{s}/{v}" for s, v in figures)]))
    return "\n".join(lines)


def _returns(rows: Sequence[Row], task: str) -> str:
    head = ["method", "seeds", "n", "offline R / C", "during R / C", "after R / C", "updates"]
    head += ["paper offline", "paper after"]
    lines = [_line(head), _line(["---"] * len(head))]
    for (method, _), group in groups(rows).items():
        paper = [f"{r:g} / {c:g}" for r, c in PAPER.get(task, {}).get(method, ())] or ["", ""]
        cells = [method, _seeds(group), _n(group)]
        cells += [_return(_only(group, phase)) for phase in PHASES]
        cells += [_span(row.updates for row in group), *paper]
        lines.append(_line(cells))
    lines += [
        "",
        "Return and cost an episode (Safety-Gymnasium: of 1000 frames), means over episodes; ± is",
    ]
    lines += ["the standard deviation over seeds, with one 1.96 standard errors over its episodes."]
    return "\n".join(lines)


def _masks(rows: Sequence[Row], task: str) -> str:
    """Each offline policy with its safety critic's mask and without it, seeds pooled."""
    head = ["method", "seeds", "n", "masked: success/violation, R / C", "without the mask"]
    lines = [_line(head), _line(["---"] * len(head))]
    for (method, _), group in groups(rows).items():
        bare = [row for row in group if row.phase == UNMASKED]
        seeds = {row.seed for row in bare}
        masked = [r for r in group if (r.scene, r.phase) == (SEEN, "before") and r.seed in seeds]
        if bare and masked:
            cells = [f"{_rate(found, short=True)}, {_return(found)}" for found in (masked, bare)]
            lines.append(_line([method, _seeds(masked), _n(masked), *cells]))
    return "\n".join(lines)


def _learning(rows: Sequence[Row], task: str) -> str:
    """A line for each point of each method's offline training."""
    by_return = task.startswith(BY_RETURN)
    head = ["method", "seeds", "n", "updates", "R / C" if by_return else "success/violation"]
    lines = [_line(head), _line(["---"] * len(head))]
    for (method, _), group in groups(rows).items():
        points = curve(group)
        for updates in dict.fromkeys(row.updates for row in points):
            there = [row for row in points if row.updates == updates]
            figures = _return(there) if by_return else _rate(there)
            lines.append(_line([method, _seeds(there), _n(there), str(updates), figures]))
    return "\n".join(lines)


def _only(rows: Sequence[Row], phase: str) -> list[Row]:
    return [row for row in rows if row.phase == phase]


def _seeds(group: Sequence[Row]) -> str:
    return ", ".join(map(str, sorted({row.seed for row in group})))


def _n(group: Sequence[Row]) -> str:
    """Episodes of a judgement."""
    return _span(row.n for row in group if row.phase != "during")


def _rate(found: Sequence[Row], short: bool = False) -> str:
    n = sum(row.n for row in found)
    if not n:
        return "–"
    parts = []
    for count in (sum(row.success for row in found), sum(row.violation for row in found)):
        low, high = wilson(count, n)
        ends = "" if short else f" ({100 * low:.0f} to {100 * high:.0f})"
        parts.append(f"{100 * count / n:.3g}{ends}")
    return "/".join(parts)


def spread(found: Sequence[Row], what: str) -> tuple[float, float]:
    """Mean of a measurement, and how far to either side: the standard deviation over seeds.

    Of one seed it is 1.96 standard errors over its episodes; NaN where nobody noted them.

    Args:
        found: lines of one method, scene, phase and number of updates, a seed each.
        what: `return` or `cost`.
    """
    values = [row.return_ if what == "return" else row.cost for row in found]
    if len(values) > 1:
        return float(np.mean(values)), float(np.std(values, ddof=1))
    deviation = getattr(found[0], f"{what}_sd")
    known = deviation is not None and found[0].n > 1
    return values[0], 1.96 * deviation / np.sqrt(found[0].n) if known else float("nan")


def _return(found: Sequence[Row]) -> str:
    if not found:
        return "–"
    parts = []
    for what in ("return", "cost"):
        mean, side = spread(found, what)
        parts.append(f"{mean:.3g}" + (f" ± {side:.2g}" if np.isfinite(side) else ""))
    return " / ".join(parts)


def _span(values: Iterable[float]) -> str:
    found = sorted({round(value) for value in values})
    if not found:
        return "–"
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

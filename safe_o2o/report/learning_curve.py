"""A picture of policies on their way through offline training, beside the paper's figures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safe_o2o.errors import ConfigError, DataError
from safe_o2o.files import write_atomic
from safe_o2o.intervals import wilson
from safe_o2o.report import standings
from safe_o2o.report.standings import BY_RETURN, PAPER, PHASES, SEEN, Row

COLOURS = ("#2a6fb0", "#c8553d", "#3f8f5a", "#8a5fb5", "#b08a2a", "#5b6770")
PAPER_UPDATES = 125_000
"""Gradient steps behind the paper's offline figures: 1 M frames, inferred (fosp.md 1.5)."""
FORMATS = ("png", "svg", "pdf")


def draw(rows: Sequence[Row], task: str, path: Path) -> None:
    """Two panels over gradient steps: return and cost, or success and violation.

    The hollow mark is the policy after fine-tuning where it learned, a dashed line the paper's
    offline figure. Bars are `standings.spread`'s, of rates 95 % Wilson intervals.

    Args:
        rows: measurements; seeds are pooled.
        task: whose.
        path: PNG, SVG or PDF, by its ending; an older one is replaced.

    Raises:
        ConfigError: another ending.
        DataError: nothing of the task was measured in the scene that it learned in.
        StorageError: the disk refused.
    """
    kind = path.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise ConfigError(f"must end in one of {', '.join(FORMATS)}", where=path)
    ours = [row for row in rows if row.task == task and row.scene == SEEN]
    if not ours:
        raise DataError(f"holds nothing of {task} to draw", where=path, todo="measure first")
    by_return = task.startswith(BY_RETURN)
    panels = ("return", "cost") if by_return else ("success", "violation")
    figure = Figure(figsize=(9.2, 3.4), layout="constrained", facecolor="white")
    for panel, axes in enumerate(figure.subplots(1, 2)):
        for place, (label, group) in enumerate(_labelled(ours)):
            colour = COLOURS[place % len(COLOURS)]
            _line(axes, standings.curve(group), panels[panel], colour, label)
            _mark(axes, [row for row in group if row.phase == PHASES[-1]], panels[panel], colour)
            if by_return and (paper := PAPER.get(task, {}).get(group[0].method)):
                value = paper[0][panel]
                text = f"{group[0].method}, paper: {value:g} after {PAPER_UPDATES:,}"
                axes.axhline(value, color=colour, linestyle="--", linewidth=1.0, label=text)
        unit = "an episode" if by_return else "share of episodes"
        axes.set(title=f"{panels[panel]}, {unit}", xlabel="gradient steps", xlim=(0, None))
        axes.set_ylim(bottom=0.0, top=None if by_return else 1.02)
        axes.grid(True, color="#e4e6ea", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=160, format=kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, picture.getvalue())


def _labelled(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Lines by method and settings; what is distinct has a name of its own."""
    groups = standings.groups(rows)
    methods = [method for method, _ in groups]
    return [
        (method if methods.count(method) == 1 else f"{method}, {group[0].settings}", group)
        for (method, _), group in groups.items()
    ]


def _line(axes: Axes, points: Sequence[Row], what: str, colour: str, label: str) -> None:
    steps = list(dict.fromkeys(row.updates for row in points))
    found = [_estimate([row for row in points if row.updates == step], what) for step in steps]
    _bars(axes, steps, found, colour, label=label, fmt="o-", linewidth=1.8, markersize=4)


def _mark(axes: Axes, after: Sequence[Row], what: str, colour: str) -> None:
    if after:
        steps = [after[0].updates]
        _bars(axes, steps, [_estimate(after, what)], colour, fmt="D", markerfacecolor="white")


def _bars(
    axes: Axes, steps: Sequence[int], found: Sequence[tuple[float, float, float]], colour: str,
    **style: object,
) -> None:  # fmt: skip
    middle, low, high = np.nan_to_num(np.array(found)).T
    axes.errorbar(steps, middle, [low, high], color=colour, elinewidth=1.0, capsize=2, **style)


def _estimate(found: Sequence[Row], what: str) -> tuple[float, float, float]:
    """Estimate, and how far down and up."""
    if what in ("return", "cost"):
        mean, side = standings.spread(found, what)
        return mean, side, side
    count, n = sum(getattr(row, what) for row in found), sum(row.n for row in found)
    low, high = wilson(count, n)
    return count / n, count / n - low, high - count / n

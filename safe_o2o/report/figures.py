"""The report's figures: from numbers to one inline SVG each. Rates always span 0 to 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from safe_o2o.report.intervals import Interval
from safe_o2o.report.theme import colour, gridlines, panel, to_svg
from safe_o2o.types import Array

VERDICTS = ("pass", "corrected", "stopped")
SMALL, NORMAL = 10.5, 11.5
_PAST = {"pass": "passed", "corrected": "corrected", "stopped": "stopped"}


@dataclass(frozen=True)
class Row:
    """One labelled estimate.

    Attributes:
        label: what is estimated.
        role: palette role.
        interval: estimate and interval.
    """

    label: str
    role: str
    interval: Interval


def percent(share: float) -> str:
    """A share as a percentage: no decimals unless it would read as 0 or 100 and is neither."""
    value = 100 * share
    if (0 < value < 1) or (99 < value < 100):
        return f"{value:.1f}\u2009%"
    return f"{value:.0f}\u2009%"


def span(interval: Interval) -> str:
    """Both ends of an interval of shares: `93–99`."""
    return f"{100 * interval.low:.0f}–{100 * interval.high:.0f}"


def compact(value: float) -> str:
    """A number in at most five characters or so: 12.3, 0.04, 1.2e-4, 25k."""
    size = abs(value)
    if not np.isfinite(value):
        return str(value)
    if size >= 1e5 or 0 < size < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "\u2212")
    if size >= 1e4:
        return f"{value / 1e3:.0f}k".replace("-", "\u2212")
    return f"{value:.3g}".replace("-", "\u2212")


def _steps(value: float, _: object = None) -> str:
    return f"{value / 1e3:g}k" if abs(value) >= 1e3 else f"{value:g}"


def interval_dots(
    name: str,
    title: str,
    rows: Sequence[Row],
    label: str,
    *,
    bar: float | None = None,
    at_most: bool = False,
) -> str:
    """Rates as dots with their 95 % intervals, one line each, values written beside them.

    Args:
        name: unique in the page.
        title: written above.
        rows: from top to bottom.
        label: for those who cannot see it.
        bar: rate to reach, drawn as a dashed line with its good side shaded.
        at_most: the bar is an upper bound.
    """
    height = 34 * len(rows) + 66
    figure, axes = panel(420, height, left=122, right=108, top=34, bottom=32)
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
    gridlines(axes, "x")
    axes.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f}\u2009%"))
    axes.set_yticks(range(len(rows)), ["" for _ in rows])
    if bar is not None and 0 <= bar <= 1:
        low, high = (0.0, bar) if at_most else (bar, 1.0)
        axes.axvspan(low, high, color=colour("pass"), alpha=0.10, linewidth=0)
        axes.axvline(bar, color=colour("pass"), linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(
            f"target {'≤' if at_most else '≥'} {percent(bar)}",
            (bar, 1),
            (0, 6),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            color=colour("pass"),
            fontsize=SMALL,
        )
    outside(axes, title, (0, 1), (-122, 14), ink="ink", size=NORMAL, weight="bold")
    for y, row in enumerate(rows):
        tint, value = colour(row.role), row.interval
        axes.plot([value.low, value.high], [y, y], color=tint, linewidth=5, alpha=0.35)
        axes.plot(value.value, y, "o", color=tint, markersize=9, clip_on=False)
        left, right = (-122, y), (106, y)
        for where, align, text, shade in (
            (left, "left", row.label, colour("ink")),
            (right, "right", f"{percent(value.value)}  ({span(value)})", tint),
        ):
            axes.annotate(
                text,
                (0 if align == "left" else 1, y),
                (where[0], 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha=align,
                va="center",
                color=shade,
                fontsize=NORMAL,
            )
    return to_svg(figure, name, label)


@dataclass(frozen=True)
class Line:
    """A series for `curve`.

    Attributes:
        label: written at the line's end; empty for none.
        step: updates `[N]`.
        median: rolling median `[N]`.
        low: lower edge of the band `[N]`.
        high: upper edge of the band `[N]`.
    """

    label: str
    step: Array
    median: Array
    low: Array
    high: Array


def curve(name: str, title: str, line: Line, label: str, *, role: str = "policy") -> str:
    """One training metric: rolling median and band over updates, last value at the line's end."""
    figure, axes = panel(300, 172, left=52, right=58, top=30, bottom=28)
    tint = colour(role)
    axes.fill_between(line.step, line.low, line.high, color=tint, alpha=0.18, linewidth=0)
    axes.plot(line.step, line.median, color=tint, linewidth=1.8, solid_capstyle="round")
    axes.set_xlim(float(line.step[0]), float(max(line.step[-1], line.step[0] + 1)))
    low, high = float(line.low.min()), float(line.high.max())
    if low > 0 and high / low > 30:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        if np.log10(high / low) < 2.5:
            axes.set_ylim(low * 0.8, high * 1.25)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        # What hardly changes shall look flat, and its ticks shall differ.
        pad = max(0.08 * (high - low), 0.02 * abs(high), 1e-9)
        axes.set_ylim(low - pad, high + pad)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: compact(y)))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_steps))
    gridlines(axes, "y")
    outside(axes, title, (0, 1), (-52, 12), ink="ink", size=NORMAL, weight="bold")
    outside(axes, "updates", (1, 0), (40, -18), ink="muted", size=9, ha="right", va="top")
    axes.annotate(
        compact(float(line.median[-1])),
        (line.step[-1], line.median[-1]),
        (5, 0),
        textcoords="offset points",
        va="center",
        color=tint,
        fontsize=SMALL,
        annotation_clip=False,
    )
    return to_svg(figure, name, label)


def rounds(
    name: str,
    title: str,
    intervals: Sequence[Interval],
    names: Sequence[str],
    label: str,
    *,
    role: str,
    promoted: Sequence[bool],
) -> str:
    """A rate over rounds with 95 % intervals; triangles where a new bundle went live."""
    count = len(intervals)
    figure, axes = panel(420, 224, left=48, right=64, top=34, bottom=50)
    x, tint = np.arange(count), colour(role)
    value = np.asarray([i.value for i in intervals])
    axes.vlines(
        x, [i.low for i in intervals], [i.high for i in intervals], color=tint, lw=5, alpha=0.3
    )
    axes.plot(x, value, "-o", color=tint, linewidth=1.6, markersize=7, clip_on=False)
    axes.set(ylim=(0, 1), xlim=(-0.4, count - 0.6))
    axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f}\u2009%"))
    every = max(1, -(-count // 12))
    axes.set_xticks(x[::every], [names[i] for i in x[::every]])
    gridlines(axes, "y")
    for i, flag in enumerate(promoted):
        if flag:
            axes.plot(i + 0.5, -0.055, "^", color=colour("finetuned"), ms=6, clip_on=False)
    outside(axes, title, (0, 1), (-48, 16), ink="ink", size=NORMAL, weight="bold")
    outside(axes, "round of episodes", (0.5, 0), (0, -36), ink="muted", size=SMALL, ha="center")
    axes.annotate(
        percent(value[-1]),
        (count - 1, value[-1]),
        (12, 0),
        textcoords="offset points",
        va="center",
        color=tint,
        fontsize=NORMAL,
        fontweight="bold",
        annotation_clip=False,
    )
    return to_svg(figure, name, label)


def verdict_bars(name: str, rows: Sequence[tuple[str, Mapping[str, float]]], label: str) -> str:
    """Share of decisions that passed, were corrected, were stopped: one stacked bar each."""
    figure, axes = panel(620, 30 * len(rows) + 60, left=230, right=20, top=30, bottom=30)
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), ["" for _ in rows])
    axes.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f}\u2009%"))
    for y, (text, share) in enumerate(rows):
        start = 0.0
        for verdict in VERDICTS:
            width = share.get(verdict, 0.0)
            tint = colour(verdict)
            axes.barh(y, width, left=start, height=0.62, color=tint, edgecolor=colour("card"), lw=1)
            if width > 0.07:
                axes.text(
                    start + width / 2,
                    y,
                    percent(width),
                    ha="center",
                    va="center",
                    color=colour("card"),
                    fontsize=SMALL,
                    fontweight="bold",
                )
            start += width
        outside(axes, text, (0, y), (-230, 0), ink="ink", size=NORMAL, va="center", y="data")
    for i, verdict in enumerate(VERDICTS):
        outside(axes, "■", (0, 1), (110 * i, 10), ink=verdict, size=13)
        outside(axes, _PAST[verdict], (0, 1), (110 * i + 16, 10), ink="ink", size=SMALL)
    return to_svg(figure, name, label)


def bars(
    name: str,
    rows: Sequence[tuple[str, float, str]],
    label: str,
    *,
    role: str,
    unit: str,
    left: float = 150,
) -> str:
    """Horizontal bars, the value written at each end: `(label, value, text)` from top to bottom."""
    figure, axes = panel(420, 26 * len(rows) + 40, left=left, right=82, top=8, bottom=30)
    values = [value for _, value, _ in rows]
    axes.set(xlim=(0, max([*values, 1e-9]) * 1.02), ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), ["" for _ in rows])
    axes.barh(range(len(rows)), values, height=0.6, color=colour(role))
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: compact(x)))
    gridlines(axes, "x")
    for y, (text, value, note) in enumerate(rows):
        outside(axes, text, (0, y), (-left, 0), ink="ink", size=NORMAL, va="center", y="data")
        axes.annotate(
            note,
            (value, y),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=colour(role),
            fontsize=SMALL,
            annotation_clip=False,
        )
    outside(axes, unit, (1, 0), (80, -16), ink="muted", size=SMALL, ha="right", va="top")
    return to_svg(figure, name, label)


def margin_histogram(name: str, margin: Array, verdict: Array, label: str) -> str:
    """Smallest filter margin of each policy step, stacked by verdict; 0 is at a limit."""
    figure, axes = panel(420, 224, left=54, right=18, top=30, bottom=46)
    low = min(0.0, float(np.floor(margin.min() * 20) / 20))
    edges = np.arange(round(low * 20), 21) / 20
    total, base = len(margin), np.zeros(len(edges) - 1)
    for number, verdict_name in enumerate(VERDICTS):
        count, _ = np.histogram(np.minimum(margin[verdict == number], 1.0), edges)
        share = count / total
        axes.bar(
            edges[:-1], share, 0.05, base, align="edge", color=colour(verdict_name), linewidth=0.6,
            edgecolor=colour("card"),
        )  # fmt: skip
        base += share
    axes.set_xlim(edges[0], 1)
    axes.set_ylim(0, max(float(base.max()) * 1.1, 1e-6))
    axes.axvline(0, color=colour("stopped"), linewidth=1.4)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: percent(y)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}".replace("-", "\u2212")))
    gridlines(axes, "y")
    outside(axes, "share of policy steps", (0, 1), (-54, 14), ink="ink", size=NORMAL, weight="bold")
    outside(
        axes,
        "margin left of the tightest limit (share of its range)",
        (0.5, 0),
        (0, -34),
        ink="muted",
        size=SMALL,
        ha="center",
    )
    return to_svg(figure, name, label)


def latency_strip(
    name: str,
    rows: Sequence[tuple[str, Mapping[str, float]]],
    label: str,
    *,
    deadline_ms: float | None = None,
) -> str:
    """Per stage on a log axis: a dot at p50, a bar to p99, a cross at the maximum."""
    figure, axes = panel(620, 30 * len(rows) + 66, left=150, right=84, top=28, bottom=38)
    axes.set_xscale("log")
    values = [v for _, r in rows for v in (r["p50_ms"], r["p99_ms"], r.get("max_ms", r["p99_ms"]))]
    positive = [v for v in [*values, *([deadline_ms] if deadline_ms else [])] if v > 0] or [1.0]
    axes.set_xlim(min(positive) / 1.6, max(positive) * 1.6)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), ["" for _ in rows])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    gridlines(axes, "x")
    tint = colour("policy")
    for y, (text, row) in enumerate(rows):
        p50, p99 = row["p50_ms"], row["p99_ms"]
        axes.plot([p50, p99], [y, y], color=tint, linewidth=6, alpha=0.35, solid_capstyle="butt")
        axes.plot(p50, y, "o", color=tint, markersize=7)
        axes.plot(p99, y, "|", color=tint, markersize=13, markeredgewidth=2.2)
        axes.plot(row.get("max_ms", p99), y, "x", color=colour("muted"), ms=6, mew=1.4)
        outside(axes, text, (0, y), (-150, 0), ink="ink", size=NORMAL, va="center", y="data")
        outside(
            axes, f"{compact(p99)} ms", (1, y), (76, 0), ink="policy", size=NORMAL, ha="right",
            va="center", y="data",
        )  # fmt: skip
    if deadline_ms:
        axes.axvline(deadline_ms, color=colour("muted"), linewidth=1.3, linestyle=(0, (4, 3)))
        axes.annotate(
            f"control period {deadline_ms:g} ms",
            (deadline_ms, 1),
            (0, 6),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            color=colour("muted"),
            fontsize=SMALL,
        )
    outside(axes, "milliseconds (log)", (0.5, 0), (0, -32), ink="muted", size=SMALL, ha="center")
    outside(axes, "p99", (1, 1), (76, 6), ink="policy", size=SMALL, ha="right")
    return to_svg(figure, name, label)


def outside(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    offset: tuple[float, float],
    *,
    ink: str,
    size: float,
    weight: str = "normal",
    ha: str = "left",
    va: str = "baseline",
    y: str = "axes fraction",
) -> None:
    """Text beside the axes: at a place in their fractions (or data, along y), moved by points."""
    axes.annotate(
        text,
        at,
        offset,
        xycoords=("axes fraction", y),
        textcoords="offset points",
        color=colour(ink),
        fontsize=size,
        fontweight=weight,
        ha=ha,
        va=va,
        annotation_clip=False,
    )

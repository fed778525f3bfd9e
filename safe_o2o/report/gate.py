"""The section on the reachability gate: what its thresholds rest on, and what they are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from safe_o2o.report.blocks import Figure, Figures, Missing, Section, Table, Text
from safe_o2o.report.figures import NORMAL, SMALL, outside, percent, span
from safe_o2o.report.intervals import Interval, wilson
from safe_o2o.report.theme import colour, gridlines, panel, to_svg


def gate(manifests: Sequence[Mapping[str, Any]], command: str) -> list[Section]:
    """The section, or none in a run whose bundles have no gate."""
    gated = [m for m in manifests if "gate" in m or _offers(m)]
    if not gated:
        return []
    section = Section(
        "gate",
        "The reachability gate",
        "A learned layer between policy and filter: it may only restrict. Its alarm is calibrated: "
        "the threshold is an order statistic of the largest score in safe episodes that it ran in "
        "shadow, so that a new safe episode like them alarms with at most the nominal rate.",
    )
    shown = [m for m in gated if isinstance(m.get("gate"), Mapping)]
    if not shown:
        section.blocks.append(Missing("The gate was never calibrated: it does not act.", command))
        return [section]
    live = next((m for m in shown if m["live"]), shown[-1])
    facts = live["gate"].get("calibration", {})
    section.blocks.append(_table(shown, command))
    if facts.get("safe_scores"):
        section.blocks.append(Figures(_figures(facts, command)))
    section.blocks.append(
        Text(
            "What is promised is the rate of alarms in safe episodes like these, until the first "
            "alarm. Detection is measured, not promised; another scene, camera, policy or longer "
            "episodes void both."
        )
    )
    return [section]


def _offers(manifest: Mapping[str, Any]) -> bool:
    outputs = manifest.get("outputs", [])
    return any(isinstance(o, Mapping) and o.get("name") == "candidate_risk" for o in outputs)


def _table(shown: Sequence[Mapping[str, Any]], command: str) -> Table:
    rows = []
    for manifest in shown:
        facts = manifest["gate"].get("calibration", {})
        limits = manifest["gate"].get("thresholds", {})
        low, high = facts.get("interval", (0.0, 1.0))
        violating, late = facts.get("n_violating", 0), facts.get("late", 0)
        rows.append(
            (
                manifest["name"] + (" (live)" if manifest["live"] else ""),
                "provisional" if facts.get("provisional") else "own episodes",
                str(facts.get("n", "–")),
                str(facts.get("k", "–")),
                percent(float(facts.get("alpha", 0.0))),
                f"{100 * low:.1f}–{100 * high:.1f} %",
                f"{late} of {violating}" if violating else "–",
                percent(float(limits.get("speed", 1.0))),
            )
        )
    head = ("bundle", "calibrated on", "safe episodes n", "k", "nominal rate")
    return Table(
        (*head, "true rate within", "late or missed", "speed"),
        rows,
        "Thresholds of each bundle's gate. The true rate of false alarms lies within the interval "
        "in 95 % of draws of the n episodes. Provisional ones come from episodes of earlier "
        "bundles and hold the arm to a share of its speed.",
        command,
        text=frozenset({0, 1}),
    )


def _figures(facts: Mapping[str, Any], command: str) -> list[Figure]:
    safe = np.asarray(facts["safe_scores"], np.float64)
    missed = [-np.inf if x is None else float(x) for x in facts.get("violating_scores", [])]
    found = [
        Figure(
            _histogram(safe, np.asarray(missed), float(facts["theta"])),
            f"Largest combined score of each episode: {len(safe)} safe ones, {len(missed)} with a "
            "violation (until the arm could last be stopped). The alarm is above the line.",
            command,
        )
    ]
    detected, violating = facts.get("detected_by_lead", []), int(facts.get("n_violating", 0))
    if detected and violating:
        shares = [wilson(int(count), violating) for count in detected]
        found.append(
            Figure(
                _leads(shares),
                f"Share of {violating} violations that were alarmed at least so many steps before; "
                f"one step before: {percent(shares[0].value)} ({span(shares[0])}).",
                command,
            )
        )
    achieved = [(float(a), wilson(int(k), int(n))) for a, k, n in facts.get("reliability", ())]
    if achieved:
        found.append(
            Figure(
                _reliability(achieved),
                "Achieved against nominal rate of false alarms: thresholds from every other safe "
                "episode, judged on those between, and the other way round.",
                command,
            )
        )
    return found


def _histogram(safe: np.ndarray, missed: np.ndarray, theta: float) -> str:
    figure, axes = panel(420, 224, left=54, right=18, top=30, bottom=46)
    edges = np.linspace(0.0, 1.05, 22)
    for values, role, sign in ((safe, "success", 1.0), (missed, "violation", -1.0)):
        if not len(values):
            continue
        count, _ = np.histogram(np.clip(values, edges[0], edges[-1] - 1e-9), edges)
        axes.bar(
            edges[:-1], sign * count / count.max(), np.diff(edges), align="edge",
            color=colour(role), linewidth=0.6, edgecolor=colour("card"),
        )  # fmt: skip
    axes.axhline(0.0, color=colour("muted"), linewidth=0.8)
    axes.axvline(min(theta, float(edges[-1])), color=colour("stopped"), linewidth=1.6)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_yticks([])  # each kind by itself: the violating ones all lie in a bar or two
    kinds = "safe above, violating below" if len(missed) else "safe episodes"
    outside(axes, kinds, (0, 1), (-54, 14), ink="ink", size=NORMAL,
            weight="bold")  # fmt: skip
    outside(axes, "rank of the largest score (beyond all seen: above 1)", (0.5, 0), (0, -34),
            ink="muted", size=SMALL, ha="center")  # fmt: skip
    said = f"threshold {theta:.3f}; {len(safe)} safe and {len(missed)} violating episodes"
    return to_svg(figure, "gate-scores", said)


def _leads(shares: Sequence[Interval]) -> str:
    figure, axes = panel(300, 224, left=52, right=18, top=30, bottom=46)
    steps = np.arange(1, len(shares) + 1)
    tint = colour("policy")
    axes.fill_between(
        steps, [s.low for s in shares], [s.high for s in shares], color=tint, alpha=0.18,
        linewidth=0,
    )  # fmt: skip
    axes.plot(steps, [s.value for s in shares], "o-", color=tint, linewidth=1.8, markersize=4)
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: percent(y)))
    gridlines(axes, "y")
    outside(axes, "alarmed that early", (0, 1), (-52, 14), ink="ink", size=NORMAL, weight="bold")
    outside(axes, "steps before the violation, at least", (0.5, 0), (0, -34), ink="muted",
            size=SMALL, ha="center")  # fmt: skip
    said = "; ".join(f"{n}: {percent(s.value)}" for n, s in zip(steps, shares, strict=True))
    return to_svg(figure, "gate-leads", said)


def _reliability(found: Sequence[tuple[float, Interval]]) -> str:
    figure, axes = panel(300, 224, left=52, right=18, top=30, bottom=46)
    tint, top = colour("policy"), max(alpha for alpha, _ in found) * 1.1
    axes.plot([0, top], [0, top], color=colour("muted"), linewidth=1.2, linestyle=(0, (4, 3)))
    for alpha, share in found:
        axes.plot([alpha, alpha], [share.low, share.high], color=tint, linewidth=4, alpha=0.3)
        axes.plot(alpha, share.value, "o", color=tint, markersize=5)
    axes.set_xlim(0, top)
    axes.set_ylim(0, max(top, *(share.high for _, share in found)) * 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(lambda y, _: percent(y)))
    gridlines(axes, "y")
    outside(axes, "achieved rate", (0, 1), (-52, 14), ink="ink", size=NORMAL, weight="bold")
    outside(axes, "nominal rate of false alarms", (0.5, 0), (0, -34), ink="muted", size=SMALL,
            ha="center")  # fmt: skip
    said = "; ".join(f"{percent(a)}: {percent(s.value)}" for a, s in found)
    return to_svg(figure, "gate-reliability", said)

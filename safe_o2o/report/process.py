"""Sections on the loop: what the filter did and how long each stage took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from safe_o2o.report import episodes as ep
from safe_o2o.report import figures
from safe_o2o.report.blocks import (
    Figure,
    Figures,
    Missing,
    Section,
    Table,
    Text,
)
from safe_o2o.report.figures import compact, percent
from safe_o2o.report.results import Actor


def filtering(records: Sequence[ep.FilterRecord], actors: Sequence[Actor], command: str) -> Section:
    """Section 6: shares, reasons, margins."""
    section = Section(
        "filter",
        "What the safety filter did",
        "Every command passes the filter on its way to the motors. It knows the arm's limits, the "
        "workspace and the table, and nothing of the obstacles: those are the policy's business.",
    )
    rows = [(f"{r.label} ({r.episodes} episodes)", r.share) for r in records]
    rows += [
        (f"evaluated: {a.label}", dict(a.result.verdict_share))
        for a in actors
        if a.result.verdict_share
    ]
    if not rows:
        section.blocks.append(Missing("No episodes yet: the filter had nothing to do.", command))
        return section
    said = "; ".join(f"{label}: {percent(share.get('pass', 0))} passed" for label, share in rows)
    section.blocks.append(
        Figures(
            [
                Figure(
                    figures.verdict_bars("verdicts", rows, said),
                    "Share of policy steps by the strictest verdict among their control ticks.",
                    command,
                )
            ]
        )
    )
    if not records:
        return section
    counts = sum((r.reasons for r in records), start=type(records[0].reasons)())
    verdict = np.concatenate([r.verdict for r in records])
    margin = np.concatenate([r.margin for r in records])
    pair = []
    if counts:
        total, common = counts.total(), counts.most_common(10)
        bars = [(reason, float(n), f"{n} ({percent(n / total)})") for reason, n in common]
        said = "; ".join(f"{reason}: {n}" for reason, n in common)
        pair.append(
            Figure(
                figures.bars("reasons", bars, said, role="corrected", unit="policy steps"),
                f"Why the filter stepped in: the limiting constraint or guard of the {total} "
                f"policy steps that did not simply pass, of {len(verdict)} in all.",
                command,
            )
        )
    else:
        section.blocks.append(Text(f"All {len(verdict)} recorded policy steps passed unchanged."))
    finite = np.isfinite(margin)
    if finite.any():
        low = float(np.quantile(margin[finite], 0.01))
        pair.append(
            Figure(
                figures.margin_histogram(
                    "margins",
                    margin[finite],
                    verdict[finite],
                    f"1 % quantile of the margin {low:.2f}",
                ),
                "How close the arm came to a limit: 0 is at the limit, 1 far away. One step in a "
                f"hundred had {low:.2f} or less. Colours as above.",
                command,
            )
        )
    section.blocks.append(Figures(pair))
    return section


PARITY_BAR = 1e-5  # largest difference of an action between network and graph


def bundles(manifests: Sequence[Mapping[str, Any]], command: str) -> Section:
    """Section on what was exported: parity, origin, hash."""
    section = Section(
        "bundles",
        "Exported policies",
        "Each bundle is one ONNX graph and a manifest. Parity: the largest difference between an "
        "action of the graph and of the network it came from, over recorded steps with carried "
        "state; actions span −1 to 1.",
    )
    if not manifests:
        section.blocks.append(Missing("No policy bundle yet.", command))
        return section
    rows = []
    for manifest in manifests:
        parity, origin = manifest.get("parity", {}), manifest.get("provenance", {})
        worst = parity.get("max_abs_action_difference")
        made = [f"{k.replace('_', ' ')} {origin[k]}" for k in ("step", "round") if k in origin]
        rows.append(
            (
                manifest["name"] + (" (live)" if manifest["live"] else ""),
                str(manifest.get("algorithm", "–")),
                ", ".join(made) or "–",
                "–" if worst is None else compact(float(worst)),
                "–" if worst is None else ("✓ met" if worst <= PARITY_BAR else "✗ missed"),
                str(parity.get("steps", "–")),
                str(manifest.get("graph_sha256", ""))[:16] or "–",
            )
        )
    head = (
        *("bundle", "algorithm", "made from", "parity"),
        *(f"target ≤ {compact(PARITY_BAR)}", "steps compared", "graph SHA-256"),
    )
    caption = "Bundles of the run, oldest first; the first 16 digits of each graph's SHA-256."
    table = Table(
        head, rows, caption, command, text=frozenset({0, 1, 2, 4, 6}), mono=frozenset({6})
    )
    section.blocks.append(table)
    return section


def latency(
    stages: Mapping[str, Mapping[str, float]],
    measured: str,
    control_period: float | None,
    command: str,
) -> Section:
    """Section 7: how long each stage of the loop took."""
    section = Section(
        "latency",
        "Latency",
        f"Wall-clock time of each stage of the loop, measured {measured}. "
        "Dot: median; bar and tick: 99th percentile; cross: maximum.",
    )
    if not stages:
        section.blocks.append(Missing("No latency measurement yet.", command))
        return section
    rows = list(stages.items())
    said = "; ".join(f"{stage}: p99 {compact(row['p99_ms'])} ms" for stage, row in rows)
    deadline = None if control_period is None else 1e3 * control_period
    section.blocks.append(
        Figures(
            [
                Figure(
                    figures.latency_strip("latency", rows, said, deadline_ms=deadline),
                    "Time per stage on a logarithmic axis; 99th percentile written at the right.",
                    command,
                )
            ]
        )
    )
    table = [
        (
            stage,
            *(compact(row[key]) if key in row else "–" for key in ("p50_ms", "p99_ms", "max_ms")),
            f"{int(row['n'])}" if "n" in row else "–",
        )
        for stage, row in rows
    ]
    section.blocks.append(
        Table(
            ("stage", "p50 (ms)", "p99 (ms)", "max (ms)", "samples"), table, "The same in numbers."
        )
    )
    return section

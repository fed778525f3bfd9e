"""Sections on how it came about: training curves, films, filter, latency, provenance."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from safe_o2o.data.episode import Episode
from safe_o2o.report import episodes as ep
from safe_o2o.report import figures
from safe_o2o.report.blocks import (
    Clip,
    Clips,
    Command,
    Figure,
    Figures,
    Listing,
    Missing,
    Section,
    Table,
    Text,
)
from safe_o2o.report.figures import Line, compact, percent
from safe_o2o.report.overlay import HEIGHT, WIDTH, compose
from safe_o2o.report.results import Actor
from safe_o2o.report.run_files import Metrics, across_seeds, rolling
from safe_o2o.report.videos import MIME, best_format, encode_video

SPEED = 2.0  # films run at twice real time
BUDGET = 9_000_000  # bytes of film in the page; base64 adds a third

# Metric prefix -> heading and colour. The first group that fits wins; the order is the page's.
_GROUPS = (
    (r"model/|world_model/", "World model", "policy"),
    (r"critic/|value/", "Critics and values", "success"),
    (r"reach|ref/", "Reachability estimate (REF)", "violation"),
    (r"actor/|policy/|expansion/", "Policy", "finetuned"),
    (r"lagrange|dual", "Constraint multiplier", "mixture"),
)
_REST = ("Everything else", "random")


def training(
    metrics: Metrics | None, command: str, *, slug: str = "train", title: str = "Offline training"
) -> Section:
    """Section 2: every logged metric with spread."""
    section = Section(slug, title, "")
    if metrics is None:
        section.blocks.append(Missing("No training log yet.", command))
        return section
    seeds = len(metrics.runs)
    spread = (
        f"Line: median of {seeds} runs' rolling medians; band: their range."
        if seeds > 1
        else "Line: rolling median over 5 % of the log; band: 10 to 90 % quantiles of the same window."
    )
    section.lead = (
        f"{spread} Losses and probabilities have no unit; rewards and costs are per step. The number at "
        "each line's end is its last value."
    )
    if metrics.dropped:
        section.lead += f" {metrics.dropped} logged values were not finite and are left out."
    keys = sorted({key for run in metrics.runs for key in run})
    grouped: dict[str, list[Figure]] = {}
    for key in keys:
        found = (g for g in _GROUPS if re.match(g[0], key))
        _, heading, role = next(found, ("", *_REST))
        runs = [run[key] for run in metrics.runs if key in run and len(run[key][0])]
        series = across_seeds(runs) if len(runs) > 1 else rolling(*runs[0])
        line = Line("", *series)
        name = f"{slug}-{re.sub(r'[^a-z0-9]+', '-', key.lower())}"
        said = f"{key} over updates, from {compact(line.median[0])} to {compact(line.median[-1])}"
        grouped.setdefault(heading, []).append(
            Figure(figures.curve(name, _title(key), line, said, role=role), "")
        )
    for heading in [*(g[1] for g in _GROUPS), _REST[0]]:
        if heading in grouped:
            folded = heading == _REST[0]
            section.blocks.append(Figures(grouped[heading], heading, dense=True, folded=folded))
    section.blocks.append(Command(command))
    return section


def _title(key: str) -> str:
    group, _, name = key.rpartition("/")
    text = name.replace("_", " ")
    short = {"critic": "critic", "value": "value", "actor": "actor", "grad": "gradient"}
    return f"{short[group]} · {text}" if group in short else text


def films(
    before: tuple[str, Sequence[Episode]],
    after: tuple[str, Sequence[Episode]],
    scripted: Sequence[Episode],
    render: ep.Render | None,
    command: str,
) -> Section:
    """Section 5: episodes as films, before and after fine-tuning, and the scripts behind the data."""
    section = Section(
        "films",
        "Episodes before and after",
        f"At {SPEED:g} times real time. Left: what the camera saw; right: time, the filter's verdict, the "
        "action asked for and done, contact. Chosen by rule, not by looks: the first episode with "
        "contact and the first clean success of each group, where there are such.",
    )
    kind, left = best_format(), BUDGET
    groups = (
        ("Before fine-tuning", *before, 2),
        ("After fine-tuning", *after, 2),
        ("Offline data: the scripts that were mixed", "", scripted, 3),
    )
    skipped = 0
    for title, note, members, count in groups:
        clips: list[Clip] = []
        chosen = list(members) if members is scripted else ep.choose(members, count)
        for episode in chosen[:count]:
            clip = _clip(episode, title, note, render, kind, members is scripted)
            if clip is None:
                continue
            size = len(clip.uri) * 3 // 4
            if size > left:
                skipped += 1
                continue
            left -= size
            clips.append(clip)
        if clips:
            section.blocks.append(Clips(title, clips))
        elif members is not scripted:
            section.blocks.append(Missing(f"No episodes {title.lower()} with pictures.", command))
    if skipped:
        section.blocks.append(Text(f"{skipped} films were left out to keep the page small."))
    return section


def _clip(
    episode: Episode, title: str, note: str, render: ep.Render | None, kind: str, scripted: bool
) -> Clip | None:
    outcome = "goal reached" if episode.success else "goal not reached"
    contacts = int((episode.array("cost") > 0).sum())
    seconds = float(episode.array("stamp")[-1] - episode.array("stamp")[0])
    name = episode.path.stem.replace("_", " ")
    subtitle = episode.meta.behavior if scripted else note
    heading = episode.meta.behavior if scripted else title.lower()
    film = ep.film(episode, heading, f"{name} · seed {episode.meta.seed}", render)
    if film is None:
        return None
    period = episode.spec.action.period
    data = encode_video(compose(film), SPEED / period, kind=kind)
    uri = f"data:{MIME[kind]};base64,{base64.b64encode(data).decode()}"
    where = f", scene variant “{episode.meta.variant}”" if episode.meta.variant else ""
    text = (
        f"{subtitle or heading}: {name}, seed {episode.meta.seed}{where}. {outcome.capitalize()} after "
        f"{seconds:.1f} s; {contacts} steps with contact."
    )
    return Clip(uri, MIME[kind], text, WIDTH, HEIGHT)


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
                f"Why the filter stepped in: the limiting constraint or guard of the {total} policy steps "
                f"that did not simply pass, of {len(verdict)} in all.",
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
                "How close the arm came to a limit: 0 is at the limit, 1 far away. One step in a hundred "
                f"had less than {low:.2f}. Colours as above.",
                command,
            )
        )
    section.blocks.append(Figures(pair))
    return section


def latency(
    stages: Mapping[str, Mapping[str, float]], control_period: float | None, command: str
) -> Section:
    """Section 7: how long each stage of the loop took."""
    section = Section(
        "latency",
        "Latency",
        "Measured in real time while the graph ran. Dot: median; bar and tick: 99th percentile; cross: "
        "maximum.",
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


def provenance(
    facts: Mapping[str, Any], hashes: Mapping[str, str], notes: Sequence[str], command: str
) -> Section:
    """Section 8: everything needed to make the run again."""
    section = Section(
        "provenance", "Provenance", "What made this run, so that it can be made again."
    )
    if not facts:
        section.blocks.append(
            Missing("No run.json: configuration and machine are unknown.", command)
        )
    stages = facts.get("stages", facts.get("durations", {}))
    section.blocks += _stages(stages)
    rows = [
        *_flat(facts.get("machine", {})),
        *_flat({"seed": facts.get("seed", facts.get("seeds"))}),
    ]
    if rows:
        section.blocks.append(_facts("Machine and seeds", rows))
    recorded = facts.get("hashes", {})
    known = {**hashes, **(recorded if isinstance(recorded, Mapping) else {})}
    rows = [(key, str(value)) for key, value in known.items() if value]
    if rows:
        section.blocks.append(_facts("SHA-256 of the artefacts", rows))
    versions = facts.get("versions", facts.get("packages", {}))
    if isinstance(versions, Mapping) and versions:
        text = "\n".join(f"{name:<28}{value}" for name, value in sorted(versions.items()))
        section.blocks.append(Listing(f"Package versions ({len(versions)})", text))
    shown = {"stages", "durations", "machine", "seed", "seeds", "hashes", "versions", "packages"}
    for key, value in facts.items():
        if key in shown or value in (None, "", [], {}):
            continue
        title = key.replace("_", " ").capitalize()
        if key == "commands":
            entries = value.values() if isinstance(value, Mapping) else value
            section.blocks.append(Listing("Commands", "\n".join(map(str, entries)), open=True))
        elif isinstance(value, (Mapping, list)):
            section.blocks.append(Listing(title, json.dumps(value, indent=2, ensure_ascii=False)))
        else:
            section.blocks.append(_facts(title, [(key, str(value))]))
    if notes:
        section.blocks.append(
            Listing(f"What could not be read ({len(notes)})", "\n".join(notes), open=True)
        )
    return section


def _stages(stages: Any) -> list[Any]:
    """Durations as bars and the stages' commands."""
    entries: list[tuple[str, float, str]] = []
    if isinstance(stages, Mapping):
        stages = [
            {"name": k, **(v if isinstance(v, Mapping) else {"seconds": v})}
            for k, v in stages.items()
        ]
    for entry in stages if isinstance(stages, list) else []:
        seconds = entry.get("seconds", entry.get("duration_s", entry.get("duration")))
        if isinstance(seconds, (int, float)):
            name = str(entry.get("name", entry.get("stage", "")))
            entries.append((name, float(seconds), str(entry.get("command", ""))))
    if not entries:
        return []
    total = sum(seconds for _, seconds, _ in entries)
    bars = [(name, seconds, _clock(seconds)) for name, seconds, _ in entries]
    said = "; ".join(f"{name} {_clock(seconds)}" for name, seconds, _ in entries)
    svg = figures.bars("durations", bars, said, role="policy", unit="seconds", left=110)
    blocks: list[Any] = [
        Figures([Figure(svg, f"Wall-clock time of each stage, {_clock(total)} in all.")])
    ]
    commands = [(name, command) for name, _, command in entries if command]
    if commands:
        blocks.append(
            Table(
                ("stage", "command"),
                commands,
                "The command of each stage.",
                text=frozenset({0, 1}),
                mono=frozenset({1}),
            )
        )
    return blocks


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def _facts(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    return Table((), rows, "", text=frozenset({0, 1}), mono=frozenset({1}), title=title)


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [row for key, inner in value.items() for row in _flat(inner, f"{prefix}{key} ")]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return [(prefix.strip().replace("_", " "), text)]


def stage_command(facts: Mapping[str, Any], run: str) -> Callable[[str], str]:
    """The command that makes a stage: the recorded one, else the verb with this run's folder."""
    recorded: dict[str, str] = {}
    stages = facts.get("stages", {})
    entries = (
        stages.items() if isinstance(stages, Mapping) else ((s.get("name"), s) for s in stages)
    )
    for name, entry in entries:
        if isinstance(entry, Mapping) and entry.get("command"):
            recorded[str(name)] = str(entry["command"])
    defaults = {
        "collect": f"safe-o2o collect --out {run}/dataset",
        "train": f"safe-o2o train fosp --data {run}/dataset --out {run}",
        "evaluate": f"safe-o2o evaluate {run}/bundles random --out {run}",
        "export": f"safe-o2o export {run}/checkpoints --out {run}/bundles",
        "demo": f"safe-o2o demo --out {run}",
    }
    return lambda stage: recorded.get(stage) or defaults.get(stage) or defaults["demo"]

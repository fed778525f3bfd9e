"""Section on provenance: everything that is needed to make the run again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from safe_o2o.report import figures
from safe_o2o.report.blocks import Figure, Figures, Listing, Missing, Section, Table


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
    stages = facts.get("stages", facts.get("seconds", {}))
    section.blocks += _stages(stages)
    simple = {k: v for k, v in facts.items() if isinstance(v, (str, int, float)) and v != ""}
    seeds, machine = facts.get("seeds"), facts.get("machine")
    rows = [row for part in (simple, {"seeds": seeds}, {"": machine}) for row in _flat(part)]
    if rows:
        section.blocks.append(_facts("Run and machine", rows))
    recorded = facts.get("hashes", {})
    known = {**hashes, **(recorded if isinstance(recorded, Mapping) else {})}
    rows = [(key, str(value)) for key, value in known.items() if value]
    if rows:
        section.blocks.append(_facts("SHA-256 of the artefacts", rows))
    versions = facts.get("versions", facts.get("packages", {}))
    if isinstance(versions, Mapping) and versions:
        text = "\n".join(f"{name:<28}{value}" for name, value in sorted(versions.items()))
        section.blocks.append(Listing(f"Package versions ({len(versions)})", text))
    shown = {"stages", "seconds", "machine", "seeds", "hashes", "versions", "packages"}
    for key, value in facts.items():
        if key in shown or key in simple or value in (None, "", [], {}):
            continue
        title = key.replace("_", " ").capitalize()
        if key == "commands":
            entries = value.values() if isinstance(value, Mapping) else value
            section.blocks.append(Listing("Commands", "\n".join(map(str, entries)), open=True))
        else:
            section.blocks.append(Listing(title, json.dumps(value, indent=2, ensure_ascii=False)))
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
    for name, entry in stages.items() if isinstance(stages, Mapping) else ():
        if isinstance(entry, Mapping) and entry.get("command"):
            recorded[str(name)] = str(entry["command"])
    defaults = {
        "collect": f"safe-o2o collect --out {run}/dataset",
        "train": f"safe-o2o train fosp --data {run}/dataset --out {run}/checkpoints",
        "evaluate": f"safe-o2o evaluate {run}/checkpoints mixture random --out {run}",
        "export": f"safe-o2o export {run}/checkpoints --data {run}/dataset --out {run}/bundles",
        "calibrate": f"safe-o2o calibrate {run}/bundles --data {run}/calibration",
        "deploy": f"safe-o2o deploy --run {run}",
        "finetune": f"safe-o2o finetune --run {run}",
        "demo": str(facts.get("command") or f"safe-o2o demo --out {run}"),
    }
    return lambda stage: recorded.get(stage) or defaults[stage]

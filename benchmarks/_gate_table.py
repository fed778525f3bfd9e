"""The lines of the reachability gate's benchmark, and what they say, bar by bar."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _gate_cells import COMBINED, auroc, ratio_bound

from safe_o2o.intervals import wilson
from safe_o2o.safety.calibration import alarms_expected

SEEN = "standard"
UNSEEN = ("shape", "colour", "number")
HARMLESS = ("table", "light", "distractor")
Row = dict[str, Any]


class Table:
    """The lines of the results file by (seed, what, scene)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [json.loads(line) for line in lines]

    def get(self, seed: int, what: str, scene: str = "") -> Row | None:
        """One measurement, None where it was not made yet."""
        for row in self.rows:
            if (row["seed"], row["what"], row["scene"]) == (seed, what, scene):
                return dict(row)
        return None

    def measure(self, seed: int, what: str, scene: str, how: Callable[[], Row]) -> Row:
        """The measurement, made now if it was not before."""
        known = self.get(seed, what, scene)
        if known is not None:
            return known
        row = {"seed": seed, "what": what, "scene": scene, **how()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        print(f"seed {seed}: {what} {scene}", flush=True)
        return row

    def all(self, what: str, scene: str = "") -> list[Row]:
        """The measurements of every seed."""
        found = [r for r in self.rows if (r["what"], r["scene"]) == (what, scene)]
        return sorted(found, key=lambda row: row["seed"])


def share(count: int, n: int) -> str:
    """A rate in percent with its interval."""
    if not n:
        return "–"
    low, high = wilson(count, n)
    return f"{100 * count / n:.1f} % ({100 * low:.0f} to {100 * high:.0f}; {count} of {n})"


def show(table: Table) -> None:
    """Bar by bar, whatever was measured."""
    if not table.all("off", SEEN):
        print("no cell was measured yet")
    else:
        _alarms(table)
    for scene in (SEEN, *UNSEEN):
        _detection(scene, table.all("off", scene))
    for title, scenes in (("seen", (SEEN,)), ("unseen, pooled", UNSEEN)):
        _acting(title, table, scenes)
    for scene in HARMLESS:
        rows = table.all("off", scene)
        if rows:
            print(f"7  {scene}: alarmed safe episodes {share(*_sums(rows, 'alarmed', 'safe'))}")
    for scene in UNSEEN:
        _tuning(scene, table.all("finetune", scene))
    for row in table.all("recalibrated"):
        for entry in row["bundles"]:
            print(f"9  {entry}")
    for row in table.all("latency"):
        print("10 " + ", ".join(f"{k} {v:.2f}" for k, v in row.items() if k.endswith("_ms")))
    for row in table.all("heads"):
        spent = "interrupted, so not timed"
        if row["train_s"] is not None:
            spent = f"states {row['encode_s']:.0f} s, training {row['train_s']:.0f} s"
        budget = f"{row['updates']} updates, {row['threads']} threads"
        print(f"heads, seed {row['seed']}: {spent}, {budget}")


def _sums(rows: Sequence[Row], *names: str) -> list[int]:
    return [sum(row[name] for row in rows) for name in names]


def _alarms(table: Table) -> None:
    seen = table.all("off", SEEN)
    facts = {row["seed"]: row["facts"] for row in table.all("calibration")}
    alarmed, safe = _sums(seen, "alarmed", "safe")
    most = sum(
        alarms_expected(facts[row["seed"]]["n"], facts[row["seed"]]["k"], row["safe"])
        for row in seen
    )
    print(f"1  alarmed safe seen episodes {share(alarmed, safe)}; at most about {most} by chance")
    rates = [rate for row in table.all("redraws") for rate in row["rates"]]
    if rates:
        print(f"   mean over {len(rates)} re-draws {np.mean(rates):.3f}, sd {np.std(rates):.3f}")


def _detection(scene: str, rows: Sequence[Row]) -> None:
    if not rows:
        return
    print(f"2  {scene}: violations alarmed in time {share(*_sums(rows, 'timely', 'violating'))}")
    told = []
    for name in (COMBINED, "risk", "disagreement", "surprise"):
        above = [x for row in rows for x in row["violating_maxima"].get(name, ())]
        below = [x for row in rows for x in row["safe_maxima"].get(name, ())]
        told.append(f"{name} {auroc(above, below):.3f}")
    print(f"3  {scene}: AUROC " + ", ".join(told))


def _acting(title: str, table: Table, scenes: Sequence[str]) -> None:
    """Only cells that every mode has, so that the layouts are the same ones."""
    modes = ("off", "smooth", "switching")
    cells = {
        mode: {(row["seed"], scene): row for scene in scenes for row in table.all(mode, scene)}
        for mode in modes
    }
    common = sorted(set.intersection(*(set(found) for found in cells.values())))
    if not common:
        return
    pooled = {mode: [cells[mode][key] for key in common] for mode in modes}
    for mode, rows in pooled.items():
        n = sum(row["n"] for row in rows)
        said = [
            f"{name} {share(sum(sum(row[name]) for row in rows), n)}"
            for name in ("success", "violation", "stalled")
        ]
        print(f"4-6 {title}, gate {mode}: {', '.join(said)}, sum |da| {_change(rows):.0f}")
    without, behind = ([x for r in pooled[m] for x in r["violation"]] for m in ("off", "smooth"))
    value, bound = ratio_bound(behind, without)
    print(f"4  {title}: violations with / without {value:.2f}, upper 95 % bound {bound:.2f}")
    ratio = _change(pooled["smooth"]) / _change(pooled["switching"])
    print(f"6  {title}: sum |da| smooth / switching {ratio:.2f}")


def _change(rows: Sequence[Row]) -> float:
    return float(sum(sum(row["change"]) for row in rows))


def _tuning(scene: str, rows: Sequence[Row]) -> None:
    if not rows:
        return
    n, hits = (sum(row["n"] for row in rows), sum(sum(row["violation"]) for row in rows))
    offline = 100 * float(np.mean([row["offline"] for row in rows]))
    bundles = sum(len(set(row["bundles"])) for row in rows)
    print(
        f"8  {scene}: violations during {share(hits, n)}, offline policy {offline:.1f} %; "
        f"{bundles} bundles acted"
    )

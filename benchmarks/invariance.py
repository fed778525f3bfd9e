"""A million adversarial ticks among eight obstacles: does the filter ever leave its limits?

    python benchmarks/invariance.py [--arm panda] [--mode scale] [--ticks 1000000] [--out FILE]

Eight obstacles, four of them moving, self-collision and workspace; targets at random, bang-bang,
NaN, infinite, 1e300, permuted or missing names; a clock that jumps; commands that take 0 to 10
ticks to arrive; readings that are off by up to 5 mrad and obstacles by up to 2 mm. A judge with its
own limits, kinematics and distances looks at the executed motion every millisecond. It counts a
violation where a set-point is not finite or beyond a joint's position, velocity or acceleration,
where tool or elbow leave their room, and where the arm, while it moves, is nearer to itself or to
an obstacle than the margin. Obstacles come up to an arm that stands, to two centimetres.

Every slice of 5000 ticks is a world of its own seed. With `--out` each goes to a line of that file,
and a run that was killed goes on where it was. Any violation, tick without a certified command or
exception makes the exit code 1. One core, about half an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.progress import track
from rich.table import Table

from safe_o2o.intervals import wilson
from tests.adversary import MARGIN, WORLDS, Tally, wild_run

SLICE = 5_000


def read(path: Path | None, head: dict[str, object]) -> dict[int, Tally]:
    """Slices that are done, by seed; other runs' lines in the same file are left alone."""
    done: dict[int, Tally] = {}
    if path is None or not path.exists():
        return done
    for text in path.read_text("utf-8").splitlines():
        line = json.loads(text)
        if {key: line[key] for key in head} == head:
            counts = {
                name: Counter(value) if isinstance(value, dict) else value
                for name, value in line["tally"].items()
            }
            done[line["seed"]] = Tally(**counts)
    return done


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arm", choices=sorted(WORLDS), default="panda")
    parser.add_argument("--mode", choices=("scale", "deflect"), default="scale")
    parser.add_argument("--ticks", type=int, default=1_000_000, help="rounded up to slices of 5000")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first slice")
    parser.add_argument("--out", type=Path, help="JSON lines, one a slice")
    arguments = parser.parse_args()
    head: dict[str, object] = {"arm": arguments.arm, "mode": arguments.mode}
    seeds = range(arguments.seed, arguments.seed + -(-arguments.ticks // SLICE))
    done = read(arguments.out, head)
    console = Console(stderr=True)
    for seed in track([s for s in seeds if s not in done], "ticking", console=console):
        done[seed] = wild_run(arguments.arm, SLICE, seed, arguments.mode)
        if arguments.out is not None:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(head | {"seed": seed, "tally": vars(done[seed])}) + "\n")
    total = Tally()
    for seed in seeds:
        total.add(done[seed])
    report(total, f"{arguments.arm}, {arguments.mode}: {total.ticks} ticks, {len(seeds)} worlds")
    wrong = sum(total.violations.values()) + total.uncertified
    if wrong:
        raise SystemExit(f"{wrong} violations or ticks without a certified command")


def report(total: Tally, title: str) -> None:
    """Print what happened."""
    table = Table("", "ticks", "share", title=title)
    verdicts = total.verdicts
    rows = {
        "passed": verdicts["PASS"],
        "slowed or approached within limits": verdicts["CORRECTED"] - total.deflected,
        "deflected": total.deflected,
        "stopped": verdicts["STOPPED"],
        "arm in motion": total.moving,
    }
    for name, count in rows.items():
        table.add_row(name, str(count), f"{100 * count / total.ticks:.1f} %")
    console = Console()
    console.print(table)
    wrong = sum(total.violations.values())
    high = wilson(wrong, total.ticks)[1]
    console.print(f"violations {wrong} (95 % upper bound {high:.1e} a tick): {+total.violations}")
    console.print(f"ticks without a certified command {total.uncertified}, exceptions 0")
    console.print(
        f"nearest obstacle while moving {1e3 * total.nearest:.1f} mm, margin {1e3 * MARGIN:.0f}"
    )
    console.print(f"fastest joint {100 * total.fastest:.0f} % of its limit")
    console.print(
        "stopped or slowed by: " + ", ".join(f"{k} {v}" for k, v in total.reasons.most_common(12))
    )


if __name__ == "__main__":
    main()

"""CVPO's E-step beside SciPy's SLSQP on the same dual, in turns, and how far apart they end.

    python benchmarks/e_step.py [--states 256] [--samples 32] [--rounds 40] [--json]

SLSQP is what the released code solves the dual with. It gets the dual's value as a function
(`values`), as there, and its slopes as well (`slopes`), and goes on until it has the solution to
1e-6; both begin from (1, 1) (`cold`), or from the last batch's solution (`warm`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
from scipy import optimize

from safe_o2o.algorithms.expectation_step import expectation_step

KL = 0.1


def batch(generator: np.random.Generator, states: int, samples: int) -> tuple[Any, Any, Any]:
    """Q_r, Q_c and a budget that binds."""
    reward = generator.normal(size=(states, samples)) + generator.normal(size=(states, 1))
    cost = np.maximum(0.0, 0.5 * reward + generator.normal(size=(states, samples)))
    return reward, cost[None], np.array([0.85 * cost.mean()])


def slsqp(reward: Any, cost: Any, limit: Any, start: Any, slopes: bool) -> Any:
    """(eta, lambda)."""
    k = np.log(reward.shape[1])

    def dual(x: Any) -> float:
        y = (reward - x[1] * cost[0]) / x[0]
        top = y.max(1)
        total = np.log(np.exp(y - top[:, None]).sum(1)) + top
        return float(x[0] * KL + x[1] * limit[0] + x[0] * (total - k).mean())

    def slope(x: Any) -> Any:
        y = (reward - x[1] * cost[0]) / x[0]
        top = y.max(1, keepdims=True)
        w = np.exp(y - top)
        total = w.sum(1, keepdims=True)
        w /= total
        kl = ((w * y).sum(1) - (np.log(total) + top)[:, 0] + k).mean()
        return np.array([KL - kl, limit[0] - (w * cost[0]).sum(1).mean()])

    return optimize.minimize(
        dual,
        start,
        jac=slope if slopes else None,
        method="SLSQP",
        bounds=[(1e-6, 1e5)] * 2,
        options={"ftol": 1e-14, "maxiter": 200},
    ).x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--states", type=int, default=256)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    generator = np.random.default_rng(0)
    last = np.array([1.0, 1.0])
    times: dict[str, list[float]] = {}
    apart: dict[str, float] = {}
    for number in range(wanted.rounds):
        reward, cost, limit = batch(generator, wanted.states, wanted.samples)
        for kind, start in (("cold", np.array([1.0, 1.0])), ("warm", last)):
            began = time.perf_counter()
            found = expectation_step(reward, cost, limit, KL, start=(start[0], start[1:]))
            times.setdefault(f"ours, {kind}", []).append(time.perf_counter() - began)
            x = np.array([found.temperature, found.price[0]])
            for name, slopes in (("values", False), ("slopes", True)):
                began = time.perf_counter()
                theirs = slsqp(reward, cost, limit, start, slopes)
                key = f"SLSQP on {name}, {kind}"
                times.setdefault(key, []).append(time.perf_counter() - began)
                if number:
                    apart[key] = max(apart.get(key, 0.0), float(np.abs(theirs - x).max()))
        last = x
    rows = {
        name: {
            "p50_ms": 1e3 * float(np.percentile(spent[1:], 50)),
            "p99_ms": 1e3 * float(np.percentile(spent[1:], 99)),
        }
        for name, spent in times.items()
    }
    for name, row in rows.items():
        mine = times["ours, " + name.split(", ")[1]][1:]
        ratios = np.array(times[name][1:]) / np.array(mine)
        row["times_ours"] = float(np.median(ratios))
        row["apart"] = apart.get(name, 0.0)
    if wanted.json:
        json.dump(rows, sys.stdout, indent=1)
        return
    for name, row in rows.items():
        print(f"{name:<24}" + ", ".join(f"{key} {value:.3g}" for key, value in row.items()))


if __name__ == "__main__":
    main()

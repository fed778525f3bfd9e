"""From episodes to figures with intervals: what a report quotes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from safe_o2o.data.summary import EpisodeSummary
from safe_o2o.errors import DataError
from safe_o2o.intervals import bootstrap_mean, wilson
from safe_o2o.types import GateState, Verdict


def summarize(episodes: Sequence[EpisodeSummary]) -> dict[str, Any]:
    """Sum up episodes, JSON-ready.

    Args:
        episodes: at least one.

    Returns:
        `n`; `return`, `cost`, `length`: `{mean, std, low, high, min, max}`, the sample's standard
        deviation and a 95 % bootstrap interval of the mean; `success`, `violation`:
        `{count, rate, low, high}` with Wilson's 95 % interval; `filter`: shares of all steps by
        verdict, `reasons` (shares by reason), `intervened` (rate of episodes with any correction or
        stop, with interval), `margin_min`; `timings`: `{n, p50_ms, p99_ms, max_ms}` by stage;
        where a reachability gate acted, `gate`: shares of its steps by what it did, `intervened`,
        and `stalled`, the rate of episodes that were given up for it. An end that one episode
        cannot tell is None.

    Raises:
        DataError: there is no episode.
    """
    if not episodes:
        raise DataError("needs at least one episode", where="summarize")
    n, steps = len(episodes), sum(episode.length for episode in episodes)
    verdicts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for episode in episodes:
        verdicts.update(episode.verdicts)
        reasons.update(episode.reasons)
    touched = sum(
        episode.verdicts[Verdict.PASS.name.lower()] < episode.length for episode in episodes
    )
    return {
        "n": n,
        "return": _mean([episode.return_ for episode in episodes]),
        "cost": _mean([episode.cost for episode in episodes]),
        "length": _mean([float(episode.length) for episode in episodes]),
        "success": _rate(sum(episode.success for episode in episodes), n),
        "violation": _rate(sum(episode.violation for episode in episodes), n),
        "filter": {
            **{name: verdicts[name] / steps for name in (kind.name.lower() for kind in Verdict)},
            "reasons": {name: count / steps for name, count in reasons.most_common()},
            "intervened": _rate(touched, n),
            "margin_min": min(episode.margin for episode in episodes),
        },
        "timings": _timings(episodes),
        **_gate(episodes),
    }


def summarize_by_behavior(episodes: Sequence[EpisodeSummary]) -> dict[str, dict[str, Any]]:
    """`summarize` for each behaviour of a mixture, by name, and for `all` of them together."""
    names = sorted({episode.behavior for episode in episodes})
    parts = {
        name: summarize([episode for episode in episodes if episode.behavior == name])
        for name in names
    }
    return {**parts, "all": summarize(episodes)}


def _gate(episodes: Sequence[EpisodeSummary]) -> dict[str, Any]:
    gated = [episode for episode in episodes if episode.gate]
    if not gated:
        return {}
    states: Counter[str] = Counter()
    for episode in gated:
        states.update(episode.gate)
    steps = sum(states.values())
    held = sum(episode.gate["pass"] < sum(episode.gate.values()) for episode in gated)
    return {
        "gate": {
            **{name: states[name] / steps for name in (kind.name.lower() for kind in GateState)},
            "intervened": _rate(held, len(gated)),
            "stalled": _rate(sum(episode.stalled for episode in gated), len(gated)),
        }
    }


def _mean(values: Sequence[float]) -> dict[str, float | None]:
    low, high = bootstrap_mean(values) or (None, None)
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "low": low,
        "high": high,
        "min": float(min(values)),
        "max": float(max(values)),
    }


def _rate(count: int, n: int) -> dict[str, float | int]:
    low, high = wilson(count, n)
    return {"count": int(count), "rate": count / n, "low": low, "high": high}


def _timings(episodes: Sequence[EpisodeSummary]) -> dict[str, dict[str, float | int]]:
    pooled: dict[str, list[float]] = {}
    for episode in episodes:
        for stage, seconds in episode.timings.items():
            pooled.setdefault(stage, []).extend(seconds)
    out: dict[str, dict[str, float | int]] = {}
    for stage, seconds in pooled.items():
        if seconds:
            p50, p99, top = (1e3 * np.percentile(seconds, [50, 99, 100])).tolist()
            out[stage] = {"n": len(seconds), "p50_ms": p50, "p99_ms": p99, "max_ms": top}
    return out

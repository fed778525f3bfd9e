"""A new bundle's thresholds before anybody has run it: from what was recorded with others.

A threshold belongs to a graph, and the graph has changed. The new gate is asked about the newest
safe episodes as they were seen and acted then (`specs/reachability_gate.md` 6.5). Its scores of the
scene are its own; those of the action are about what it would have done there, which is not where
it would have gone. So no threshold rises by it, and the arm is held to a share of its speed, until
a calibration on the bundle's own episodes (`safe-o2o calibrate`) takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from safe_o2o import config as settings
from safe_o2o.data.episode import Episode
from safe_o2o.errors import DataError
from safe_o2o.runtime.gate_calibration import CalibrationConfig, largest, trace
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.safety.calibration import MIN_FIT, CalibrationError, RankScore, thresholds
from safe_o2o.safety.gate_file import GateFile
from safe_o2o.safety.reachability_gate import GateThresholds

NEWEST = 200
"""Safe episodes that count, the newest."""


def newest_safe(episodes: Sequence[Episode]) -> list[Episode]:
    """The last `NEWEST` episodes without a cost, oldest first."""
    return [episode for episode in episodes if not (episode.array("cost") > 0).any()][-NEWEST:]


def recalibrate(candidate: str | Path, previous: GateFile, episodes: Sequence[Episode]) -> GateFile:
    """Provisional thresholds of a bundle that has run nowhere yet.

    Args:
        candidate: the bundle.
        previous: thresholds of the one before.
        episodes: recorded ones, oldest first; the newest safe ones of them are replayed.

    Raises:
        CalibrationError: fewer than `MIN_FIT` safe episodes, or a score that is not finite.
        BundleError: the bundle does not load, or has no gate.
        DataError: the previous calibration does not say what it rests on.
    """
    safe = newest_safe(episodes)
    if len(safe) < MIN_FIT:
        raise CalibrationError(
            f"{len(safe)} safe episodes to calibrate a new bundle with, needs {MIN_FIT}",
            todo="keep the episodes of the last calibration in RUN/calibration",
        )
    policy = OnnxPolicy.load(candidate)
    facts = dict(previous.calibration)
    try:
        rank = RankScore({name: tuple(knots) for name, knots in facts["knots"].items()})
        names = [name for name in settings.to_json(CalibrationConfig()) if name in facts]
        asked = CalibrationConfig(**{name: facts[name] for name in names})
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"does not say what its thresholds rest on ({error!r})",
            where="the last calibration",
            todo="safe-o2o calibrate",
        ) from error
    found = [trace(policy, episode, previous.config) for episode in safe]
    scores = np.array([largest(rank, entry.scores) for entry in found])
    new = thresholds(scores, [], alpha=asked.alpha, beta=asked.beta, delta=asked.delta)
    old = previous.thresholds
    on = min(old.risk_on, rank.threshold("risk", new.theta))

    def lower(name: str, before: float | None) -> float | None:
        return None if before is None else min(before, rank.threshold(name, new.theta))

    limits = replace(
        old,
        risk_on=on,
        risk_off=min(old.risk_off, on, rank.threshold("risk", new.theta_off)),
        recon=lower("recon", old.recon),
        speed=min(old.speed, asked.slow),
        **{name: lower(name, getattr(old, name)) for name in ("disagreement", "surprise")},
    )
    said: dict[str, Any] = {
        **facts,
        **settings.to_json(new),
        "calibrated": False,
        "provisional": True,
        "n_violating": 0,
        "safe_episodes": [entry.episode for entry in found],
        "safe_scores": [float(x) for x in scores],
        "violating_episodes": [],
        "violating_scores": [],
        "late": 0,
        "detected_by_lead": [],
    }
    assert isinstance(limits, GateThresholds)
    return GateFile(policy.manifest.graph_sha256, limits, previous.config, said)

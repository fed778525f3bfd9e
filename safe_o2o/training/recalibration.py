"""A new bundle's thresholds before anybody has run it: from what was recorded with others.

A threshold belongs to a graph, and the graph has changed. The new gate is asked about the newest
safe episodes as they were seen and acted then (`specs/reachability_gate.md` 6.5). Its scores of the
scene are its own; those of the action are about what it would have done there, which is not where
it would have gone. So no threshold rises by it, and the arm is held to a share of its speed, until
a calibration on the bundle's own episodes (`safe-o2o calibrate`) takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safe_o2o import config as settings
from safe_o2o.data.episode import Episode
from safe_o2o.errors import ConfigError, DataError
from safe_o2o.runtime.gate_calibration import CalibrationConfig, judged, limits, trace
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.safety.calibration import (
    MIN_FIT,
    WIDEST,
    AlphaTracker,
    CalibrationError,
    RankScore,
    caution_rate,
)
from safe_o2o.safety.gate_file import GateFile
from safe_o2o.types import GateState

NEWEST = 200
"""Safe episodes that count, the newest."""


def newest_safe(episodes: Sequence[Episode]) -> list[Episode]:
    """The last `NEWEST` episodes without a cost, oldest first."""
    return [episode for episode in episodes if not episode.violation][-NEWEST:]


def tracked_alpha(episodes: Sequence[Episode], alpha: float) -> float:
    """The rate of false alarms to ask for, after those of safe episodes that the gate acted in.

    Rarer alarms than wanted ask for a higher rate and so for lower thresholds. Alarms more often
    than wanted do not raise one: only a calibration on the bundle's own episodes may.
    """
    # What acted is caution, which begins at a higher rate than the alarm.
    wide = caution_rate(alpha)
    tracker = AlphaTracker(wide, high=WIDEST)
    for episode in newest_safe(episodes):
        if episode.meta.provenance.get("gate") == "on":
            tracker.update(bool((episode.gate != GateState.PASS).any()))
    return max(alpha, alpha * (tracker.alpha / wide))


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
    policy, facts = OnnxPolicy.load(candidate), previous.calibration
    try:
        rank = RankScore.of(facts)
        asked = settings.from_json(CalibrationConfig, facts["asked"], where="asked")
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise DataError(
            f"does not say what its thresholds rest on ({error!r})",
            where="the last calibration",
            todo="safe-o2o calibrate",
        ) from error
    replayed = [trace(policy, episode, previous.config) for episode in safe]
    alpha = tracked_alpha(episodes, asked.alpha)
    found, said = judged(rank, replayed, [], asked, alpha)
    new = limits(rank, found, asked.slow).stricter(previous.thresholds)
    facts = {**facts, **said, "calibrated": False, "provisional": True}
    return GateFile(policy.manifest.graph_sha256, new, previous.config, facts)

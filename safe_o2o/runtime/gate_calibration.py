"""A bundle's gate over recorded episodes: its scores at every step, and thresholds from them.

The very gate that acts online reads the very graph over what was recorded, with thresholds that
nothing exceeds. Episodes that ran without the gate (in shadow) and were acted by this bundle give
the scores that it had; of other episodes only the state's scores, not the action's, are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from safe_o2o import config as settings
from safe_o2o.data.episode import Episode
from safe_o2o.runtime.actors import PolicyActor
from safe_o2o.runtime.gated_policy import GatedPolicy
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.safety.calibration import (
    MIN_FIT,
    CalibrationError,
    RankScore,
    Thresholds,
    reliability,
    thresholds,
)
from safe_o2o.safety.gate_file import GateFile
from safe_o2o.safety.reachability_gate import GateConfig, GateThresholds
from safe_o2o.types import Array

NEVER = GateThresholds(risk_on=inf, risk_off=inf, disagreement=inf, surprise=inf)
"""Nothing is above these: the gate scores and lets everything pass."""
LEADS = 10
"""Steps before a violation up to which it is told how many were alarmed that early."""


@dataclass(frozen=True)
class Trace:
    """What a gate's scores were in one episode of T steps.

    Attributes:
        scores: by name `[T]`: `risk`, `disagreement`, `surprise`, perhaps `recon`.
        violated_at: step whose action caused the first violation; None in a safe episode.
        episode: the episode's content hash.
    """

    scores: dict[str, Array]
    violated_at: int | None
    episode: str

    def up_to(self, stop_ticks: int) -> dict[str, Array]:
        """Its scores while an alarm was still in time; all of them where nothing was violated.

        The violation was there one step after the action that caused it was chosen: to refuse that
        action is in time for a stop that takes one step.
        """
        end = None if self.violated_at is None else max(self.violated_at + 2 - stop_ticks, 0)
        return {name: column[:end] for name, column in self.scores.items()}


def trace(policy: OnnxPolicy, episode: Episode, config: GateConfig | None = None) -> Trace:
    """A bundle's scores over an episode, carrying its state and told what was executed.

    Args:
        policy: of a bundle whose graph has a gate.
        episode: recorded, of its spec.
        config: how the gate scores (`kappa`, `mode`).
    """
    digest = policy.manifest.graph_sha256
    gated = GatedPolicy(policy, GateFile(digest, NEVER, config or GateConfig()))
    actor = PolicyActor(gated)
    actor.reset(episode.meta.seed)
    obs, executed = episode.obs, episode.array("action")
    columns: dict[str, list[float]] = {}
    for t in range(len(episode)):
        actor.act({name: array[t] for name, array in obs.items()})
        actor.executed(executed[t])
        assert actor.gate_decision is not None
        for name, value in actor.gate_decision.scores.items():
            columns.setdefault(name, []).append(value)
    violated = np.flatnonzero(episode.array("cost") > 0)
    return Trace(
        scores={name: np.asarray(column) for name, column in columns.items()},
        violated_at=int(violated[0]) if len(violated) else None,
        episode=episode.content_hash,
    )


@dataclass(frozen=True)
class CalibrationConfig:
    """What is asked of an alarm.

    Attributes:
        alpha: share of safe episodes that may be alarmed.
        beta: share of violations that may be alarmed too late or not at all.
        delta: one minus the confidence of the stricter threshold that is told beside.
        fit: safe episodes that the rank scores are fitted to, and that then count no more.
        stop_ticks: policy steps that a stop takes from top speed, latency included. One for the
            tasks here: a step is 0.2 s, and from 0.17 m/s the arm stops within 0.1 s.
        slow: speed of a gate whose two sides do not fit together, as a share.
        novelty: how many times farther than the risk a score of novelty has to stray from its
            median for the same alarm. With 1 each takes a third of the false alarms; where nothing
            is new, novelty finds no violation with its two thirds.
    """

    alpha: float = 0.05
    beta: float = 0.1
    delta: float = 0.05
    fit: int = MIN_FIT
    stop_ticks: int = 1
    slow: float = 0.5
    novelty: float = 3.0


@dataclass(frozen=True)
class Calibrated:
    """What a calibration came to.

    Attributes:
        gate: what goes beside the graph.
        found: both sides of the alarm.
    """

    gate: GateFile
    found: Thresholds


def calibrate(
    graph_sha256: str,
    traces: Sequence[Trace],
    config: CalibrationConfig | None = None,
    gate: GateConfig | None = None,
) -> Calibrated:
    """Thresholds of a graph from its scores in shadow.

    The first `fit` safe episodes make the combined score, the others its threshold.

    Raises:
        CalibrationError: too few safe episodes, or a score that is not finite.
    """
    config, gate = config or CalibrationConfig(), gate or GateConfig()
    safe = [entry for entry in traces if entry.violated_at is None]
    violating = [entry for entry in traces if entry.violated_at is not None]
    if len(safe) <= config.fit:
        raise CalibrationError(
            f"{len(safe)} safe episodes, of which {config.fit} are for the score alone",
            todo="record more episodes in shadow",
        )
    fit, rest = safe[: config.fit], safe[config.fit :]
    names = list(fit[0].scores)
    rank = RankScore.fit(
        {name: [float(entry.scores[name].max()) for entry in fit] for name in names},
        {name: config.novelty for name in names if name != "risk"},
    )
    found, facts = judged(rank, rest, violating, config)
    facts |= {
        "t_max": max(len(entry.scores[names[0]]) for entry in safe),
        "fit_episodes": [entry.episode for entry in fit],
        "knots": {name: list(knots) for name, knots in rank.knots.items()},
        "stretch": dict(rank.stretch),
    }
    speed = 1.0 if found.compatible else config.slow
    return Calibrated(GateFile(graph_sha256, limits(rank, found, speed), gate, facts), found)


def judged(
    rank: RankScore,
    safe: Sequence[Trace],
    violating: Sequence[Trace],
    config: CalibrationConfig,
    alpha: float | None = None,
) -> tuple[Thresholds, dict[str, Any]]:
    """Both sides of an alarm, and what they rest on, JSON-ready.

    Args:
        rank: the combined score.
        safe: episodes that the threshold rests on.
        violating: episodes that it should have stopped.
        config: what was asked.
        alpha: another rate of false alarms than what was asked.

    Raises:
        CalibrationError: see `thresholds`.
    """
    held = np.array([largest(rank, entry.scores) for entry in safe])
    missed = np.array([largest(rank, entry.up_to(config.stop_ticks)) for entry in violating])
    alpha = config.alpha if alpha is None else alpha
    found = thresholds(held, missed, alpha=alpha, beta=config.beta, delta=config.delta)
    facts: dict[str, Any] = {
        "calibrated": found.compatible,
        "asked": settings.to_json(config),
        **settings.to_json(found),
        "late": int((missed <= found.theta).sum()),
        "detected_by_lead": [
            sum(largest(rank, entry.up_to(lead)) > found.theta for entry in violating)
            for lead in range(1, LEADS + 1)
        ],
        "reliability": [list(row) for row in reliability(held)],
        "safe_episodes": [entry.episode for entry in safe],
        "violating_episodes": [entry.episode for entry in violating],
        "safe_scores": [float(x) for x in held],
        "violating_scores": [float(x) if np.isfinite(x) else None for x in missed],
    }
    return found, facts


def limits(rank: RankScore, found: Thresholds, speed: float) -> GateThresholds:
    """One threshold on the combined score as thresholds on each."""
    each = {name: rank.threshold(name, found.theta) for name in rank.knots}
    return GateThresholds(
        risk_on=each["risk"],
        risk_off=rank.threshold("risk", found.theta_off),
        disagreement=each["disagreement"],
        surprise=each["surprise"],
        recon=each.get("recon"),
        caution=rank.threshold("risk", found.theta_off),
        speed=speed,
    )


def largest(rank: RankScore, scores: dict[str, Array]) -> float:
    """The largest combined score of some steps; minus infinity of none."""
    if not len(next(iter(scores.values()))):
        return -inf
    return float(rank(scores).max())

"""May a new bundle go live? Its checks on held-out episodes, beside the bundle that is live.

Both bundles are run by the code that runs them on the robot, over the same recorded observations,
each with its own carried state. Every check is a claim in the positive: what is not proven, a
number that is not finite included, does not pass. No torch: the actor's machine can check as well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from safe_o2o.bundle import GRAPH, Pointer, current, rollback, set_current
from safe_o2o.data.episode import Episode
from safe_o2o.errors import ConfigError, SafeO2OError
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.types import Array

__all__ = [
    "Check",
    "Pointer",
    "PromotionConfig",
    "PromotionReport",
    "current",
    "promote",
    "rollback",
    "set_current",
]


@dataclass(frozen=True)
class PromotionConfig:
    """Bounds of the promotion checks."""

    episodes: int = 10
    """newest held-out episodes looked at"""
    min_steps: int = 50
    """steps in them below which nothing can be said"""
    max_disagreement: float = 0.6
    """mean |difference| of an action entry to the live bundle; from 0 to 2, and two independent
    uniform policies differ by 0.67"""
    max_risk_increase: float = 0.25
    """of the mean predicted probability of a later violation. Each bundle predicts with its own
    critic, and one that has seen a new scene rightly predicts more there: not too tight"""
    max_cost_increase: float = 0.5
    """of the mean predicted discounted cost; see above"""
    risk_output: str = "risk"
    """the graph's output behind the risk check; empty leaves the check out"""
    cost_output: str = "q_cost"
    """the graph's output behind the cost check; empty leaves the check out"""
    latency_share: float = 0.25
    """share of the policy period that p99 of a decision may take"""

    def __post_init__(self) -> None:
        for name in ("episodes", "min_steps"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("max_disagreement", "max_risk_increase", "max_cost_increase"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 < self.latency_share <= 1:
            raise ConfigError(f"latency_share must be in (0, 1], got {self.latency_share}")


@dataclass(frozen=True)
class Check:
    """One claim and whether it holds.

    Attributes:
        name: what was measured.
        value: the figure; not finite where it could not be had.
        bound: the largest allowed, for "held-out steps", "loads" and "finite outputs" the smallest.
        passed: whether the figure is within its bound.
    """

    name: str
    value: float
    bound: float
    passed: bool


@dataclass(frozen=True)
class PromotionReport:
    """What the checks said.

    Attributes:
        passed: all of them did.
        checks: in the order they were made; the first of them may end them early.
        detail: the error behind a bundle that does not load or run, `""` otherwise.
        steps: held-out steps that were looked at.
    """

    passed: bool
    checks: tuple[Check, ...]
    detail: str
    steps: int

    @property
    def reason(self) -> str:
        """Why it did not pass, in one line; `""` when it did."""
        failed = [
            f"{c.name} {c.value:.4g} (bound {c.bound:.4g})" for c in self.checks if not c.passed
        ]
        return "; ".join([*failed, *([self.detail] if self.detail else [])])

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready description; numbers that are not finite become None."""
        rows = [asdict(check) for check in self.checks]
        for row in rows:
            row["value"] = row["value"] if math.isfinite(row["value"]) else None
        return {
            "passed": self.passed,
            "reason": self.reason,
            "steps": self.steps,
            "checks": rows,
        }


def promote(
    candidate: str | Path,
    incumbent: str | Path | None,
    episodes: Sequence[Episode],
    config: PromotionConfig | None = None,
) -> PromotionReport:
    """Check a bundle; changes nothing. Whoever asked calls `set_current` if it passed.

    Args:
        candidate: the bundle that wants to go live.
        incumbent: the bundle that is live, None for the first one: nothing to compare with then.
        episodes: held out from training, oldest first.
        config: the bounds.

    Raises:
        BundleError: the incumbent does not load or run.
        DataError: an episode is damaged.
    """
    config = PromotionConfig() if config is None else config
    kept = list(episodes)[-config.episodes :]
    steps = sum(len(episode) for episode in kept)
    checks = [_at_least("held-out steps", steps, config.min_steps)]
    if not checks[0].passed:
        return _report(checks, steps)
    base = None
    if incumbent is not None:
        base = _replay(OnnxPolicy.load(incumbent, kept[0].spec), kept)
    try:
        policy = OnnxPolicy.load(candidate, kept[0].spec)
    except SafeO2OError as error:
        return _report([*checks, _at_least("loads", 0, 1)], steps, str(error))
    checks.append(_at_least("loads", 1, 1))
    checks.append(_at_most("weights that are not finite", _bad_weights(policy), 0))
    try:
        replay = _replay(policy, kept)
    except SafeO2OError as error:
        return _report([*checks, _at_least("finite outputs", 0, 1)], steps, str(error))
    checks.append(_at_least("finite outputs", 1, 1))
    checks.append(_at_most("largest |action|", float(np.abs(replay.action).max()), 1.0))
    if base is not None:
        checks += _compare(replay, base, config)
    bound = config.latency_share * policy.spec.action.period
    checks.append(_at_most("p99 of a decision, s", float(np.percentile(replay.seconds, 99)), bound))
    return _report(checks, steps)


@dataclass(frozen=True)
class _Replay:
    """A policy over recorded steps: actions `[N, ...]`, diagnostics `[N]`, seconds `[N]`."""

    action: Array
    outputs: Mapping[str, Array]
    seconds: Array


def _replay(policy: OnnxPolicy, episodes: Sequence[Episode]) -> _Replay:
    """Act on every observation that an action followed, deterministically.

    Raises:
        BundleError: an output is not finite.
        SpecMismatchError: an episode of another spec.
    """
    actions: list[Array] = []
    seconds: list[float] = []
    outputs: dict[str, list[Array]] = {}
    for episode in episodes:
        obs, carry = episode.obs, policy.initial_carry()
        for t in range(len(episode)):
            row = {name: array[t : t + 1] for name, array in obs.items()}
            start = time.perf_counter()
            action, carry = policy.act(row, carry)
            seconds.append(time.perf_counter() - start)
            actions.append(action[0])
            for name, array in policy.last_outputs.items():
                outputs.setdefault(name, []).append(array[0])
    stacked = {name: np.stack(rows) for name, rows in outputs.items()}
    return _Replay(np.stack(actions), stacked, np.asarray(seconds))


def _compare(replay: _Replay, base: _Replay, config: PromotionConfig) -> list[Check]:
    """Candidate beside incumbent on the same steps."""
    shapes = replay.action.shape, base.action.shape
    distance = (
        float(np.abs(replay.action - base.action).mean()) if len(set(shapes)) == 1 else np.nan
    )
    checks = [_at_most("mean disagreement", distance, config.max_disagreement)]
    for name, output, bound in (
        ("risk increase", config.risk_output, config.max_risk_increase),
        ("cost increase", config.cost_output, config.max_cost_increase),
    ):
        if output in base.outputs:  # what the incumbent cannot say, nobody can be worse at
            after = replay.outputs.get(output, np.asarray(np.nan))
            checks.append(_at_most(name, float(after.mean() - base.outputs[output].mean()), bound))
    return checks


def _bad_weights(policy: OnnxPolicy) -> int:
    """Number of weights in the graph that are not finite: NaN may hide behind a branch."""
    bad = 0
    for tensor in onnx.load(policy.directory / GRAPH).graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if np.issubdtype(array.dtype, np.floating):
            bad += int((~np.isfinite(array)).sum())
    return bad


def _at_most(name: str, value: float, bound: float) -> Check:
    return Check(name, float(value), float(bound), bool(value <= bound))


def _at_least(name: str, value: float, bound: float) -> Check:
    return Check(name, float(value), float(bound), bool(value >= bound))


def _report(checks: Sequence[Check], steps: int, detail: str = "") -> PromotionReport:
    return PromotionReport(all(check.passed for check in checks), tuple(checks), detail, steps)

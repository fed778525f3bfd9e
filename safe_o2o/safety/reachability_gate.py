"""The learned safety layer between a policy and the certified filter: pass, shape, recover, brake.

At every policy tick the bundle's graph offers candidate actions, how risky a safety critic takes
each for, how far an ensemble of predictors disagrees about what each leads to, and how surprising
the picture was. The gate picks one of the candidates (`specs/reachability_gate.md` 6.6). It may
only restrict: the first candidate is what the policy wants, the last is to stand still, and
whatever is picked goes through the certified filter, which stays last. NumPy, no clock, no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

import numpy as np

from safe_o2o.config import require_positive
from safe_o2o.errors import ConfigError
from safe_o2o.types import Array, GateState

GateMode = Literal["on", "shadow", "off"]
"""`shadow` decides and lets everything pass; `off` leaves the gate out, calibrated or not."""


@dataclass(frozen=True)
class GateConfig:
    """How the gate behaves; its thresholds are `GateThresholds`, which calibration makes.

    Attributes:
        mode: `smooth` takes the acceptable candidate nearest to the policy's action; `switching`
            the least risky one wherever the policy's is not acceptable, as the literature does.
        kappa: the policy's action may use up this share of what is left between the safest risk
            and the threshold; 1 asks for nothing but the threshold.
        within: the same of an action that takes its place. Less than `kappa`: at the threshold
            itself it would be no safer than what it stands in for.
        surprised: ticks in a row that a scene has to be unknown for a stop.
        dwell: ticks below `off` that end a recovery.
        longest: ticks after which a recovery becomes a stop.
        entries: recoveries an episode; one more becomes a stop.
        settle: ticks at rest and below `off` that end a stop.
        still: an executed action whose entries are all smaller than this is rest.
        patience: ticks without progress while the policy does not pass: a stall.
        progress: what the reward critic has to gain on its best to count as progress, relative.

    Raises:
        ConfigError: a number is out of range.
    """

    mode: Literal["smooth", "switching"] = "smooth"
    kappa: float = 0.7
    within: float = 0.1
    surprised: int = 2
    dwell: int = 3
    longest: int = 20
    entries: int = 3
    settle: int = 6
    still: float = 0.05
    patience: int = 20
    progress: float = 0.02

    def __post_init__(self) -> None:
        for name in ("kappa", "within"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ConfigError(f"must lie in (0, 1], got {getattr(self, name)}", where=name)
        require_positive(self, "surprised", "dwell", "longest", "entries", "settle", "patience")
        require_positive(self, "still", "progress")


@dataclass(frozen=True)
class GateThresholds:
    """Where each score begins to alarm, and where an alarm ends.

    Attributes:
        risk_on: of the intervention score q, the units of the safety critic.
        risk_off: the same, to end an intervention; lower.
        disagreement: of the ensemble, log of a share of variance.
        surprise: of the scene, nat.
        recon: of the decoder, nat; None where the bundle has none.
        caution: of q, where the policy's action begins to be replaced; None is `risk_on`. A lower
            one steers round what is no alarm yet: late, there is no action left that helps.
        speed: the arm is held to this share of its speed, in (0, 1]: less than 1 while a
            calibration is young. The actions stay what they are and take longer, so that the policy
            sees the same motions.

    Raises:
        ConfigError: a threshold is not a number, or an alarm would end where it does not begin.
    """

    risk_on: float
    risk_off: float
    disagreement: float
    surprise: float
    recon: float | None = None
    caution: float | None = None
    speed: float = 1.0

    def __post_init__(self) -> None:
        for name in ("risk_on", "risk_off", "disagreement", "surprise", "recon", "caution"):
            if getattr(self, name) is not None and np.isnan(getattr(self, name)):
                raise ConfigError("is not a number", where=name)
        if not self.risk_off <= self.risk_on:
            raise ConfigError(
                f"must not exceed risk_on ({self.risk_on}), got {self.risk_off}", where="risk_off"
            )
        if self.caution is not None and not self.caution <= self.risk_on:
            raise ConfigError(
                f"must not exceed risk_on ({self.risk_on}), got {self.caution}", where="caution"
            )
        if not 0.0 < self.speed <= 1.0:
            raise ConfigError(f"must lie in (0, 1], got {self.speed}", where="speed")

    @property
    def careful(self) -> float:
        """Where the policy's action begins to be replaced."""
        return self.risk_on if self.caution is None else self.caution

    def stricter(self, other: GateThresholds) -> GateThresholds:
        """The lower of each of two; a decoder's where both have one."""
        both = None if self.recon is None or other.recon is None else min(self.recon, other.recon)
        either = self.caution is not None or other.caution is not None
        return GateThresholds(
            risk_on=min(self.risk_on, other.risk_on),
            risk_off=min(self.risk_off, other.risk_off),
            disagreement=min(self.disagreement, other.disagreement),
            surprise=min(self.surprise, other.surprise),
            recon=both,
            caution=min(self.careful, other.careful) if either else None,
            speed=min(self.speed, other.speed),
        )


@dataclass(frozen=True, slots=True)
class GateReading:
    """What the graph says at one tick; K candidates, the policy's own first, standing still last.

    Attributes:
        candidates: `[K, A]` in [-1, 1].
        risk: of each, the largest of the safety critics `[K]`; above 0 is a later violation.
        disagreement: of the ensemble about each `[K]`.
        surprise: KL divergence of what is seen from what was expected, nat.
        recon: negative log-likelihood of the picture, nat; None where there is no decoder.
        value: of the reward critic, for progress; None where there is none.
    """

    candidates: Array
    risk: Array
    disagreement: Array
    surprise: float
    recon: float | None = None
    value: float | None = None

    @classmethod
    def from_outputs(cls, outputs: Mapping[str, Array]) -> GateReading:
        """From the diagnostics of a graph, each with a batch axis of 1."""
        recon, value = outputs.get("recon_nll"), outputs.get("q_reward")
        return cls(
            candidates=np.asarray(outputs["candidates"][0], np.float64),
            risk=np.asarray(outputs["candidate_risk"][0], np.float64),
            disagreement=np.asarray(outputs["disagreement"][0], np.float64),
            surprise=float(outputs["surprise"].reshape(-1)[0]),
            recon=None if recon is None else float(recon.reshape(-1)[0]),
            value=None if value is None else float(value.reshape(-1)[0]),
        )

    @property
    def finite(self) -> bool:
        """Whether every number of it is one."""
        arrays = (self.candidates, self.risk, self.disagreement)
        scalars = (self.surprise, 0.0 if self.recon is None else self.recon)
        return all(np.isfinite(array).all() for array in arrays) and all(map(isfinite, scalars))


@dataclass(frozen=True, slots=True)
class GateDecision:
    """What the gate made of one tick.

    Attributes:
        action: what goes to the certified filter `[A]`.
        wish: what the policy wanted `[A]`.
        state: what it decided about the policy's action.
        reason: why it should not pass, `""` where it may.
        scores: everything that is calibrated, by name: `risk` (the intervention score q of the
            policy's action), `disagreement`, `surprise`, `recon` where there is one.
        stalled: no progress for too long: whoever runs the episode should end it.
        shadow: True where the policy's action passed whatever was decided.
        speed: share of its speed that the arm is held to, in (0, 1].
    """

    action: Array
    wish: Array
    state: GateState
    reason: str
    scores: Mapping[str, float]
    stalled: bool = False
    shadow: bool = False
    speed: float = 1.0

    @property
    def done(self) -> GateState:
        """What became of the policy's action: in shadow it passed."""
        return GateState.PASS if self.shadow else self.state


def intervention_score(risk: Array, kappa: float) -> Array:
    """V + (r - V) / kappa, V the smallest risk: acceptable means that it is <= theta.

    Difference and not ratio: r / V turns round where V < 0.
    """
    safest = risk.min()
    with np.errstate(over="ignore", invalid="ignore"):  # infinite and NaN are not acceptable
        return np.asarray(safest + (risk - safest) / kappa)


def nearest(action: Array, candidates: Array, accepted: Array) -> int:
    """Row of the accepted candidate `[K, A]` nearest to an action `[A]`; the first of equals."""
    distance = ((candidates - action) ** 2).sum(-1)
    return int(np.where(accepted, distance, inf).argmin())


class Hysteresis:
    """On above one threshold; off after so many ticks in a row below another.

    Args:
        on: switches on above this.
        off: counts towards off below this.
        dwell: ticks in a row.
    """

    def __init__(self, on: float, off: float, dwell: int) -> None:
        self.on, self.off, self.dwell = on, off, dwell
        self.active, self._below = False, 0

    def update(self, score: float) -> bool:
        """One more tick; a score that is not a number counts as above."""
        if not score <= self.on:
            self.active, self._below = True, 0
        elif self.active:
            self._below = self._below + 1 if score < self.off else 0
            if self._below >= self.dwell:
                self.active = False
        return self.active


class ReachabilityGate:
    """One gate an arm; `reset` at every episode.

    Args:
        thresholds: from a calibration of the very graph that is read.
        config: how it behaves.
        shadow: True decides and counts, and lets every action pass.
    """

    def __init__(
        self, thresholds: GateThresholds, config: GateConfig | None = None, *, shadow: bool = False
    ) -> None:
        self.thresholds, self.config, self.shadow = thresholds, config or GateConfig(), shadow
        self.reset()

    def reset(self) -> None:
        """Start an episode: nothing is remembered of the last one but the thresholds."""
        limits, config = self.thresholds, self.config
        self._state = GateState.PASS
        self._recovery = Hysteresis(limits.risk_on, limits.risk_off, config.dwell)
        self._entries = self._recovering = self._unknown = self._calm = 0
        self._idle, self._best = 0, -inf
        self._at_rest = True

    def executed(self, action: Array) -> None:
        """What became of the last action `[A]` behind the filter: whether the arm is at rest."""
        # In the positive: an entry that is not a number is no rest.
        self._at_rest = bool((np.abs(action) < self.config.still).all())

    def decide(self, reading: GateReading) -> GateDecision:
        """One tick. Never raises for a number: one that is not finite stops the arm."""
        candidates = reading.candidates
        if not reading.finite:
            self._calm = 0
            return self._finish(candidates, GateState.BRAKE, "not_finite", {"risk": inf}, None)
        limits = self.thresholds
        q = intervention_score(reading.risk, self._kappa)
        share = q.copy()
        if self.config.mode == "smooth":
            share[1:] = intervention_score(reading.risk, self.config.within)[1:]
        scores = {
            "risk": float(q[0]),
            "disagreement": float(reading.disagreement[0]),
            "surprise": reading.surprise,
        }
        if reading.recon is not None:
            scores["recon"] = reading.recon
        known = reading.disagreement <= limits.disagreement
        # The risk itself as well: q loses it in rounding where the safest is very far below.
        accepted = known & (share <= limits.careful) & (reading.risk <= limits.careful)
        if not reading.risk.min() < limits.careful:
            accepted[:] = False
        wish, row, reason = self._wish(reading, accepted, known)
        state = self._remember(wish, reading, float(q[0]))
        if state is not wish:
            row, reason = self._row(state, reading, known), reason or "hold"
        return self._finish(candidates, state, reason, scores, row, reading.value)

    @property
    def _kappa(self) -> float:
        return self.config.kappa if self.config.mode == "smooth" else 1.0

    def _wish(
        self, reading: GateReading, accepted: Array, known: Array
    ) -> tuple[GateState, int, str]:
        """What this tick alone asks for: state, row of the candidates, reason."""
        limits, last = self.thresholds, len(reading.candidates) - 1
        strange = not reading.surprise <= limits.surprise
        if limits.recon is not None and reading.recon is not None:
            strange |= not reading.recon <= limits.recon
        self._unknown = self._unknown + 1 if strange else 0
        if self._unknown >= self.config.surprised:
            return GateState.BRAKE, last, "unknown_scene"
        if accepted[0]:
            return GateState.PASS, 0, ""
        why = "risk" if known[0] else "disagreement"
        if accepted.any() and self.config.mode == "smooth":
            found = nearest(reading.candidates[0], reading.candidates, accepted)
            return GateState.SHAPE, found, why
        least = self._row(GateState.RECOVER, reading, known)
        if known.any() and reading.risk[least] < limits.risk_on:
            return GateState.RECOVER, least, why
        return GateState.BRAKE, last, "no_safe_action" if known.any() else "disagreement"

    @staticmethod
    def _row(state: GateState, reading: GateReading, known: Array) -> int:
        if state is GateState.RECOVER:
            return int(np.where(known, reading.risk, inf).argmin())
        return len(reading.candidates) - 1

    def _remember(self, wish: GateState, reading: GateReading, score: float) -> GateState:
        """The state with its hysteresis: recoveries hold, too many of them stop, stops settle."""
        config, limits = self.config, self.thresholds
        if self._state is GateState.BRAKE:
            calm = self._at_rest and wish is not GateState.BRAKE
            calm &= bool(reading.risk.min() < limits.risk_off)
            self._calm = self._calm + 1 if calm else 0
            if self._calm < config.settle:
                return GateState.BRAKE
            self._calm, self._recovery.active = 0, False  # the next stop settles anew
            return wish if wish is not GateState.RECOVER else self._enter()
        if wish is GateState.BRAKE:
            return wish
        if self._state is GateState.RECOVER:
            self._recovering += 1
            if self._recovery.update(score):
                # It holds, unless for too long: what does not help in that time will not.
                return GateState.RECOVER if self._recovering < config.longest else GateState.BRAKE
            return wish if wish is not GateState.RECOVER else self._enter()
        return self._enter() if wish is GateState.RECOVER else wish

    def _enter(self) -> GateState:
        """One more recovery, or a stop where there were too many."""
        self._entries += 1
        if self._entries > self.config.entries:
            return GateState.BRAKE
        self._recovering = 0
        self._recovery.update(inf)
        return GateState.RECOVER

    def _finish(
        self,
        candidates: Array,
        state: GateState,
        reason: str,
        scores: Mapping[str, float],
        row: int | None,
        value: float | None = None,
    ) -> GateDecision:
        self._state = state
        self._note_progress(state, value)
        # Whatever the graph says, to stand still is a number.
        action = np.zeros(candidates.shape[-1]) if row is None else candidates[row]
        if self.shadow:
            action = candidates[0]
        return GateDecision(
            action=action.astype(np.float32),
            wish=candidates[0].astype(np.float32),
            state=state,
            reason=reason,
            scores=scores,
            stalled=self._idle >= self.config.patience and not self.shadow,
            shadow=self.shadow,
            speed=1.0 if self.shadow else self.thresholds.speed,
        )

    def _note_progress(self, state: GateState, value: float | None) -> None:
        """Ticks without one: the reward critic's best is no better, and the policy is held."""
        gained = 0.0 if self._best == -inf else self.config.progress * abs(self._best)
        better = value is not None and value > self._best + gained
        if better and value is not None:
            self._best = value
        held = state is not GateState.PASS and not better
        self._idle = self._idle + 1 if held else 0

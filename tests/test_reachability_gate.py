"""The gate by hand: which candidate it takes, when it holds, and that it can only restrict."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_o2o.errors import ConfigError
from safe_o2o.safety.reachability_gate import (
    GateConfig,
    GateDecision,
    GateReading,
    GateThresholds,
    Hysteresis,
    ReachabilityGate,
    intervention_score,
)
from safe_o2o.types import GateState

PASS, SHAPE, RECOVER, BRAKE = GateState
LIMITS = GateThresholds(risk_on=0.2, risk_off=0.05, disagreement=1.0, surprise=5.0)
CANDIDATES = np.array([[0.8], [0.4], [-0.4], [-0.8], [0.0]])


def reading(
    risk: Iterable[float], novel: Iterable[float] = (), surprise: float = 0.0, **more: float
) -> GateReading:
    risk = np.array(list(risk))
    found = np.array(list(novel) or [0.0] * len(risk))
    return GateReading(CANDIDATES[-len(risk) :], risk, found, surprise, **more)


def gate(**settings: object) -> ReachabilityGate:
    asked = {"kappa": 1.0, "within": settings.get("kappa", 1.0)} | settings
    return ReachabilityGate(LIMITS, GateConfig(**asked))  # type: ignore[arg-type]


FINE = reading([0.0, 0, 0, 0, 0])
NOVEL = reading([0.5, 0.0, 0.0, 0.0, 0.0], [0.0, 9.0, 9.0, 9.0, 9.0])
DEAD_END = reading([0.9, 0.8, 0.9, 0.7, 0.9])
STRANGE = reading([0.0, 0, 0, 0, 0], surprise=6.0)
HARD = reading([0.5, 0.5, 0.5, 0.1, 0.5], [0.0, 0.0, 0.0, 0.0, 0.0])


def test_what_the_policy_wants_passes_where_nothing_speaks_against_it() -> None:
    found = gate().decide(FINE)
    assert found.state is PASS and found.reason == "" and found.action.tolist() == [np.float32(0.8)]


def test_the_nearest_acceptable_candidate_is_taken() -> None:
    found = gate().decide(reading([0.9, 0.1, 0.0, 0.0, 0.0]))
    assert found.state is SHAPE and found.action[0] == np.float32(0.4) and found.reason == "risk"
    # A candidate that nobody knows the outcome of is not acceptable, however low its risk.
    found = gate().decide(reading([0.9, 0.1, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0, 0.0]))
    assert found.state is SHAPE and found.action[0] == 0.0
    found = gate().decide(reading([0.1, 0.1, 0.1, 0.1, 0.1], [2.0, 0.0, 0.0, 0.0, 0.0]))
    assert found.state is SHAPE and found.reason == "disagreement"


def test_switching_takes_the_safest_instead() -> None:
    found = gate(mode="switching").decide(reading([0.9, 0.1, 0.05, -0.3, 0.0]))
    assert found.state is RECOVER and found.action[0] == np.float32(-0.8)


def test_without_an_acceptable_action_the_arm_stands_still() -> None:
    for bad in (DEAD_END, reading([0.9] * 5, [9.0] * 5)):
        found = gate().decide(bad)
        assert found.state is BRAKE and found.action[0] == 0.0


def test_kappa_asks_for_a_share_of_what_is_left() -> None:
    risk = np.array([0.2, 0.1])  # T13: V .1, r .2, kappa .3
    assert intervention_score(risk, 0.3)[0] == pytest.approx(0.433333, abs=1e-6)
    for theta, safest, kappa, bound in (
        (0.6, 0.1, 0.1, 0.15), (0.6, 0.1, 0.3, 0.25), (0.6, 0.4, 0.1, 0.42), (0.6, 0.4, 0.3, 0.46),
    ):  # fmt: skip
        q = intervention_score(np.array([bound - 1e-9, safest]), kappa)[0]
        over = intervention_score(np.array([bound + 1e-9, safest]), kappa)[0]
        assert q <= theta < over


def test_recovery_when_only_the_known_actions_far_from_the_safest_are_left() -> None:
    """The safest is unknown, the known ones do not pass for kappa: the best of them is taken."""
    found = gate(kappa=0.3).decide(reading([0.5, 0.3, 0.15, 0.4, -0.9], [0, 0, 0, 0, 9.0]))
    assert found.state is RECOVER and found.action[0] == np.float32(-0.4)


T10 = np.linspace(-1.0, 1.0, 25)


def smooth(x: float, kappa: float, nominal: float = 0.8) -> GateDecision:
    """One tick of T10: x' = x + 0.1 a, the limit at 1, standing still among the candidates."""
    actions = np.r_[nominal, T10, 0.0]
    risk = np.maximum(x, x + 0.1 * actions) - 1.0
    limits = GateThresholds(1e-9, 0.0, np.inf, np.inf)  # 0.75 is on the border itself
    one = ReachabilityGate(limits, GateConfig(kappa=kappa, within=kappa))
    return one.decide(GateReading(actions[:, None], risk, np.zeros(len(actions)), 0.0))


@pytest.mark.parametrize(
    "x, expected",
    [(0.85, (0.083333, 0.416667, 0.75)), (0.95, (0.0, 0.083333, 0.25)), (0.0, (0.8, 0.8, 0.8))],
)
def test_t10_the_smooth_filter(x: float, expected: tuple[float, ...]) -> None:
    found = [float(smooth(x, kappa).action[0]) for kappa in (0.1, 0.3, 0.5)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_t10_sixty_ticks_towards_a_wall() -> None:
    x, actions, farthest = 0.0, [], 0.0
    for _ in range(60):
        actions.append(float(smooth(x, 0.3).action[0]))
        x += 0.1 * actions[-1]
        farthest = max(farthest, x)
    change = np.diff(actions)
    moves = change[np.abs(change) > 1e-6]
    assert farthest == pytest.approx(0.975, abs=1e-6)
    assert np.abs(change).sum() == pytest.approx(0.8, abs=1e-6)
    assert np.count_nonzero(np.diff(np.sign(moves))) <= 1


def test_t11_hysteresis() -> None:
    state = Hysteresis(on=0.2, off=0.05, dwell=3)
    scores = (0.02, 0.08, 0.21, 0.19, 0.12, 0.09, 0.04, 0.04, 0.04, 0.30, 0.01, 0.01, 0.01, 0.01)
    assert [int(state.update(s)) for s in scores] == [0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0]
    assert state.update(float("nan"))


def test_a_scene_that_stays_unknown_stops_the_arm_and_one_odd_picture_does_not() -> None:
    one = gate()
    assert [one.decide(r).state for r in (STRANGE, FINE, STRANGE)] == [PASS, PASS, PASS]
    found = one.decide(STRANGE)
    assert found.state is BRAKE and found.reason == "unknown_scene" and found.action[0] == 0.0


def test_the_decoder_is_asked_where_there_is_one() -> None:
    one = ReachabilityGate(dataclasses.replace(LIMITS, recon=10.0))
    for _ in range(2):
        found = one.decide(reading([0.0] * 5, recon=11.0))
    assert found.state is BRAKE and found.scores["recon"] == 11.0


def test_a_stop_ends_at_rest_after_six_calm_ticks() -> None:
    one = gate()
    one.decide(DEAD_END)
    states = []
    for moving in (True, True, False, False, False, False, False, False, False):
        one.executed(np.array([0.5 if moving else 0.0]))
        states.append(one.decide(FINE).state)
    assert states == [BRAKE] * 7 + [PASS] * 2
    one.decide(DEAD_END)
    one.executed(np.array([np.nan]))  # what is not known is no rest
    assert all(one.decide(FINE).state is BRAKE for _ in range(20))


def test_a_recovery_holds_until_it_is_calm_and_not_for_ever() -> None:
    one = gate(mode="switching")
    assert one.decide(HARD).state is RECOVER
    calm = reading([0.04, 0.0, 0.0, 0.0, 0.0])
    between = reading([0.1, 0.0, 0.0, 0.0, 0.0])
    states = [one.decide(r).state for r in (between, calm, calm, between, calm, calm, calm)]
    assert states == [RECOVER] * 6 + [PASS]
    one.reset()
    states = [one.decide(between if i else HARD).state for i in range(22)]
    assert states[:20] == [RECOVER] * 20 and states[20:] == [BRAKE] * 2


def test_the_fourth_recovery_of_an_episode_is_a_stop() -> None:
    one = gate(mode="switching", dwell=1)
    calm = reading([0.0] * 5)
    states = []
    for _ in range(4):
        states.append(one.decide(HARD).state)
        one.decide(calm)
    assert states == [RECOVER] * 3 + [BRAKE]
    one.reset()
    assert one.decide(HARD).state is RECOVER


def test_progress_is_the_reward_critics_and_a_stall_is_told() -> None:
    one = gate(patience=5)
    held = [one.decide(reading([0.9, 0.1, 0, 0, 0], value=0.5)).stalled for _ in range(6)]
    assert held == [False] * 5 + [True]  # the first value is the best so far
    one.reset()
    on_the_way = [
        one.decide(reading([0.9, 0.1, 0, 0, 0], value=0.5 + 0.05 * i)).stalled for i in range(9)
    ]
    assert not any(on_the_way)
    one.reset()
    assert not any(one.decide(FINE).stalled for _ in range(30))  # slow is not held


@pytest.mark.parametrize("field", ["candidates", "risk", "disagreement", "surprise", "recon"])
def test_a_number_that_is_none_stops_the_arm(field: str) -> None:
    good = reading([0.0] * 5, recon=0.0)
    value = getattr(good, field)
    broken = np.full_like(value, np.nan) if isinstance(value, np.ndarray) else float("nan")
    found = gate().decide(dataclasses.replace(good, **{field: broken}))
    assert found.state is BRAKE and found.action.tolist() == [0.0] and found.reason == "not_finite"
    assert found.scores["risk"] == np.inf


def test_in_shadow_everything_is_decided_and_nothing_is_done() -> None:
    one = ReachabilityGate(LIMITS, shadow=True)
    found = one.decide(DEAD_END)
    assert found.state is BRAKE and found.action[0] == np.float32(0.8)
    assert found.done is PASS and found.shadow
    # Whoever is not held does not stall.
    assert not any(one.decide(DEAD_END).stalled for _ in range(100))
    assert ReachabilityGate(LIMITS).decide(DEAD_END).done is BRAKE


def test_every_stop_settles_anew() -> None:
    """A stop that follows on another is as long as the first, whatever it stops for."""
    broken = dataclasses.replace(FINE, surprise=float("nan"))
    for again in (broken, DEAD_END):
        one = gate(settle=4)
        assert one.decide(DEAD_END).state is BRAKE
        assert [one.decide(FINE).state for _ in range(4)] == [BRAKE, BRAKE, BRAKE, PASS]
        assert one.decide(again).state is BRAKE
        assert [one.decide(FINE).state for _ in range(4)] == [BRAKE, BRAKE, BRAKE, PASS]
        assert one.decide(again).state is BRAKE
        assert one.decide(FINE).state is BRAKE
        assert one.decide(again).state is BRAKE  # in the middle of settling
        assert [one.decide(FINE).state for _ in range(4)] == [BRAKE, BRAKE, BRAKE, PASS]


def test_caution_replaces_what_is_no_alarm_yet() -> None:
    """Between caution and alarm another action is taken; one that helps, not one just below."""
    careful = dataclasses.replace(LIMITS, caution=0.1)
    risk = reading([0.15, 0.09, 0.01, 0.0, 0.0])
    assert gate().decide(risk).state is PASS
    for within, expected in ((1.0, 0.4), (0.1, 0.0)):  # 0.09 is below 0.1, and no tenth of it
        found = ReachabilityGate(careful, GateConfig(kappa=1.0, within=within)).decide(risk)
        assert found.state is SHAPE and found.action[0] == np.float32(expected)
        assert found.scores["risk"] == 0.15
    # With nothing below it the least risky one is taken, as long as that is no alarm.
    found = ReachabilityGate(careful).decide(reading([0.19, 0.15, 0.12, 0.15, 0.15]))
    assert found.state is RECOVER and found.action[0] == np.float32(-0.4)
    assert ReachabilityGate(careful).decide(DEAD_END).state is BRAKE
    # The literature's rule begins where ours does, and takes the least risky.
    found = ReachabilityGate(careful, GateConfig(mode="switching")).decide(risk)
    assert found.state is RECOVER and found.action[0] == np.float32(-0.8)


def test_a_young_calibration_slows_the_arm_down() -> None:
    one = ReachabilityGate(dataclasses.replace(LIMITS, speed=0.5))
    said = one.decide(FINE)
    assert (said.state, said.speed) == (PASS, 0.5)
    np.testing.assert_array_equal(said.action, said.wish)  # the same motion, in twice the time
    assert ReachabilityGate(one.thresholds, shadow=True).decide(FINE).speed == 1.0


def test_the_stricter_of_two_has_the_lower_of_each() -> None:
    one = GateThresholds(0.3, 0.1, 2.0, 7.0, recon=4.0, speed=0.5)
    other = GateThresholds(0.2, 0.15, 3.0, 6.0)
    for found in (one.stricter(other), other.stricter(one)):
        assert found == GateThresholds(0.2, 0.1, 2.0, 6.0, recon=None, speed=0.5)
    careful = dataclasses.replace(one, caution=0.25)
    assert careful.stricter(other).caution == other.stricter(careful).caution == 0.2


def test_thresholds_that_make_no_sense_are_refused() -> None:
    nan = float("nan")
    wrong = ({"risk_on": nan}, {"recon": nan}, {"risk_off": 0.3}, {"speed": 0.0})
    for change in (*wrong, {"caution": nan}, {"caution": 0.3}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            dataclasses.replace(LIMITS, **change)
    for name in ("kappa", "within"):
        with pytest.raises(ConfigError, match=name):
            GateConfig(**{name: 0.0})


numbers = st.one_of(st.floats(-2, 2), st.floats(allow_nan=True, allow_infinity=True))


@given(
    ticks=st.lists(
        st.tuples(
            st.lists(numbers, min_size=5, max_size=5),
            st.lists(numbers, min_size=5, max_size=5),
            numbers,
            numbers,
        ),
        min_size=1,
        max_size=30,
    ),
    mode=st.sampled_from(["smooth", "switching"]),
    kappa=st.sampled_from([0.1, 0.3, 1.0]),
)
def test_whatever_it_reads_it_only_restricts(ticks: list, mode: str, kappa: float) -> None:  # type: ignore[type-arg]
    one = ReachabilityGate(LIMITS, GateConfig(mode=mode, kappa=kappa))  # type: ignore[arg-type]
    for risk, novel, surprise, executed in ticks:
        given = GateReading(CANDIDATES, np.array(risk), np.array(novel), surprise)
        found = one.decide(given)
        action = float(found.action[0])
        assert any(action == np.float32(c) for c in CANDIDATES[:, 0])
        if not given.finite:
            assert action == 0.0 and found.state is BRAKE
        if found.state is PASS:
            assert action == np.float32(0.8) and risk[0] <= LIMITS.risk_on
        if found.state is SHAPE:
            row = int(np.flatnonzero(np.float32(CANDIDATES[:, 0]) == found.action[0])[0])
            assert risk[row] <= LIMITS.risk_on and novel[row] <= LIMITS.disagreement
        if found.state is BRAKE:
            assert action == 0.0
        one.executed(np.array([executed]))

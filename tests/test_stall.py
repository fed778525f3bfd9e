"""The arm against its commands: no false alarm from delay and noise, a stall found in time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from safe_o2o.errors import ConfigError
from safe_o2o.safety.codes import Kind, kind
from safe_o2o.safety.stall import StallConfig, StallMonitor

DT = 0.01


def wave(ticks: int, joints: int = 3) -> np.ndarray:
    """Smooth commanded positions `[ticks, joints]`, rad, up to 1 rad/s, never quite periodic."""
    t = DT * np.arange(ticks)[:, None]
    phase = np.arange(joints)
    return 0.5 * np.sin(1.3 * t + phase) + 0.2 * np.sin(1.7 * t + 2.0 * phase)


def run(monitor: StallMonitor, told: np.ndarray, seen: np.ndarray) -> list[list[str]]:
    return [monitor.update(one, two) for one, two in zip(told, seen, strict=True)]


def delayed(told: np.ndarray, ticks: int) -> np.ndarray:
    return np.concatenate([np.repeat(told[:1], ticks, axis=0), told])[: len(told)]


@pytest.mark.parametrize("latency", range(11))
def test_no_false_alarm_over_a_hundred_thousand_noisy_ticks(latency: int) -> None:
    """In all: 11 latencies, and one tick of unknown jitter either way in every run."""
    rng, ticks = np.random.default_rng(latency), 9100
    told = wave(ticks)
    shift = rng.integers(-1, 2, ticks) + latency
    seen = told[np.clip(np.arange(ticks) - np.maximum(shift, 0), 0, None)]
    seen = seen + rng.normal(0.0, 0.005, seen.shape)
    config = StallConfig(latency=latency, tolerance=0.05)
    assert not any(run(StallMonitor(3, config), told, seen))


@pytest.mark.parametrize("latency", [0, 3, 10])
def test_no_false_alarm_in_velocity_mode(latency: int) -> None:
    rng = np.random.default_rng(latency)
    told = np.gradient(wave(8000), DT, axis=0)
    told[:100] *= np.linspace(0.0, 1.0, 100)[:, None]  # it sets off at rest
    seen = delayed(told, latency) + rng.normal(0.0, 0.005, told.shape)
    config = StallConfig(mode="velocity", latency=latency, tolerance=0.05)
    assert not any(run(StallMonitor(3, config), told, seen))


def test_the_delay_has_to_be_known() -> None:
    """At 1 rad/s ten ticks are 0.1 rad: an error without the latency, none with it."""
    told = DT * np.arange(200)[:, None]
    for latency, found in ((0, True), (10, False)):
        config = StallConfig(latency=latency, tolerance=0.05)
        assert any(run(StallMonitor(1, config), told, delayed(told, 10))) == found


@pytest.mark.parametrize(("jitter", "off"), [(0, 0.02), (1, 0.01), (2, 0.0)])
def test_the_nearest_command_within_the_jitter_counts(jitter: int, off: float) -> None:
    """By hand: 1 rad/s and a delay of 5 or 1 for 3 configured leave 2 - jitter ticks of 0.01."""
    told = DT * np.arange(100)[:, None]
    for real, tolerance, found in (
        (5, off + 1e-6, False), (5, off - 1e-6, True), (1, off + 1e-6, False), (1, off - 1e-6, True)
    ):  # fmt: skip
        if tolerance > 0.0:
            config = StallConfig(latency=3, jitter=jitter, tolerance=tolerance)
            assert any(run(StallMonitor(1, config), told, delayed(told, real))) == found


@pytest.mark.parametrize("latency", [2, 7])
@pytest.mark.parametrize("jitter", [0, 2])
def test_a_jump_that_is_followed_within_the_jitter_is_no_stall(latency: int, jitter: int) -> None:
    told = np.where(np.arange(400) < 150, 0.0, 1.0)[:, None]
    for real in (latency - jitter, latency, latency + jitter):
        config = StallConfig(latency=latency, jitter=jitter, tolerance=50.0, within=0.5)
        assert not any(run(StallMonitor(1, config), told, delayed(told, real)))


def test_n_ticks_of_m() -> None:
    """3 of 5: two in five are none, and one joint's ticks do not count for another."""
    config = StallConfig(tolerance=0.1, bad=3, of=5)
    cases = {
        "1100011000": None, "1010001": None, "111": 2, "10101": 4, "1000110": None, "1001011": 6,
    }  # fmt: skip
    for pattern, first in cases.items():
        monitor = StallMonitor(2, config)
        codes = [monitor.update([0.0, 0.0], [0.0, 0.2 * int(c)]) for c in pattern]
        found = [k for k, code in enumerate(codes) if code]
        assert (found[0] if found else None) == first, pattern
    monitor = StallMonitor(2, config)
    assert not any(monitor.update([0, 0], [0.2 * (k % 2), 0.2 * (1 - k % 2)]) for k in range(4))


def test_tolerance_is_per_joint_and_at_the_limit_still_fine() -> None:
    config = StallConfig(tolerance=(0.125, 0.5), bad=1, of=1)
    for seen, codes in (
        ([0.125, 0.5], []),
        ([0.126, 0.0], ["tracking_error"]),
        ([0.0, 0.49], []),
        ([0.0, 0.51], ["tracking_error"]),
    ):
        assert StallMonitor(2, config).update([0.0, 0.0], seen) == codes
    monitor = StallMonitor(2, config)
    monitor.update([0.0, 0.0], [0.1, 0.6])
    assert monitor.detail.startswith("joint 2: 0.6 rad off")


@pytest.mark.parametrize("mode", ["position", "velocity"])
@pytest.mark.parametrize("latency", [0, 4, 10])
@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_a_stalled_joint_is_found_within_the_bound(mode: Any, latency: int, noise: float) -> None:
    """Joint 2 stands from tick 500 on, with a tolerance that does not see it."""
    rng, stuck = np.random.default_rng(1), 500
    told = 0.4 * DT * np.arange(1000)[:, None] * np.array([1.0, -1.0, 0.5])
    seen = delayed(told, latency)
    seen[stuck:, 1] = seen[stuck, 1]
    if mode == "velocity":
        told, seen = (np.diff(q, axis=0, prepend=q[:1]) / DT for q in (told, seen))
    seen = seen + rng.normal(0.0, noise, seen.shape)
    config = StallConfig(mode=mode, latency=latency, tolerance=50.0, within=0.5)
    monitor, first = StallMonitor(3, config), None
    for k, (one, two) in enumerate(zip(told, seen, strict=True)):
        codes = monitor.update(one, two)
        if codes and first is None:
            first = k
            assert codes == ["stalled"] and monitor.detail.startswith("joint 2: ")
    # No later than its window after the moment; sooner by what `moved` lets pass.
    assert first is not None and stuck + 30 <= first <= stuck + 50


def test_stall_by_hand() -> None:
    """0.5 rad/s, 0.15 rad, 1 s: after 0.3 s of motion told and not made, and not a tick before."""
    config = StallConfig(jitter=0, tolerance=50.0, commanded=0.15, moved=0.05, within=1.0)
    monitor, codes = StallMonitor(1, config), []
    for k in range(60):
        codes.append(monitor.update([0.005 * k], [0.0]))
    # 0.005 k > 0.15 for the first time at k = 31 (k = 30 is 0.15 but for rounding).
    assert not any(codes[:30]) and codes[31] == ["stalled"] and all(codes[31:])
    assert monitor.detail == "joint 1: sent, and still for 1 s"


def test_a_stall_that_goes_to_and_fro_is_seen() -> None:
    """Its net way over the window is nothing: the span of what was told counts."""
    config = StallConfig(tolerance=50.0, within=1.0)
    told = 0.1 * np.sin(2.0 * np.pi * DT * np.arange(300))[:, None]
    assert run(StallMonitor(1, config), told, np.zeros_like(told))[-1] == ["stalled"]


def test_an_arm_at_rest_is_not_stalled() -> None:
    noise = np.random.default_rng(0).normal(0.0, 0.005, (3000, 2))
    assert not any(run(StallMonitor(2), np.zeros((3000, 2)), noise))


def test_a_velocity_that_is_not_made_is_a_tracking_error() -> None:
    """0.4 rad/s told, none made: 0.1 rad is missing after 25 ticks, more from the 26th on."""
    config = StallConfig(mode="velocity", jitter=0, tolerance=0.1, bad=1, of=1)
    monitor = StallMonitor(1, config)
    codes = [monitor.update([0.4], [0.0]) for _ in range(30)]
    assert not any(codes[:24]) and codes[25][0] == "tracking_error"


def test_a_slow_drift_of_velocities_never_adds_up() -> None:
    """0.02 rad/s of bias is 200 rad in 10 000 s, and 0.01 rad in the half second that counts."""
    config = StallConfig(mode="velocity", tolerance=0.05)
    monitor = StallMonitor(1, config)
    assert not any(monitor.update([0.1], [0.12]) for _ in range(20_000))


@pytest.mark.parametrize("mode", ["position", "velocity"])
@pytest.mark.parametrize(
    "bad", [[math.nan, 0.0], [math.inf, 0.0], [0.0], None, "q", [[0.0], [1.0, 2.0]]]
)
def test_what_is_no_reading_counts_and_never_raises(mode: Any, bad: Any) -> None:
    config = StallConfig(mode=mode, bad=3, of=5)
    for told, seen in ((bad, [0.0, 0.0]), ([0.0, 0.0], bad)):
        for before in (0, 3):  # from the start, and on the way
            monitor = StallMonitor(2, config)
            assert not any(monitor.update([0.0, 0.0], [0.0, 0.0]) for _ in range(before))
            codes = [monitor.update(told, seen) for _ in range(3)]
            assert codes == [[], [], ["tracking_error"]] and monitor.detail
            # A single one among good ones is no fault.
            monitor.reset()
            many = [
                monitor.update(*((told, seen) if k == 5 else ([0, 0], [0, 0]))) for k in range(20)
            ]
            assert not any(many)


@pytest.mark.parametrize("mode", ["position", "velocity"])
def test_huge_numbers_are_far_off_and_do_not_overflow(mode: Any) -> None:
    monitor = StallMonitor(2, StallConfig(mode=mode, bad=3, of=5))
    monitor.update([0.0, 0.0], [0.0, 0.0])
    codes = [monitor.update([-1.7e308, 0.0], [1.7e308, 0.0]) for _ in range(5)]
    assert codes[0] == [] and codes[4] == ["tracking_error"]


def test_reset_forgets() -> None:
    monitor = StallMonitor(1, StallConfig(tolerance=0.1, bad=1, of=10))
    assert monitor.update([0.0], [0.2]) == ["tracking_error"]
    monitor.reset()
    assert monitor.update([5.0], [5.0]) == [] and monitor.detail == ""


def test_its_codes_are_latched() -> None:
    assert kind("tracking_error") is kind("stalled") is Kind.LATCHED


@pytest.mark.parametrize(
    "bad",
    [{"mode": "torque"}, {"period": 0.0}, {"latency": -1}, {"jitter": -1}, {"tolerance": 0.0},
     {"tolerance": (0.1, math.nan)}, {"tolerance": ()}, {"bad": 0}, {"bad": 11}, {"span": math.inf},
     {"moved": 0.2}, {"moved": math.nan}, {"commanded": -1.0}, {"within": 0.03, "jitter": 1},
     {"period": math.nan}],
)  # fmt: skip
def test_tolerances_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        StallConfig(**bad)


def test_numbers_of_joints_have_to_agree() -> None:
    with pytest.raises(ConfigError):
        StallMonitor(0)
    with pytest.raises(ConfigError):
        StallMonitor(3, StallConfig(tolerance=(0.1, 0.2)))

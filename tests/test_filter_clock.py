"""The filter and imperfect clocks: drift is no fault, a burst is forgotten, haste is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest

from safe_o2o.types import Verdict
from tests.test_filter import DT, HOME, Bench


def drive(bench: Bench, steps: Iterable[float]) -> list[tuple[Verdict, str]]:
    """A gentle motion at 5 Hz; `steps` are the times between the ticks, in control periods."""
    answers = []
    for k, step in enumerate(steps):
        if k % 20 == 0:
            proposal = bench.propose(HOME + 0.03 * np.sin(0.01 * k))
        decision = bench.tick(proposal, DT * step)
        answers.append((decision.verdict, decision.reason))
    return answers


@pytest.mark.parametrize("rate", [1.0 - 5e-4, 1.0, 1.0 + 5e-4])
def test_clocks_that_drift_apart_never_stop_the_arm(rate: float) -> None:
    # 500 ppm, the most that a network clock is slewed by: 2 ticks of lead after 40 s, were they
    # only added up.
    assert Counter(drive(Bench(), [rate] * 9000)) == {(Verdict.PASS, ""): 9000}


@pytest.mark.parametrize("burst", [[0.0, 0.0, 0.0], [4.0, 0.02, 0.02, 0.02]])
@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_a_burst_of_ticks_stops_the_arm_for_less_than_a_second(
    burst: list[float], jitter: float
) -> None:
    regular = [1.0 + jitter, 1.0 - jitter] * 100
    answers = drive(Bench(), regular + burst + regular)
    stopped = [k for k, (verdict, _) in enumerate(answers) if verdict is Verdict.STOPPED]
    assert stopped and {reason for _, reason in answers} <= {"", "clock_jump", "clock_fast"}
    # One stop, not a stutter: from its first tick to its last it holds without a gap.
    assert stopped == list(range(stopped[0], stopped[-1] + 1)) and len(stopped) < 100


def test_a_loop_that_runs_too_often_stays_stopped() -> None:
    answers = drive(Bench(), [0.5] * 1000)
    assert {answer for answer in answers[10:]} == {(Verdict.STOPPED, "clock_fast")}


def test_a_period_that_is_one_tick_but_for_rounding_is_one_tick() -> None:
    bench, period = Bench(), 0.29 / 29
    assert period < DT
    target = HOME + 1e-4
    assert bench.tick(bench.propose(target, period=period)).verdict is Verdict.PASS
    assert np.array_equal(bench.q, target)


def test_a_chunk_that_was_interrupted_goes_on_and_not_back() -> None:
    bench = Bench()
    proposal = bench.propose(*(HOME + 0.02 * k for k in (1, 2, 3)))
    bench.run(proposal, 45)
    passed = bench.q[0]
    assert passed > HOME[0] + 0.04  # beyond the second target
    bench.tick(None)  # somebody asks for a stop, then lets the same proposal go on
    path = [bench.q[0], *(d.command.q[0] for d in bench.run(proposal, 60))]
    assert (np.diff(path) >= -1e-12).all() and path[0] >= passed
    assert bench.q[0] == pytest.approx(HOME[0] + 0.06, abs=3e-3)

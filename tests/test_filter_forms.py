"""The same numbers in other clothes, and an example whose numbers are frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from safe_o2o.types import Array, Proposal, Verdict
from tests.test_filter import DT, HOME, NAMES, Bench

TARGET = HOME + 0.0078125  # exact in float32 as an offset
FORMS: list[Callable[[Array], Any]] = [
    lambda x: x.tolist(),
    lambda x: tuple(map(tuple, x.tolist())),
    lambda x: np.asfortranarray(x),
    lambda x: x.astype(">f8"),
    lambda x: x.astype(np.longdouble),
    lambda x: np.repeat(x, 2, axis=1)[:, ::2],  # a view with strides
]


def ends_at(q: Any, names: Any = NAMES) -> Array:
    bench = Bench()
    proposal = Proposal(q, 0.2, 0.0, names)
    decisions = bench.run(proposal, 20)
    assert {d.verdict for d in decisions} == {Verdict.PASS}
    return bench.q


@pytest.mark.parametrize("form", FORMS)
def test_whatever_holds_the_same_numbers_ends_there_bit_for_bit(
    form: Callable[[Array], Any],
) -> None:
    assert np.array_equal(ends_at(form(TARGET[None])), TARGET)


def test_float32_ends_at_what_float32_can_say() -> None:
    single = TARGET[None].astype(np.float32)
    assert np.array_equal(ends_at(single), single[0].astype(np.float64))


def test_names_may_come_as_a_list() -> None:
    assert np.array_equal(ends_at(TARGET[None], list(NAMES)), TARGET)


def test_a_read_only_proposal_is_neither_refused_nor_written_to() -> None:
    target = TARGET[None].copy()
    target.setflags(write=False)
    assert np.array_equal(ends_at(target), TARGET)
    assert not target.flags.writeable and np.array_equal(target[0], TARGET)


@pytest.mark.parametrize(
    "q",
    [
        HOME[None] + 0.001j,
        [[str(x) for x in HOME]],
        [["a"] * 7],
        HOME[None].astype(object),
        np.full((1, 7), None),
        np.ones((1, 7), bool),
        [[1.0] * 7, [1.0] * 6],
        {"q": 1},
    ],
)
def test_what_is_no_array_of_numbers_stops(q: Any) -> None:
    bench = Bench()
    decisions = bench.run(Proposal(q, 0.2, 0.0, NAMES), 3)
    assert {d.verdict for d in decisions} == {Verdict.STOPPED}
    assert np.array_equal(bench.q, HOME)


def test_the_readme_example_in_numbers() -> None:
    """0.05 rad in 0.2 s from rest with the Panda's joint 2, worked out by hand.

    One quintic from velocity 0 to 0.25 rad/s, its acceleration 3 * 0.05 / 0.04 at the start and 0
    at the end: q = 0.05 (1.5 u^2 + 1.5 u^3 - 3.5 u^4 + 1.5 u^5), u = ticks / 20. Its acceleration
    is 3.53 * 0.05 / 0.04 = 4.4 rad/s^2 at most, below 7.5.
    """
    bench, move = Bench(), 0.05 * np.eye(7)[1]
    decisions = bench.run(bench.propose(HOME + move), 20)
    u = np.arange(1, 21) / 20.0
    got = np.array([d.command.q[1] for d in decisions]) - HOME[1]
    assert np.allclose(
        got, 0.05 * (1.5 * u**2 + 1.5 * u**3 - 3.5 * u**4 + 1.5 * u**5), rtol=0.0, atol=1e-15
    )
    assert got[4] == pytest.approx(0.0052490234375) and got[9] == pytest.approx(0.01953125)
    dq = np.array([d.command.dq[1] for d in decisions])
    assert np.allclose(dq, np.diff([0.0, *got]) / DT, atol=1e-12)
    # Then the path's own way to rest, 5 % longer than 0.25 / 7.5 s: w (t - t^2 / 2 T), T = 0.035 s.
    stop = bench.run(None, 5)
    t = np.minimum(0.01 * np.arange(6), 0.035)
    way = 0.25 * (t - t**2 / 0.07)
    assert np.allclose([d.command.dq[1] for d in stop], np.diff(way) / DT, atol=1e-12)
    assert {d.reason for d in stop} == {"no_proposal"}

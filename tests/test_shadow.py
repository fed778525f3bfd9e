"""The shadow report against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from safe_o2o import intervals
from safe_o2o.errors import ConfigError
from safe_o2o.safety.shadow import REASONS, PromotionCriteria, Quantiles, ShadowReport, wilson
from safe_o2o.safety.supervisor import Mode
from safe_o2o.types import CertifiedCommand, Command, Decision, Verdict

LAX = PromotionCriteria(1.0, 1.0, 1)


def decide(q: Any, verdict: Verdict = Verdict.PASS, reason: str = "") -> Decision:
    command = Command(np.asarray(q, np.float64), np.zeros(2), 0.0)
    return Decision(CertifiedCommand(command), verdict, reason, 1.0)


def test_ten_ticks_by_hand() -> None:
    report = ShadowReport(clip_edges=(0.01, 0.1))
    for k in range(8):  # as wanted; the other one is 0.02 rad away in one joint
        report.add([0.0, 0.5], decide([0.0, 0.5]), Mode.SHADOW, 0.001 * (k + 1), [0.02, 0.5])
    clipped = decide([0.0, 0.45], Verdict.CORRECTED, "workspace")
    report.add([0.0, 0.5], clipped, Mode.SHADOW, 0.009, [0.0, 0.05])
    report.add([0.3, 0.0], decide([0.0, 0.0], Verdict.STOPPED, "obstacles"), Mode.SHADOW, 0.010)
    # Nothing wanted: a tick, and no intervention.
    report.add(None, decide([0.0, 0.0], Verdict.STOPPED, "no_proposal"), Mode.SHADOW, 0.001)
    report.add([9.0, 9.0], decide([0.0, 0.0], Verdict.STOPPED, "x"), Mode.ARMED, 9.0, [5.0, 5.0])
    got = json.loads(json.dumps(report.report(), allow_nan=False))
    assert (got["ticks"], got["proposed"], got["interventions"]) == (11, 10, 2)
    assert got["modes"] == {"SHADOW": 11, "ARMED": 1}
    assert got["intervention_rate"] == 0.2
    # 2 of 10 mirrors 8 of 10: centre 0.283262, half 0.226578 (see the test of data.intervals).
    assert got["intervention_interval"] == pytest.approx([0.056684, 0.509840], abs=2e-5)
    assert got["verdicts"] == {"PASS": 8, "CORRECTED": 1, "STOPPED": 2}
    assert got["reasons"] == {"workspace": 1, "obstacles": 1, "no_proposal": 1}
    assert got["clip_counts"] == [8, 1, 1]  # 0; 0.05; 0.3 rad
    apart = got["disagreement_rad"]  # eight of 0.02 and one of 0.4
    assert apart["n"] == 9 and apart["max"] == pytest.approx(0.4)
    assert 0.02 <= apart["p50"] <= 0.0202 and 0.4 <= apart["p95"] + 1e-12 <= 0.404
    # Sorted: 1, 1, 2, ... 10 ms. The sixth of eleven is 5 ms, the p99 the largest.
    slow = got["latency_s"]
    assert slow["n"] == 11 and slow["max"] == 0.010
    assert 0.005 <= slow["p50"] <= 0.00505 and slow["p99"] == pytest.approx(0.010)


def test_edges_belong_to_the_bin_above() -> None:
    report = ShadowReport(clip_edges=(0.25, 0.5))
    for wanted in (0.0, 0.2499, 0.25, 0.4999, 0.5, 7.0):
        report.add([wanted, 0.0], decide([0.0, 0.0]), Mode.SHADOW, 0.0)
    assert report.report()["clip_counts"] == [2, 2, 2]


@pytest.mark.parametrize("wanted", [[math.nan, 0.0], [math.inf, 0.0], [0.0], "q", [[0.0], [1, 2]]])
def test_what_cannot_be_compared_is_infinitely_far_and_raises_nothing(wanted: Any) -> None:
    report = ShadowReport(clip_edges=(0.25, 0.5))
    report.add(wanted, decide([0.0, 0.0]), Mode.SHADOW, math.nan, wanted)
    got = report.report()
    json.dumps(got, allow_nan=False)
    assert got["clip_counts"] == [0, 0, 1]
    assert got["disagreement_rad"] == {"n": 1, "p50": None, "p95": None, "max": None}
    assert got["latency_s"]["p99"] is None
    missing = report.verdict(PromotionCriteria(1.0, 1.0, 1, 1.0))
    assert [line.split()[0] for line in missing] == ["latency", "disagreement"]


def test_wilson_is_the_one_that_evaluation_uses() -> None:
    for count, n in ((0, 0), (0, 100), (100, 100), (8, 10), (3, 100_000)):
        assert wilson(count, n) == pytest.approx(intervals.wilson(count, n), abs=1e-12)


def test_an_empty_report_promotes_nobody() -> None:
    report = ShadowReport()
    json.dumps(report.report(), allow_nan=False)
    assert report.report()["intervention_rate"] is None
    assert len(report.verdict(LAX)) == 2  # no ticks, no latency
    assert len(report.verdict(PromotionCriteria())) == 3


def test_each_criterion_alone_is_named() -> None:
    report = ShadowReport()
    for k in range(1000):
        bad = k < 20
        decision = decide([0.0, 0.0], Verdict.CORRECTED if bad else Verdict.PASS, "x" * bad)
        report.add([0.0, 0.1 * bad], decision, Mode.SHADOW, 0.004 if k % 50 else 0.02, [0.0, 0.01])
    assert report.verdict(PromotionCriteria(0.05, 0.021, 1000, 0.011)) == []
    # 20 of 1000: the rate is 2 %, its interval reaches 3.07 %. One tick in 50 is slow.
    for criteria, word in (
        (PromotionCriteria(0.03, 0.021, 1000), "intervention"),
        (PromotionCriteria(0.05, 0.019, 1000), "latency"),
        (PromotionCriteria(0.05, 0.021, 1001), "1000 ticks"),
        (PromotionCriteria(0.05, 0.021, 1000, 0.009), "disagreement"),
    ):
        (line,) = report.verdict(criteria)
        assert line.startswith(word) and "\n" not in line


def test_quantiles_are_never_too_small_and_at_most_one_percent_too_large() -> None:
    values = np.random.default_rng(0).lognormal(-7.0, 1.5, 20_000)
    found = Quantiles(1e-6, 100.0)
    for value in values:
        found.add(value)
    ordered = np.sort(values)
    for share in (0.01, 0.5, 0.95, 0.99, 0.999, 1.0):
        exact = ordered[math.ceil(share * len(values)) - 1]
        assert exact * (1 - 1e-12) <= found.at(share) <= 1.0101 * exact
    assert found.largest == ordered[-1] and found.n == 20_000


def test_quantiles_at_the_ends() -> None:
    found = Quantiles(1e-6, 100.0)
    assert math.isnan(found.at(0.5))
    found.add(0.0)
    assert found.at(0.5) == found.largest == 0.0
    found.add(1e9)
    assert found.at(0.5) == 1e-6 and found.at(0.99) == 1e9
    found.add(-1.0)
    assert found.at(1.0) == math.inf


def test_memory_is_bounded() -> None:
    report = ShadowReport()
    for k in range(500):
        report.add(None, decide([0.0, 0.0], Verdict.STOPPED, f"r{k}"), Mode.SHADOW, 0.001)
    reasons = report.report()["reasons"]
    assert len(reasons) == REASONS + 1 and reasons["other"] == 500 - REASONS
    held = {name: value for name, value in vars(report).items() if hasattr(value, "__len__")}
    assert all(len(value) <= REASONS + 1 for value in held.values())


@pytest.mark.parametrize("edges", [(), (0.0, 1.0), (0.2, 0.1), (0.1, 0.1), (0.1, math.nan),
                                   (0.1, math.inf)])  # fmt: skip
def test_edges_that_do_not_rise_are_refused(edges: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError):
        ShadowReport(clip_edges=edges)


@pytest.mark.parametrize(
    "bad",
    [(-0.1, 1.0, 1), (1.1, 1.0, 1), (math.nan, 1.0, 1), (0.1, 0.0, 1), (0.1, math.nan, 1),
     (0.1, 1.0, 0), (0.1, 1.0, 1, 0.0)],
)  # fmt: skip
def test_criteria_out_of_range_are_refused(bad: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError):
        PromotionCriteria(*bad)

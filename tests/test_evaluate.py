"""Figures of an evaluation against numbers worked out by hand."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

from safe_o2o.data.summary import EpisodeSummary
from safe_o2o.errors import ConfigError, DataError
from safe_o2o.intervals import bootstrap_mean, wilson
from safe_o2o.training.evaluate import summarize, summarize_by_behavior
from tests.data_fakes import make_dataset


def test_wilson_by_hand() -> None:
    """8 of 10 at z = 1.96 (Brown, Cai and DasGupta 2001 give the same to three digits).

    centre = (0.8 + 0.19208) / 1.38416 = 0.716738,
    half = 1.96 / 1.38416 * sqrt(0.016 + 0.009604) = 0.226578.
    """
    low, high = wilson(8, 10)
    assert low == pytest.approx(0.716738 - 0.226578, abs=2e-5)
    assert high == pytest.approx(0.716738 + 0.226578, abs=2e-5)


def test_wilson_at_the_ends() -> None:
    """0 of n: the upper end is z^2 / (n + z^2), 3.8415 / 103.8415 for n = 100."""
    assert wilson(0, 100) == (0.0, pytest.approx(0.036994, abs=1e-6))
    low, high = wilson(100, 100)
    assert high == 1.0 and low == pytest.approx(1 - 0.036994, abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ConfigError):
        wilson(3, 2)


def test_wilson_inverts_the_score_test() -> None:
    """Its ends are the rates p at which (count/n - p)^2 = z^2 p (1 - p) / n."""
    z2 = 1.959963984540054**2
    for count, n in [(1, 7), (18, 100), (86, 100), (499, 500)]:
        for p in wilson(count, n):
            assert (count / n - p) ** 2 == pytest.approx(z2 * p * (1 - p) / n, rel=1e-9)


def test_the_bootstrap_agrees_with_the_normal_interval_of_a_large_sample() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = bootstrap_mean(values)
    assert found is not None and found == bootstrap_mean(values)
    half = 1.96 * values.std(ddof=1) / sqrt(400)
    assert found[0] == pytest.approx(values.mean() - half, abs=0.02)
    assert found[1] == pytest.approx(values.mean() + half, abs=0.02)
    assert bootstrap_mean([1.0]) is None
    assert bootstrap_mean([2.0, 2.0, 2.0]) == (2.0, 2.0)


def episode(index: int, **changes: object) -> EpisodeSummary:
    fields: dict[str, object] = {
        "index": index,
        "seed": index,
        "task": "line",
        "variant": "",
        "behavior": "expert",
        "return_": 1.0,
        "cost": 0.0,
        "length": 10,
        "success": True,
        "terminated": True,
        "verdicts": {"pass": 10, "corrected": 0, "stopped": 0},
        "reasons": {},
        "margin": 0.5,
    }
    return EpisodeSummary(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_summary_by_hand() -> None:
    episodes = [
        episode(0),
        episode(1, return_=0.0, success=False, cost=2.0, length=20, margin=0.1, behavior="unsafe",
                verdicts={"pass": 14, "corrected": 5, "stopped": 1},
                reasons={"workspace": 5, "joint_limits": 1}, timings={"act": [0.001, 0.003]}),
        episode(2, length=30, verdicts={"pass": 30, "corrected": 0, "stopped": 0},
                timings={"act": [0.002]}),
    ]  # fmt: skip
    out = summarize(episodes)
    assert json.loads(json.dumps(out, allow_nan=False)) == out
    assert out["n"] == 3
    assert out["return"]["mean"] == pytest.approx(2 / 3)
    assert out["return"]["std"] == pytest.approx(sqrt(1 / 3))  # 2/3 (1/9 * 2 + 4/9) * 3 / 2
    assert out["length"] == {**out["length"], "mean": 20.0, "std": 10.0, "min": 10.0, "max": 30.0}
    assert (out["success"]["count"], out["success"]["rate"]) == (2, pytest.approx(2 / 3))
    assert (out["violation"]["count"], out["violation"]["rate"]) == (1, pytest.approx(1 / 3))
    assert (out["success"]["low"], out["success"]["high"]) == wilson(2, 3)
    shares = out["filter"]
    assert (shares["pass"], shares["corrected"], shares["stopped"]) == (54 / 60, 5 / 60, 1 / 60)
    assert shares["reasons"] == {"workspace": 5 / 60, "joint_limits": 1 / 60}
    assert shares["intervened"]["count"] == 1 and shares["margin_min"] == 0.1
    assert out["timings"]["act"]["n"] == 3
    assert out["timings"]["act"]["p50_ms"] == pytest.approx(2.0)
    assert out["timings"]["act"]["max_ms"] == pytest.approx(3.0)
    parts = summarize_by_behavior(episodes)
    assert {name: part["n"] for name, part in parts.items()} == {"expert": 2, "unsafe": 1, "all": 3}
    assert parts["all"] == out


def test_one_episode_tells_nothing_about_spread() -> None:
    out = summarize([episode(0)])
    assert out["return"] == {**out["return"], "std": None, "low": None, "high": None}
    with pytest.raises(DataError):
        summarize([])


def test_a_summary_is_read_from_a_committed_episode(tmp_path: Path) -> None:
    """The fake's episode of 7 steps: rewards 1..7, one cost, verdicts 0 1 2 0 1 2 0."""
    summary = EpisodeSummary.from_episode(make_dataset(tmp_path, [7])[0])
    assert (summary.return_, summary.cost, summary.length) == (28.0, 1.0, 7)
    assert summary.violation and summary.success and summary.terminated
    assert summary.verdicts == {"pass": 3, "corrected": 2, "stopped": 2}
    assert summary.reasons == {"joint_limits": 2, "workspace": 2}
    assert summary.margin == pytest.approx(0.94)
    assert EpisodeSummary.from_json(json.loads(json.dumps(summary.to_json()))) == summary

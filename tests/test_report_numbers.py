"""The report's numbers: intervals, smoothing, rounds, who is who."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from safe_o2o.data.dataset import Dataset
from safe_o2o.report import episodes as ep
from safe_o2o.report import figures, results
from safe_o2o.report.intervals import Interval, ratio
from safe_o2o.report.run_files import ActorResult, RunFiles, across_seeds, rolling
from tests.report_fakes import SPEC, add_episode, make_metrics


def test_ratio_is_katz() -> None:
    # By hand: 0.96 / 0.57 = 1.68421; se = sqrt(1/96 - 1/100 + 1/57 - 1/100) = 0.0892218;
    # exp(1.959964 * se) = 1.191093.
    got = ratio(96, 100, 57, 100)
    assert got.value == pytest.approx(1.684211, abs=1e-6)
    assert got.low == pytest.approx(1.684211 / 1.191093, abs=1e-5)
    assert got.high == pytest.approx(1.684211 * 1.191093, abs=1e-5)


def test_ratio_with_zero_counts() -> None:
    none = ratio(0, 100, 36, 100)
    # Halves added: (0.5/100.5) / (36.5/100.5), se = sqrt(1/.5 - 1/100.5 + 1/36.5 - 1/100.5).
    upper = 0.5 / 36.5 * math.exp(1.959964 * math.sqrt(2 - 2 / 100.5 + 1 / 36.5))
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(upper, rel=1e-5)
    base = ratio(3, 50, 0, 50)
    assert base.value == base.high == math.inf and 0 < base.low < math.inf
    assert math.isnan(ratio(0, 50, 0, 50).value)


def test_ratio_interval_covers_the_truth() -> None:
    generator = np.random.default_rng(0)
    draws = zip(generator.binomial(100, 0.9, 2000), generator.binomial(100, 0.6, 2000), strict=True)
    inside = [r.low <= 1.5 <= r.high for a, b in draws if (r := ratio(int(a), 100, int(b), 100))]
    assert 0.93 < np.mean(inside) < 0.975


def test_rolling_ignores_a_spike_and_keeps_a_ramp() -> None:
    step = np.arange(200.0)
    value = step.copy()
    value[100] = 1e6
    at, median, low, high = rolling(step, value, points=200)
    np.testing.assert_array_equal(at, step)
    assert abs(median[100] - 100) <= 1  # one outlier moves a median by at most one rank
    assert median[50] == 50 and low[50] < 50 < high[50]
    short = rolling(np.array([3.0]), np.array([7.0]))
    assert [float(a[0]) for a in short] == [3, 7, 7, 7]


def test_seeds_are_joined_where_all_of_them_were() -> None:
    step = np.arange(0.0, 101.0)
    runs = [(step, np.full(101, 1.0)), (step[:51], np.full(51, 2.0)), (step, np.full(101, 9.0))]
    at, median, low, high = across_seeds(runs)
    assert (at[0], at[-1]) == (0, 50)
    assert set(median) == {2.0} and set(low) == {1.0} and set(high) == {9.0}


def test_log_forgives_a_torn_end_and_notes_damage(tmp_path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    lines = [
        '{"step": 1, "metrics": {"model/loss": 4.0}}',
        '{"step": 2, "model/loss": 3.0, "note": "flat", "flag": true}',
        "garbage",
        '{"step": 2, "model/loss": 2.5}',
        '{"step": 3, "model/loss": NaN}',
        '{"step": 4, "mod',
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    files = RunFiles(tmp_path)
    metrics = files.metrics("checkpoints")
    assert metrics is not None and metrics.dropped == 1
    step, value = metrics.runs[0]["model/loss"]
    assert step.tolist() == [1, 2] and value.tolist() == [4.0, 2.5]  # the later line of step 2
    assert set(metrics.runs[0]) == {"model/loss"}
    assert files.notes == ["checkpoints/metrics.jsonl: 1 damaged lines were left out"]


def test_several_logs_are_several_seeds(tmp_path) -> None:
    for seed in range(3):
        make_metrics(tmp_path / "checkpoints" / f"seed{seed}" / "metrics.jsonl", seed, 30)
    metrics = RunFiles(tmp_path).metrics("checkpoints")
    assert metrics is not None and len(metrics.runs) == 3


def result(name: str, variant: str = "", success: float = 0.9, violation: float = 0.1):
    rates = [Interval(r, r, r) for r in (success, violation)]
    return ActorResult(name, variant, 100, *rates, None, None, {}, "", None)


def test_actors_are_told_apart() -> None:
    names = [
        "offline", "behavior_mixture", "random", "expert", "finetuned", "before_finetune", "mine",
    ]  # fmt: skip
    cast = {a.result.name: a.part for a in results.cast([result(name) for name in names])}
    assert cast == {
        "offline": "offline",
        "behavior_mixture": "mixture",
        "random": "random",
        "expert": "expert",
        "finetuned": "after",
        "before_finetune": "before",
        "mine": "other",
    }
    # The same policy in another scene than the mixture is the state before fine-tuning.
    moved = results.cast([result("mixture", "plain"), result("offline", "blue")])
    assert [a.part for a in moved] == ["before", "mixture"]


@pytest.mark.parametrize(
    ("success", "violation", "expected"),
    [(0.86, 0.18, (True, True)), (0.85, 0.18, (False, True)), (0.9, 0.19, (True, False))],
)
def test_bars_of_the_comparison(success, violation, expected) -> None:
    mixture = result("mixture", success=0.57, violation=0.36)
    policy = result("offline", success=success, violation=violation)
    actors = results.cast([mixture, policy])
    assert results.met(actors[0], actors[1]) == expected


def test_mixture_file_by_behaviour_becomes_one_row_each(tmp_path) -> None:
    def part(rate: float) -> dict:
        rates = {"success": {"count": 1, "rate": rate, "low": 0.1, "high": 1.0}}
        one = {"mean": 1.0, "low": None, "high": None, "std": None}
        share = {"pass": 0.5, "corrected": 0.5, "stopped": 0.0, "reasons": {"workspace": 0.5}}
        return {"n": 2, **rates, "violation": rates["success"], "return": one, "filter": share}

    (tmp_path / "eval").mkdir()
    content = {"expert": part(1.0), "random": part(0.0), "all": part(0.5), "command": "c"}
    (tmp_path / "eval" / "mixture.json").write_text(json.dumps(content))
    (tmp_path / "eval" / "broken.json").write_text('{"n": 3, "success": {"rate": 7}}')
    files = RunFiles(tmp_path)
    found = {a.name: a for a in files.actors()}
    assert {name: a.success.value for name, a in found.items()} == {
        "expert": 1.0, "random": 0.0, "mixture": 0.5,
    }  # fmt: skip
    assert found["expert"].verdict_share == {"pass": 0.5, "corrected": 0.5, "stopped": 0.0}
    assert found["expert"].returns == Interval(1.0, 1.0, 1.0)
    assert len(files.notes) == 1 and files.notes[0].startswith("eval/broken.json:")


def test_rounds_from_episodes_and_decisions(tmp_path) -> None:
    dataset = Dataset.create(tmp_path / "online", SPEC, task="safe_reach")
    for i in range(5):
        add_episode(
            dataset, i, success=i > 0, violation=i == 1, behavior=f"policy v00000{1 + i // 2}"
        )
    episodes = list(dataset)
    decisions = [
        {"index": 0, "episodes": 2, "bundle": "v000002", "refusal": "", "seconds": 3.0},
        {"index": 1, "episodes": 4, "bundle": "", "refusal": "worse on held-out", "seconds": 3.0},
    ]
    rounds = ep.rounds(episodes, decisions)
    assert [(r.number, r.n) for r in rounds] == [(0, 2), (1, 2), (2, 1)]
    assert [r.success.value for r in rounds if r.success] == [0.5, 1.0, 1.0]
    assert [r.violation.value for r in rounds if r.violation] == [0.5, 0.0, 0.0]
    assert [r.promoted for r in rounds] == [True, False, None]
    assert rounds[0].candidate == "v000002" and rounds[1].reason == "worse on held-out"
    assert [r.bundles for r in rounds] == [("v000001",), ("v000002",), ("v000003",)]
    lines = {"episode_000000.safetensors": {"round": 4}}  # what the recorder noted wins
    assert [(r.number, r.n) for r in ep.rounds(episodes, decisions, lines)] == [
        (0, 1), (1, 2), (2, 1), (4, 1),
    ]  # fmt: skip
    said = Dataset.create(tmp_path / "said", SPEC, task="safe_reach")
    for i in range(2):
        provenance = {"round": 3 + i, "bundle": 7}
        add_episode(said, i, success=True, violation=False, behavior="p", provenance=provenance)
    assert [(r.number, r.bundles) for r in ep.rounds(list(said), [])] == [
        (3, ("v000007",)), (4, ("v000007",)),
    ]  # fmt: skip


def test_risk_is_shown_only_where_it_was_recorded_throughout(tmp_path) -> None:
    dataset = Dataset.create(tmp_path / "d", SPEC, task="safe_reach")
    add_episode(dataset, 0, success=True, violation=False, behavior="x")
    episode = dataset[0]
    risk = np.linspace(0, 1, len(episode)).tolist()

    def shown(outputs):
        lines = {episode.path.name: {"outputs": outputs}}
        film = ep.film(episode, "", "", lambda _: None, lines)
        assert film is not None
        return film.risk

    got = shown([{"risk": value, "q": 1.0} for value in risk])
    np.testing.assert_allclose(got, risk)
    assert shown([{"risk": value} for value in risk[:-1]]) is None
    assert shown([{"risk": float("nan")} for _ in risk]) is None
    assert shown([{} for _ in risk]) is None


def test_films_are_chosen_by_rule(tmp_path) -> None:
    dataset = Dataset.create(tmp_path / "d", SPEC, task="safe_reach")
    for i, (success, violation) in enumerate(((1, 0), (1, 0), (0, 0), (1, 1), (0, 1))):
        add_episode(dataset, i, success=bool(success), violation=bool(violation), behavior="x")
    picked = ep.choose(list(dataset), 2)
    assert [e.meta.seed for e in picked] == [0, 3]  # first success without, first with contact
    assert [e.meta.seed for e in ep.choose(list(dataset), 3)] == [0, 1, 3]
    assert [e.meta.seed for e in ep.choose(list(dataset)[:1], 2)] == [0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (12.345, "12.3"),
        (-0.5, "−0.5"),
        (25000, "25k"),
        (1.2e-4, "1.2e−4"),
        (3e6, "3.0e6"),
    ],
)
def test_compact_numbers(value, text) -> None:
    assert figures.compact(value) == text


def test_percent_never_rounds_a_rare_event_away() -> None:
    shown = [figures.percent(share).replace("\u2009", "") for share in (0, 0.004, 0.5, 0.996, 1)]
    assert shown == ["0%", "0.4%", "50%", "99.6%", "100%"]

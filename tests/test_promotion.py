"""What may go live, and the way back."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from safe_o2o import bundle
from safe_o2o.data.episode import Episode, EpisodeMeta, write_episode
from safe_o2o.errors import BundleError, ConfigError
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.training.promotion import (
    PromotionConfig,
    PromotionReport,
    current,
    promote,
    rollback,
    set_current,
)
from safe_o2o.types import Transition
from tests.exported_policy import SmallPolicy, observations, small_bundle
from tests.synthetic import SPEC


def shifted(change: Callable[[Any], None]) -> SmallPolicy:
    policy = SmallPolicy()
    with torch.no_grad():
        change(policy.module)
    return policy


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v000001 is live; v000002 moves a little; v000003 far; v000004 foresees more risk."""
    folder = tmp_path_factory.mktemp("run") / "bundles"
    changes: list[Callable[[Any], None]] = [
        lambda m: None,
        lambda m: m.mean.bias.add_(0.05),
        lambda m: m.mean.bias.add_(20.0),
        lambda m: m.critic.bias.add_(torch.tensor([0.0, 3.0, 8.0])),
    ]
    for number, change in enumerate(changes, 1):
        small_bundle(folder / f"v{number:06d}", shifted(change))
    return folder


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> list[Episode]:
    folder = tmp_path_factory.mktemp("held_out")
    found = []
    for seed in range(3):
        obs = observations(41, seed + 50)
        steps = [
            Transition(o, np.zeros(3, np.float32), np.zeros(3, np.float32), 0.0, 0.0, False, False)
            for o in obs[:-1]
        ]
        path = folder / f"episode_{seed:06d}.safetensors"
        write_episode(path, steps, obs[-1], 8.0, spec=SPEC, meta=EpisodeMeta("safe_reach"))
        found.append(Episode(path))
    return found


def value(report: PromotionReport, name: str) -> float:
    return next(check.value for check in report.checks if check.name == name)


def failed(report: PromotionReport) -> list[str]:
    return [check.name for check in report.checks if not check.passed]


def by_hand(directory: Path, episodes: list[Episode]) -> tuple[Any, Any]:
    """Actions and risks of a bundle, episode by episode."""
    policy, actions, risks = OnnxPolicy.load(directory), [], []
    for episode in episodes:
        carry = policy.initial_carry()
        for t in range(len(episode)):
            action, carry = policy.act({k: v[t : t + 1] for k, v in episode.obs.items()}, carry)
            actions.append(action)
            risks.append(policy.last_outputs["risk"])
    return np.concatenate(actions), np.concatenate(risks)


def test_a_small_step_passes_with_the_right_figures(bundles: Path, episodes: list[Episode]) -> None:
    report = promote(bundles / "v000002", bundles / "v000001", episodes)
    assert report.passed and report.reason == "" and report.steps == 120
    (a, risk_a), (b, risk_b) = (by_hand(bundles / f"v00000{n}", episodes) for n in (2, 1))
    assert value(report, "mean disagreement") == pytest.approx(np.abs(a - b).mean(), abs=1e-7)
    assert value(report, "risk increase") == pytest.approx(risk_a.mean() - risk_b.mean(), abs=1e-7)
    assert 0 < value(report, "mean disagreement") < 0.1
    assert json.loads(json.dumps(report.to_json()))["passed"] is True
    for check in report.checks:
        assert check.passed and np.isfinite([check.value, check.bound]).all(), check


def test_the_first_bundle_has_nobody_to_compare_with(
    bundles: Path, episodes: list[Episode]
) -> None:
    report = promote(bundles / "v000003", None, episodes)
    assert report.passed and "mean disagreement" not in [check.name for check in report.checks]


def test_a_leap_and_a_foreseen_danger_are_refused(bundles: Path, episodes: list[Episode]) -> None:
    leap = promote(bundles / "v000003", bundles / "v000001", episodes)
    assert failed(leap) == ["mean disagreement"] and "mean disagreement" in leap.reason
    danger = promote(bundles / "v000004", bundles / "v000001", episodes)
    assert failed(danger) == ["risk increase", "cost increase"]
    assert value(danger, "cost increase") == pytest.approx(3.0, abs=1e-4)
    assert promote(
        bundles / "v000001", bundles / "v000004", episodes
    ).passed  # the way down is free
    wide = PromotionConfig(max_risk_increase=1.0, max_cost_increase=10.0)
    assert promote(bundles / "v000004", bundles / "v000001", episodes, wide).passed


def test_a_graph_without_the_incumbents_risk_is_refused(
    bundles: Path, episodes: list[Episode], tmp_path: Path
) -> None:
    policy = SmallPolicy()
    policy.module.output_names[-1] = "hazard"
    small_bundle(tmp_path / "v000001", policy)
    report = promote(tmp_path / "v000001", bundles / "v000001", episodes)
    assert failed(report) == ["risk increase"] and "risk increase nan" in report.reason
    assert report.to_json()["checks"][-3]["value"] is None
    assert promote(bundles / "v000001", tmp_path / "v000001", episodes).passed


def rewrite(source: Path, target: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy whose graph was tampered with and whose manifest was made to agree."""
    model = onnx.load(source / "policy.onnx")
    change(model)
    data = model.SerializeToString()
    manifest = replace(bundle.read_manifest(source), graph_sha256=hashlib.sha256(data).hexdigest())
    target.mkdir()
    (target / "policy.onnx").write_bytes(data)
    (target / "manifest.json").write_text(json.dumps(manifest.to_json()))
    return target


def test_a_hidden_nan_and_a_rare_nan_are_refused(
    bundles: Path, episodes: list[Episode], tmp_path: Path
) -> None:
    def hide(model: onnx.ModelProto) -> None:  # a weight that no output reads
        array = np.array([1.0, np.nan, np.inf], np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, "unused"))

    report = promote(rewrite(bundles / "v000001", tmp_path / "a", hide), None, episodes)
    assert failed(report) == ["weights that are not finite"]
    assert value(report, "weights that are not finite") == 2

    def burst(model: onnx.ModelProto) -> None:  # finite at the loader's two steps of zeros only
        pose = model.graph.input[1].name
        nodes = [
            onnx.helper.make_node("ReduceSum", [pose], ["pose_sum"], keepdims=1),
            onnx.helper.make_node("Equal", ["pose_sum", "nought"], ["is_zero"]),
            onnx.helper.make_node("Cast", ["is_zero"], ["flag"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Div", ["flag", "flag"], ["one_or_nan"]),
            onnx.helper.make_node("Mul", ["real_risk", "one_or_nan"], ["risk"]),
        ]
        zero = onnx.numpy_helper.from_array(np.zeros((1, 1), np.float32), "nought")
        model.graph.initializer.append(zero)
        for node in model.graph.node:
            node.output[:] = ["real_risk" if name == "risk" else name for name in node.output]
        model.graph.node.extend(nodes)

    report = promote(rewrite(bundles / "v000001", tmp_path / "b", burst), None, episodes)
    assert failed(report) == ["finite outputs"] and "output 'risk' is not finite" in report.reason


def test_an_action_out_of_range_is_refused(
    bundles: Path, episodes: list[Episode], tmp_path: Path
) -> None:
    def stretch(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["narrow" if name == "action" else name for name in node.output]
        two = onnx.numpy_helper.from_array(np.array([4.0], np.float32), "four")
        model.graph.initializer.append(two)
        model.graph.node.append(onnx.helper.make_node("Mul", ["narrow", "four"], ["action"]))

    wide = PromotionConfig(max_disagreement=8.0)
    target = rewrite(bundles / "v000001", tmp_path / "a", stretch)
    report = promote(target, bundles / "v000001", episodes, wide)
    assert failed(report) == ["largest |action|"]


def test_a_slow_policy_is_refused(bundles: Path, episodes: list[Episode]) -> None:
    report = promote(
        bundles / "v000001", None, episodes, PromotionConfig(latency_share=1e-6, min_steps=1)
    )
    assert failed(report) == ["p99 of a decision, s"]
    assert report.checks[-1].bound == pytest.approx(0.2e-6)


def test_a_bundle_that_does_not_load_is_a_failed_check_and_a_broken_incumbent_an_error(
    bundles: Path, episodes: list[Episode], tmp_path: Path
) -> None:
    report = promote(tmp_path / "v000009", bundles / "v000001", episodes)
    assert failed(report) == ["loads"] and "does not exist" in report.reason
    assert "\n" not in report.reason
    with pytest.raises(BundleError):
        promote(bundles / "v000001", tmp_path / "v000009", episodes)


def test_too_little_is_not_enough(bundles: Path, episodes: list[Episode]) -> None:
    for few in ([], episodes[:1]):
        report = promote(bundles / "v000001", None, few)
        assert failed(report) == ["held-out steps"] and report.steps == 40 * len(few)
    for wrong in ({"min_steps": 0}, {"max_risk_increase": -1.0}, {"latency_share": 0.0}):
        with pytest.raises(ConfigError):
            PromotionConfig(**wrong)


def test_the_newest_episodes_are_looked_at(bundles: Path, episodes: list[Episode]) -> None:
    report = promote(
        bundles / "v000002", bundles / "v000001", episodes, PromotionConfig(episodes=2)
    )
    a, b = (by_hand(bundles / f"v00000{n}", episodes[1:])[0] for n in (2, 1))
    assert report.steps == 80
    assert value(report, "mean disagreement") == pytest.approx(np.abs(a - b).mean(), abs=1e-7)


def link(bundles: Path, target: Path) -> Path:
    target.mkdir()
    for path in bundles.glob("v*"):
        (target / path.name).symlink_to(path)
    return target


def test_the_pointer_goes_forward_and_back(bundles: Path, tmp_path: Path) -> None:
    folder = link(bundles, tmp_path / "bundles")
    assert current(folder) is None
    with pytest.raises(BundleError, match="has no earlier bundle"):
        rollback(folder)
    for version in ("v000001", "v000002", "v000002"):
        assert set_current(folder, version).version == version
    live = current(folder)
    assert live is not None and live.directory == folder / "v000002"
    assert rollback(folder).version == "v000001"  # setting the same one twice forgot nothing
    digest = hashlib.sha256((folder / "v000001" / "manifest.json").read_bytes()).hexdigest()
    assert current(folder) == bundle.Pointer(folder / "v000001", digest)
    with pytest.raises(BundleError, match="has no earlier bundle"):
        rollback(folder)


def test_the_pointer_refuses_what_is_not_what_was_promoted(bundles: Path, tmp_path: Path) -> None:
    folder = link(bundles, tmp_path / "bundles")
    with pytest.raises(BundleError, match="is no bundle"):
        set_current(folder, "v000099")
    with pytest.raises(BundleError, match="has no version"):
        set_current(folder, "../bundles/v000001")
    assert not (folder / "current.json").exists()
    copy = folder / "v000007"
    copy.mkdir()
    for name in ("policy.onnx", "manifest.json"):
        (copy / name).write_bytes((bundles / "v000001" / name).read_bytes())
    set_current(folder, "v000007")
    (copy / "manifest.json").write_bytes((bundles / "v000002" / "manifest.json").read_bytes())
    with pytest.raises(BundleError, match="was changed after it was promoted"):
        current(folder)
    for text in ("{", "[]", '{"schema_version": 1}', '{"schema_version": 2}'):
        (folder / "current.json").write_text(text)
        with pytest.raises(BundleError, match=r"current\.json: is damaged") as caught:
            current(folder)
        assert "\n" not in str(caught.value)
    outside = {"version": "../v000001", "sha256": "0"}
    (folder / "current.json").write_text(
        json.dumps({"schema_version": 1, "current": outside, "previous": None})
    )
    with pytest.raises(BundleError, match="is damaged"):
        current(folder)


def test_promotion_needs_no_torch() -> None:
    probe = "import sys, safe_o2o.training.promotion; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr

"""A bundle with a gate: one graph, thresholds of its own, the same gate online and in replays."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safe_o2o.algorithms.gated import CANDIDATES, SAMPLES, GatedModule
from safe_o2o.algorithms.reachability import Reachability
from safe_o2o.bundle import read_manifest
from safe_o2o.cli import main
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import EpisodeMeta
from safe_o2o.data.recorder import DirectRecorder
from safe_o2o.errors import BundleError, CheckpointError
from safe_o2o.export.algorithm import export_algorithm, gated
from safe_o2o.runtime.actors import PolicyActor
from safe_o2o.runtime.gate_calibration import Trace, calibrate, trace
from safe_o2o.runtime.gated_policy import GatedPolicy, load_policy
from safe_o2o.runtime.live_policy import LivePolicy
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.runtime.rollout import rollout
from safe_o2o.safety.calibration import CalibrationError
from safe_o2o.safety.gate_file import GATE, GateFile, read_gate, write_gate
from safe_o2o.safety.reachability_gate import GateConfig, GateThresholds
from safe_o2o.training.evaluate import summarize
from safe_o2o.training.restore import load_algorithm
from safe_o2o.types import GateState, Source, Step
from tests.data_fakes import LineEnv, make_dataset
from tests.test_latents import save

OPEN = GateThresholds(risk_on=inf, risk_off=inf, disagreement=inf, surprise=inf)
SHUT = GateThresholds(risk_on=-1e9, risk_off=-1e9, disagreement=inf, surprise=inf)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with a world model, heads on its states, and the bundle of both, by the verbs."""
    folder = tmp_path_factory.mktemp("run")
    raw = make_dataset(folder / "raw", [90, 40, 100], size=64)
    save(folder / "model", raw, "fosp", "tiny", updates=2)
    for line in (
        f"encode {folder}/model --data {folder}/raw --out {folder}/states --what state",
        f"train reachability --preset tiny --data {folder}/states --out {folder}/heads "
        "--algo.total-updates 12",
        f"export {folder}/model --data {folder}/raw --gate {folder}/heads --out {folder}/bundles",
    ):
        assert main.main(line.split()) == 0
    return folder


@pytest.fixture
def bundle(run: Path) -> Path:
    """Its folder, without thresholds."""
    directory = run / "bundles" / "v000001"
    (directory / GATE).unlink(missing_ok=True)
    return directory


def observations(run: Path, count: int) -> list[dict[str, Any]]:
    episode = Dataset(run / "raw")[0]
    return [{name: array[t] for name, array in episode.obs.items()} for t in range(count)]


def set_gate(directory: Path, limits: GateThresholds, **settings: Any) -> GateFile:
    manifest = read_manifest(directory)
    gate = GateFile(manifest.graph_sha256, limits, GateConfig(**settings))
    write_gate(directory, manifest, gate)
    return gate


def test_the_graph_offers_candidates_and_says_what_it_thinks_of_them(
    run: Path, bundle: Path
) -> None:
    policy = OnnxPolicy.load(bundle)
    carry = policy.initial_carry()
    for obs in observations(run, 5):
        action, carry = policy.act({k: v[None] for k, v in obs.items()}, carry)
        said = policy.last_outputs
        offered = said["candidates"][0]
        assert offered.shape == (CANDIDATES, 1) and np.abs(offered).max() <= 1.0
        np.testing.assert_array_equal(offered[0], action[0])
        np.testing.assert_array_equal(offered[-1], 0.0)
        between = offered[2 * SAMPLES + 1 : -1]
        recovery = between[-1]  # the last of the blends is the recovery policy's own
        half = offered[0] + 0.5 * (recovery - offered[0])
        np.testing.assert_allclose(between[SAMPLES // 2 - 1], half, atol=1e-6)
        assert said["candidate_risk"].shape == said["disagreement"].shape == (1, CANDIDATES)
        assert said["surprise"][0, 0] >= -1e-5


def test_network_and_graph_say_the_same_of_the_gate(run: Path, bundle: Path) -> None:
    parity = json.loads((bundle / "manifest.json").read_text())["parity"]["outputs"]
    for name in ("candidates", "candidate_risk", "disagreement", "surprise"):
        assert parity[name] <= 1e-5, name


def test_the_policys_own_critic_counts_beside_the_heads(run: Path) -> None:
    algorithm, heads = (load_algorithm(run / name) for name in ("model", "heads"))
    assert isinstance(heads, Reachability) and heads.config.reach == 2.0
    said = []
    for reach in (0.0, 0.5):
        policy: Any = algorithm.policy.export_module()  # type: ignore[attr-defined]
        module = GatedModule(policy, heads.heads, reach=reach)
        inputs = module.example_inputs()
        said.append(dict(zip(module.output_names, module(*inputs), strict=True)))
    without, having = said
    feature = policy.decide(*inputs[:-1]).feature
    own = policy.reach_risk(feature, without["candidates"])
    assert own.shape == (1, CANDIDATES) and float(own.detach().abs().max()) > 0.0
    torch.testing.assert_close(having["candidate_risk"], without["candidate_risk"] + 0.5 * own)


def test_the_decoder_is_asked_on_demand(run: Path) -> None:
    algorithm, heads = (load_algorithm(run / name) for name in ("model", "heads"))
    assert isinstance(heads, Reachability)
    module = GatedModule(algorithm.policy.export_module(), heads.heads, reconstruct=True)  # type: ignore[attr-defined]
    said = dict(zip(module.output_names, module(*module.example_inputs()), strict=True))
    assert said["recon_nll"].shape == (1, 1) and float(said["recon_nll"]) > 0.0


@pytest.mark.parametrize("expansion", [True, False])
def test_online_the_gate_goes_on_reading_the_frozen_model(run: Path, expansion: bool) -> None:
    """Fine-tuning moves the model; the heads were trained on the states of the frozen one.

    Also where the frozen policy is no candidate any more, as in cloning.
    """
    algorithm: Any = load_algorithm(run / "model")
    tuned = replace(algorithm.config.finetune, expansion=expansion)
    algorithm.config = replace(algorithm.config, finetune=tuned)
    heads: Any = load_algorithm(run / "heads")
    before = gated(algorithm.policy, heads)
    first = before(*before.example_inputs())
    algorithm.start_online()
    with torch.no_grad():
        for parameter in algorithm.net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        algorithm.average.load_state_dict(algorithm.net.state_dict())
    after = gated(algorithm.policy, heads)
    second = dict(zip(after.output_names, after(*after.example_inputs()), strict=True))
    first = dict(zip(before.output_names, first, strict=True))
    assert torch.equal(first["surprise"], second["surprise"])
    assert not torch.equal(first["action"], second["action"])
    plain = algorithm.policy.export_module()
    alone = dict(zip(plain.output_names, plain(*plain.example_inputs()), strict=True))
    torch.testing.assert_close(second["action"], alone["action"])
    assert any(name.startswith("base_") for name in plain.carry_names) == expansion


def test_heads_of_another_model_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = Dataset(run / "raw")
    save(tmp_path / "other", raw, "fosp", "tiny", updates=1)
    other, heads = load_algorithm(tmp_path / "other"), load_algorithm(run / "heads")
    with pytest.raises(CheckpointError, match="another world model"):
        export_algorithm(other, "fosp", tmp_path / "b", raw, gate=heads)  # type: ignore[arg-type]
    line = f"train reachability --preset tiny --data {run}/states --out {tmp_path}/heads"
    trained = heads.state_dict()
    trained["encoder"] = torch.zeros(32, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="another world model"):
        heads.load_state_dict(trained)
    blind = f"export {run}/model --data {run}/raw --gate {run}/model --out {tmp_path}/b"
    assert main.main(blind.split()) == 2
    assert "is no checkpoint of `reachability`" in capsys.readouterr().err
    assert main.main(line.replace("states", "raw").split()) == 2
    assert "--what state" in capsys.readouterr().err


def test_a_gate_without_thresholds_or_with_anothers_does_not_act(bundle: Path) -> None:
    for load in (load_policy, LivePolicy):
        with pytest.raises(BundleError, match=r"without thresholds; calibrate it"):
            load(bundle)
    assert isinstance(load_policy(bundle, gate="off"), OnnxPolicy)
    manifest = read_manifest(bundle)
    with pytest.raises(BundleError, match="calibrated with another graph"):
        write_gate(bundle, manifest, GateFile("0" * 64, OPEN))
    assert not (bundle / GATE).exists()
    set_gate(bundle, OPEN)
    text = (bundle / GATE).read_text()
    (bundle / GATE).write_text(text.replace(manifest.graph_sha256, "0" * 64))
    with pytest.raises(BundleError, match="calibrated with another graph"):
        load_policy(bundle)
    (bundle / GATE).write_text(text[: len(text) // 2])
    with pytest.raises(BundleError, match="is damaged"):
        load_policy(bundle)


def test_thresholds_come_back_from_the_file_as_they_were(bundle: Path) -> None:
    gate = set_gate(bundle, GateThresholds(0.3, 0.1, inf, 7.5, recon=2.0, speed=0.5), kappa=0.5)
    assert read_gate(bundle, read_manifest(bundle)) == gate


def test_open_it_lets_everything_pass_and_shut_it_stands_still(run: Path, bundle: Path) -> None:
    plain = load_policy(bundle, gate="off")
    set_gate(bundle, OPEN)
    opened = load_policy(bundle)
    set_gate(bundle, SHUT)
    shut, watched = load_policy(bundle), load_policy(bundle, gate="shadow")
    carries = [policy.initial_carry() for policy in (plain, opened, shut, watched)]
    for obs in observations(run, 8):
        batch = {name: array[None] for name, array in obs.items()}
        found = []
        for i, policy in enumerate((plain, opened, shut, watched)):
            action, carries[i] = policy.act(batch, carries[i])
            np.testing.assert_array_equal(carries[i]["previous_action"], action)
            found.append(action)
        np.testing.assert_array_equal(found[1], found[0])
        np.testing.assert_array_equal(found[3], found[0])  # it watches, and nothing else
        assert (found[2] == 0.0).all()
    assert isinstance(shut, GatedPolicy) and isinstance(watched, GatedPolicy)
    assert shut.last_decisions[0].state is GateState.BRAKE
    assert watched.last_decisions[0].state is GateState.BRAKE
    assert {"gate_state", "gate_risk", "gate_surprise"} <= shut.last_outputs.keys()


class Line(LineEnv):
    """The line, with pictures as large as the policy's."""

    def __init__(self) -> None:
        super().__init__(size=64)
        self.speeds: list[float] = []

    def step(self, action: Any, source: Source = Source.POLICY, speed: float = 1.0) -> Step:
        self.speeds.append(speed)
        return super().step(action, source, speed)


def test_what_the_gate_did_is_recorded_and_a_stall_ends_the_episode(
    run: Path, bundle: Path, tmp_path: Path
) -> None:
    set_gate(bundle, SHUT, patience=5)  # and one: the first value is the best so far
    env = Line()
    dataset = Dataset.create(tmp_path / "data", env.spec, task="line")
    actor = PolicyActor(load_policy(bundle), "gated")
    summary = rollout(env, actor, 3, DirectRecorder(dataset), meta=EpisodeMeta("line"))
    assert summary.stalled and not summary.success and summary.length == 6
    assert summary.gate == {"pass": 0, "shape": 0, "recover": 0, "brake": 6}
    dataset.refresh()
    (episode,) = dataset
    assert episode.gate.tolist() == [GateState.BRAKE] * 6
    assert episode.array("source").tolist() == [Source.RECOVERY] * 6
    assert np.abs(episode.array("proposed_action")).max() > 0.0  # what the policy wanted
    assert bool(episode.array("truncated")[-1]) and episode.reasons[-1] == "gate_stalled"
    assert type(summary).from_episode(episode) == summary
    told = summarize([summary])["gate"]
    assert told["brake"] == 1.0 and told["stalled"]["rate"] == told["intervened"]["rate"] == 1.0
    again = [t.gate for t in episode.transitions()]
    assert again == [GateState.BRAKE] * 6


def test_the_arm_is_held_to_a_share_of_its_speed_where_the_gate_acts(bundle: Path) -> None:
    set_gate(bundle, replace(OPEN, speed=0.5))
    for mode, expected in (("on", 0.5), ("shadow", 1.0), ("off", 1.0)):
        env = Line()
        rollout(env, PolicyActor(load_policy(bundle, gate=mode)), 3)  # type: ignore[arg-type]
        assert set(env.speeds) == {expected}


def test_in_shadow_an_episode_is_the_policys_own(run: Path, bundle: Path, tmp_path: Path) -> None:
    set_gate(bundle, SHUT, patience=2)
    env = Line()
    found = []
    for mode in ("shadow", "off"):
        dataset = Dataset.create(tmp_path / mode, env.spec, task="line")
        actor = PolicyActor(load_policy(bundle, gate=mode), "policy")  # type: ignore[arg-type]
        rollout(env, actor, 3, DirectRecorder(dataset), meta=EpisodeMeta("line"))
        dataset.refresh()
        found.append(dataset[0])
    shadow, off = found
    for name in ("action", "proposed_action", "source", "obs.image", "truncated"):
        np.testing.assert_array_equal(shadow.array(name), off.array(name))
    assert len(shadow) > 6 and set(shadow.array("source")) == {Source.POLICY}
    assert set(shadow.gate) == {GateState.PASS} and shadow.reasons == off.reasons
    live = LivePolicy(bundle, gate="shadow")
    assert live.provenance["gate"] == "shadow" and len(live.provenance["graph"]) == 64
    assert LivePolicy(bundle, gate="off").provenance["gate"] == "off"


def test_a_replay_scores_what_the_gate_scored_online(
    run: Path, bundle: Path, tmp_path: Path
) -> None:
    set_gate(bundle, OPEN, kappa=0.3)
    env = Line()
    dataset = Dataset.create(tmp_path / "data", env.spec, task="line")
    policy = load_policy(bundle, gate="shadow")
    assert isinstance(policy, GatedPolicy)
    actor, online = PolicyActor(policy, "gated"), []
    act = actor.act

    def noted(obs: Any) -> Any:
        chosen = act(obs)
        assert actor.gate_decision is not None
        online.append(actor.gate_decision.scores)
        return chosen

    actor.act = noted  # type: ignore[method-assign]
    rollout(env, actor, 3, DirectRecorder(dataset), meta=EpisodeMeta("line"))
    dataset.refresh()
    found = trace(OnnxPolicy.load(bundle), dataset[0], GateConfig(kappa=0.3))
    for name, column in found.scores.items():
        np.testing.assert_allclose(column, [scores[name] for scores in online], atol=1e-5)
    assert found.episode == dataset[0].content_hash


def made_up(n: int, violating: int, gap: float, seed: int = 0) -> list[Trace]:
    """Safe episodes with noise for scores; violating ones rise by `gap` before step 15."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n + violating):
        scores = {name: rng.normal(size=20) for name in ("risk", "disagreement", "surprise")}
        if i >= n:
            scores["risk"][12:] += gap
        found.append(Trace(scores, 15 if i >= n else None, f"{i}"))
    return found


def test_a_calibration_keeps_its_rate_and_finds_what_it_can() -> None:
    made = calibrate("graph", made_up(300, 40, 8.0))
    found, limits = made.found, made.gate.thresholds
    assert (found.n, found.k, found.n_violating) == (200, 191, 40)
    assert found.compatible and made.gate.calibrated and limits.speed == 1.0
    assert limits.risk_off < limits.risk_on
    new, rates = made_up(2000, 0, 0.0, seed=99), []
    fields = {"risk": "risk_on", "disagreement": "disagreement", "surprise": "surprise"}
    for seed in range(12):
        limits = calibrate("graph", made_up(300, 0, 0.0, seed)).gate.thresholds
        over = [
            any(
                (entry.scores[name] > getattr(limits, field)).any()
                for name, field in fields.items()
            )
            for entry in new
        ]
        rates.append(np.mean(over))
    # The rate over draws of the episodes is exact; 0.016 is what one draw of 200 is off by.
    assert abs(np.mean(rates) - (found.n + 1 - found.k) / (found.n + 1)) < 3 * 0.016 / 12**0.5


def test_a_calibration_that_cannot_keep_both_sides_says_so_and_slows_the_arm() -> None:
    made = calibrate("graph", made_up(300, 40, 0.0))
    assert not made.gate.calibrated and made.gate.thresholds.speed == 0.5
    assert made.gate.calibration["late"] > 20
    few = calibrate("graph", made_up(300, 2, 8.0))
    assert few.found.theta_miss is None and not few.gate.calibrated
    with pytest.raises(CalibrationError, match="100 are for the score"):
        calibrate("graph", made_up(90, 5, 0.0))
    broken = made_up(300, 40, 8.0)
    broken[150].scores["surprise"][3] = np.nan
    with pytest.raises(CalibrationError, match="not finite"):
        calibrate("graph", broken)


def test_an_alarm_counts_while_the_arm_can_still_be_stopped() -> None:
    scores = {"risk": np.arange(10.0)}
    entry = Trace(scores, 6, "")
    # The action of step 6 is the one that touched: to refuse it is in time for a stop of one step.
    assert entry.up_to(1)["risk"].tolist() == list(range(7))
    assert entry.up_to(3)["risk"].tolist() == list(range(5))
    assert len(replace(entry, violated_at=0).up_to(3)["risk"]) == 0
    assert len(replace(entry, violated_at=None).up_to(3)["risk"]) == 10


def test_the_verb_runs_what_is_missing_and_refuses_episodes_of_another_graph(
    run: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from safe_o2o.cli import calibrate as verb

    monkeypatch.setattr(verb, "SceneMaker", lambda *_, **__: Line)
    words = ["calibrate", str(bundle), "--data", str(tmp_path / "shadow"), "--workers", "0"]
    words += ["--episodes", "130", "--alarm.fit", "100", "--task", "line"]
    assert main.main(words) == 0
    said = capsys.readouterr().out
    assert "n = 30 safe episodes for alpha = 0.05" in said and "- A new bundle" in said
    gate = read_gate(bundle, read_manifest(bundle))
    assert gate is not None and gate.calibration["k"] == 30 and not gate.calibrated
    raw = Dataset(tmp_path / "shadow")
    assert raw[0].meta.provenance["graph"] == gate.graph_sha256
    words[3] = str(run / "raw")
    assert main.main(words) == 2
    assert "episodes of another bundle" in capsys.readouterr().err
    # What a deployment with the gate at work recorded is of this graph, and is no calibration.
    provenance = {"graph": gate.graph_sha256, "gate": "on"}
    meta = EpisodeMeta("line", seed=1, provenance=provenance)
    rollout(Line(), PolicyActor(load_policy(bundle)), 1, DirectRecorder(raw), meta=meta, index=500)
    words[3] = str(tmp_path / "shadow")
    assert main.main(words) == 2
    assert "episodes that a gate acted in" in capsys.readouterr().err

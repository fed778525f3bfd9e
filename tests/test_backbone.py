"""A backbone sees what it saw for those who trained it, and learns only as far as it is told."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from safe_o2o import catalog
from safe_o2o.algorithms.fosp import Fosp
from safe_o2o.algorithms.fosp_config import FospConfig
from safe_o2o.algorithms.world_model import WorldModelConfig
from safe_o2o.errors import ConfigError, SafeO2OError, UnknownNameError
from safe_o2o.export.onnx import PARITY_STEPS, export_bundle, exported
from safe_o2o.nets.backbone import Backbone, BackboneConfig, frozen_names
from safe_o2o.nets.keypoints import expected_positions, position_moments
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.spaces import ObservationSpec, Spec
from safe_o2o.training import pretrained
from tests.small_backbone import LINE, MEAN, STD, classifier, config, weights, weights_file
from tests.synthetic import SPEC, STATISTICS, sequence_batch
from tests.test_algorithm_contract import require_same_state


@pytest.fixture(autouse=True)
def _line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.backbones, "tests", LINE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return weights_file(tmp_path)


def started(settings: FospConfig, spec: Spec = SPEC) -> Fosp:
    algorithm = Fosp(settings, spec, STATISTICS)
    pretrained.start(algorithm)
    return algorithm


def backbone(algorithm: Fosp) -> Backbone:
    image = algorithm.net.world_model.encoder.image
    assert isinstance(image, Backbone)
    return image


def images(n: int, channels: int = 3, side: int = 64) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(1)) - 0.5


# ------------------------------------------------------------------ what it computes


def test_the_trunk_sees_the_colours_it_was_made_for() -> None:
    eye = Backbone(BackboneConfig("tests:same", frozen=False, size=32), 3, 4)
    black = eye.look(torch.full((1, 3, 32, 32), -0.5))[0, 0, :, 0, 0]
    white = eye.look(torch.full((1, 3, 32, 32), 0.5))[0, 0, :, 0, 0]
    assert black.tolist() == [(0.0 - m) / s for m, s in zip(MEAN, STD, strict=True)]
    assert white.tolist() == [(1.0 - m) / s for m, s in zip(MEAN, STD, strict=True)]


def test_images_are_resized_between_the_centres_of_pixels() -> None:
    eye = Backbone(BackboneConfig("tests:same", frozen=False, size=128), 3, 4)
    ramp = (torch.arange(64) / 64.0 - 0.5).expand(1, 3, 64, 64)
    seen = eye.look(ramp)[0, 0, 0, 5] * STD[0] + MEAN[0] - 0.5
    # The centre of pixel i of 128 lies at (i + 1/2) / 2 - 1/2 pixels of 64, clamped at the edges.
    place = ((torch.arange(128) + 0.5) / 2.0 - 0.5).clamp(0.0, 63.0)
    torch.testing.assert_close(seen, place / 64.0 - 0.5)


def test_expected_positions_are_the_mean_of_the_softmax() -> None:
    heat = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = expected_positions(3.0 * heat, position_moments(2, 3))
    for b in range(2):
        for k in range(5):
            p = [math.exp(3.0 * heat[b, i, k].item()) for i in range(6)]
            x = sum(q * (i % 3 - 1) for i, q in enumerate(p)) / sum(p)
            y = sum(q * (2 * (i // 3) - 1) for i, q in enumerate(p)) / sum(p)
            assert found[b, 2 * k : 2 * k + 2].tolist() == pytest.approx([x, y], abs=1e-5)


def test_keypoints_follow_what_they_look_for() -> None:
    eye = Backbone(BackboneConfig("tests:same", frozen=False, size=32), 3, 1)
    with torch.no_grad():  # looks for what is blue
        eye.heat.weight.copy_(torch.tensor([[-1.0, -1.0, 2.0]]))
        assert eye.log_sharpness is not None
        eye.log_sharpness.fill_(3.0)
    image = torch.full((3, 32, 32), -0.5)
    image[2, 8:10, 20:22] = 0.5
    x, y = eye(image[None])[0].tolist()
    assert (x, y) == pytest.approx((2 * 20.5 / 31 - 1, 2 * 8.5 / 31 - 1), abs=0.01)


def test_mean_is_the_mean_over_the_map() -> None:
    eye = Backbone(BackboneConfig("tests:w8", frozen=False, size=64, pool="mean"), 3, 4)
    image = images(2)
    state = classifier(8)
    state.load_state_dict(eye.trunk.state_dict(), strict=False)
    normal = (image + 0.5 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    seen = state.eval()[:5](normal)
    spread = seen.flatten(1).var(1, correction=0) + 1e-3
    pooled = state[:7](normal)  # with the classifier's own pooling
    want = (pooled - seen.flatten(1).mean(1)[:, None]) / spread[:, None] ** 0.5
    torch.testing.assert_close(eye(image), want)
    assert eye.out_dim == 8


def test_features_that_are_pooled_already_are_taken_as_they_are() -> None:
    eye = Backbone(BackboneConfig("tests:pooled", frozen=False, size=64, pool="mean"), 3, 4)
    spread = nn.functional.layer_norm(eye.look(images(2))[:, 0], (8,), eps=1e-3)
    torch.testing.assert_close(eye(images(2)), spread)


@pytest.mark.parametrize("pool", ["keypoints", "mean"])
def test_every_camera_is_seen_by_the_same_network(pool: str) -> None:
    settings = BackboneConfig("tests:w8", frozen=False, size=64, pool=pool)  # type: ignore[arg-type]
    two, one = Backbone(settings, 6, 4), Backbone(settings, 3, 4)
    one.load_state_dict(two.state_dict())
    image = images(3, 6)
    want = torch.cat([one(image[:, :3]), one(image[:, 3:])], 1)
    torch.testing.assert_close(two(image), want)
    assert two.out_dim == 2 * one.out_dim == want.shape[1]


def test_a_policy_with_two_cameras_trains() -> None:
    arrays = SPEC.observation.arrays
    spec = Spec(ObservationSpec({"left": arrays["image"], **arrays}), SPEC.action)
    algorithm = started(config(), spec)
    batch = sequence_batch(0)
    batch = replace(batch, obs={"left": batch.obs["image"].flip(2), **batch.obs})
    assert all(math.isfinite(x) for x in algorithm.update(batch).values())
    assert backbone(algorithm).out_dim == 2 * 2 * algorithm.config.world_model.depth


# ------------------------------------------------------------------ who learns


def test_a_frozen_trunk_never_changes_and_costs_no_moments(path: Path) -> None:
    algorithm = started(config(path))
    trunk, rest = backbone(algorithm).trunk, backbone(algorithm).heat.weight
    before, head = copy.deepcopy(trunk.state_dict()), rest.detach().clone()
    assert torch.equal(before["stem.weight"], weights()["stem.weight"])
    algorithm.net.train()
    for seed in range(3):
        algorithm.update(sequence_batch(seed))
    algorithm.start_online()
    for seed in range(2):
        algorithm.update(sequence_batch(seed, origin=1))
    for net in (algorithm.net, algorithm.average, algorithm.base):
        assert net is not None
        image = net.world_model.encoder.image
        after = image.trunk.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not any(module.training for module in image.trunk.modules())
        assert image.trunk.stem.weight.data_ptr() == trunk.stem.weight.data_ptr()  # one memory
    assert not torch.equal(head, rest)
    trained = {
        id(p) for o in algorithm.optimizer.values() for g in o.param_groups for p in g["params"]
    }
    assert not trained & {id(p) for p in trunk.parameters()}
    assert all(p.grad is None and not p.requires_grad for p in trunk.parameters())


def test_a_tuned_trunk_learns_slowly_and_keeps_its_statistics(path: Path) -> None:
    settings = config(path, frozen=False, lr_factor=0.25)
    algorithm = started(settings)
    algorithm.net.train()
    before = copy.deepcopy(algorithm.net.world_model.state_dict())
    algorithm.update(sequence_batch(0))
    after, moved = algorithm.net.world_model.state_dict(), {}
    for name, _ in algorithm.net.world_model.named_parameters():
        moved[name] = (after[name] - before[name]).abs().max().item()
    trunk = {name: step for name, step in moved.items() if ".trunk." in name}
    others = {name: step for name, step in moved.items() if ".trunk." not in name}
    # The first step of Adam is the learning rate wherever there is a gradient at all.
    assert min(trunk.values()) > 0.0
    assert max(trunk.values()) == pytest.approx(0.25 * settings.model_lr, rel=1e-3)
    assert max(others.values()) == pytest.approx(settings.model_lr, rel=1e-3)
    statistics = [name for name in after if "running" in name or "tracked" in name]
    assert statistics and all(torch.equal(before[name], after[name]) for name in statistics)
    ours, average = backbone(algorithm), algorithm.average.world_model.encoder.image
    assert average.trunk.stem.weight.data_ptr() != ours.trunk.stem.weight.data_ptr()


def test_a_tuned_trunk_sees_one_frame_whatever_stands_beside_it() -> None:
    eye = Backbone(BackboneConfig("tests:w8", frozen=False, size=64), 3, 4).train()
    image = images(4)
    torch.testing.assert_close(eye(image)[:1], eye(image[:1]))
    assert not eye.trunk.training and eye.heat.training


def test_bf16_sends_a_trunk_about_the_gradient_of_fp32() -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        settings = config(pool="mean")
        model = replace(settings.world_model, precision=precision)
        algorithm = started(replace(settings, world_model=model))
        loss, _ = algorithm.objectives(sequence_batch(0), 0)
        loss.backward()
        grads = [p.grad for p in backbone(algorithm).trunk.parameters()]
        assert all(g is not None and g.dtype == torch.float32 for g in grads)
        found[precision] = torch.cat([g.flatten() for g in grads if g is not None])
    assert not torch.equal(found["fp32"], found["bf16"])
    assert nn.functional.cosine_similarity(found["fp32"], found["bf16"], 0) > 0.8


# ------------------------------------------------------------------ saving and exporting


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("online", [True, False])
def test_resume_is_bitwise_and_needs_no_weights_file(
    path: Path, frozen: bool, online: bool
) -> None:
    whole = started(config(path, frozen=frozen))
    whole.update(sequence_batch(0))
    if online:
        whole.start_online()
    whole.update(sequence_batch(1))
    half = copy.deepcopy(whole.state_dict())
    path.unlink()
    second = Fosp(replace(whole.config, seed=99), SPEC, STATISTICS)
    second.load_state_dict(half)
    for algorithm in (whole, second):
        algorithm.update(sequence_batch(2))
    require_same_state(whole.state_dict(), second.state_dict())


def test_a_state_holds_a_frozen_trunk_once(path: Path) -> None:
    algorithm = started(config(path))
    algorithm.start_online()
    state, names = algorithm.state_dict(), frozen_names(algorithm.net)
    assert len(names) == len(backbone(algorithm).trunk.state_dict()) > 0
    assert names <= state["net"].keys()
    for part in ("average", "base"):
        assert state[part].keys() == state["net"].keys() - names
    tuned = started(config(path, frozen=False)).state_dict()
    assert tuned["average"].keys() == tuned["net"].keys()


def test_weights_that_were_never_read_are_not_trained_on(path: Path) -> None:
    algorithm = Fosp(config(path), SPEC, STATISTICS)
    with pytest.raises(ConfigError, match="never read"):
        algorithm.update(sequence_batch(0))
    obs = {key: value[:, 0] for key, value in sequence_batch(0).obs.items()}
    with pytest.raises(ConfigError, match="never read"):
        algorithm.policy.act(obs, algorithm.policy.initial_carry(4))
    pretrained.start(algorithm)
    algorithm.policy.act(obs, algorithm.policy.initial_carry(4))


@pytest.mark.slow
@pytest.mark.parametrize(("frozen", "pool"), [(True, "keypoints"), (False, "mean")])
def test_the_exported_graph_sees_what_the_network_sees(
    path: Path, tmp_path: Path, frozen: bool, pool: str
) -> None:
    algorithm = started(config(path, frozen=frozen, pool=pool, size=96))
    algorithm.start_online()
    for seed in range(2):
        algorithm.update(sequence_batch(seed, origin=1))
    obs = sequence_batch(9, batch=PARITY_STEPS, steps=4).obs
    recorded = [
        {key: value[i, 0].numpy() for key, value in obs.items()} for i in range(PARITY_STEPS)
    ]
    report = export_bundle(
        algorithm.policy,
        SPEC,
        tmp_path / "v000001",
        algorithm="fosp",
        parity_steps=recorded,
        statistics=STATISTICS,
        provenance={},
        noise_seed=0,
    )
    assert report.parity <= 1e-5
    graph = onnx.load(str(report.directory / "policy.onnx")).graph
    nodes = [node.op_type for node in graph.node]
    # Old and new policy share a frozen trunk, which looks once; tuned ones look for themselves.
    assert nodes.count("Conv") == (3 if frozen else 6)
    stems = [x.name for x in graph.initializer if list(x.dims) == [8, 3, 8, 8]]
    assert len(stems) == (1 if frozen else 2)
    acting, network = OnnxPolicy.load(report.directory, SPEC), algorithm.policy
    carry, state = acting.initial_carry(1), network.initial_carry(1)
    for step in recorded[:5]:
        batch = {key: value[None] for key, value in step.items()}
        expected, state = network.act(batch, state)
        action, carry = acting.act(batch, carry)
        assert abs(action - expected.numpy()).max() <= 1e-5


def test_a_copy_to_export_leaves_the_learner_alone(path: Path) -> None:
    algorithm = started(config(path, frozen=False))
    module = exported(algorithm.policy)
    assert not any(p.requires_grad for p in module.parameters())
    assert all(p.requires_grad for p in backbone(algorithm).trunk.parameters())


# ------------------------------------------------------------------ what is refused


def refused(model: str = "tests:w8", channels: int = 3, **changes: Any) -> SafeO2OError:
    with pytest.raises(SafeO2OError) as caught:
        values = {"frozen": False, "size": 64} | changes
        Backbone(BackboneConfig(model, **values), channels, 4)
    assert "\n" not in str(caught.value)
    return caught.value


def test_settings_that_cannot_work_are_refused_by_name() -> None:
    for changes, where in (
        ({"model": "resnet18"}, "backbone.model"),
        ({"size": 16}, "backbone.size"),
        ({"lr_factor": 0.0}, "backbone.lr_factor"),
        ({"lr_factor": float("nan")}, "backbone.lr_factor"),
        ({"channels": 4}, "observation spec"),
        ({"model": "tests:pooled"}, "backbone.pool"),
        ({"model": "tests:tokens"}, "backbone.model"),
    ):
        error = refused(**changes)  # type: ignore[arg-type]
        assert isinstance(error, ConfigError) and error.where == where
    with pytest.raises(ConfigError, match=r"backbone\.weights: is empty"):
        WorldModelConfig(encoder="backbone")
    blind = Spec(ObservationSpec({"tcp_pose": SPEC.observation.arrays["tcp_pose"]}), SPEC.action)
    with pytest.raises(ConfigError, match="a backbone needs a camera"):
        Fosp(config(), blind, STATISTICS)
    with pytest.raises(ConfigError, match="means nothing to encoder keypoint"):
        WorldModelConfig(encoder="keypoint", backbone=BackboneConfig(weights="w.safetensors"))


def test_a_typo_names_the_near_miss() -> None:
    assert isinstance(error := refused("torchvison:resnet18"), UnknownNameError)
    assert "did you mean 'torchvision'" in str(error)
    assert "did you mean 'pooled'" in str(refused("tests:poled"))

"""A bundle is the network it came from and agrees with itself; else it is not written or loaded."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from safe_o2o import bundle
from safe_o2o.errors import BundleError, SpecMismatchError, StorageError
from safe_o2o.export.graph import OPSET, Graphs
from safe_o2o.interfaces import Policy
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.spaces import Spec
from tests.exported_policy import SmallModule, SmallPolicy, observations, small_bundle
from tests.synthetic import SPEC


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundles") / "v000001"
    small_bundle(directory)
    return directory


@pytest.fixture
def changed(good: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the good bundle with an edited manifest (and a graph whose hash fits)."""

    def make(edit: Callable[[Any], None] | None = None, graph: bytes | None = None) -> Path:
        directory = tmp_path / "v000001"
        directory.mkdir()
        data = (good / "policy.onnx").read_bytes() if graph is None else graph
        manifest = json.loads((good / "manifest.json").read_text())
        manifest["graph_sha256"] = hashlib.sha256(data).hexdigest()
        if edit is not None:
            edit(manifest)
        (directory / "policy.onnx").write_bytes(data)
        (directory / "manifest.json").write_text(json.dumps(manifest))
        return directory

    return make


def torch_rollout(steps: list[Any], noise: Callable[[], tuple[Any, Any]]) -> list[Any]:
    """The network by hand: its own carry, evaluation mode, no code of the export."""
    module = SmallModule().eval()
    state, count, actions = torch.zeros(1, 16), torch.zeros(1, 1), []
    for obs in steps:
        candidates, jitter = noise()
        image, pose = (torch.from_numpy(obs[k][None]) for k in ("image", "tcp_pose"))
        with torch.no_grad():
            out = module(image, pose, state, count, candidates, jitter)
        state, count = out[1], out[2]
        actions.append(out[0].numpy()[0])
    return actions


def onnx_rollout(policy: OnnxPolicy, steps: list[Any], deterministic: bool = True) -> list[Any]:
    carry, actions = policy.initial_carry(), []
    for obs in steps:
        action, carry = policy.act({k: v[None] for k, v in obs.items()}, carry, deterministic)
        actions.append(action[0])
    return actions


def test_the_runtime_acts_like_the_network_over_carried_state(good: Path) -> None:
    policy, steps = OnnxPolicy.load(good, SPEC), observations(200, seed=9)
    assert isinstance(policy, Policy)
    fixed = torch.from_numpy(
        np.random.Generator(np.random.PCG64(5)).standard_normal((1, 4, 3), np.float32)
    )
    network = torch_rollout(steps, lambda: (fixed, torch.zeros(1, 3)))
    graph = onnx_rollout(policy, steps)
    np.testing.assert_allclose(graph, network, rtol=0, atol=1e-5)
    assert np.ptp(graph, axis=0).min() > 0.01  # the comparison is not one of constants


def test_sampled_noise_is_the_seeded_stream(good: Path) -> None:
    policy, steps = OnnxPolicy.load(good, seed=1), observations(30, seed=3)
    g = np.random.Generator(np.random.PCG64(7))

    def draw() -> tuple[Any, Any]:
        shapes = ((1, 4, 3), (1, 3))
        a, b = (torch.from_numpy(g.standard_normal(shape, np.float32)) for shape in shapes)
        return a, b

    policy.seed(7)
    first = onnx_rollout(policy, steps, deterministic=False)
    np.testing.assert_allclose(first, torch_rollout(steps, draw), rtol=0, atol=1e-5)
    policy.seed(7)
    np.testing.assert_array_equal(first, onnx_rollout(policy, steps, deterministic=False))
    policy.seed(8)
    assert not np.array_equal(first, onnx_rollout(policy, steps, deterministic=False))


def test_several_rows_are_several_policies(good: Path) -> None:
    policy, steps = OnnxPolicy.load(good), [observations(5, seed) for seed in range(3)]
    alone = [onnx_rollout(policy, row) for row in steps]
    carry = policy.initial_carry(3)
    for t in range(5):
        obs = {k: np.stack([row[t][k] for row in steps]) for k in ("image", "tcp_pose")}
        action, carry = policy.act(obs, carry)
        np.testing.assert_array_equal(action, [row[t] for row in alone])
    assert carry["count"].tolist() == [[5.0]] * 3
    assert {k: v.shape for k, v in policy.last_outputs.items()} == {
        "q_reward": (3, 1),
        "q_cost": (3, 1),
        "risk": (3, 1),
    }


def test_the_manifest_says_what_is_there(tmp_path: Path) -> None:
    report = small_bundle(tmp_path / "v000001")
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "manifest.json",
        "policy.onnx",
        "v000001",
    ]
    data = json.loads((tmp_path / "v000001" / "manifest.json").read_text())
    graph = (tmp_path / "v000001" / "policy.onnx").read_bytes()
    assert data["graph_sha256"] == hashlib.sha256(graph).hexdigest() == report.graph_sha256
    assert data["rates"] == {"policy_period_s": 0.2, "policy_rate_hz": 5.0}
    assert data["units"]["tcp_pose"] == "m" and data["provenance"]["step"] == 100
    assert data["versions"]["torch"] == torch.__version__
    assert 0 < report.parity <= 1e-5 and report.steps == 200
    assert report.parity == data["parity"]["max_abs_action_difference"]
    assert report.parity == max(report.parity_deterministic, report.parity_sampled)
    assert [p["name"] for p in data["inputs"] if p["role"] == "noise"] == [
        "candidate_noise",
        "jitter",
    ]
    assert list(data["fixed_noise"]) == ["candidate_noise"] and data["fixed_noise_seed"] == 5
    opsets = {entry.domain: entry.version for entry in onnx.load_from_string(graph).opset_import}
    assert opsets[""] == OPSET


def test_same_policy_same_graph_without_paths_of_this_machine(good: Path, tmp_path: Path) -> None:
    small_bundle(tmp_path / "v000001")
    for name in ("policy.onnx", "manifest.json"):
        data = (tmp_path / "v000001" / name).read_bytes()
        assert data == (good / name).read_bytes()
        assert str(Path(__file__).parent.parent).encode() not in data and b".py" not in data


def test_export_leaves_the_learners_network_as_it_was(tmp_path: Path) -> None:
    policy = SmallPolicy()
    policy.module.train()
    small_bundle(tmp_path / "v000001", policy)
    assert policy.module.training and all(p.requires_grad for p in policy.module.parameters())


def test_a_graph_that_acts_differently_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Graphs.trace

    def drifting(graphs: Graphs, module: Any, directory: Path) -> bytes:
        with torch.no_grad():  # as an exporter would that gets one bias wrong in the fifth digit
            module.mean.bias += 5e-5
            graph = real(graphs, module, directory)
            module.mean.bias -= 5e-5
        return graph

    monkeypatch.setattr(Graphs, "trace", drifting)
    text = r"network and graph differ by \d\.\de-05 in 'action'"
    with pytest.raises(BundleError, match=text) as caught:
        small_bundle(tmp_path / "v000001")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_graph_that_was_traced_is_filled_with_new_weights(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs, traced = Graphs(), []
    real = Graphs.trace
    monkeypatch.setattr(
        Graphs, "trace", lambda self, *args: traced.append(args) or real(self, *args)
    )
    small_bundle(tmp_path / "v000001", SmallPolicy(seed=1), graphs=graphs)
    small_bundle(tmp_path / "v000002", graphs=graphs)
    assert len(traced) == 1
    # To the bit what tracing gives, and what was traced has not changed.
    for name in ("policy.onnx", "manifest.json"):
        assert (tmp_path / "v000002" / name).read_bytes() == (good / name).read_bytes()
    small_bundle(tmp_path / "v000003", SmallPolicy(seed=1), graphs=graphs)
    first, again = ((tmp_path / v / "policy.onnx").read_bytes() for v in ("v000001", "v000003"))
    assert first == again


def test_where_more_than_weights_has_changed_it_is_traced_again(tmp_path: Path) -> None:
    class Scaled(SmallModule):
        scale = 0.3

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            action, *rest = super().forward(*inputs)
            return (self.scale * action, *rest)

    graphs, steps = Graphs(), observations(200)
    for version, scale in enumerate((0.3, 0.9)):
        policy = SmallPolicy()
        policy.module = Scaled()
        policy.module.scale = scale  # looks the same, tensor by tensor
        report = small_bundle(tmp_path / f"v00000{version}", policy, graphs=graphs)
        assert report.parity <= 1e-5
    wide = SmallPolicy()
    wide.module = SmallModule(hidden=24)
    small_bundle(tmp_path / "v000009", wide, graphs=graphs)
    found = [
        onnx_rollout(OnnxPolicy.load(tmp_path / name, SPEC), steps[3:4])[0]
        for name in ("v000000", "v000001")
    ]
    np.testing.assert_allclose(found[1], 3.0 * found[0], rtol=1e-5)


class Choosing(SmallModule):
    """Remembers on which side of an edge the pose was, and says where that was near."""

    def __init__(self, edge: float, near: float = 1e-4) -> None:
        super().__init__()
        self.edge, self.near = torch.nn.Parameter(torch.tensor([[edge]])), near

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        action, state, count, *rest = super().forward(*inputs)
        memory = 0.5 * (count - 1.0) + (inputs[1][:, :1] > self.edge).float()
        return 0.5 * action + 0.2 * memory, state, memory, *rest

    def undecided(self, *inputs: torch.Tensor) -> torch.Tensor:
        return (inputs[1][:, 0] - self.edge[:, 0]).abs() <= self.near


class Shifted(Graphs):
    """Gives the graph of a network whose edge is elsewhere."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def trace(self, module: torch.nn.Module, where: Path) -> bytes:
        other = copy.deepcopy(module)
        other.edge.data += self.by
        return super().trace(other, where)


def test_a_choice_that_hangs_on_rounding_is_no_difference(tmp_path: Path) -> None:
    steps = observations(204)
    edge = float(steps[100]["tcp_pose"][0])

    def export(version: str, by: float, near: float) -> Any:
        policy = SmallPolicy()
        policy.module = Choosing(edge - 1e-6, near)
        graphs = Shifted(by)
        return small_bundle(tmp_path / version, policy, graphs=graphs, parity_steps=steps)

    report = export("v000001", 2e-6, near=1e-5)
    parity = json.loads((tmp_path / "v000001" / "manifest.json").read_text())["parity"]
    assert parity["undecided"] == report.undecided == 2  # one in each pass
    assert report.parity <= 1e-5 and report.steps == parity["steps"] == 203
    # Somewhere else than near an edge it is one; so is a network that is near one everywhere.
    for by, near, text in (
        (2e-6, 1e-7, r"network and graph differ by .* in 'action' at recorded step 100"),
        (0.1, 1e-5, r"network and graph differ by .* in 'action'"),
        (0.1, 9.0, r"of 204 recorded steps hang on rounding"),
    ):
        with pytest.raises(BundleError, match=text):
            export("v000002", by, near)
    assert [path.name for path in tmp_path.iterdir()] == ["v000001"]


class Growing(SmallModule):
    """Whose state grows where the pose says so, and any difference with it, until it is wrapped."""

    def __init__(self, edge: float, offset: float = 0.0) -> None:
        super().__init__()
        self.edge = torch.nn.Parameter(torch.tensor([[edge]]))
        self.offset = torch.nn.Parameter(torch.tensor([[offset]]))

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        action, state, count, *rest = super().forward(*inputs)
        gain = torch.where(inputs[1][:, :1] > self.edge, 6.0, 0.5)
        memory = torch.sin(gain * (count - 1.0) + inputs[1][:, :1] + self.offset)
        return 0.5 * action + 0.2 * memory, state, memory, *rest


def test_rounding_that_a_policy_amplifies_is_told_from_a_difference(tmp_path: Path) -> None:
    steps = observations(204)
    edge = float(np.sort([obs["tcp_pose"][0] for obs in steps])[-3])  # two steps grow

    class Off(Graphs):
        def trace(self, module: torch.nn.Module, where: Path) -> bytes:
            other = copy.deepcopy(module)
            other.offset.data += self.by
            return super().trace(other, where)

    def export(version: str, edge: float, by: float) -> Any:
        policy, graphs = SmallPolicy(), Off()
        policy.module, graphs.by = Growing(edge), by
        return small_bundle(tmp_path / version, policy, graphs=graphs, parity_steps=steps)

    # A graph whose state is off by less than the tolerance, and a state that makes more of it.
    report = export("v000001", edge, 1.5e-5)
    parity = json.loads((tmp_path / "v000001" / "manifest.json").read_text())["parity"]
    assert 0 < parity["drifted"] == report.drifted <= 4 and report.parity <= 1e-5
    for other, by, text in (
        (-9.0, 1.5e-5, "drift apart on"),  # it always grows
        (edge, 1e-3, "network and graph differ by"),  # it is off itself
    ):
        with pytest.raises(BundleError, match=text):
            export("v000002", other, by)
    assert [path.name for path in tmp_path.iterdir()] == ["v000001"]


@pytest.mark.parametrize(
    ("break_it", "text"),
    [
        (lambda m: m.mean.bias.data.fill_(np.nan), "output 'action' of the network is not finite"),
        (lambda m: m.critic.bias.data.fill_(np.inf), "output 'q_reward' of the network is not fin"),
        (lambda m: m.carry_names.pop("count"), "input 'count' is"),
        (lambda m: m.carry_names.update(count="next_state"), "carry"),
        (lambda m: m.deterministic_noise.update(jitter="loud"), "noise does not name every"),
        (lambda m: m.output_names.__setitem__(0, "act"), "needs one output 'action'"),
    ],
)
def test_a_broken_policy_is_not_written(
    tmp_path: Path, break_it: Callable[[Any], Any], text: str
) -> None:
    policy = SmallPolicy()
    break_it(policy.module)
    with pytest.raises(BundleError, match=text) as caught:
        small_bundle(tmp_path / "v000001", policy)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_too_few_or_foreign_steps_and_an_existing_folder_are_refused(
    good: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="needs 200 recorded steps to compare with, got 199"):
        small_bundle(tmp_path / "v000001", parity_steps=observations(199))
    steps = observations(200)
    steps[150] = {**steps[150], "tcp_pose": np.zeros(4, np.float32)}
    with pytest.raises(SpecMismatchError, match="tcp_pose"):
        small_bundle(tmp_path / "v000001", parity_steps=steps)
    before = (good / "manifest.json").read_bytes()
    with pytest.raises(StorageError, match="exists"):
        small_bundle(good)
    assert (good / "manifest.json").read_bytes() == before


def rename_input(graph: bytes) -> bytes:
    model = onnx.load_from_string(graph)
    for node in model.graph.node:
        node.input[:] = ["position" if name == "tcp_pose" else name for name in node.input]
    next(port for port in model.graph.input if port.name == "tcp_pose").name = "position"
    return bytes(model.SerializeToString())


def poison(graph: bytes) -> bytes:
    model = onnx.load_from_string(graph)
    bias = next(t for t in model.graph.initializer if t.name == "mean.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(3, np.nan, np.float32), bias.name))
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda m: m.update(schema_version=2), "has bundle schema 2, this version reads 1"),
        (lambda m: m.pop("carry"), "is no manifest of a bundle"),
        (lambda m: m.update(extra=1), "field 'extra' contradicts"),
        (lambda m: m["units"].update(tcp_pose="mm"), "field 'units' contradicts"),
        (lambda m: m["rates"].update(policy_period_s=0.1), "field 'rates' contradicts"),
        (lambda m: m["spec"]["action"].update(low=[1, 1, 1]), "needs finite low < high"),
        (lambda m: m["inputs"][1].update(shape=[1, 6]), "input 'tcp_pose' is"),
        (lambda m: m["inputs"][2].update(shape=[1, 8]), "carry 'state' is"),
        (lambda m: m["inputs"][5].update(shape=[1, 4]), "graph has input .'jitter'"),
        (lambda m: m["outputs"][3].update(name="value"), "graph has output .'q_reward'"),
        (lambda m: m["outputs"].pop(), "graph has 6 outputs, the manifest says 5"),
        (lambda m: m["outputs"][3].update(dtype="float64"), "graph has output .'q_reward'"),
        (lambda m: m["fixed_noise"].update(candidate_noise=[[0.0] * 3] * 3), "fixed noise"),
        (lambda m: m["noise"].update(candidate_noise="zero"), "fixed noise"),
        (lambda m: m.update(graph_sha256="0" * 64), "is not the graph that its manifest names"),
    ],
)
def test_a_manifest_that_disagrees_is_refused_in_one_line(
    changed: Callable[..., Path], edit: Callable[[Any], None], text: str
) -> None:
    directory = changed(edit)
    with pytest.raises(BundleError, match=text) as caught:
        OnnxPolicy.load(directory, SPEC)
    assert str(directory) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (rename_input, "graph has input .'position'"),
        (poison, "output 'action' is not finite"),
        (lambda graph: graph[: len(graph) // 2], "graph cannot be loaded"),
        (lambda graph: b"", "graph cannot be loaded"),
    ],
)
def test_a_graph_that_disagrees_is_refused_in_one_line(
    good: Path, changed: Callable[..., Path], edit: Callable[[bytes], bytes], text: str
) -> None:
    directory = changed(graph=edit((good / "policy.onnx").read_bytes()))
    with pytest.raises(BundleError, match=text) as caught:
        OnnxPolicy.load(directory)
    assert "\n" not in str(caught.value)


def test_missing_files_and_another_spec_are_refused(changed: Callable[..., Path]) -> None:
    directory = changed()
    other = Spec(SPEC.observation, dataclasses.replace(SPEC.action, period=0.1))
    with pytest.raises(BundleError, match=r"disagree about action\.period: 0\.2 against 0\.1"):
        OnnxPolicy.load(directory, other)
    for name in ("policy.onnx", "manifest.json"):
        data = (directory / name).read_bytes()
        (directory / name).unlink()
        with pytest.raises(BundleError, match=f"{name}: does not exist"):
            OnnxPolicy.load(directory)
        (directory / name).write_bytes(data)
    (directory / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match=r"manifest\.json: cannot be read"):
        OnnxPolicy.load(directory)
    with pytest.raises(BundleError, match="does not exist"):
        OnnxPolicy.load(directory / "nothing")


def test_an_observation_that_does_not_fit_is_refused(good: Path) -> None:
    policy = OnnxPolicy.load(good)
    obs = {k: v[None] for k, v in observations(1)[0].items()}
    for wrong in (
        {**obs, "tcp_pose": np.full((1, 5), np.nan, np.float32)},
        {**obs, "image": obs["image"].astype(np.float32)},
        {"image": obs["image"]},
    ):
        with pytest.raises(SpecMismatchError):
            policy.act(wrong, policy.initial_carry())


def test_the_runtime_needs_no_torch(good: Path) -> None:
    probe = (
        "import sys; from safe_o2o.runtime.onnx_policy import OnnxPolicy;"
        f"OnnxPolicy.load({str(good)!r}); print('torch' in sys.modules, 'onnx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.stdout.strip() == "False False", done.stderr


def test_versions_count_up_and_ignore_what_is_no_version(tmp_path: Path) -> None:
    assert bundle.next_version(tmp_path / "none").name == "v000001"
    for name in ("v000001", "v000009", ".v000010.1-00000000.tmp", "current.json"):
        (tmp_path / name).mkdir()
    assert bundle.next_version(tmp_path) == tmp_path / "v000010"

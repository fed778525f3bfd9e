"""torchvision and timm: refused clearly where they are missing, read rightly where they are there.

The second half needs packages that go with the torch that is installed; it is skipped where they
are not.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from safe_o2o.algorithms.fosp import Fosp
from safe_o2o.errors import ConfigError, MissingDependencyError, UnknownNameError
from safe_o2o.export.onnx import PARITY_STEPS, export_bundle
from safe_o2o.nets.backbone import Backbone, BackboneConfig
from safe_o2o.training import pretrained
from tests.small_backbone import config
from tests.synthetic import SPEC, STATISTICS, sequence_batch


def refusal(model: str) -> str:
    with pytest.raises(MissingDependencyError) as caught:
        Backbone(BackboneConfig(model, frozen=False), 3, 4)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_package_that_is_missing_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    said = refusal(f"{package}:resnet18")
    assert f"needs the package {package!r}" in said and "pip install" in said


def test_timm_without_torchvision_names_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timm.py").write_text("import torchvision\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "needs the package 'torchvision'" in refusal("timm:resnet18")


def test_a_package_made_for_another_torch_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "operator torchvision::nms does not exist"
    (tmp_path / "torchvision.py").write_text(f"raise RuntimeError('{said}\\nand more')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    found = refusal("torchvision:resnet18")
    assert f"does not import ({said})" in found and torch.__version__ in found


# ------------------------------------------------------------------ with the real packages


def package(name: str) -> Any:
    """The package, or a skip that says why: it may be there and yet not fit this torch."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"{name} does not import here: {str(error).splitlines()[0]}")


def image(side: int = 64) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnet50", "regnet_y_400mf", "efficientnet_b0", "convnext_tiny"),
        *("mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "vgg11_bn"),
    ],
)
def test_a_trunk_of_torchvision_is_the_model_without_its_outputs(name: str) -> None:
    torchvision = package("torchvision")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = torchvision.models.get_model(name, weights=None).eval()
    eye = Backbone(BackboneConfig(f"torchvision:{name}", size=64, pool="mean", frozen=False), 3, 4)
    eye.fill(whole.state_dict(), name)
    x = image()
    with torch.no_grad():
        seen = eye.look(x - 0.5)[:, 0]
        normal = (x - eye.mean) / eye.std
        if hasattr(whole, "avgpool"):  # what the model itself pools, whoever calls it
            found: list[Tensor] = []
            whole.avgpool.register_forward_pre_hook(lambda _, args: found.append(args[0]))
            whole(normal)
            torch.testing.assert_close(seen, found[0])
        else:
            head = whole.fc if hasattr(whole, "fc") else whole.classifier
            torch.testing.assert_close(head(seen.mean((2, 3))), whole(normal))


def test_torchvision_refuses_what_it_has_not_and_what_has_no_map() -> None:
    package("torchvision")
    with pytest.raises(UnknownNameError, match="did you mean 'resnet18'"):
        Backbone(BackboneConfig("torchvision:resnet81", frozen=False), 3, 4)
    with pytest.raises(ConfigError, match="no last map that could be read off"):
        Backbone(BackboneConfig("torchvision:vit_b_16", frozen=False), 3, 4)


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k", "convnext_atto", "resnetv2_50"])
def test_a_trunk_of_timm_is_the_model_without_its_outputs(name: str) -> None:
    timm = package("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = timm.create_model(name, pretrained=False).eval()
    eye = Backbone(BackboneConfig(f"timm:{name}", size=64, pool="mean", frozen=False), 3, 4)
    assert eye.mean.flatten().tolist() == pytest.approx(whole.pretrained_cfg["mean"])
    eye.fill(whole.state_dict(), name)
    x = image()
    with torch.no_grad():
        seen = eye.look(x - 0.5)[:, 0]
        want = whole.forward_features((x - eye.mean) / eye.std)
        if "convnext" in name:  # its norm stands behind the pooling, among the outputs
            want = whole.head.norm(want)
        torch.testing.assert_close(seen, want)


def test_timm_refuses_what_it_has_not_and_what_has_no_map() -> None:
    package("timm")
    with pytest.raises(UnknownNameError, match="did you mean 'resnet18'"):
        Backbone(BackboneConfig("timm:resnet81", frozen=False), 3, 4)
    with pytest.raises(UnknownNameError, match="unknown timm model"):
        Backbone(BackboneConfig("timm:hf-hub:timm/resnet18.a1_in1k", frozen=False), 3, 4)
    with pytest.raises(ConfigError, match=r"takes no images|neither a map"):
        Backbone(BackboneConfig("timm:vit_tiny_patch16_224", size=64, frozen=False), 3, 4)
    with pytest.raises(ConfigError, match=r"no map of the form"):
        Backbone(BackboneConfig("timm:swin_tiny_patch4_window7_224", size=224, frozen=False), 3, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("source", "frozen"), [("torchvision", True), ("timm", False)])
def test_resnet18_trains_and_is_exported(source: str, frozen: bool, tmp_path: Path) -> None:
    module = package(source)
    make = module.models.resnet18 if source == "torchvision" else module.create_model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = make(**({} if source == "torchvision" else {"model_name": "resnet18"}))
    path = tmp_path / "resnet18.safetensors"
    save_file({name: x.contiguous() for name, x in whole.state_dict().items()}, path)
    settings = config(path, model=f"{source}:resnet18", frozen=frozen)
    algorithm = Fosp(replace(settings, seed=1), SPEC, STATISTICS)
    pretrained.start(algorithm)
    algorithm.update(sequence_batch(0))
    algorithm.start_online()
    algorithm.update(sequence_batch(1, origin=1))
    eye = algorithm.net.world_model.encoder.image
    assert isinstance(eye, Backbone)
    same = torch.equal(eye.trunk.state_dict()["conv1.weight"], whole.conv1.weight)
    assert same == frozen
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
        noise_seed=1,
    )
    assert report.parity <= 1e-5
    assert (report.graph_bytes < 80e6) == frozen  # 45 MB a trunk: one, or old and new

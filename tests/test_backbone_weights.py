"""A weights file is the model's or is refused in one line; nothing in it is ever executed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from safe_o2o import catalog
from safe_o2o.errors import CheckpointError
from safe_o2o.nets.backbone import Backbone, BackboneConfig
from safe_o2o.training import pretrained
from tests.small_backbone import LINE, weights

Weights = dict[str, Tensor]


@pytest.fixture
def eye(monkeypatch: pytest.MonkeyPatch) -> Backbone:
    monkeypatch.setitem(catalog.backbones, "tests", LINE)
    return Backbone(BackboneConfig("tests:w8", size=64), 3, 4)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "nested.pth", "nested.pt"])
def test_both_kinds_of_file_bring_the_same_numbers(
    eye: Backbone, tmp_path: Path, name: str
) -> None:
    path, want = tmp_path / name, weights(3)
    if name == "w.safetensors":
        save_file(want, path)
    else:
        nested = {"epoch": 7, "state_dict": want}
        torch.save(nested if name.startswith("nested") else want, path)
    eye.fill(pretrained.read(path), str(path))
    found = eye.trunk.state_dict()
    assert "fc.weight" in want and "fc.weight" not in found  # the classifier's own output
    assert all(torch.equal(x, want[key]) for key, x in found.items())


def test_outputs_and_counters_may_be_missing(eye: Backbone) -> None:
    want = {k: x for k, x in weights(1).items() if not k.startswith("fc.") and "tracked" not in k}
    eye.fill(want, "here")
    found = eye.trunk.state_dict()
    assert all(torch.equal(found[key], x) for key, x in want.items())


def drop(found: Weights) -> None:
    del found["layer1.conv.weight"], found["stem.weight"]


def extra(found: Weights) -> None:
    found["layer3.conv.weight"] = torch.zeros(1)


def wide(found: Weights) -> None:
    found["stem.weight"] = torch.zeros(12, 3, 8, 8)


def broken(found: Weights) -> None:
    found["bn1.running_var"] = torch.full((8,), float("nan"))


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (drop, "lacks 'stem.weight' and 1 more"),
        (extra, "has, unlike the model, 'layer3.conv.weight'"),
        (wide, "has another shape of 'stem.weight'"),
        (broken, "is not finite in 'bn1.running_var'"),
    ],
)
def test_weights_of_another_model_are_refused_whole(
    eye: Backbone, edit: Callable[[Weights], None], text: str
) -> None:
    before = {key: x.clone() for key, x in eye.trunk.state_dict().items()}
    found = weights(2)
    edit(found)
    with pytest.raises(CheckpointError) as caught:
        eye.fill(found, "some/file.pth")
    assert str(caught.value).startswith(f"some/file.pth: is no weights file of tests:w8: {text};")
    assert all(torch.equal(x, before[key]) for key, x in eye.trunk.state_dict().items())


class Trap:
    """What an attacker saves instead of tensors."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_a_file_that_would_run_something_is_refused(tmp_path: Path) -> None:
    path, marker = tmp_path / "trap.pth", tmp_path / "ran"
    torch.save({"stem.weight": Trap(marker)}, path)
    with pytest.raises(CheckpointError, match="cannot be read as plain tensors") as caught:
        pretrained.read(path)
    assert "\n" not in str(caught.value) and not marker.exists()
    torch.load(path, weights_only=False)  # the trap does work
    assert marker.exists()


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("gone.safetensors", None, "no such weights file"),
        ("gone.pth", None, "no such weights file"),
        ("w.onnx", b"x", "is no weights file; they end in .safetensors or .pth, .pt, .bin"),
        ("empty.safetensors", b"", "cannot be read as plain tensors"),
        ("cut.safetensors", b"\x90" + bytes(7) + b"{", "cannot be read as plain tensors"),
        ("empty.pth", b"", "cannot be read as plain tensors"),
        ("text.pth", b"not a file of torch", "cannot be read as plain tensors"),
    ],
)
def test_what_is_no_weights_file_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, text: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        pretrained.read(path)
    assert str(caught.value).startswith(f"{path}: {text}") and "\n" not in str(caught.value)


@pytest.mark.parametrize("held", [[torch.zeros(1)], {"a": 1.0}, torch.zeros(2)])
def test_what_holds_no_tensors_by_name_is_refused(tmp_path: Path, held: Any) -> None:
    path = tmp_path / "odd.pth"
    torch.save(held, path)
    with pytest.raises(CheckpointError, match="holds more than tensors by name"):
        pretrained.read(path)

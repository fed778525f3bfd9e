"""Checkpoints: bitwise back, refused when damaged or foreign, and never half-written."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safe_o2o.errors import CheckpointError
from safe_o2o.training import checkpoint
from tests.synthetic import SPEC

META = checkpoint.Meta("fosp", {"seed": 3, "hidden": [8, 8]}, SPEC.to_json())


def stateful() -> dict[str, Any]:
    """What training really holds: a trained optimiser, generators, odd numbers."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
    generator = np.random.default_rng(5)
    generator.standard_normal(3)
    return {
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": generator.bit_generator.state,
        "numbers": [
            0,
            -1,
            2**127 + 1,
            0.1,
            -0.0,
            5e-324,
            math.inf,
            -math.inf,
            math.nan,
            True,
            None,
        ],
        "nested": ((), [], {}, None, ("a", [1, (2.0,)])),
        "dtypes": [
            torch.tensor([1.5, -0.0, math.nan], dtype=torch.bfloat16),
            torch.arange(3, dtype=torch.int16),
            torch.tensor(True),
            torch.zeros(0, 4),
            torch.arange(6.0).reshape(2, 3).T,
        ],
        "arrays": {
            "scalar": np.float32(0.1),
            "zero_d": np.array(7, np.uint16),
            "fortran": np.asfortranarray(np.arange(6, dtype=np.uint64).reshape(2, 3)),
            "flags": np.array([True, False]),
        },
    }


def require_identical(a: Any, b: Any, path: str = "") -> None:
    """Same type, same structure, same bits."""
    if isinstance(a, torch.Tensor):
        assert type(b) is torch.Tensor and a.dtype == b.dtype and a.shape == b.shape, path
        a, b = (x.detach().contiguous().reshape(-1).view(torch.uint8).numpy() for x in (a, b))
        assert a.tobytes() == b.tobytes(), path
        return
    assert type(a) is type(b), f"{path}: {type(a)} against {type(b)}"
    if isinstance(a, dict):
        assert [(type(k), k) for k in a] == [(type(k), k) for k in b], path
        for key in a:
            require_identical(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            require_identical(x, y, f"{path}[{i}]")
    elif isinstance(a, np.ndarray | np.generic):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), path
    elif isinstance(a, float):
        assert np.float64(a).tobytes() == np.float64(b).tobytes(), path
    else:
        assert a == b, path


def test_every_type_and_bit_comes_back(tmp_path: Path) -> None:
    state = stateful()
    assert isinstance(state["net"], OrderedDict)
    path = checkpoint.save(tmp_path / "deep" / "er", state, META, step=7)
    assert path.name == "step_000000007.safetensors"
    back = checkpoint.load(path, META)
    require_identical(state, back)
    back["net"]["0.weight"].add_(1.0)  # its own memory, writable
    assert checkpoint.read_header(path) == checkpoint.Header(META, 7)


def test_tensors_that_share_memory_are_all_kept(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    state = {"a": whole, "b": whole, "part": whole[2:4]}
    require_identical(state, checkpoint.load(checkpoint.save(tmp_path, state, META, step=1)))


def test_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    files = [checkpoint.save(tmp_path / name, stateful(), META, step=1) for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": [1, {"b": {1, 2}}]}, r"state\.a\[1\]\.b: holds a set"),
        ({"a": {(1, 2): 3}}, r"state\.a: has a key \(1, 2\)"),
        ({"a": np.array(["x"])}, r"state\.a: holds an array of <U1"),
        ({"a": np.zeros(2, ">f4")}, r"state\.a: holds an array of >f4"),
    ],
)
def test_what_cannot_come_back_is_refused_by_path(
    tmp_path: Path, state: dict[str, Any], where: str
) -> None:
    with pytest.raises(CheckpointError, match=where):
        checkpoint.save(tmp_path, state, META, step=1)
    assert not list(tmp_path.iterdir())


def test_latest_and_keep(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "nothing") is None
    for step in (5, 1000, 20):
        checkpoint.save(tmp_path, {"step": step}, META, step=step, keep=2)
    # 1000 came before 20 in time: it belongs to a run that went on from elsewhere.
    assert checkpoint.latest(tmp_path) == tmp_path / "step_000000020.safetensors"
    checkpoint.save(tmp_path, {"step": 30}, META, step=30, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_000000020.safetensors",
        "step_000000030.safetensors",
    ]
    assert checkpoint.load(tmp_path) == {"step": 30}
    checkpoint.save(tmp_path, {"step": 31}, META, step=30, keep=2)
    assert checkpoint.load(tmp_path) == {"step": 31}


def test_another_algorithm_config_or_spec_is_named(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, {"a": 1}, META, step=1)
    spec = json.loads(json.dumps(META.spec))
    spec["action"]["period"] = 0.1
    for other, text in [
        (checkpoint.Meta("iql", META.config, META.spec), "algorithm 'fosp', this run has 'iql'"),
        (checkpoint.Meta("fosp", {"seed": 4, "hidden": [8, 8]}, META.spec), r"config\.seed 3"),
        (checkpoint.Meta("fosp", META.config, spec), r"spec\.action\.period 0\.2, this run has 0"),
    ]:
        with pytest.raises(CheckpointError, match=text) as caught:
            checkpoint.load(path, other)
        assert "\n" not in str(caught.value)
    tuples = checkpoint.Meta("fosp", {"seed": 3, "hidden": (8, 8)}, META.spec)
    assert checkpoint.load(path, tuples) == {"a": 1}


def test_a_setting_that_its_version_did_not_have_counts_as_the_default(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, {"a": 1}, META, step=1)
    grown = {**META.config, "wide": True, "part": {"new": 2.0}}
    other = checkpoint.Meta("fosp", grown, META.spec)
    defaults = {"seed": 0, "wide": True, "part": {"new": 2.0}, "unused": ()}
    with pytest.raises(CheckpointError, match=r"config\.unused"):  # this run does not have it
        checkpoint.load(path, other, defaults)
    del defaults["unused"]
    assert checkpoint.load(path, other, defaults) == {"a": 1}
    with pytest.raises(CheckpointError, match=r"config\.wide None"):
        checkpoint.load(path, other)
    changed = checkpoint.Meta("fosp", {**grown, "part": {"new": 3.0}}, META.spec)
    with pytest.raises(CheckpointError, match=r"config\.part\.new 2\.0, this run has 3\.0"):
        checkpoint.load(path, changed, defaults)


def test_no_damaged_byte_passes_and_none_gives_a_traceback(tmp_path: Path) -> None:
    good = checkpoint.save(tmp_path, {"w": torch.arange(16.0), "n": 12, "x": 0.25}, META, step=1)
    data = good.read_bytes()
    bad = tmp_path / "step_000000002.safetensors"
    for size in [0, 4, 8, 9, 200, len(data) // 2, len(data) - 1]:
        bad.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match="is damaged") as caught:
            checkpoint.load(bad)
        assert "\n" not in str(caught.value)
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 0x11
        bad.write_bytes(flipped)
        try:
            state = checkpoint.load(bad)
        except CheckpointError:
            continue
        # Only bytes without a meaning may change: the padding behind the header.
        require_identical(checkpoint.load(good), state)
        assert data[place : place + 1] == b" ", place


def test_missing_and_newer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.load(tmp_path / "step_000000001.safetensors")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint.load(tmp_path)
    path = checkpoint.save(tmp_path, {"a": 1}, META, step=1)
    old = b'\\"schema_version\\":1'
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, b'\\"schema_version\\":9'))
    with pytest.raises(CheckpointError, match="has checkpoint schema 9, this version reads 1"):
        checkpoint.read_header(path)


_WRITER = """
import sys, torch
from safe_o2o.training import checkpoint
meta = checkpoint.Meta("fosp", {}, {})
step = 0
while True:
    step += 1
    state = {"w": torch.full((200_000,), float(step)), "step": step}
    checkpoint.save(sys.argv[1], state, meta, step=step, keep=2)
    print(step, flush=True)
"""


def test_a_killed_writer_leaves_its_last_checkpoint(tmp_path: Path) -> None:
    wait = random.Random(0)
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline(), "the writer did not start"
        time.sleep(wait.uniform(0.0, 0.15))
        writer.send_signal(signal.SIGKILL)
        said = [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        state = checkpoint.load(tmp_path)
        assert state["step"] >= max(said, default=1)
        assert torch.equal(state["w"], torch.full((200_000,), float(state["step"])))
        for path in tmp_path.glob("step_*"):
            checkpoint.load(path)
    # The next writer removes what the killed ones left of their own.
    checkpoint.save(tmp_path, {"a": 1}, META, step=10_000_000)
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]

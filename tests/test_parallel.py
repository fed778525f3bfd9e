"""Two processes with half of the batch each do what one does with all of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from safe_o2o.data.mixture import Mixture
from safe_o2o.data.replay import SequenceReplay
from safe_o2o.errors import ConfigError
from safe_o2o.nets import parallel
from safe_o2o.training.group import rows_of
from tests import small_backbone
from tests.parallel_worker import cases, work


def run_two(arguments: list[str], timeout: float = 240.0) -> list[str]:
    """Run a command as two processes of one group on this machine; what they printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = os.environ | {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        processes.append(
            subprocess.Popen(
                [sys.executable, *arguments], env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    outputs = []
    try:
        for process in processes:
            out, error = process.communicate(timeout=timeout)
            assert process.returncode == 0, error[-3000:]
            outputs.append(out)
    finally:
        for process in processes:
            process.kill()
    return outputs


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    run_two(["-m", "tests.parallel_worker", str(folder)])
    return folder


@pytest.mark.parametrize("name", cases())
def test_two_halves_give_the_gradients_of_the_whole(shared: Path, name: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with small_backbone.registered():
            alone = work(*cases()[name])
    finally:
        torch.set_num_threads(threads)
    first, second = (load_file(shared / f"{rank}_{name}.safetensors") for rank in range(2))
    assert first.keys() == second.keys() == alone.keys()
    # Softmaxes do not see a common shift: the gradient of such a bias is zero but for rounding.
    floor = 1e-6 * max(float(x.abs().max()) for key, x in alone.items() if "gradient/" in key)
    for key, want in alone.items():
        assert torch.equal(first[key], second[key]), key  # or the processes would drift apart
        if not key.startswith("after/"):
            size = float(want.abs().max()) if want.numel() else 0.0
            error = float((first[key] - want).abs().max()) if want.numel() else 0.0
            assert error <= 1e-4 * size + floor, f"{key}: {error} of {size}"
    for phase in ("offline", "online"):
        moved = [key for key in alone if key.startswith(f"{phase} gradient/") and alone[key].any()]
        assert any("/actor" in key for key in moved) and any("/world_model" in key for key in moved)


def test_a_replay_reads_the_rows_of_one_process_and_draws_for_all(tmp_path: Path) -> None:
    from tests.data_fakes import make_dataset

    data = make_dataset(tmp_path / "a", [9, 14, 5])
    more = make_dataset(tmp_path / "b", [7], seed=3)

    def replay(dataset: object, seed: int) -> SequenceReplay:
        return SequenceReplay(dataset, length=4, batch_size=6, seed=seed)  # type: ignore[arg-type]

    def mixture() -> Mixture:
        return Mixture({"a": replay(data, 0), "b": replay(more, 1)}, {"a": 2.0, "b": 1.0}, 6)

    for make in (lambda: replay(data, 0), mixture):
        whole, parts = make(), [make(), make(), make()]
        for _ in range(3):
            batch = whole.sample()
            for i, part in enumerate(parts):
                rows = slice(2 * i, 2 * i + 2)
                mine = part.sample(rows=rows)
                assert len(mine) == 2
                for name in ("action", "reward", "mask", "is_first"):
                    assert torch.equal(getattr(mine, name), getattr(batch, name)[rows]), name
                for name, image in mine.obs.items():
                    assert torch.equal(image, batch.obs[name][rows]), name
                assert mine.index is not None and batch.index is not None
                assert torch.equal(mine.index.origin, batch.index.origin[rows])
                assert torch.equal(mine.index.record, batch.index.record[rows])
                assert part.state_dict() == whole.state_dict()


def test_a_process_alone_is_the_whole_group() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    assert parallel.world() == 1 and parallel.rank() == 0 and parallel.own(6) == slice(0, 6)
    for same in (parallel.everywhere, parallel.largest, parallel.gathered, parallel.share):
        assert torch.equal(same(x), x)
    assert parallel.with_others(x) is x
    assert rows_of(7) is None


def test_training_under_torchrun_writes_once_and_goes_on(tmp_path: Path) -> None:
    """Two processes, the same checkpoint steps as one; killed nothing, repeated it is done."""
    from tests.data_fakes import make_dataset

    data = make_dataset(tmp_path / "data", [12] * 4, size=64)
    command = ["-m", "safe_o2o.cli.main", "train", "fosp", "--data", str(data.directory)]
    command += ["--preset", "tiny", "--algo.total-updates", "4", "--algo.batch-size", "4"]
    command += ["--run.log-every", "2", "--run.checkpoint-every", "2"]
    out = tmp_path / "out"
    first, second = run_two([*command, "--out", str(out)])
    assert "trained to update 4 (4 now" in first and second == ""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(np.isfinite(value) for line in lines for value in line.values())
    first, second = run_two([*command, "--out", str(out)])
    assert "trained to update 4 (0 now" in first


def test_a_batch_that_cannot_be_shared_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "world", lambda: 3)
    with pytest.raises(ConfigError, match="multiple of the 3 processes, got 8"):
        rows_of(8)

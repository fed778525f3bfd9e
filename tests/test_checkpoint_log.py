"""The metric log agrees with the checkpoint it resumes from; seeds separate streams."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from safe_o2o.errors import ConfigError, DataError
from safe_o2o.training.logger import MetricLog, read_metrics
from safe_o2o.training.seed import make_generator, seed_everything


def write(path: Path, steps: range, resume_at: int = 0) -> None:
    with MetricLog(path, resume_at=resume_at) as log:
        for step in steps:
            log.append(step, {"loss": 1.0 / step} | ({"late": float(step)} if step > 2 else {}))


def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    write(tmp_path / "whole.jsonl", range(1, 8))
    resumed = tmp_path / "resumed.jsonl"
    write(resumed, range(1, 6))
    with open(resumed, "ab") as file:
        file.write(b'{"step": 6, "lo')  # the kill came in the middle of a line
    write(resumed, range(4, 8), resume_at=3)
    assert resumed.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_columns_have_nan_where_a_line_lacks_the_metric(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", range(1, 5))
    columns = read_metrics(tmp_path / "m.jsonl")
    assert columns["step"].tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(columns["loss"], [1, 1 / 2, 1 / 3, 1 / 4])
    np.testing.assert_array_equal(columns["late"], [np.nan, np.nan, 3, 4])


def test_each_line_is_there_at_once_and_diverged_numbers_are_not_hidden(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "m.jsonl")
    log.append(1, {"loss": float("nan")})
    assert np.isnan(read_metrics(tmp_path / "m.jsonl")["loss"]).all()
    log.close()
    log.close()


def test_a_fresh_start_forgets_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write(path, range(1, 4))
    with open(path, "ab") as file:
        file.write(b'{"step": 4')
    assert read_metrics(path)["step"].tolist() == [1, 2, 3]
    MetricLog(path).close()
    assert read_metrics(path)["step"].tolist() == []


def test_damage_inside_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"stop": 2}\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"m\.jsonl:2: is no line of metrics"):
        MetricLog(path, resume_at=3)
    with pytest.raises(DataError, match="does not exist"):
        read_metrics(tmp_path / "none.jsonl")


def test_seeds_reach_all_three_libraries() -> None:
    draws = []
    for _ in range(2):
        seed_everything(11)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
    with pytest.raises(ConfigError, match="seed: must be from 0 to 4294967295, got -1"):
        seed_everything(-1)


def test_streams_of_one_seed_differ() -> None:
    first = {
        key: make_generator(3, *key).standard_normal()
        for key in [(), (0,), (0, 0), (1,), (0, 1), (1, 0)]
    }
    assert len(set(first.values())) == len(first)
    assert make_generator(3, 1).standard_normal() == first[(1,)]

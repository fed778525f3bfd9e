"""One pass in pieces gives what NumPy gives over everything at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from safe_o2o.data.statistics import Statistics
from safe_o2o.errors import DataError
from tests.data_fakes import make_dataset


def test_streaming_statistics_equal_those_of_all_rows(tmp_path: Path) -> None:
    datasets = [make_dataset(tmp_path / "a", [3, 11]), make_dataset(tmp_path / "b", [7], seed=40)]
    calls: list[tuple[int, int]] = []
    statistics = Statistics.compute(datasets, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert set(statistics.arrays) == {"pose", "action"}
    for name, moments in statistics.arrays.items():
        array = "action" if name == "action" else "obs.pose"
        rows = np.concatenate([e.array(array) for d in datasets for e in d]).astype(np.float64)
        assert moments.count == len(rows) == (21 if name == "action" else 24)
        np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.std, rows.std(0), rtol=1e-12)
        assert moments.low == tuple(rows.min(0)) and moments.high == tuple(rows.max(0))


def test_statistics_survive_json(tmp_path: Path) -> None:
    statistics = Statistics.compute(make_dataset(tmp_path, [4]))
    assert Statistics.from_json(json.loads(json.dumps(statistics.to_json()))) == statistics


def test_an_empty_dataset_has_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no episode"):
        Statistics.compute(make_dataset(tmp_path, []))

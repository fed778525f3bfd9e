"""D4RL's and DSRL's layout: where episodes end, what is clipped, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from safe_o2o.cli import main as cli
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.formats.hdf5 import import_hdf5, spec_of
from safe_o2o.errors import DataError


def arrays(rows: int = 12, seed: int = 0) -> dict[str, Any]:
    """One long way through a made-up world: each observation follows from the one before."""
    g = np.random.default_rng(seed)
    whole = g.standard_normal((rows + 1, 3)).astype(np.float32)
    return {
        "observations": whole[:-1].copy(),
        "next_observations": whole[1:].copy(),
        "actions": g.uniform(-0.9, 0.9, (rows, 2)).astype(np.float32),
        "rewards": g.standard_normal(rows).astype(np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.zeros(rows, bool),
    }


def written(path: Path, content: dict[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in content.items():
            file.create_dataset(name, data=array)
    return path


def imported(path: Path, out: Path) -> Dataset:
    dataset = Dataset.create(out, spec_of(path, 0.05), task="d4rl", exist_ok=True)
    import_hdf5(path, dataset, behavior="medium")
    return dataset


def lengths(dataset: Dataset) -> list[tuple[int, str]]:
    ends = []
    for episode in dataset:
        last = list(episode.transitions())[-1]
        ends.append((len(episode), "end" if last.terminated else "time"))
        assert last.terminated != last.truncated
    return ends


def test_episodes_end_where_they_do(tmp_path: Path) -> None:
    content = arrays()
    content["terminals"][3] = True
    content["timeouts"][6] = True
    content["observations"][9] += 1.0  # somebody started again without saying so
    dataset = imported(written(tmp_path / "a.hdf5", content), tmp_path / "out")
    assert lengths(dataset) == [(4, "end"), (3, "time"), (2, "time"), (3, "time")]
    rows = 0
    for episode in dataset:
        n = len(episode)
        obs, part = episode.obs["state"], slice(rows, rows + n)
        np.testing.assert_array_equal(obs[:-1], content["observations"][part])
        np.testing.assert_array_equal(obs[-1], content["next_observations"][rows + n - 1])
        np.testing.assert_array_equal(episode.array("action"), content["actions"][part])
        np.testing.assert_array_equal(episode.array("reward"), content["rewards"][part])
        assert episode.array("cost").sum() == 0 and episode.meta.behavior == "medium"
        rows += n
    assert rows == 12


def test_without_next_observations_the_step_before_a_timeout_is_dropped(tmp_path: Path) -> None:
    content = arrays()
    del content["next_observations"]
    content["terminals"][3] = True
    content["timeouts"][7] = True
    path = written(tmp_path / "a.hdf5", content)
    dataset = Dataset.create(tmp_path / "out", spec_of(path, 0.05), task="d4rl")
    report = import_hdf5(path, dataset)
    assert lengths(dataset) == [(4, "end"), (3, "time"), (3, "time")]
    assert report.dropped == 2 and report.steps == 10
    second = list(dataset)[1]
    np.testing.assert_array_equal(second.obs["state"][-1], content["observations"][7])


def test_costs_and_clipped_actions_are_told(tmp_path: Path) -> None:
    content = arrays() | {"costs": np.arange(12.0)}
    content["actions"][2] = (1.5, -0.2)
    path = written(tmp_path / "a.hdf5", content)
    dataset = Dataset.create(tmp_path / "out", spec_of(path, 0.05), task="dsrl")
    report = import_hdf5(path, dataset)
    assert report.clipped == 1 and report.costs
    (episode,) = dataset
    np.testing.assert_array_equal(episode.array("cost"), content["costs"])
    np.testing.assert_allclose(episode.array("action")[2], (1.0, -0.2), atol=1e-7)


def test_again_adds_nothing_and_another_file_adds_its_own(tmp_path: Path) -> None:
    first = written(tmp_path / "a.hdf5", arrays())
    second = written(tmp_path / "b.hdf5", arrays(seed=1))
    out = ["--out", str(tmp_path / "out")]
    assert cli.main(["data", "import", str(first), *out]) == 0
    assert cli.main(["data", "import", str(first), str(second), *out]) == 0
    assert len(Dataset(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rewards": None}, "has no array rewards"),
        ({"actions": np.zeros((5, 2))}, "shape (5, 2) beside 12"),
        ({"rewards": np.zeros((12, 1))}, "shape (12, 1)"),
        ({"costs": -np.ones(12)}, "row 0 of costs"),
    ],
)
def test_what_is_no_dataset_is_refused(
    tmp_path: Path, change: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {k: v for k, v in (arrays() | change).items() if v is not None}
    path = written(tmp_path / "a.hdf5", content)
    assert cli.main(["data", "import", str(path), "--out", str(tmp_path / "out")]) != 0
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["observations", "next_observations", "actions", "rewards"])
def test_numbers_that_are_none_are_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    content = arrays()
    content["terminals"][3] = True
    content[name][10] = np.nan
    path = written(tmp_path / "a.hdf5", content)
    dataset = Dataset.create(tmp_path / "out", spec_of(path, 0.05), task="d4rl")
    with pytest.raises(DataError, match=f"row 10 of {name}"):
        import_hdf5(path, dataset)
    assert not len(dataset)


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.hdf5", arrays(2000))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="download it again"):
        imported(path, tmp_path / "out")
    with pytest.raises(DataError, match="no such file"):
        spec_of(tmp_path / "missing.hdf5", 0.05)


def test_what_was_imported_is_learned_from(tmp_path: Path) -> None:
    path = written(tmp_path / "a.hdf5", arrays(300) | {"costs": (np.arange(300) % 9 == 0) * 1.0})
    imported(path, tmp_path / "out")
    words = ["train", "iql", "--data", str(tmp_path / "out"), "--out", str(tmp_path / "run")]
    words += ["--preset", "tiny", "--algo.total-updates", "5", "--algo.reward", "return_range"]
    imported(written(tmp_path / "b.hdf5", arrays(300, seed=2)), tmp_path / "out")
    assert cli.main(words) == 0

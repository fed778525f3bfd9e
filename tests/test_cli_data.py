"""`safe-o2o data` and `safe-o2o doctor`: on sound, damaged and missing datasets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safe_o2o.cli import console, data, doctor, main
from safe_o2o.data.dataset import Dataset
from tests.data_fakes import make_dataset

LENGTHS = [4, 6, 5]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path / "dataset", LENGTHS)


def truncate(dataset: Dataset, position: int) -> Path:
    path = dataset.directory / dataset.names[position]
    path.write_bytes(path.read_bytes()[:-10])
    return path


def test_info_counts_episodes_steps_and_violations(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["data", "info", str(dataset.directory), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["episodes"] == 3 and facts["transitions"] == sum(LENGTHS)
    assert facts["hash"] == dataset.content_hash()
    # The fake puts a cost in the middle of each episode, and ends seeds 0 and 2 with success.
    row = facts["behaviors"][0]
    assert (row["behavior"], row["variant"]) == ("walker", "plain")
    assert (row["violation"], row["success"]) == (3, 2)
    # Verdicts go 0 1 2 0 1 2 ...: in 4, 6, 5 steps 2, 4, 3 are not PASS.
    assert row["changed"] == 9


def test_info_prints_a_table_and_one_episode(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["data", "info", str(dataset.directory)]) == 0
    out = capsys.readouterr().out
    assert "walker" in out and "67 %" in out and "100 %" in out
    path = dataset.directory / dataset.names[1]
    assert main.main(["data", "info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["transitions"] == 6 and facts["return"] == 21.0 and facts["cost"] == 1.0
    assert facts["verdicts"] == {"corrected": 2, "pass": 2, "stopped": 2}
    assert facts["reasons"] == {"joint_limits": 2, "workspace": 2}
    assert facts["truncated"] and not facts["terminated"]


def test_hash_is_the_datasets_and_verify_reads_everything(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["data", "hash", str(dataset.directory)]) == 0
    assert capsys.readouterr().out == dataset.content_hash() + "\n"
    assert main.main(["data", "verify", str(dataset.directory)]) == 0
    assert "3 episodes as written" in capsys.readouterr().out
    path = dataset.directory / dataset.names[2]
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1  # one bit, of the right length
    path.write_bytes(bytes(raw))
    assert main.main(["data", "verify", str(dataset.directory)]) == 2
    err = capsys.readouterr().err
    assert path.name in err and "does not match its hash" in err and err.count("\n") == 1


def test_stats_name_every_entry(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["data", "stats", str(dataset.directory)]) == 0
    out = capsys.readouterr().out
    assert "pose.goal" in out and "action.dx" in out
    assert main.main(["data", "stats", str(dataset.directory), "--json"]) == 0
    moments = json.loads(capsys.readouterr().out)["action"]
    actions = [(t + 1) / 100 for length in LENGTHS for t in range(length)]
    assert moments["mean"][0] == pytest.approx(sum(actions) / len(actions), rel=1e-5)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["data"], "names no action"),
        (["data", "inof", "x"], "did you mean 'info'?"),
        (["data", "info"], "PATH"),
        (["data", "info", "absent"], "absent: no such dataset folder"),
        (["data", "hash", "absent"], "absent: no such dataset folder"),
        (["data", "info", "absent", "--jso"], "did you mean --json?"),
        (["doctor", "absent"], "absent: no such dataset folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(argv) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_a_truncated_episode_is_one_line_and_exit_code_2(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    path = truncate(dataset, 1)
    assert main.main(["data", "info", str(dataset.directory)]) == 2
    err = capsys.readouterr().err
    assert str(path) in err and "doctor" in err and err.count("\n") == 1


def test_doctor_finds_then_mends_a_dataset(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    where = str(dataset.directory)
    assert main.main(["doctor", where]) == 0
    assert "sound" in capsys.readouterr().out
    path = truncate(dataset, 1)
    assert main.main(["doctor", where]) == 1
    out = capsys.readouterr().out
    assert path.name in out and "--repair" in out and path.exists()
    assert main.main(["doctor", where, "--repair"]) == 0
    assert "1 of 1 dealt with" in capsys.readouterr().out
    assert not path.exists() and (dataset.directory / "quarantine" / path.name).exists()
    assert main.main(["doctor", where]) == 0


def test_doctor_names_a_missing_and_a_broken_package(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = doctor._package("package-that-is-not-there", "package_that_is_not_there", "sim")
    assert missing.level == "bad" and "safe_o2o[sim]" in missing.what
    broken = doctor._package("numpy", "package_that_is_not_there", "")
    assert broken.level == "bad" and "ModuleNotFoundError" in broken.what
    assert doctor._package("numpy", "numpy", "").level == "ok"


def test_doctor_warns_of_a_system_ros_mixed_with_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_distributions", lambda: {"ros-rclpy"})
    monkeypatch.setenv("PYTHONPATH", "/opt/ros/jazzy/lib/python3.12/site-packages")
    assert doctor._sourced_ros().level == "bad"
    monkeypatch.setattr(doctor, "_distributions", lambda: set[str]())
    assert doctor._sourced_ros().level == "ok"


def test_tables_align_numbers_to_the_right() -> None:
    assert console.table(("name", "n"), [("a", 5), ("long", 123)]).splitlines() == [
        "name    n",
        "a       5",
        "long  123",
    ]
    assert console.percent(2, 3) == "67 %" and console.percent(0, 0) == "-"
    assert data.ACTIONS.keys() == {"info", "hash", "verify", "stats", "replay", "import"}

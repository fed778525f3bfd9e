"""The doctor finds every kind of damage, explains it, and sets it aside without deleting."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from safe_o2o.data.dataset import Dataset
from safe_o2o.data.doctor import diagnose, repair
from safe_o2o.data.replay import SequenceReplay
from safe_o2o.errors import DataError
from tests.data_fakes import files_in, make_dataset


def dead_process_id() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def damage(directory: Path) -> dict[str, str]:
    """A dataset of six episodes with one of each damage; the kind expected for each file."""
    dataset = make_dataset(directory, [4, 5, 6, 7, 8, 9])
    cut, flipped, future = (directory / dataset.names[i] for i in (1, 2, 3))
    cut.write_bytes(cut.read_bytes()[:-100])
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    with safe_open(future, "numpy") as file:
        header = json.loads(file.metadata()["episode"])
    header["schema_version"] = 2
    save_file(load_file(future), future, {"episode": json.dumps(header)})
    other = make_dataset(directory.with_name("other"), [5], size=16)
    shutil.copy(other.directory / other.names[0], directory / "episode_000009.safetensors")
    left = f".episode_000006.safetensors.{dead_process_id()}-0123abcd.tmp"
    (directory / left).write_bytes(b"half")
    busy = f".episode_000007.safetensors.{os.getpid()}-0123abcd.tmp"
    (directory / busy).write_bytes(b"somebody is writing this")
    return {
        cut.name: "episode",
        flipped.name: "episode",
        future.name: "version",
        "episode_000009.safetensors": "mismatch",
        left: "leftover",
    }


def test_a_sound_dataset_has_no_findings(tmp_path: Path) -> None:
    make_dataset(tmp_path, [3, 4])
    before = files_in(tmp_path)
    assert diagnose(tmp_path) == [] and repair(tmp_path) == []
    assert files_in(tmp_path) == before


def test_every_kind_of_damage_is_found_and_explained(tmp_path: Path) -> None:
    expected = damage(tmp_path / "ds")
    before = {name: (tmp_path / "ds" / name).read_bytes() for name in files_in(tmp_path / "ds")}
    calls: list[tuple[int, int]] = []
    findings = diagnose(tmp_path / "ds", progress=lambda *call: calls.append(call))
    assert {finding.path.name: finding.kind for finding in findings} == expected
    assert calls[-1] == (len(before), len(before))
    for finding in findings:
        text = str(finding)
        assert str(finding.path) in text and "repair" in text and "\n" not in text
    after = {name: (tmp_path / "ds" / name).read_bytes() for name in files_in(tmp_path / "ds")}
    assert after == before


def test_repair_sets_aside_and_deletes_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "ds"
    expected = damage(directory)
    contents = {(directory / name).read_bytes() for name in files_in(directory)}
    findings = repair(directory)
    assert {finding.path.name: finding.kind for finding in findings} == expected
    moved = {name for name, kind in expected.items() if kind != "version"}
    assert set(os.listdir(directory / "quarantine")) == moved
    kept = {path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert kept == contents
    # What another version wrote is sound: it stays, and is still named.
    assert [finding.kind for finding in diagnose(directory)] == ["version"]
    (directory / "episode_000003.safetensors").unlink()
    replay = SequenceReplay(Dataset(directory), 4, 8, seed=0)
    assert replay.episode_count == 3 and replay.sample().mask.any()


@pytest.mark.parametrize("damaged", [False, True])
def test_the_header_is_rebuilt_from_the_episodes(tmp_path: Path, damaged: bool) -> None:
    dataset = make_dataset(tmp_path / "ds", [3, 4])
    other = make_dataset(tmp_path / "other", [5], size=16)
    shutil.copy(other.directory / other.names[0], tmp_path / "ds" / "episode_000007.safetensors")
    before = dataset.spec
    if damaged:
        (tmp_path / "ds" / "dataset.json").write_text("{")
    else:
        (tmp_path / "ds" / "dataset.json").unlink()
    assert [f.kind for f in diagnose(tmp_path / "ds")] == ["header", "mismatch"]
    repair(tmp_path / "ds")
    rebuilt = Dataset(tmp_path / "ds")
    assert rebuilt.spec == before and rebuilt.task == "line" and len(rebuilt) == 2
    assert diagnose(tmp_path / "ds") == []


def test_without_a_sound_episode_the_header_cannot_be_rebuilt(tmp_path: Path) -> None:
    make_dataset(tmp_path, [])
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(DataError, match="no sound episode"):
        repair(tmp_path)
    assert files_in(tmp_path) == []


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such dataset folder"):
        diagnose(tmp_path / "nowhere")


def test_two_files_of_one_name_both_stay_in_quarantine(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        make_dataset(tmp_path, [])
        (tmp_path / "episode_000000.safetensors").write_bytes(content)
        repair(tmp_path)
    found = {path.read_bytes() for path in (tmp_path / "quarantine").iterdir()}
    assert found == {b"first", b"second"}

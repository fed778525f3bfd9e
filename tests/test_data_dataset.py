"""A dataset grows under its readers, refuses strangers, and hashes by content."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import EpisodeMeta, SchemaVersionError
from safe_o2o.errors import DataError, SpecMismatchError, StorageError
from safe_o2o.spaces import Spec
from tests.data_fakes import files_in, make_dataset, make_spec, make_transitions, record


def test_a_missing_dataset_is_one_line_with_path_and_advice(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        Dataset(tmp_path / "nowhere")
    message = str(caught.value)
    assert str(tmp_path / "nowhere") in message and "safe-o2o collect" in message
    assert "\n" not in message and caught.value.exit_code == 2
    with pytest.raises(DataError, match=r"has no dataset\.json; .*doctor"):
        Dataset(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"kind": 1}', '{"kind": "safe_o2o.dataset", "schema_version": 1}']
)
def test_a_damaged_header_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match="is damaged"):
        Dataset(tmp_path)


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path, [])
    header = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**header, "schema_version": 2}))
    with pytest.raises(SchemaVersionError, match="dataset schema 2, this version reads 1"):
        Dataset(tmp_path)


def test_creating_twice_needs_leave_and_the_same_spec(tmp_path: Path) -> None:
    make_dataset(tmp_path, [3])
    with pytest.raises(DataError, match="holds a dataset already"):
        Dataset.create(tmp_path, make_spec(), task="line")
    assert len(Dataset.create(tmp_path, make_spec(), task="line", exist_ok=True)) == 1
    with pytest.raises(SpecMismatchError, match=r"observation\.image\.shape"):
        Dataset.create(tmp_path, make_spec(16), task="line", exist_ok=True)
    with pytest.raises(DataError, match="'line', not of 'other'"):
        Dataset.create(tmp_path, make_spec(), task="other", exist_ok=True)


def test_creating_on_a_refusing_disk_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="not a directory"):
        Dataset.create(tmp_path / "file" / "ds", make_spec(), task="line")


def test_a_reader_sees_new_episodes_after_refresh_only(tmp_path: Path) -> None:
    writer = make_dataset(tmp_path, [3, 4])
    reader = Dataset(tmp_path)
    record(writer, 5, seed=9)
    (tmp_path / ".episode_000003.safetensors.1-00000000.tmp").write_text("half an episode")
    (tmp_path / "notes.txt").write_text("mine")
    assert len(reader) == 2
    assert reader.refresh() == ["episode_000002.safetensors"]
    assert [len(episode) for episode in reader] == [3, 4, 5] and reader.refresh() == []
    assert reader[1] is reader[1]
    (tmp_path / "episode_000001.safetensors").rename(tmp_path / "away")
    assert reader.refresh() == [] and reader.indices() == {0, 2}


def test_the_hash_is_of_content_alone(tmp_path: Path) -> None:
    first = make_dataset(tmp_path / "a", [3, 4, 5])
    again = make_dataset(tmp_path / "b", [3, 4, 5])
    assert first.content_hash() == again.content_hash()
    os.utime(tmp_path / "b" / "episode_000000.safetensors", (1, 1))
    header = json.loads((tmp_path / "b" / "dataset.json").read_text())
    header["provenance"] = {"created": "yesterday"}
    (tmp_path / "b" / "dataset.json").write_text(json.dumps(header))
    assert Dataset(tmp_path / "b").content_hash() == first.content_hash()
    # Written in another order, copied, but the same files:
    (tmp_path / "c").mkdir()
    for name in ["dataset.json", *reversed(first.names)]:
        shutil.copy(tmp_path / "a" / name, tmp_path / "c" / name)
    assert Dataset(tmp_path / "c").content_hash() == first.content_hash()
    other = make_dataset(tmp_path / "d", [3, 4, 5], seed=1)
    assert other.content_hash() != first.content_hash()
    (tmp_path / "c" / first.names[2]).unlink()
    assert Dataset(tmp_path / "c").content_hash() != first.content_hash()


def test_an_episode_of_another_spec_is_refused_by_name(tmp_path: Path) -> None:
    make_dataset(tmp_path / "big", [3], size=16)
    dataset = make_dataset(tmp_path / "small", [])
    shutil.copy(tmp_path / "big" / "episode_000000.safetensors", tmp_path / "small")
    dataset.refresh()
    with pytest.raises(SpecMismatchError, match=r"image\.shape: \[8, 8, 3\] against \[16, 16, 3\]"):
        dataset[0]
    spec = make_spec()
    other = Spec(spec.observation, replace(spec.action, period=0.1))
    with pytest.raises(SpecMismatchError, match=r"action\.period"):
        dataset.require(other)


def test_a_number_is_given_once(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [])
    transitions, final_obs, final_stamp = make_transitions(2)
    for index in (5, None):
        dataset.append(transitions, final_obs, final_stamp, EpisodeMeta("line"), index=index)
    assert dataset.indices() == {5, 6}
    with pytest.raises(DataError, match="committed already"):
        dataset.append(transitions, final_obs, final_stamp, EpisodeMeta("line"), index=5)
    assert len(files_in(tmp_path)) == 3


def test_two_writing_processes_lose_nothing(tmp_path: Path) -> None:
    make_dataset(tmp_path, [])
    script = f"""
        from pathlib import Path
        from safe_o2o.data.dataset import Dataset
        from tests.data_fakes import record
        dataset = Dataset(Path({str(tmp_path)!r}))
        input()
        for i in range(25):
            record(dataset, 2, i)
    """
    both = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            stdin=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    assert [process.wait(30) for process in both] == [0, 0]
    for process in both:
        assert process.stdin is not None
        process.stdin.close()
    assert Dataset(tmp_path).indices() == set(range(50))
    assert len(files_in(tmp_path)) == 51

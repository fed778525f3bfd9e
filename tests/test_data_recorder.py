"""The recorder never holds up the loop, never loses silently, and survives being killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from safe_o2o.data import dataset as dataset_module
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import Episode, EpisodeMeta, write_episode
from safe_o2o.data.recorder import DirectRecorder, EpisodeRecorder
from safe_o2o.errors import DataError, SpecMismatchError, StorageError
from tests.data_fakes import files_in, make_dataset, make_spec, make_transitions

META = EpisodeMeta("line", behavior="expert", seed=3)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path / "ds", [])


def test_both_recorders_write_the_same_bytes(tmp_path: Path) -> None:
    paths = []
    for name, kind in [("a", DirectRecorder), ("b", EpisodeRecorder)]:
        recorder = kind(make_dataset(tmp_path / name, []))
        transitions, final_obs, final_stamp = make_transitions(6)
        recorder.start(META)
        assert all(recorder.append(transition) for transition in transitions)
        paths.append(recorder.commit(final_obs, final_stamp))
        if isinstance(recorder, EpisodeRecorder):
            recorder.close()
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].name == "episode_000000.safetensors"


class StuckDisk:
    """A disk that takes as long as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writing, self.go_on = threading.Event(), threading.Event()

        def write(*args: object, **options: object) -> str:
            self.writing.set()
            assert self.go_on.wait(10)
            return write_episode(*args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(dataset_module, "write_episode", write)


def test_append_never_waits_for_the_disk_and_losses_are_stored(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = StuckDisk(monkeypatch)
    transitions, final_obs, final_stamp = make_transitions(8)
    with EpisodeRecorder(dataset, capacity=3) as recorder:
        recorder.start(META)
        recorder.append(transitions[0])
        recorder.commit(final_obs, final_stamp, wait=False)
        assert disk.writing.wait(10)  # the writer is stuck in the first episode from here on
        recorder.start(META)
        began = time.perf_counter()
        taken = [recorder.append(transition) for transition in transitions[:6]]
        assert time.perf_counter() - began < 0.1
        assert taken == [True] * 3 + [False] * 3
        disk.go_on.set()
        recorder.flush()
        while recorder._queue.qsize():
            time.sleep(0.001)
        assert [recorder.append(transition) for transition in transitions[6:]] == [True, True]
        path = recorder.commit(final_obs, final_stamp)
    assert path is not None
    episode = Episode(path)
    assert episode.drops == 3 and episode.metadata["gaps"] == [[3, 3]]
    assert episode.array("reward").tolist() == [1, 2, 3, 7, 8]
    assert episode.segments() == [(0, 2), (3, 5)]


def test_the_caller_may_reuse_its_buffers(dataset: Dataset) -> None:
    image, action = np.zeros((8, 8, 3), np.uint8), np.zeros(1, np.float32)
    transitions, final_obs, _ = make_transitions(3)
    with EpisodeRecorder(dataset) as recorder:
        recorder.start(META)
        for t, transition in enumerate(transitions):
            image[:], action[:] = t + 1, t / 10
            obs = {"image": image, "pose": transition.obs["pose"]}
            recorder.append(
                type(transition)(obs, action, action, 0.0, 0.0, False, False, stamp=float(t))
            )
        episode = Episode(recorder.commit(final_obs, 3.0) or "")
    assert episode.obs["image"][:3, 0, 0, 0].tolist() == [1, 2, 3]
    assert episode.array("action")[:, 0].tolist() == pytest.approx([0, 0.1, 0.2])


def test_a_discarded_episode_leaves_nothing(dataset: Dataset) -> None:
    transitions, final_obs, final_stamp = make_transitions(3)
    with EpisodeRecorder(dataset) as recorder:
        recorder.start(META)
        recorder.append(transitions[0])
        recorder.discard()
        with pytest.raises(DataError, match="no episode was started"):
            recorder.commit(final_obs, final_stamp)
        recorder.start(META)
        recorder.append(transitions[0])
    assert files_in(dataset.directory) == ["dataset.json"]


def refuse(*_: object, **__: object) -> str:
    raise StorageError("cannot be written: no space left on device", where="e")


@pytest.mark.parametrize("late", [lambda r: r.flush(), lambda r: r.start(META)])
def test_a_full_disk_surfaces_and_the_next_episode_is_recorded(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, late: Callable[[EpisodeRecorder], None]
) -> None:
    transitions, final_obs, final_stamp = make_transitions(1)
    with EpisodeRecorder(dataset) as recorder:
        with monkeypatch.context() as patch:
            patch.setattr(dataset_module, "write_episode", refuse)
            recorder.start(META)
            recorder.append(transitions[0])
            with pytest.raises(StorageError, match="no space left"):
                recorder.commit(final_obs, final_stamp)
            recorder.start(META)
            recorder.append(transitions[0])
            assert recorder.commit(final_obs, final_stamp, wait=False) is None
            while recorder._queue.qsize() or not recorder._pending[0].done.is_set():
                time.sleep(0.001)
            with pytest.raises(StorageError, match="no space left"):
                late(recorder)
        recorder.start(META)
        recorder.append(transitions[0])
        recorder.commit(final_obs, final_stamp)
    assert files_in(dataset.directory) == ["dataset.json", "episode_000000.safetensors"]


def test_a_transition_that_does_not_fit_is_refused_at_commit(dataset: Dataset) -> None:
    transitions, _, final_stamp = make_transitions(2)
    with EpisodeRecorder(dataset) as recorder:
        recorder.start(META)
        recorder.append(transitions[0])
        with pytest.raises(SpecMismatchError):
            recorder.commit({"pose": np.zeros(2, np.float32)}, final_stamp)


def test_an_episode_of_another_task_is_refused(dataset: Dataset) -> None:
    transitions, final_obs, final_stamp = make_transitions(1)
    recorder = DirectRecorder(dataset)
    recorder.start(EpisodeMeta("other"))
    recorder.append(transitions[0])
    with pytest.raises(DataError, match="'line', not of 'other'"):
        recorder.commit(final_obs, final_stamp)


def record_for_ever(directory: str) -> None:
    """Body of the process that the next tests kill: short episodes without end."""
    dataset = Dataset.create(directory, make_spec(), task="line")
    with EpisodeRecorder(dataset) as recorder:
        for seed in range(10_000):
            transitions, final_obs, final_stamp = make_transitions(20, seed)
            recorder.start(EpisodeMeta("line", seed=seed))
            for transition in transitions:
                recorder.append(transition)
            recorder.commit(final_obs, final_stamp)
            sys.stdout.write(".")
            sys.stdout.flush()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killing_the_recorder_leaves_whole_episodes_only(tmp_path: Path, how: int) -> None:
    directory = tmp_path / "ds"
    script = f"""
        from tests.test_data_recorder import record_for_ever
        record_for_ever({str(directory)!r})
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None
    assert len(process.stdout.read(40)) == 40  # forty episodes are on disk
    process.send_signal(how)
    process.wait(20)
    process.stdout.close()
    dataset = Dataset(directory)
    assert len(dataset) >= 40
    # Nothing in between is missing, and each file is whole.
    assert sorted(dataset.indices()) == list(range(len(dataset)))
    for episode in dataset:
        episode.verify()
        assert len(episode) == 20 and episode.meta.seed == dataset.names.index(episode.path.name)
    if how == signal.SIGINT:  # it had time to tidy up
        assert len(files_in(directory)) == 1 + len(dataset)
    assert os.path.exists(directory / "dataset.json")

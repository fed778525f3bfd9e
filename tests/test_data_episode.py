"""The episode file: what goes in comes out, and what is damaged is refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from safe_o2o.data.episode import Episode, EpisodeMeta, SchemaVersionError, write_episode
from safe_o2o.errors import DataError, SpecMismatchError, StorageError
from safe_o2o.files import write_atomic
from safe_o2o.types import Transition
from tests.data_fakes import files_in, make_spec, make_transitions

META = EpisodeMeta("line", "plain", "expert", 7, {"version": "1.2"})


def write(path: Path, length: int = 5, seed: int = 0, **changes: object) -> list[Transition]:
    transitions, final_obs, final_stamp = make_transitions(length, seed)
    write_episode(path, transitions, final_obs, final_stamp, spec=make_spec(), meta=META, **changes)
    return transitions


def test_what_was_recorded_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    wrote = write(path)
    episode = Episode(path)
    episode.verify()
    assert len(episode) == 5 and episode.meta == META and episode.spec == make_spec()
    assert episode.success and episode.drops == 0 and episode.segments() == [(0, 5)]
    for before, after in zip(wrote, episode.transitions(), strict=True):
        for name in ("image", "pose"):
            np.testing.assert_array_equal(before.obs[name], after.obs[name])
        np.testing.assert_array_equal(before.action, after.action)
        np.testing.assert_array_equal(before.proposed_action, after.proposed_action)
        assert after.margin == np.float32(before.margin)
        same = ("reward", "cost", "terminated", "truncated", "verdict", "reason", "source", "stamp")
        assert [getattr(before, n) for n in same] == [getattr(after, n) for n in same]
    assert episode.reasons == ["", "joint_limits", "workspace", "", "joint_limits"]
    assert episode.array("stamp").tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("name", ["force", "clearance"])
def test_what_somebody_measured_is_kept(tmp_path: Path, name: str) -> None:
    transitions, final_obs, final_stamp = make_transitions(4)
    measured = [0.0, np.nan, 12.5, 3.0]
    felt = [replace(t, **{name: f}) for t, f in zip(transitions, measured, strict=True)]
    for folder, steps in (("felt", felt), ("numb", transitions)):
        path = tmp_path / folder
        write_episode(path, steps, final_obs, final_stamp, spec=make_spec(), meta=META)
    np.testing.assert_array_equal(Episode(tmp_path / "felt").measured(name), measured)
    assert [getattr(t, name) for t in Episode(tmp_path / "felt").transitions()][2] == 12.5
    assert name not in Episode(tmp_path / "numb").names
    assert np.isnan(getattr(Episode(tmp_path / "numb"), name)).all()
    for wrong in (-1.0, np.inf):
        bad = [replace(felt[0], **{name: wrong}), *felt[1:]]
        with pytest.raises(DataError, match=name):
            write_episode(
                tmp_path / "bad", bad, final_obs, final_stamp, spec=make_spec(), meta=META
            )


def test_the_safetensors_library_reads_the_same_arrays(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    write(path)
    episode, reference = Episode(path), load_file(path)
    assert set(episode.names) == set(reference)
    for name, array in reference.items():
        mapped = episode.array(name)
        np.testing.assert_array_equal(mapped, array)
        assert mapped.dtype == array.dtype and not mapped.flags.writeable
    with safe_open(path, "numpy") as file:
        assert json.loads(file.metadata()["episode"])["seed"] == 7


def test_the_same_episode_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    write(tmp_path / "here")
    script = f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from pathlib import Path
        from tests.test_data_episode import write
        write(Path({str(tmp_path / "there")!r}))
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "123"},
    )
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


def test_the_content_hash_is_the_documented_one(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    write(path)
    with safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()["episode"])
    stored = header.pop("content_sha256")
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    parts = [text.encode()]
    for name, array in sorted(load_file(path).items()):
        parts += [f"\n{name} {array.dtype.str} {list(array.shape)}\n".encode(), array.tobytes()]
    assert stored == hashlib.sha256(b"".join(parts)).hexdigest() == Episode(path).content_hash


def test_every_truncation_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    write(path)
    whole = path.read_bytes()
    for kept in [*range(0, 400, 7), *range(400, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:kept])
        with pytest.raises(DataError) as caught:
            Episode(path)
        message = str(caught.value)
        assert str(path) in message and "doctor" in message and "\n" not in message
    path.write_bytes(whole + b"x")
    with pytest.raises(DataError, match="header says"):
        Episode(path)


def test_no_flipped_byte_gets_past_open_and_verify(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    write(path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 41):
        broken = bytearray(whole)
        broken[at] ^= 0x15
        path.write_bytes(broken)
        with pytest.raises((DataError, SpecMismatchError)):
            Episode(path).verify()


def test_another_schema_version_is_refused_by_number(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    write(path)
    arrays = load_file(path)
    with safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()["episode"])
    header["schema_version"] = 99
    save_file(arrays, path, {"episode": json.dumps(header)})
    with pytest.raises(SchemaVersionError, match="schema 99, this version reads 1"):
        Episode(path)


def test_arrays_that_disagree_with_the_files_own_spec_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    write(path)
    arrays = load_file(path)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    save_file({**arrays, "reward": arrays["reward"][:-1]}, path, metadata)
    with pytest.raises(DataError, match="'reward'"):
        Episode(path)
    del arrays["obs.image"]
    save_file(arrays, path, metadata)
    with pytest.raises(DataError, match=r"'obs\.image' is None"):
        Episode(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Episode(tmp_path / "missing")
    (tmp_path / "text").write_text("not an episode at all, but long enough to have a header")
    with pytest.raises(DataError):
        Episode(tmp_path / "text")
    save_file({"a": np.zeros(3)}, tmp_path / "foreign")
    with pytest.raises(DataError, match="no readable episode"):
        Episode(tmp_path / "foreign")


def bad(**changes: object) -> list[Transition]:
    transitions, _, _ = make_transitions(4)
    return [*transitions[:1], replace(transitions[1], **changes), *transitions[2:]]


@pytest.mark.parametrize(
    ("transitions", "what"),
    [
        ([], "without transitions"),
        (bad(reward=float("nan")), "reward is not finite"),
        (bad(cost=-1.0), "cost is negative"),
        (bad(action=np.array([np.inf])), "action is not finite"),
        (bad(action=np.zeros(2)), "action is not 1 numbers"),
        (bad(terminated=True), "ends before its last"),
        (bad(obs={"pose": np.zeros(2, np.float32)}), "observation has"),
        (bad(obs={"image": np.zeros((8, 8, 3)), "pose": np.zeros(2, np.float32)}), "'image'"),
    ],
)
def test_malformed_episodes_are_refused_and_leave_nothing(
    tmp_path: Path, transitions: list[Transition], what: str
) -> None:
    _, final_obs, final_stamp = make_transitions(4)
    with pytest.raises((DataError, SpecMismatchError), match=what):
        write_episode(
            tmp_path / "e", transitions, final_obs, final_stamp, spec=make_spec(), meta=META
        )
    assert files_in(tmp_path) == []


def test_an_unfinite_proposal_is_recorded_as_it_was(tmp_path: Path) -> None:
    transitions = bad(proposed_action=np.array([np.nan], np.float32))
    _, final_obs, final_stamp = make_transitions(4)
    write_episode(tmp_path / "e", transitions, final_obs, final_stamp, spec=make_spec(), meta=META)
    assert np.isnan(Episode(tmp_path / "e").array("proposed_action")[1, 0])
    Episode(tmp_path / "e").verify()


def test_an_episode_cut_off_from_outside_is_truncated_not_terminated(tmp_path: Path) -> None:
    transitions, final_obs, final_stamp = make_transitions(4)
    transitions[-1] = replace(transitions[-1], terminated=False, truncated=False)
    write_episode(tmp_path / "e", transitions, final_obs, final_stamp, spec=make_spec(), meta=META)
    episode = Episode(tmp_path / "e")
    assert episode.array("truncated").tolist() == [False, False, False, True]
    assert not episode.array("terminated").any() and not episode.success


def test_an_episode_is_never_replaced(tmp_path: Path) -> None:
    write(tmp_path / "e", seed=0)
    before = (tmp_path / "e").read_bytes()
    with pytest.raises(StorageError, match="file exists"):
        write(tmp_path / "e", seed=2)
    assert (tmp_path / "e").read_bytes() == before


@pytest.mark.parametrize(
    ("gaps", "segments"),
    [
        ([(3, 2)], [(0, 2), (3, 6)]),  # transition 2 lost the observation it led to
        ([(0, 1)], [(0, 6)]),  # lost before the first: nothing is torn
        ([(6, 1)], [(0, 5)]),  # lost before the end: the final observation is no successor
        ([(1, 1), (2, 4), (5, 1)], [(2, 4), (5, 6)]),
    ],
)
def test_losses_split_an_episode_into_stretches(
    tmp_path: Path, gaps: list[tuple[int, int]], segments: list[tuple[int, int]]
) -> None:
    write(tmp_path / "e", length=6, gaps=gaps)
    episode = Episode(tmp_path / "e")
    assert episode.drops == sum(n for _, n in gaps)
    assert episode.segments() == segments


def test_a_file_that_changed_under_an_open_episode_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "e"
    write(path)
    episode = Episode(path)
    write_atomic(path, path.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match="changed after it was opened"):
        episode.array("reward")
    path.unlink()
    with pytest.raises(DataError, match="cannot be read any more"):
        episode.array("reward")


def test_more_episodes_than_file_descriptors_can_be_read(tmp_path: Path) -> None:
    for number in range(80):
        write(tmp_path / f"{number}", length=2, seed=number)
    script = f"""
        import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        from pathlib import Path
        from safe_o2o.data.episode import Episode
        episodes = [Episode(path) for path in sorted(Path({str(tmp_path)!r}).iterdir())]
        for _ in range(2):
            print(sum(int(episode.array("obs.pose")[0, 1]) for episode in episodes))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert done.stdout.split() == [str(sum(range(80)))] * 2, done.stderr

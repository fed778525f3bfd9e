"""Batches: aligned as the papers index them, drawn as promised, resumed bit for bit."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from safe_o2o.data.batch import Batch
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import EpisodeMeta
from safe_o2o.data.mixture import Mixture
from safe_o2o.data.replay import Replay, SequenceReplay, TransitionReplay
from safe_o2o.errors import ConfigError, DataError, SpecMismatchError
from tests.data_fakes import make_dataset, make_transitions, record


def index_of(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    assert batch.index is not None
    return batch.index.episode.numpy(), batch.index.step.numpy(), batch.index.record.numpy()


def assert_same(a: Batch, b: Batch) -> None:
    for name in ("action", "reward", "cost", "terminated", "is_first", "mask", "source"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert torch.equal(a.obs["image"], b.obs["image"]) and torch.equal(a.obs["pose"], b.obs["pose"])
    assert a.index is not None and b.index is not None
    assert torch.equal(a.index.record, b.index.record)


def test_a_window_holds_what_the_alignment_says(tmp_path: Path) -> None:
    """Three transitions, by hand: rewards 1, 2, 3; cost at the second; actions .01, .02, .03."""
    replay = SequenceReplay(make_dataset(tmp_path, [3]), length=6, batch_size=2, seed=0)
    batch = replay.sample()
    assert batch.reward[0].tolist() == [0, 1, 2, 3, 0, 0]
    assert batch.cost[0].tolist() == [0, 0, 1, 0, 0, 0]
    assert batch.action[0, :, 0].tolist() == pytest.approx([0.01, 0.02, 0.03, 0, 0, 0])
    assert batch.proposed_action is not None and batch.verdict is not None
    assert batch.proposed_action[0, :, 0].tolist() == pytest.approx([0.02, 0.04, 0.06, 0, 0, 0])
    assert batch.verdict[0].tolist() == [0, 1, 2, 0, 0, 0]
    assert batch.terminated[0].tolist() == [False] * 3 + [True] + [False] * 2
    assert not batch.truncated.any()
    assert batch.is_first[0].tolist() == [True] + [False] * 5
    assert batch.mask[0].tolist() == [True] * 4 + [False] * 2
    assert batch.action_mask[0].tolist() == [True] * 3 + [False] * 3
    assert batch.obs["pose"][0, :, 0].tolist() == [0, 1, 2, 3, 0, 0]
    assert batch.obs["image"].dtype == torch.uint8
    assert batch.obs["image"][0, :, 0, 0, 0].tolist() == [0, 1, 2, 3, 0, 0]
    assert not batch.obs["image"][0, 4:].any()
    assert index_of(batch)[1][0].tolist() == [0, 1, 2, 3, 3, 3]


def test_every_window_is_a_stretch_of_one_episode(tmp_path: Path) -> None:
    lengths = [3, 9, 30, 17, 8]
    dataset = make_dataset(tmp_path, lengths)
    originals = [make_transitions(length, seed) for seed, length in enumerate(lengths)]
    replay = SequenceReplay(dataset, length=8, batch_size=64, seed=1)
    for _ in range(10):
        batch = replay.sample()
        episode, step, row = index_of(batch)
        assert (episode == episode[:, :1]).all()
        np.testing.assert_array_equal(row, replay.record_offset[episode] + step)
        for b in range(64):
            transitions, final_obs, _ = originals[episode[b, 0]]
            observations = [*(t.obs for t in transitions), final_obs]
            real = int(batch.mask[b].sum())
            assert real == min(8, len(transitions) + 1)
            first = int(step[b, 0])
            assert step[b, :real].tolist() == list(range(first, first + real))
            for t in range(real):
                s = first + t
                np.testing.assert_array_equal(batch.obs["image"][b, t], observations[s]["image"])
                assert batch.reward[b, t] == (transitions[s - 1].reward if s else 0)
                assert batch.action_mask[b, t] == (s < len(transitions))
                if s < len(transitions):
                    assert batch.action[b, t, 0] == transitions[s].action[0]
                ends = s == len(transitions)
                assert batch.terminated[b, t] == (ends and transitions[-1].terminated)
                assert batch.truncated[b, t] == (ends and transitions[-1].truncated)


def test_ends_are_drawn_as_often_as_documented(tmp_path: Path) -> None:
    """21 records, windows of 8: 13 + 2 * 4 - 1 = 20 draws, 4 of them on the last window."""
    replay = SequenceReplay(make_dataset(tmp_path, [20]), length=8, batch_size=500, seed=2)
    starts: Counter[int] = Counter()
    for _ in range(40):
        starts.update(index_of(replay.sample())[1][:, 0].tolist())
    expected = {start: 20_000 * (4 if start in (0, 13) else 1) / 20 for start in range(14)}
    assert set(starts) == set(expected)
    # 13 degrees of freedom: a chi-square above 34.5 has probability 0.001, and the seed is fixed.
    assert sum((starts[s] - e) ** 2 / e for s, e in expected.items()) < 34.5


def test_short_and_long_episodes_are_drawn_in_proportion(tmp_path: Path) -> None:
    """4 records in windows of 4 give 3 draws (coverage 3 each), 24 records give 20 + 3."""
    replay = SequenceReplay(make_dataset(tmp_path, [3, 23]), length=4, batch_size=1000, seed=2)
    short = np.concatenate([index_of(replay.sample())[0][:, 0] for _ in range(20)]) == 0
    assert short.mean() == pytest.approx(3 / 26, abs=0.01)


@pytest.mark.parametrize("kind", ["sequences", "transitions"])
def test_the_cost_fraction_is_kept(tmp_path: Path, kind: str) -> None:
    """The fake has one cost in each episode, at transition T // 2."""
    dataset = make_dataset(tmp_path, [40, 60])
    replay: Replay
    if kind == "sequences":
        replay = SequenceReplay(dataset, 4, 40, seed=0, cost_fraction=0.25)
    else:
        replay = TransitionReplay(dataset, 40, seed=0, cost_fraction=0.25)
    shares = []
    for _ in range(30):
        batch = replay.sample()
        cost = batch.cost if kind == "transitions" else batch.cost[:, 1:].amax(1)
        assert (cost[:10] > 0).all()
        shares.append((cost[10:] > 0).float().mean().item())
    assert np.mean(shares) < 0.2


def test_without_any_cost_the_fraction_falls_back_to_uniform(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [])
    transitions, final_obs, stamp = make_transitions(4)
    free = [type(t)(t.obs, t.action, t.action, 0.0, 0.0, False, False) for t in transitions]
    dataset.append(free, final_obs, stamp, EpisodeMeta("line"))
    batch = SequenceReplay(dataset, 3, 8, seed=0, cost_fraction=1.0).sample()
    assert batch.mask.all() and not batch.cost.any()


def test_a_costly_window_holds_the_action_that_caused_it(tmp_path: Path) -> None:
    replay = SequenceReplay(make_dataset(tmp_path, [30]), 5, 200, seed=0, cost_fraction=1.0)
    batch = replay.sample()
    at = batch.cost.argmax(1)
    assert (at >= 1).all() and (batch.cost.amax(1) > 0).all()
    assert set(at.tolist()) == {1, 2, 3, 4}


def test_transitions_hold_what_their_action_caused(tmp_path: Path) -> None:
    lengths = [3, 9, 5]
    dataset = make_dataset(tmp_path, lengths)
    originals = [make_transitions(length, seed) for seed, length in enumerate(lengths)]
    replay = TransitionReplay(dataset, batch_size=256, seed=0)
    batch = replay.sample()
    episode, step, row = index_of(batch)
    assert batch.next_obs is not None and batch.mask.all() and batch.action_mask.all()
    seen = set()
    for b in range(256):
        transitions, final_obs, _ = originals[episode[b]]
        t = int(step[b])
        after = transitions[t + 1].obs if t + 1 < len(transitions) else final_obs
        np.testing.assert_array_equal(batch.obs["image"][b], transitions[t].obs["image"])
        np.testing.assert_array_equal(batch.next_obs["image"][b], after["image"])
        np.testing.assert_array_equal(batch.next_obs["pose"][b], after["pose"])
        assert batch.action[b, 0] == transitions[t].action[0]
        assert (batch.reward[b], batch.cost[b]) == (transitions[t].reward, transitions[t].cost)
        assert batch.terminated[b] == transitions[t].terminated
        assert batch.truncated[b] == transitions[t].truncated
        assert batch.is_first[b] == (t == 0)
        assert row[b] == replay.record_offset[episode[b]] + t
        seen.add((int(episode[b]), t))
    assert len(seen) == sum(lengths)  # 256 draws of 17: all of them with probability 1 - 3e-6


@pytest.mark.parametrize("kind", ["sequences", "transitions"])
def test_a_resumed_replay_draws_the_same_bits_although_the_dataset_grew(
    tmp_path: Path, kind: str
) -> None:
    def make() -> Replay:
        datasets = [Dataset(tmp_path / "a"), Dataset(tmp_path / "b")]
        if kind == "sequences":
            return SequenceReplay(datasets, 6, 16, seed=3, cost_fraction=0.5)
        return TransitionReplay(datasets, 16, seed=3, cost_fraction=0.5)

    first, second = make_dataset(tmp_path / "a", [9, 4]), make_dataset(tmp_path / "b", [5], seed=50)
    replay = make()
    replay.sample()
    record(second, 7, seed=60)
    record(first, 8, seed=61)
    assert replay.refresh() == 2  # admitted a0 a1 b0, then a2 b1: no longer in order of names
    replay.sample()
    state = json.loads(json.dumps(replay.state_dict()))
    expected = [replay.sample() for _ in range(3)]
    record(first, 30, seed=62)  # committed after the checkpoint
    resumed = make()
    assert resumed.episode_count == 6
    resumed.load_state_dict(state)
    assert resumed.episode_count == 5
    for batch in expected:
        assert_same(batch, resumed.sample())
    assert resumed.refresh() == 1 and resumed.episode_count == 6


def test_a_replay_is_not_resumed_on_other_episodes(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "a", [5, 6])
    state = SequenceReplay(dataset, 4, 2, seed=0).state_dict()
    other = SequenceReplay(make_dataset(tmp_path / "b", [5, 6], seed=7), 4, 2, seed=0)
    with pytest.raises(DataError, match="differ from those"):
        other.load_state_dict(state)
    short = SequenceReplay(make_dataset(tmp_path / "c", [5]), 4, 2, seed=0)
    with pytest.raises(DataError, match=r"episode_000001\.safetensors, which is gone"):
        short.load_state_dict(state)


def test_the_same_seed_draws_the_same_and_another_one_does_not(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [20, 30])
    a, b, c = (SequenceReplay(dataset, 5, 32, seed=seed) for seed in (1, 1, 2))
    batch = a.sample()
    assert_same(batch, b.sample())
    assert not np.array_equal(index_of(batch)[2], index_of(c.sample())[2])


def test_side_arrays_of_a_learner_are_gathered_by_record(tmp_path: Path) -> None:
    """Returns-to-go computed from `episode_arrays`, against a sum over the batch's own window."""
    replay = SequenceReplay(make_dataset(tmp_path, [4, 7, 6]), length=8, batch_size=16, seed=0)
    rewards = replay.episode_arrays("reward")
    assert [len(rows) for rows in rewards] == [5, 8, 7]
    to_go = np.concatenate([rows[::-1].cumsum()[::-1] for rows in rewards])
    assert len(to_go) == replay.record_count
    batch = replay.sample()  # every window holds its whole episode
    _, _, row = index_of(batch)
    expected = batch.reward.flip(1).cumsum(1).flip(1)
    np.testing.assert_allclose(np.where(batch.mask, to_go[row], 0), expected)
    with pytest.raises(DataError, match="no record array 'nothing'"):
        replay.episode_arrays("nothing")


def test_losses_are_never_bridged(tmp_path: Path) -> None:
    """Six transitions, two more lost before transition 3: records 0..2 and 3..6."""
    dataset = make_dataset(tmp_path, [])
    transitions, final_obs, stamp = make_transitions(6)
    dataset.append(transitions, final_obs, stamp, EpisodeMeta("line"), gaps=[(3, 2)])
    replay = SequenceReplay(dataset, length=5, batch_size=32, seed=0)
    assert replay.episode_count == 2
    batch = replay.sample()
    for b in range(32):
        real = batch.mask[b]
        pixels = batch.obs["image"][b, real, 0, 0, 0].tolist()
        assert pixels in ([0, 1, 2], [3, 4, 5, 6])
        assert batch.truncated[b, real][-1] == (pixels[0] == 0)
        assert batch.terminated[b, real][-1] == (pixels[0] == 3)
        assert batch.reward[b, real].tolist() == ([0, 1, 2] if pixels[0] == 0 else [0, 4, 5, 6])


def test_frames_stay_on_disk(tmp_path: Path) -> None:
    replay = SequenceReplay(make_dataset(tmp_path, [50, 50]), 4, 2, seed=0)
    in_memory = sum(array.nbytes for array in replay._store.arrays.values())
    assert in_memory / replay.record_count < 64


def test_an_empty_replay_says_so(tmp_path: Path) -> None:
    replay = SequenceReplay(make_dataset(tmp_path, []), 4, 2, seed=0)
    assert replay.is_empty and replay.episode_arrays("reward") == []
    with pytest.raises(DataError, match="no episode to draw from yet; collect"):
        replay.sample()


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [3])
    for bad in ({"length": 1}, {"batch_size": 0}, {"cost_fraction": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            SequenceReplay(dataset, **{"length": 4, "batch_size": 2, "seed": 0, **bad})
    with pytest.raises(SpecMismatchError):
        SequenceReplay([dataset, make_dataset(tmp_path / "b", [3], size=16)], 4, 2, seed=0)


def test_a_batch_moves_as_one(tmp_path: Path) -> None:
    batch = TransitionReplay(make_dataset(tmp_path, [5]), 4, seed=0).sample()
    moved = batch.to("meta", non_blocking=True)
    assert len(moved) == 4 and moved.next_obs is not None and moved.index is not None
    tensors = [*moved.obs.values(), *moved.next_obs.values(), moved.action, moved.index.origin]
    assert all(tensor.device.type == "meta" for tensor in tensors)


def make_mixture(tmp_path: Path, online: list[int]) -> tuple[Mixture, Dataset]:
    grown = make_dataset(tmp_path / "online", online, seed=100)
    replays = {
        "offline": SequenceReplay(make_dataset(tmp_path / "offline", [9, 9]), 4, 8, seed=0),
        "online": SequenceReplay(grown, 4, 8, seed=1),
    }
    return Mixture(replays, {"offline": 1.0, "online": 1.0}, batch_size=9), grown


def test_a_mixture_starts_without_online_episodes_and_takes_its_half_later(tmp_path: Path) -> None:
    mixture, online = make_mixture(tmp_path, [])
    batch = mixture.sample()
    assert batch.index is not None and batch.index.origin.tolist() == [0] * 9
    record(online, 5, seed=100)
    assert mixture.refresh() == 1
    batch = mixture.sample(10)
    assert batch.index is not None and batch.index.origin.tolist() == [0] * 5 + [1] * 5
    # Pixel 1 of the fake is its seed: 0 and 1 offline, 100 online.
    assert set(batch.obs["image"][:5, 0, 0, 0, 1].tolist()) <= {0, 1}
    assert set(batch.obs["image"][5:, 0, 0, 0, 1].tolist()) == {100}


def test_shares_are_rounded_by_largest_remainder(tmp_path: Path) -> None:
    """11 rows at 0.7 : 0.3 are 7.7 and 3.3."""
    mixture, _ = make_mixture(tmp_path, [4])
    mixture.fractions = {"offline": 0.7, "online": 0.3}
    assert mixture.counts(11) == {"offline": 8, "online": 3}
    mixture.fractions = {"offline": 0.5, "online": 0.5}
    assert sum(mixture.counts(9).values()) == 9


def test_a_mixture_resumes_bit_for_bit(tmp_path: Path) -> None:
    mixture, _ = make_mixture(tmp_path, [4, 6])
    mixture.sample()
    state = json.loads(json.dumps(mixture.state_dict()))
    expected = [mixture.sample() for _ in range(2)]
    again, _ = make_mixture_again(tmp_path)
    again.load_state_dict(state)
    for batch in expected:
        assert_same(batch, again.sample())
    with pytest.raises(DataError, match="was saved with replays"):
        again.load_state_dict({"offline": state["offline"]})


def make_mixture_again(tmp_path: Path) -> tuple[Mixture, Dataset]:
    online = Dataset(tmp_path / "online")
    replays = {
        "offline": SequenceReplay(Dataset(tmp_path / "offline"), 4, 8, seed=5),
        "online": SequenceReplay(online, 4, 8, seed=6),
    }
    return Mixture(replays, {"offline": 1.0, "online": 1.0}, batch_size=9), online


def test_replays_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [5])
    one = SequenceReplay(dataset, 4, 2, seed=0)
    for other in (SequenceReplay(dataset, 5, 2, seed=0), TransitionReplay(dataset, 2, seed=0)):
        with pytest.raises(ConfigError, match="other shapes"):
            Mixture({"a": one, "b": other}, {"a": 1, "b": 1}, 2)
    with pytest.raises(ConfigError, match="fractions"):
        Mixture({"a": one}, {"b": 1}, 2)
    with pytest.raises(ConfigError, match="positive"):
        Mixture({"a": one}, {"a": 0}, 2)

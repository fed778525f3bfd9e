"""Bags that we write: what was on the wire, as the public reader of MCAP and rosbag2's find it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("rosbags", reason="pip install 'safe_o2o[bags]'")
mcap_reader = pytest.importorskip("mcap.reader", reason="pip install 'safe_o2o[dev]'")
from rosbags.highlevel import AnyReader  # noqa: E402
from rosbags.interfaces import QosDurability  # noqa: E402
from rosbags.typesys import Stores, get_typestore  # noqa: E402

from safe_o2o.data.formats.bag_writer import UNFINISHED, EpisodeBags, Topic  # noqa: E402
from safe_o2o.errors import DataError  # noqa: E402

STORE = get_typestore(Stores.ROS2_JAZZY)
NANO = 1_000_000_000
BEGIN = 1_700_000_000 * NANO
SCENE = Topic("/scene", "std_msgs/msg/String", latched=True)
FLOAT = Topic("/left/reward", "std_msgs/msg/Float64")


def text(words: str) -> bytes:
    return bytes(STORE.serialize_cdr(STORE.types[SCENE.kind](data=words), SCENE.kind))


def number(value: float) -> bytes:
    return bytes(STORE.serialize_cdr(STORE.types[FLOAT.kind](data=value), FLOAT.kind))


def at(seconds: float) -> int:
    return BEGIN + round(seconds * NANO)


def read(path: Path) -> list[tuple[str, int, bytes]]:
    with (path / f"{path.name}.mcap").open("rb") as file:
        reader = mcap_reader.make_reader(file, validate_crcs=True)
        return [(c.topic, m.log_time, m.data) for _, c, m in reader.iter_messages()]


def episode(bags: EpisodeBags, number_: int, seed: int, start: float, steps: int = 3) -> None:
    for step in range(steps):
        bags.receive(FLOAT, number(start + step), at(start + step))
        if step == 0:
            bags.begin(number_, seed, at(start))
    bags.end()


def test_a_bag_has_every_byte_from_before_the_first_decision_to_the_last(tmp_path: Path) -> None:
    bags = EpisodeBags(tmp_path / "bags", before=0.5)
    bags.receive(SCENE, text("an old scene"), at(-90.0))
    bags.receive(SCENE, text("two boxes"), at(-60.0))
    bags.receive(FLOAT, number(-0.6), at(-0.6))  # too old to belong to it
    bags.receive(FLOAT, number(-0.4), at(-0.4))
    episode(bags, 7, 41, 0.0)
    bags.receive(FLOAT, number(3.5), at(3.5))  # between two episodes
    path = bags.name(7, "episode_000003")
    assert path == tmp_path / "bags" / "20231114T221320.000Z_seed_41"
    expected = [("/scene", at(-0.4), text("two boxes"))]
    expected += [(FLOAT.name, at(t), number(t)) for t in (-0.4, 0.0, 1.0, 2.0)]
    assert read(path) == expected
    with AnyReader([path]) as reader:
        found = [(c.topic, t, bytes(raw)) for c, t, raw in reader.messages()]
        latched = {
            c.topic: c.ext.offered_qos_profiles[0].durability  # type: ignore[union-attr]
            for c in reader.connections
        }
    assert found == expected
    assert latched[SCENE.name] is QosDurability.TRANSIENT_LOCAL
    assert latched[FLOAT.name] is QosDurability.VOLATILE
    about = yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert about["custom_data"] == {"episode": "episode_000003", "seed": "41"}
    assert about["message_count"] == 5
    assert bags.name(7, "episode_000003") is None


def test_a_recorder_that_says_late_what_an_episode_became_holds_up_nothing(tmp_path: Path) -> None:
    bags = EpisodeBags(tmp_path)
    episode(bags, 0, 10, 0.0)
    episode(bags, 1, 11, 10.0)  # more than `before` later
    second, first = bags.name(1, "episode_000001"), bags.name(0, "")
    assert second is not None and first is not None
    assert [len(read(path)) for path in (first, second)] == [3, 3]


def test_an_episode_that_came_to_nothing_has_its_bag(tmp_path: Path) -> None:
    bags = EpisodeBags(tmp_path)
    for number_, start in ((0, 0.0), (1, 5.0)):  # the first one is never ended
        bags.receive(FLOAT, number(start), at(start))
        bags.begin(number_, number_, at(start))
        bags.receive(FLOAT, number(start + 1), at(start + 1))
    bags.close()
    paths = sorted(path for path in tmp_path.iterdir() if path.name != UNFINISHED)
    assert [len(read(path)) for path in paths] == [3, 2]
    for path in paths:
        about = yaml.safe_load((path / "metadata.yaml").read_text())
        assert about["rosbag2_bagfile_information"]["custom_data"]["episode"] == ""


def test_what_a_killed_process_left_is_kept(tmp_path: Path) -> None:
    dead = EpisodeBags(tmp_path)
    dead.receive(FLOAT, number(0.0), at(0.0))
    dead.begin(0, 5, at(0.0))
    (left,) = (tmp_path / UNFINISHED).iterdir()
    bags = EpisodeBags(tmp_path)
    assert bags.found == [tmp_path / left.name] and bags.found[0].is_dir()
    assert not list((tmp_path / UNFINISHED).iterdir())
    episode(bags, 0, 6, 10.0)
    assert bags.name(0, "episode_000000") is not None


@pytest.mark.parametrize("when", ["write", "close"])
def test_a_full_disk_costs_one_bag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    from rosbags.rosbag2 import Writer

    bags = EpisodeBags(tmp_path)
    bags.receive(FLOAT, number(0.0), at(0.0))
    bags.begin(0, 5, at(0.0))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Writer, when, full)
        with pytest.raises(DataError, match="No space left"):
            bags.receive(FLOAT, number(1.0), at(1.0))
            bags.name(0, "episode_000000")
    assert bags.name(0, "episode_000000") is None
    bags.receive(FLOAT, number(2.0), at(2.0))  # nothing is open, and nothing raises
    episode(bags, 1, 6, 10.0)
    path = bags.name(1, "episode_000001")
    assert path is not None and len(read(path)) == 3


def test_only_standard_messages_can_be_written(tmp_path: Path) -> None:
    bags = EpisodeBags(tmp_path)
    assert bags.knows("sensor_msgs/msg/JointState") and not bags.knows("franka_msgs/msg/State")

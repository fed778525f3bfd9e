"""Bags into episodes: stamps, counts and bytes survive, and what was lost is said."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

rosbags = pytest.importorskip("rosbags", reason="pip install 'safe_o2o[bags]'")
from rosbags.rosbag1 import Writer as Writer1  # noqa: E402
from rosbags.rosbag2 import StoragePlugin, Writer  # noqa: E402
from rosbags.typesys import Stores, get_typestore  # noqa: E402

from safe_o2o import config  # noqa: E402
from safe_o2o.cli import main  # noqa: E402
from safe_o2o.data.dataset import Dataset  # noqa: E402
from safe_o2o.data.formats.alignment import steps  # noqa: E402
from safe_o2o.data.formats.bag_map import BagMap  # noqa: E402
from safe_o2o.data.formats.rosbag import import_bag  # noqa: E402
from safe_o2o.errors import ConfigError, DataError  # noqa: E402

STORE = get_typestore(Stores.ROS2_JAZZY)
MS, NANO = 1_000_000, 1_000_000_000
BEGIN = 1_700_000_000 * NANO
JOINTS = ("a", "b")
MAP: dict[str, Any] = {
    "period": 0.1,
    "max_age": 0.06,
    "observation": {
        "image": {"topic": "/camera/image", "size": [6, 8]},
        "position": {"topic": "joint_states", "names": ["a", "b"]},
        "velocity": {
            "topic": "/joint_states", "names": ["b"], "field": "velocity", "unit": "rad/s",
        },
    },
    "action": {
        "topic": "commands", "names": ["b", "a"][::-1], "low": [-0.5, -0.5], "high": [0.5, 0.5],
        "relative_to": "position",
    },
    "reward": "reward",
    "cost": "contact",
}  # fmt: skip


def make(kind: str, **fields: Any) -> tuple[str, Any]:
    name = f"{kind.split('/')[0]}/msg/{kind.split('/')[1]}"
    return name, STORE.types[name](**fields)


def header(stamp: int) -> Any:
    time = STORE.types["builtin_interfaces/msg/Time"](sec=stamp // NANO, nanosec=stamp % NANO)
    return STORE.types["std_msgs/msg/Header"](stamp=time, frame_id="x")


def image(stamp: int, pixels: np.ndarray, compressed: bool = False) -> tuple[str, Any]:
    if compressed:
        data = cv2.imencode(".png", pixels[:, :, ::-1])[1].reshape(-1)
        return make("sensor_msgs/CompressedImage", header=header(stamp), format="png", data=data)
    height, width = pixels.shape[:2]
    return make(
        "sensor_msgs/Image", header=header(stamp), height=height, width=width, encoding="bgr8",
        is_bigendian=0, step=3 * width, data=pixels[:, :, ::-1].reshape(-1).copy(),
    )  # fmt: skip


def joint_state(stamp: int, position: tuple[float, ...], turned: bool = False) -> tuple[str, Any]:
    names, values = (JOINTS[::-1], position[::-1]) if turned else (JOINTS, position)
    return make(
        "sensor_msgs/JointState", header=header(stamp), name=list(names),
        position=np.array(values), velocity=np.array(values) * 10.0, effort=np.zeros(0),
    )  # fmt: skip


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (6, 8, 3)).astype(np.uint8)


def place(stamp: int) -> tuple[float, float]:
    t = (stamp - BEGIN) / NANO
    return 0.1 * t, -0.2 * t


Message = tuple[str, int, tuple[str, Any]]


def one_second(compressed: bool = False) -> list[Message]:
    """Pictures at 20 Hz, joints at 100 Hz, commands at 50 Hz, a reward and a contact."""
    found: list[Message] = []
    for i in range(21):
        stamp = BEGIN + i * 50 * MS
        # Written 20 ms after they were taken: the header counts.
        found.append(("/camera/image", stamp + 20 * MS, image(stamp, pixels(i), compressed)))
    for i in range(101):
        stamp = BEGIN + i * 10 * MS
        found.append(("/joint_states", stamp, joint_state(stamp, place(stamp), turned=i % 2 > 0)))
    for i in range(51):
        stamp = BEGIN + i * 20 * MS
        found.append(("/commands", stamp, joint_state(stamp, place(stamp + 100 * MS))))
    for topic, at, value in (("/reward", 250, 0.5), ("/reward", 280, 0.25), ("/contact", 410, 2.0)):
        found.append((topic, BEGIN + at * MS, make("std_msgs/Float32", data=value)))
    return sorted(found, key=lambda entry: entry[1])


def write(path: Path, messages: list[Message], how: str = "mcap") -> Path:
    if how == "ros1":
        store = get_typestore(Stores.ROS1_NOETIC)
        with Writer1(path.with_suffix(".bag")) as old:
            known: dict[str, Any] = {}
            for topic, written, (kind, message) in messages:
                if topic not in known:
                    known[topic] = old.add_connection(topic, kind, typestore=store)
                if hasattr(message, "header"):
                    message.header.seq = 0
                old.write(known[topic], written, store.serialize_ros1(message, kind))
        return path.with_suffix(".bag")
    storage = StoragePlugin.SQLITE3 if how == "sqlite" else StoragePlugin.MCAP
    with Writer(path, version=9, storage_plugin=storage) as writer:
        connections: dict[str, Any] = {}
        for topic, written, (kind, message) in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic], written, STORE.serialize_cdr(message, kind).tobytes())
    return next(path.glob("*.mcap")) if how == "plain mcap" else path


def mapping(**changes: Any) -> BagMap:
    return config.from_json(BagMap, MAP | changes)


def imported(tmp_path: Path, messages: list[Message], how: str = "mcap", **changes: Any) -> Any:
    made = mapping(**changes)
    dataset = Dataset.create(tmp_path / "data", made.spec(), task="line", exist_ok=True)
    report = import_bag(write(tmp_path / "bag", messages, how), made, dataset, behavior="human")
    dataset.refresh()
    return dataset, report


@pytest.mark.parametrize("how", ["mcap", "sqlite", "plain mcap", "ros1", "compressed"])
def test_stamps_counts_and_bytes_survive(tmp_path: Path, how: str) -> None:
    messages = one_second(compressed=how == "compressed")
    dataset, report = imported(tmp_path, messages, "mcap" if how == "compressed" else how)
    (episode,) = dataset
    assert len(episode) == 10 and (report.steps, report.lost, report.clipped) == (11, 0, 0)
    counts = {name: told.messages for name, told in report.topics.items()}
    assert counts == {
        "camera/image": 21, "joint_states": 101, "commands": 51, "reward": 2, "contact": 1,
    }  # fmt: skip
    assert all(told.out_of_order == told.stale == 0 for told in report.topics.values())
    assert report.topics["reward"].without_stamp == 2  # a Float32 has no header
    np.testing.assert_allclose(episode.array("stamp"), 0.1 * np.arange(11), atol=1e-9)
    for t in range(11):
        stamp = BEGIN + t * 100 * MS
        np.testing.assert_array_equal(episode.obs["image"][t], pixels(2 * t))
        np.testing.assert_array_equal(
            episode.obs["position"][t], np.array(place(stamp), np.float32)
        )
        np.testing.assert_array_equal(
            episode.obs["velocity"][t], np.array([10.0 * place(stamp)[1]], np.float32)
        )
        if t < 10:  # the last command of the period after the observation, relative to it
            last = min(stamp + 100 * MS, BEGIN + NANO)
            asked = np.array(place(last + 100 * MS)) - np.array(place(stamp))
            np.testing.assert_allclose(episode.array("action")[t], asked / 0.5, atol=1e-6)
    assert episode.array("reward").tolist() == [0, 0, 0.75, 0, 0, 0, 0, 0, 0, 0]
    assert episode.array("cost").tolist() == [0, 0, 0, 0, 2, 0, 0, 0, 0, 0]
    assert bool(episode.array("truncated")[-1]) and not episode.array("terminated").any()
    assert episode.meta.behavior == "human" and episode.meta.provenance["part"] == 0


def test_the_order_they_were_written_in_does_not_matter(tmp_path: Path) -> None:
    straight, _ = imported(tmp_path / "one", one_second())
    mixed = one_second()
    late = [m for m in mixed if m[0] == "/camera/image"]
    for first, second in zip(late[::2], late[1::2], strict=False):  # each pair changes places
        i, j = mixed.index(first), mixed.index(second)
        mixed[i] = (first[0], first[1], second[2])
        mixed[j] = (second[0], second[1], first[2])
    turned, report = imported(tmp_path / "two", mixed)
    assert report.topics["camera/image"].out_of_order == 10
    for name in ("image", "position"):
        np.testing.assert_array_equal(straight[0].obs[name], turned[0].obs[name])


def test_a_camera_that_paused_costs_its_steps_and_nothing_is_made_up(tmp_path: Path) -> None:
    pause = range(BEGIN + 310 * MS, BEGIN + 590 * MS)
    messages = [
        m for m in one_second() if not (m[0] == "/camera/image" and m[1] - 20 * MS in pause)
    ]
    dataset, report = imported(tmp_path, messages)
    (episode,) = dataset
    assert report.lost == 2 and report.topics["camera/image"].stale == 2
    assert episode.array("stamp").tolist() == pytest.approx(
        [0.0, 0.1, 0.2, 0.3, 0.6, 0.7, 0.8, 0.9, 1.0]
    )
    assert episode.metadata["gaps"] == [[4, 2]]
    assert episode.segments() == [(0, 3), (4, 8)]  # nothing is learned across the gap


def test_episodes_are_where_a_topic_says_so_and_come_in_once(tmp_path: Path) -> None:
    messages = one_second()
    for at, on in ((100, True), (400, False), (500, True), (900, False)):
        messages.append(("/recording", BEGIN + at * MS, make("std_msgs/Bool", data=on)))
    messages.sort(key=lambda entry: entry[1])
    dataset, report = imported(tmp_path, messages, episode="/recording")
    assert [len(episode) for episode in dataset] == [3, 4] and len(report.episodes) == 2
    for episode, first in zip(dataset, (2, 10), strict=True):
        pictures = episode.obs["image"]
        expected = [pixels(first + 2 * i) for i in range(len(pictures))]
        assert np.array_equal(pictures, expected)
    again = import_bag(tmp_path / "bag", mapping(episode="recording"), dataset, behavior="human")
    assert again.known == 2 and not again.episodes and len(dataset) == 2


def test_what_was_lost_in_each_episode_adds_up(tmp_path: Path) -> None:
    lost = {BEGIN + at * MS for at in (150, 200, 250, 650, 700, 750)}
    messages = [m for m in one_second() if not (m[0] == "/camera/image" and m[1] - 20 * MS in lost)]
    for at, on in ((0, True), (400, False), (500, True), (900, False)):
        messages.append(("/recording", BEGIN + at * MS, make("std_msgs/Bool", data=on)))
    messages.sort(key=lambda entry: entry[1])
    _, report = imported(tmp_path, messages, episode="/recording")
    assert len(report.episodes) == 2 and report.lost == 2
    assert report.topics["camera/image"].stale == 2


def test_a_gripper_on_the_same_topic_is_left_out(tmp_path: Path) -> None:
    whole, gripper = one_second(), []
    for i in range(0, 101, 7):
        stamp = BEGIN + i * 10 * MS + 3 * MS
        kind, message = joint_state(stamp, (0.0, 0.0))
        message.name = ["left_finger", "right_finger"]
        gripper.append(("/joint_states", stamp, (kind, message)))
    found = []
    for name, messages in (("alone", whole), ("both", [*whole, *gripper])):
        messages = sorted(messages, key=lambda entry: entry[1])
        dataset = Dataset.create(tmp_path / f"d-{name}", mapping().spec(), task="reach")
        bag = write(tmp_path / name, messages)
        report = import_bag(bag, mapping(), dataset, behavior="human")
        assert report.topics["joint_states"].other_joints == (name == "both") * len(gripper)
        found.append(next(iter(dataset)).obs["position"])
    assert np.array_equal(*found)
    gripper_only = [e for e in whole if e[0] != "/joint_states"] + gripper
    bag = write(tmp_path / "gripper", sorted(gripper_only, key=lambda entry: entry[1]))
    with pytest.raises(DataError, match="no joint 'a', only left_finger, right_finger"):
        import_bag(bag, mapping(), dataset, behavior="human")


def test_success_ends_the_task(tmp_path: Path) -> None:
    made = mapping(reward="")
    dataset = Dataset.create(tmp_path / "data", made.spec(), task="line")
    path = write(tmp_path / "bag", one_second())
    import_bag(path, made, dataset, behavior="human", success=True)
    (episode,) = dataset
    assert episode.success and bool(episode.array("terminated")[-1])
    assert episode.array("reward").tolist() == [0.0] * 9 + [1.0]


def test_actions_beyond_their_range_are_cut_and_counted(tmp_path: Path) -> None:
    narrow = MAP["action"] | {"low": [-0.5, -0.01], "high": [0.5, 0.01]}
    dataset, report = imported(tmp_path, one_second(), action=narrow)
    assert report.clipped == 10
    assert np.abs(dataset[0].array("action")).max() == 1.0


def test_larger_pictures_are_averaged(tmp_path: Path) -> None:
    small = MAP["observation"] | {"image": {"topic": "camera/image", "size": [3, 4]}}
    dataset, _ = imported(tmp_path, one_second(), observation=small)
    expected = pixels(0).reshape(3, 2, 4, 2, 3).astype(float).mean((1, 3))
    assert np.abs(dataset[0].obs["image"][0] - expected).max() <= 1.0


def test_bad_input_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "bag", one_second())
    plain = write(tmp_path / "other", one_second(), "plain mcap")
    (tmp_path / "torn.mcap").write_bytes(plain.read_bytes()[: plain.stat().st_size // 2])
    (tmp_path / "text.bag").write_text("no bag")

    def refused(bag: Path, **changes: Any) -> str:
        file = tmp_path / "map.yaml"
        file.write_text(yaml.safe_dump(MAP | changes))
        words = ["data", "import", bag, "--map", file, "--out", tmp_path / "out", "--task", "line"]
        assert main.main([str(word) for word in words]) == 2
        said = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1, said
        assert not (tmp_path / "out").exists()  # nothing is left of a mapping that was wrong
        return said

    assert "no such bag" in refused(tmp_path / "missing.mcap")
    assert "is no bag, or a damaged one" in refused(tmp_path / "text.bag")
    assert "damaged" in refused(tmp_path / "torn.mcap")
    assert "has no topic 'rewards', only" in refused(path, reward="rewards")
    observation = MAP["observation"]
    wrong = observation | {"image": {"topic": "joint_states", "size": [6, 8]}}
    assert "cannot become a picture" in refused(path, observation=wrong)
    other = observation | {"position": {"topic": "joint_states", "names": ["a", "elbow"]}}
    assert "has no joint 'elbow', only" in refused(path, observation=other)
    assert "names 'place', the observation has" in refused(
        path, action=MAP["action"] | {"relative_to": "place"}
    )
    assert "no two instants" in refused(path, max_age=1e-9, period=0.0371)
    with pytest.raises(ConfigError, match="period"):
        mapping(period=0.0)


def test_the_command_says_what_became_of_the_bag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "bag", one_second())
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(MAP))
    words = ["data", "import", str(path), "--map", str(tmp_path / "map.yaml")]
    words += ["--out", str(tmp_path / "out"), "--task", "line", "--success", "yes"]
    assert main.main(words) == 0
    said = capsys.readouterr().out
    assert "bag: 1 episodes, 11 steps, 0 lost, 0 entries of actions cut" in said
    assert "camera/image: 21 of sensor_msgs/msg/Image\n" in said
    assert Dataset(tmp_path / "out")[0].success
    assert main.main(words) == 0
    assert "0 episodes, 1 known already" in capsys.readouterr().out


def test_a_bag_with_nothing_in_common_is_refused(tmp_path: Path) -> None:
    apart = [
        (topic, written + (5 * NANO if topic == "/joint_states" else 0), message)
        for topic, written, message in one_second()
    ]
    for topic, _, (_, message) in apart:
        if topic == "/joint_states":
            message.header.stamp.sec += 5
    with pytest.raises(DataError, match="no two instants"):
        imported(tmp_path, apart)


@given(
    a=st.lists(st.integers(0, 200), min_size=1, max_size=40),
    b=st.lists(st.integers(0, 200), min_size=1, max_size=40),
    period=st.integers(1, 30),
    age=st.integers(1, 30),
)
def test_every_step_has_the_newest_of_each_and_nothing_older(
    a: list[int], b: list[int], period: int, age: int
) -> None:
    streams = {"a": np.sort(np.array(a)), "b": np.sort(np.array(b))}
    found = steps(streams, period, age, 0, 200)
    begin = max(min(a), min(b))
    instants = [t for t in range(begin, 400, period) if t <= min(max(a) + age, max(b) + age, 200)]
    expected = [
        t for t in instants
        if all(t - max(s for s in stamps if s <= t) <= age for stamps in (a, b))
    ]  # fmt: skip
    assert found.stamp.tolist() == expected
    for name, stamps in (("a", a), ("b", b)):
        newest = [max(s for s in stamps if s <= t) for t in expected]
        assert streams[name][found.rows[name]].tolist() == newest
    lost = [(q - p) // period - 1 for p, q in itertools.pairwise(expected)]
    assert found.gaps == [(i + 1, n) for i, n in enumerate(lost) if n]

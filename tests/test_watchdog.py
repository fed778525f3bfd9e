"""Ages of sources with a clock of our own: thresholds, frozen frames, stamps of another clock."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from safe_o2o.errors import ConfigError
from safe_o2o.safety.codes import Kind, kind
from safe_o2o.safety.watchdog import (
    BUFFERS,
    COMMAND,
    IMAGE,
    JOINT_STATE,
    SourceLimits,
    Watchdog,
    checksum,
)

NAN = math.nan
TINY = 1e-9
# Powers of two, so that "exactly at the threshold" is exact.
LIMITS = SourceLimits(0.125, 0.5)
FROZEN = SourceLimits(0.125, 0.5, sees_frozen=True)


def frame(value: int) -> np.ndarray:
    return np.full((4, 6, 3), value, np.uint8)


@pytest.mark.parametrize("start", [0.0, 1024.0])
@pytest.mark.parametrize(
    ("age", "codes"),
    [
        (0.0, []),
        (0.125 - TINY, []),
        (0.125, []),
        (0.125 + TINY, ["stale_command"]),
        (0.5 - TINY, ["stale_command"]),
        (0.5, ["stale_command"]),
        (0.5 + TINY, ["lost_command"]),
        (1e6, ["lost_command"]),
        (-0.125, []),  # fed by another thread meanwhile
        (-0.125 - TINY, ["lost_command"]),  # the clock went back
    ],
)
def test_thresholds(start: float, age: float, codes: list[str]) -> None:
    dog = Watchdog({"command": LIMITS})
    assert dog.feed("command", start)
    assert dog.check(start + age) == codes


@pytest.mark.parametrize("now", [NAN, math.inf, -math.inf])
def test_a_clock_that_is_not_finite_loses_everything(now: float) -> None:
    dog = Watchdog({"command": LIMITS, "image:wrist": FROZEN})
    assert dog.feed("command", 0.0) and dog.feed("image:wrist", 0.0, content=frame(0))
    assert dog.check(now) == ["lost_command", "lost_image:wrist"]
    assert not dog.feed("command", now)  # nor does it make anything young
    assert dog.check(1.0) == ["lost_command", "lost_image:wrist"]


def test_a_source_that_was_never_fed_is_lost_once_armed() -> None:
    dog = Watchdog({"command": LIMITS, "joint_state": LIMITS})
    assert dog.check(0.0) == ["lost_command", "lost_joint_state"]
    assert dog.check(0.0, armed=False) == []
    dog.feed("command", 0.0)
    assert dog.check(0.0) == ["lost_joint_state"]
    assert dog.check(1.0, armed=False) == ["lost_command"]


def test_it_recovers_by_itself_what_is_latched_is_not_its_business() -> None:
    dog = Watchdog({"command": LIMITS})
    dog.feed("command", 0.0)
    assert dog.check(9.0) == ["lost_command"]
    dog.feed("command", 9.0)
    assert dog.check(9.0) == []


def test_a_frozen_camera_grows_old() -> None:
    dog, codes = Watchdog({"image:wrist": FROZEN}), []
    for k in range(40):  # 32 Hz; from frame 8 on always the same one
        now = k / 32
        fresh = dog.feed("image:wrist", now, content=frame(min(k, 8)))
        assert fresh == (k <= 8)
        codes.append(dog.check(now))
    # Last news at 8/32: fine up to 4 frames later, late up to 16, lost from then on.
    assert codes[:13] == [[]] * 13
    assert codes[13:25] == [["stale_image:wrist"]] * 12
    assert codes[25:] == [["lost_image:wrist"]] * 15
    assert dog.report(1.25)["sources"]["image:wrist"] == {
        "age": 1.0, "fed": 40, "frozen": 31, "stamps_ignored": 0,
    }  # fmt: skip


def test_a_driver_that_hands_out_its_few_buffers_in_turn_is_frozen() -> None:
    dog = Watchdog({"image": FROZEN})
    assert all(dog.feed("image", 0.0, content=frame(k)) for k in range(BUFFERS))
    assert not any(dog.feed("image", 9.0, content=frame(k % BUFFERS)) for k in range(100))
    assert dog.check(9.0) == ["lost_image"]
    assert dog.feed("image", 9.0, content=frame(200)) and dog.check(9.0) == []


def test_one_bit_is_news_and_another_layout_is_not() -> None:
    dog = Watchdog({"image": FROZEN})
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    assert dog.feed("image", 0.0, content=image)
    assert not dog.feed("image", 0.0, content=np.asfortranarray(image))
    other = image.copy()
    other[-1, -1, -1] ^= 1
    assert dog.feed("image", 0.0, content=other)
    assert checksum(image[:, ::-1]) == checksum(image[:, ::-1].copy())


@pytest.mark.parametrize("content", [None, [], np.empty((0, 3)), [[1], [2, 3]], object()])
def test_no_content_is_no_news_where_it_has_to_be_seen(content: Any) -> None:
    dog = Watchdog({"image": FROZEN, "command": LIMITS})
    assert not dog.feed("image", 0.0, content=content)
    assert dog.feed("command", 0.0, content=content)


def test_what_repeats_at_rest_is_no_fault_where_that_is_not_asked_for() -> None:
    dog = Watchdog({"joint_state": LIMITS})
    for k in range(100):
        assert dog.feed("joint_state", k / 8, content=np.zeros(7))
        assert dog.check(k / 8) == []


@pytest.mark.parametrize("stamp", [100.0 + 0.0625 + TINY, 1.7e9, NAN, math.inf, -math.inf, 89.0])
def test_a_stamp_of_another_clock_is_ignored_counted_and_moves_nothing(stamp: float) -> None:
    dog = Watchdog({"image": LIMITS}, max_future=0.0625)
    assert dog.feed("image", 100.0, stamp=stamp)
    assert dog.check(100.125) == ["stamp_future"]
    assert kind("stamp_future") is Kind.NOTE
    assert dog.check(100.25) == ["stale_image", "stamp_future"]  # aged from its receipt
    assert dog.report(100.25)["sources"]["image"]["stamps_ignored"] == 1
    dog.feed("image", 100.25, stamp=100.25)
    assert dog.check(100.25) == []


@pytest.mark.parametrize(
    ("stamp", "codes"),
    [
        (100.0, []),
        (100.0625, []),  # ahead, within the tolerance: no younger than its receipt
        (99.875, []),
        (99.875 - TINY, ["stale_image"]),
        (99.5 - TINY, ["lost_image"]),  # it came late out of some queue
        (90.0, ["lost_image"]),
    ],
)
def test_a_stamp_makes_older_and_never_younger(stamp: float, codes: list[str]) -> None:
    dog = Watchdog({"image": LIMITS}, max_future=0.0625)
    dog.feed("image", 100.0, stamp=stamp)
    assert dog.check(100.0) == codes
    assert dog.check(100.125 + TINY) != []


def test_an_unknown_name_feeds_nobody() -> None:
    dog = Watchdog({"image:wrist": LIMITS})
    assert not dog.feed("image:wirst", 0.0)
    assert dog.check(0.0) == ["lost_image:wrist"] and dog.report(0.0)["unknown"] == 1


def test_the_shipped_limits_are_the_published_ones() -> None:
    assert (COMMAND.degrade, COMMAND.latch) == (0.1, 0.5)
    assert (IMAGE.degrade, IMAGE.latch, IMAGE.sees_frozen) == (0.1, 0.3, True)
    assert JOINT_STATE.latch == 0.1 and not JOINT_STATE.sees_frozen


def test_each_source_has_its_own_limits_and_kinds() -> None:
    dog = Watchdog({"command": COMMAND, "joint_state": JOINT_STATE, "image:wrist": IMAGE})
    dog.feed("command", 0.0)
    dog.feed("joint_state", 0.0)
    dog.feed("image:wrist", 0.0, content=frame(0))
    assert dog.check(0.07) == ["stale_joint_state"]
    codes = dog.check(0.2)
    assert codes == ["stale_command", "lost_joint_state", "stale_image:wrist"]
    assert [kind(code) for code in codes] == [Kind.SOFT, Kind.LATCHED, Kind.SOFT]


@pytest.mark.parametrize("bad", [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.5), (NAN, 1.0), (0.1, NAN),
                                 (0.1, math.inf)])  # fmt: skip
def test_limits_out_of_order_are_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(ConfigError):
        SourceLimits(*bad)


@pytest.mark.parametrize(
    ("sources", "more"),
    [({}, {}), ({"": LIMITS}, {}), ({"a": LIMITS}, {"max_future": -0.1}),
     ({"a": LIMITS}, {"max_future": NAN}), ({"a": LIMITS}, {"max_past": 0.5}),
     ({"a": LIMITS}, {"max_past": math.inf})],
)  # fmt: skip
def test_a_watchdog_that_makes_no_sense_is_refused(sources: Any, more: Any) -> None:
    with pytest.raises(ConfigError):
        Watchdog(sources, **more)


anything = st.floats(allow_nan=True, allow_infinity=True)
feeds = st.tuples(
    st.sampled_from(["a", "b", "c"]),
    st.one_of(st.floats(0.0, 2.0), anything),
    st.one_of(st.none(), st.floats(0.0, 2.0), anything),
    st.integers(0, 3),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(feeds, max_size=20), st.one_of(st.floats(0.0, 4.0), anything))
@example([("a", -0.5, None, 0)], 1.85e-140)
def test_never_raises_and_silence_is_always_found(feeds: list[Any], now: float) -> None:
    dog, newest = Watchdog({"a": LIMITS, "b": FROZEN}), -math.inf
    for name, when, stamp, value in feeds:
        dog.feed(name, when, stamp, np.array([value]))
        if math.isfinite(when) and name in ("a", "b"):
            newest = max(newest, when)
    codes = dog.check(now)
    # Whatever the stamps say: half a second after the last word of anybody, all is lost. A
    # difference, as the watchdog has it: at the border a sum rounds otherwise.
    if not now - newest <= 0.5:
        assert {"lost_a", "lost_b"} <= set(codes)
    json.dumps(dog.report(now), allow_nan=False)

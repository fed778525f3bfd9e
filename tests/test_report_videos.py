"""Films: what was encoded comes back, the overlay tells the truth."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from safe_o2o.errors import ConfigError
from safe_o2o.report.overlay import HEIGHT, HOLD, PICTURE, TOP, WIDTH, Film, caption, compose
from safe_o2o.report.videos import animation, decode_video, encode_video, write_video
from safe_o2o.types import Verdict


def moving_square(count: int = 12, size: int = 64) -> np.ndarray:
    frames = np.full((count, size, size, 3), (20, 40, 90), np.uint8)
    for t in range(count):
        frames[t, 8:24, 2 * t : 2 * t + 16] = (220, 60, 40)
    return frames


@pytest.mark.parametrize("kind", ["webm", "mp4"])
def test_film_comes_back(kind, tmp_path) -> None:
    frames = moving_square()
    path = write_video(tmp_path / f"film.{kind}", frames, 10.0)
    back = decode_video(path)
    assert back.shape == frames.shape
    assert np.abs(back.astype(int) - frames).mean() < 6
    # The square is where it was: chroma subsampling blurs its edge by a pixel.
    for t in (0, 11):
        red = back[t, 16, :, 0] > 130
        assert abs(int(np.flatnonzero(red)[0]) - 2 * t) <= 2
    assert encode_video(frames, 10.0, kind=kind) == path.read_bytes()  # no clock, no random id


def test_film_has_its_rate() -> None:
    import av

    with av.open(io.BytesIO(encode_video(moving_square(20), 10.0))) as film:
        times = [frame.time for frame in film.decode(video=0)]
    np.testing.assert_allclose(np.diff(times), 0.1, atol=2e-3)


@pytest.mark.parametrize(
    ("frames", "fps"),
    [
        (np.zeros((0, 4, 4, 3), np.uint8), 10),
        (np.zeros((2, 5, 4, 3), np.uint8), 10),
        (np.zeros((2, 4, 4, 3), np.float32), 10),
        (np.zeros((2, 4, 4), np.uint8), 10),
        (np.zeros((2, 4, 4, 3), np.uint8), float("nan")),
    ],
)
def test_bad_frames_are_refused(frames, fps, tmp_path) -> None:
    with pytest.raises(ConfigError):
        write_video(tmp_path / "film.webm", frames, fps)
    assert list(tmp_path.iterdir()) == []


def test_other_kinds_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="avi"):
        write_video(tmp_path / "film.avi", moving_square(), 10)
    with pytest.raises(ConfigError, match="no film"):
        decode_video(b"not a film")


@pytest.mark.parametrize("kind", ["webp", "gif"])
def test_animation_loops_with_all_frames(kind) -> None:
    data = animation(moving_square(), 12.5, kind=kind)
    picture = Image.open(io.BytesIO(data))
    assert picture.n_frames == 12 and picture.info["loop"] == 0
    picture.seek(5)
    picture.load()
    assert picture.info["duration"] == 80
    r, g, b = picture.convert("RGB").getpixel((18, 16))
    assert r > 150 > g and b < 100
    with pytest.raises(ConfigError):
        animation([], 10)


def a_film(**changes) -> Film:
    steps = 4
    base = dict(
        title="before",
        subtitle="round 0",
        pictures=np.full((steps + 1, 64, 64, 3), 128, np.uint8),
        action=np.zeros((steps, 3), np.float32),
        proposed=np.zeros((steps, 3), np.float32),
        action_names=("dx", "dy", "dz"),
        action_scale=(0.02,) * 3,
        action_unit="m",
        verdict=np.zeros(steps, np.uint8),
        reason=[""] * steps,
        cost=np.zeros(steps, np.float32),
        success=True,
        stamp=np.arange(steps + 1) * 0.2,
    )
    return Film(**{**base, **changes})


def count(frame: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((frame == colour).all(-1).sum())


RED, BLUE, AMBER = (255, 106, 77), (90, 169, 255), (240, 164, 58)


def test_overlay_has_the_picture_and_every_moment() -> None:
    pictures = np.zeros((5, 64, 64, 3), np.uint8)
    pictures[:] = np.arange(5, dtype=np.uint8)[:, None, None, None] * 50
    pictures[:, 0, 0] = 255
    frames = compose(a_film(pictures=pictures))
    assert frames.shape == (5 + HOLD, HEIGHT, WIDTH, 3) and HEIGHT % 2 == WIDTH % 2 == 0
    for t in range(5):
        area = frames[t, TOP:, :PICTURE]
        assert (area[:6, :6] == 255).all(), "64 to 384 pixels is a factor of 6, by nearest"
        assert (area[6:, 6:] == 50 * t).all()
    assert (frames[-1] == frames[4]).all()


def test_overlay_shows_verdict_contact_and_action() -> None:
    verdict = np.array([0, Verdict.CORRECTED, 0, Verdict.STOPPED], np.uint8)
    cost = np.array([0, 0, 1, 0], np.float32)
    action = np.zeros((4, 3), np.float32)
    action[2] = (1, 0, -1)
    film = a_film(verdict=verdict, cost=cost, action=action, reason=["", "workspace", "", "age"])
    frames = compose(film)
    strip = frames[:, TOP:, PICTURE:]
    assert count(strip[1], AMBER) > 1000 and count(strip[0], AMBER) == 0
    assert count(strip[3], RED) > 8000  # stopped, and the contact that step 2 caused
    assert count(strip[2], RED) == 0  # a contact is shown once it happened
    assert count(strip[2], BLUE) > count(strip[1], BLUE) + 500
    top = frames[:, :TOP]
    assert count(top[1], AMBER) == 0 and count(top[2], AMBER) > 100
    assert count(top[2], RED) == 0 and count(top[3], RED) > 100


def test_overlay_shows_risk_where_there_is_one() -> None:
    low, high = (compose(a_film(risk=np.full(4, risk))) for risk in (0.1, 0.9))
    assert count(high[0], RED) > 1000 > count(low[0], RED) == 0
    assert count(low[0], BLUE) > 100


def test_overlay_survives_a_policy_that_said_nan() -> None:
    compose(a_film(proposed=np.full((4, 3), np.nan, np.float32)))


def test_caption_leaves_the_picture_alone() -> None:
    picture = np.full((100, 200, 3), 200, np.uint8)
    got = caption(picture, "unseen scene")
    assert (got[:70] == 200).all() and (got[80:] < 150).any() and got.shape == picture.shape

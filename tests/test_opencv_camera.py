"""The OpenCV camera on a video file: order of colours, cropping, freezing, lifecycle."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")

from safe_o2o.errors import ConfigError, RobotStateError  # noqa: E402
from safe_o2o.interfaces import Camera  # noqa: E402
from safe_o2o_hardware.cameras.opencv import OpenCVCamera, shrink  # noqa: E402


@pytest.fixture()
def video(tmp_path: Path) -> str:
    path = str(tmp_path / "film.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 30.0, (160, 120))
    assert writer.isOpened()
    frame = np.zeros((120, 160, 3), np.uint8)
    frame[:, :, 2] = 255  # red, in OpenCV's order
    for _ in range(20):
        writer.write(frame)
    writer.release()
    return path


def test_reads_rgb_squares_and_refuses_a_frozen_stream(video: str) -> None:
    camera = OpenCVCamera(video, size=32, timeout=0.2)
    assert isinstance(camera, Camera)
    with pytest.raises(RobotStateError, match="not connected"):
        camera.read()
    camera.connect()
    image, stamp = camera.read()
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    assert image[..., 0].mean() > 200 > 60 > image[..., 2].mean()
    assert abs(time.monotonic() - stamp) < 1.0
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:  # the film ends; the camera must say so
        try:
            camera.read()
            time.sleep(0.02)
        except RobotStateError as error:
            assert "froze" in str(error)
            break
    else:
        pytest.fail("an ended film was never noticed")
    camera.close()
    camera.close()


def test_shrink_keeps_the_middle() -> None:
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 200  # exactly the middle square
    assert (shrink(picture, 8) == 200).all()


def test_missing_device_and_bad_settings_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RobotStateError, match="does not open"):
        OpenCVCamera(str(tmp_path / "nothing.avi")).connect()
    with pytest.raises(ConfigError):
        OpenCVCamera(0, size=0)

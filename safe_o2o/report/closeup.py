"""Larger pictures of recorded episodes: the twin's camera follows the recorded tool poses again.

A close-up is a reconstruction, so it is checked against what was recorded: rendered at the recorded
size it must look the same, or it is not used.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np

from safe_o2o import catalog
from safe_o2o.data.episode import Episode
from safe_o2o.errors import SafeO2OError
from safe_o2o.types import Array

DIFFERENT = 48  # of 255: a pixel's intensity that is farther off shows something else
TOLERANCE = (
    0.005  # share of such pixels; an elbow found 0.05 rad off makes 0.001, another layout 0.15
)
ROBOT, CAMERA = "pybullet_twin", "twin_camera"  # what the twin is called in the catalogue


class CloseUp:
    """Renders episodes of tasks on the twin; a context manager.

    Args:
        size: height and width of the pictures, pixels.
    """

    def __init__(self, size: int = 256) -> None:
        self.size = size
        self._stages: dict[tuple[str, str], _Stage | None] = {}

    def __call__(self, episode: Episode) -> Array | None:
        """Pictures `[T + 1, size, size, 3]`, or None where the twin cannot make them truthfully."""
        key = (episode.meta.task, episode.meta.variant)
        if key not in self._stages:
            self._stages[key] = _Stage.build(*key, self.size)
        stage = self._stages[key]
        return None if stage is None else stage.shoot(episode)

    def close(self) -> None:
        """Release the simulator; idempotent."""
        for stage in self._stages.values():
            if stage is not None:
                stage.close()
        self._stages = {}

    def __enter__(self) -> CloseUp:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def different(one: Array, other: Array) -> float:
    """Share of the pixels of two pictures `[H, W, 3]` that show something else."""
    apart = np.abs(one.astype(np.int16) - other).max(-1)
    return float((apart > DIFFERENT).mean())


def _began(episode: Episode) -> float:
    """Stamp of the episode's beginning, which is the first one's unless the recorder said more."""
    return float(episode.meta.provenance.get("began", episode.array("stamp")[0]))


class _Stage:
    """Arm, task and two cameras of one scene variant, as the catalogue makes them."""

    def __init__(self, task: str, variant: str, size: int) -> None:
        made = catalog.load("task", task)
        config = made.config_class(**({"variant": variant} if variant else {}))
        camera = catalog.load("camera", CAMERA)
        self.twin: Any = catalog.load("robot", ROBOT)()
        self.twin.connect()
        self.near: Any = camera(size)
        self.near.connect()
        self.task: Any = made(self.twin, camera(config.image_size), config)

    @classmethod
    def build(cls, task: str, variant: str, size: int) -> _Stage | None:
        """None where the task is another one, or no simulator is installed."""
        try:
            return cls(task, variant, size)
        except (SafeO2OError, AttributeError, TypeError):  # a task that is not on the twin
            return None

    def shoot(self, episode: Episode) -> Array | None:
        """All pictures, provided that the first, middle and last one agree with the recorded."""
        names = episode.spec.observation.image_names
        if not names or "obs.tcp_pose" not in episode.names:
            return None
        self.task.reset(episode.meta.seed)
        began = self.twin.read().stamp
        self.near.set_scene(self.task.layout.scene, began)
        path, q = [], self.twin.read().q
        for pose in episode.array("obs.tcp_pose"):
            q = self.task.cartesian.solve(pose[:3].astype(np.float64), q, iterations=20)
            path.append(q)
        recorded = episode.array(f"obs.{names[0]}")
        stamps = (began + episode.array("stamp") - _began(episode)).tolist()
        for t in (0, len(episode) // 2, len(episode)):
            self.task.camera.follow(path[t], stamps[t])
            again, _ = self.task.camera.read()
            if again.shape != recorded[t].shape or different(again, recorded[t]) > TOLERANCE:
                return None
        return np.stack([self._picture(q, stamp) for q, stamp in zip(path, stamps, strict=True)])

    def _picture(self, q: Array, stamp: float) -> Array:
        self.near.follow(q, stamp)
        image: Array = self.near.read()[0]
        return image

    def close(self) -> None:
        self.near.close()
        self.task.close()
        self.twin.close()

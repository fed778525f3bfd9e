"""The twin's camera: its own copy of the scene, which follows the joint positions it is handed.

It may live in another process than the twin; then no picture ever holds up the control loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from safe_o2o.errors import ConfigError, RobotStateError
from safe_o2o.safety.kinematics import POSTURES
from safe_o2o.types import Array
from safe_o2o_sim.bullet import pybullet
from safe_o2o_sim.scene import (
    EMPTY,
    FINGER_JOINTS,
    HAND_LINK,
    CameraOffset,
    Light,
    Point,
    SceneLayout,
    add_block,
    load_panda,
    place_arm,
    place_block,
)

Rectangle = tuple[float, float, float, float]
"""Lowest x, lowest y, highest x, highest y, m."""

_TABLE: Rectangle = (-0.50, -1.00, 1.10, 1.00)
_CLOTH: Rectangle = (0.27, -0.31, 0.73, 0.31)
_TABLE_COLOUR = (0.15, 0.15, 0.17)
_ARM, _HAND, _FINGERS = (0.80, 0.80, 0.82), (0.36, 0.40, 0.50), (0.10, 0.10, 0.12)


class TwinCamera:
    """A static third-person camera in front of the table, rendered by PyBullet's TinyRenderer.

    A picture depends on the scene, the joints and, where something moves, the time since the
    episode's beginning, on nothing else, bit for bit, on one kind of machine.

    Args:
        size: height and width in pixels, or one number for both.
        eye: where the camera is, in the robot's base frame, m.
        target: the point in the middle of the picture, m.
        fov: vertical field of view, degrees.

    Raises:
        ConfigError: a size is not positive.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 64,
        *,
        eye: Point = (1.02, 0.0, 0.80),
        target: Point = (0.515, 0.0, 0.06),
        fov: float = 34.0,
    ) -> None:
        self.height, self.width = (size, size) if isinstance(size, int) else size
        if not (self.height > 0 and self.width > 0):
            raise ConfigError(f"size must be positive, got {size}", where="camera")
        self._eye, self._target = eye, target
        aspect = self.width / self.height
        self._projection = pybullet.computeProjectionMatrixFOV(fov, aspect, 0.05, 3.0)
        self._client: int | None = None
        self._layout = EMPTY
        self._q: Array = np.asarray(POSTURES["panda"])
        self._stamp = self._began = 0.0

    def connect(self) -> None:
        """Build the scene."""
        if self._client is not None:
            raise RobotStateError(
                "cannot connect twice", where="twin camera", todo="call close() first"
            )
        client = self._client = pybullet.connect(pybullet.DIRECT)
        self._arm = load_panda(client, "visual")
        for link in range(-1, pybullet.getNumJoints(self._arm, physicsClientId=client)):
            colour = _FINGERS if link in FINGER_JOINTS else _HAND if link == HAND_LINK else _ARM
            pybullet.changeVisualShape(
                self._arm, link, rgbaColor=[*colour, 1.0], physicsClientId=client
            )
        _add_ground(client, _around(_CLOTH, _TABLE), _TABLE_COLOUR)
        self._cloth = _add_ground(client, [_CLOTH], EMPTY.cloth)
        self._blocks: list[int] = []
        self.set_scene(self._layout, self._began)
        self.follow(self._q, self._stamp)

    def set_scene(self, layout: SceneLayout, began: float = 0.0) -> None:
        """Show this scene from now on.

        Args:
            layout: what stands on the table, and how it looks.
            began: stamp of the episode's beginning, from which on things move, s.
        """
        self._layout, self._began = layout, began
        self._view = _view(self._eye, self._target, layout.camera)
        self._light = _light(layout.light)
        if self._client is None:
            return
        pybullet.changeVisualShape(
            self._cloth, -1, rgbaColor=[*layout.cloth, 1.0], physicsClientId=self._client
        )
        # Newest first, so that the renderer's list is the same whatever stood there before.
        while self._blocks:
            pybullet.removeBody(self._blocks.pop(), physicsClientId=self._client)
        for block in (*layout.obstacles, layout.goal, *layout.distractors):
            self._blocks.append(add_block(self._client, block, "visual"))

    def follow(self, q: Array, stamp: float = 0.0) -> None:
        """Show the arm at joint positions `[7]`, rad, as read at `stamp`, s, and what moves."""
        self._q, self._stamp = q, stamp
        if self._client is None:
            return
        place_arm(self._client, self._arm, q)
        for block, body in zip(self._layout.obstacles, self._blocks, strict=False):
            if block.motion is not None:
                place_block(self._client, body, block, stamp - self._began)

    def read(self) -> tuple[Array, float]:
        """Render: image `[H, W, 3]` uint8 RGB and the stamp of what it shows, s.

        Raises:
            RobotStateError: the camera is not connected.
        """
        if self._client is None:
            raise RobotStateError(
                "cannot read while closed", where="twin camera", todo="call connect() first"
            )
        pixels = pybullet.getCameraImage(
            self.width,
            self.height,
            self._view,
            self._projection,
            shadow=0,
            flags=pybullet.ER_NO_SEGMENTATION_MASK,
            renderer=pybullet.ER_TINY_RENDERER,
            physicsClientId=self._client,
            **self._light,
        )[2]
        image = np.asarray(pixels, np.uint8).reshape(self.height, self.width, 4)[:, :, :3]
        return np.ascontiguousarray(image), self._stamp

    def close(self) -> None:
        """Release the scene; idempotent."""
        if self._client is not None:
            pybullet.disconnect(self._client)
            self._client = None


def _view(eye: Point, target: Point, off: CameraOffset | None) -> Sequence[float]:
    """The view matrix of a camera that is off by so much."""
    up: Point = (0.0, 0.0, 1.0)
    if off is not None:
        ahead = _turned((target[0] - eye[0], target[1] - eye[1], target[2] - eye[2]), off.turn)
        up = _turned(up, off.turn)
        eye = (eye[0] + off.shift[0], eye[1] + off.shift[1], eye[2] + off.shift[2])
        target = (eye[0] + ahead[0], eye[1] + ahead[1], eye[2] + ahead[2])
    matrix: Sequence[float] = pybullet.computeViewMatrix(eye, target, up)
    return matrix


def _turned(vector: Point, turn: Point) -> Point:
    """A vector after a rotation about `turn` by its length, rad."""
    quaternion = pybullet.getQuaternionFromAxisAngle(turn, math.hypot(*turn))
    turned: Point = pybullet.rotateVector(quaternion, vector)
    return turned


def _light(light: Light) -> dict[str, Any]:
    """The renderer's names for it: all of them, for what is not said stays as it was."""
    return {
        "lightDirection": light.direction,
        "lightColor": light.colour,
        "lightAmbientCoeff": light.ambient,
        "lightDiffuseCoeff": light.diffuse,
        "lightSpecularCoeff": light.specular,
    }


def _around(hole: Rectangle, whole: Rectangle) -> list[Rectangle]:
    """The four rectangles that fill `whole` but for `hole`."""
    x0, y0, x1, y1 = whole
    a0, b0, a1, b1 = hole
    return [(x0, y0, a0, y1), (a1, y0, x1, y1), (a0, y0, a1, b0), (a0, b1, a1, y1)]


def _add_ground(
    client: int, rectangles: list[Rectangle], colour: tuple[float, float, float]
) -> int:
    """Flat rectangles at z = 0 that do not overlap: each pixel drawn once saves a fifth."""
    vertices: list[list[float]] = []
    indices: list[int] = []
    for x0, y0, x1, y1 in rectangles:
        first = len(vertices)
        vertices += [[x0, y0, 0.0], [x1, y0, 0.0], [x1, y1, 0.0], [x0, y1, 0.0]]
        indices += [first + i for i in (0, 1, 2, 0, 2, 3)]
    shape = pybullet.createVisualShape(
        pybullet.GEOM_MESH,
        vertices=vertices,
        indices=indices,
        normals=[[0.0, 0.0, 1.0]] * len(vertices),
        rgbaColor=[*colour, 1.0],
        physicsClientId=client,
    )
    return int(pybullet.createMultiBody(0.0, -1, shape, physicsClientId=client))

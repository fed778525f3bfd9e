"""Small pictures out of MuJoCo without a screen: one OpenGL context an environment, always ours.

MuJoCo's own helpers draw into whatever context happens to be current, so that with two environments
in a process one draws with the other's textures. Here the context is made current before anything
is drawn and before anything is freed.
"""

from __future__ import annotations

import functools
import importlib
import os
import weakref
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from safe_o2o.errors import MissingDependencyError
from safe_o2o.types import Array

BACKENDS = ("egl", "osmesa")
"""In the order in which they are tried: EGL finds a GPU or draws in software, OSMesa only that."""
_SIDES, _STACKS = 16, 8  # of spheres and cylinders


@functools.lru_cache(maxsize=1)
def context_class() -> Any:
    """The class of OpenGL contexts that works on this machine.

    The environment variable `MUJOCO_GL` decides where it names one of `BACKENDS`.

    Raises:
        MissingDependencyError: none of them works.
    """
    # Pictures this small are drawn faster by the thread that asks than by threads it has to wake.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    reasons = []
    for name in (asked,) if asked in BACKENDS else BACKENDS:
        platform = os.environ.get("PYOPENGL_PLATFORM")
        try:
            made = importlib.import_module(f"mujoco.{name}").GLContext
            probe = made(8, 8)
            probe.make_current()
            probe.free()
            return made
        except Exception as error:  # each library has errors of its own for what it lacks
            reasons.append(f"{name}: {' '.join(str(error).split()) or type(error).__name__}")
            if platform is None:  # the next one has to choose for itself
                os.environ.pop("PYOPENGL_PLATFORM", None)
    raise MissingDependencyError(
        f"no OpenGL without a screen ({'; '.join(reasons)[:300]})",
        where="pictures of Safety-Gymnasium",
        todo="run scripts/setup.sh --safety-gymnasium, or install libosmesa6 or libegl1",
    )


class Renderer:
    """Draws what cameras of a model see; one context for any number of models with the same assets.

    No antialiasing and no shadows, and round things have 16 sides: without a GPU that is several
    times as fast, and at 64 pixels one pixel in fifty differs, at the edges.

    Args:
        size: height and width of the pictures, pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._held = _Held(context_class()(size, size))
        # Also at the interpreter's end, before the library closes the display under it.
        self._free = weakref.finalize(self, self._held.free)
        self._assets: tuple[Any, ...] = ()
        self._scene: Any = None
        self._model: Any = None
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = 1  # hazards and goals are in groups that are hidden by default
        self._perturb = mujoco.MjvPerturb()
        self._viewport = mujoco.MjrRect(0, 0, size, size)

    def render(self, model: Any, data: Any, cameras: Sequence[str]) -> list[Array]:
        """One picture `[H, W, 3]` uint8 RGB a camera of the model, by name."""
        self._held.gl.make_current()
        if model is not self._model:
            self._adopt(model)
        pictures = []
        for name in cameras:
            self._camera.fixedcamid = model.camera(name).id
            mujoco.mjv_updateScene(
                model,
                data,
                self._option,
                self._perturb,
                self._camera,
                mujoco.mjtCatBit.mjCAT_ALL,
                self._scene,
            )
            mujoco.mjr_render(self._viewport, self._scene, self._held.context)
            picture = np.empty((self.size, self.size, 3), np.uint8)
            mujoco.mjr_readPixels(picture, None, self._viewport, self._held.context)
            pictures.append(np.ascontiguousarray(picture[::-1]))
        return pictures

    def close(self) -> None:
        """Free everything; idempotent."""
        self._free()

    def _adopt(self, model: Any) -> None:
        """Get ready for another model; textures and meshes are uploaded only where they differ."""
        model.vis.global_.offwidth = model.vis.global_.offheight = self.size
        quality = model.vis.quality
        quality.offsamples = quality.shadowsize = 0
        quality.numslices, quality.numstacks = _SIDES, _STACKS
        assets = tuple(
            np.asarray(getattr(model, name)).tobytes()
            for name in ("tex_type", "tex_height", "tex_width", "mesh_vertnum", "mesh_facenum")
        )
        if self._held.context is None or assets != self._assets:
            self._held.free_context()
            context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
            self._held.context = context
            self._assets = assets
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._model = model


class _Held:
    """What has to be freed, and in which order: the drawing context while its own is current."""

    def __init__(self, gl: Any) -> None:
        self.gl = gl
        self.context: Any = None

    def free_context(self) -> None:
        if self.context is not None:
            self.gl.make_current()
            self.context.free()
            self.context = None

    def free(self) -> None:
        self.free_context()
        self.gl.free()

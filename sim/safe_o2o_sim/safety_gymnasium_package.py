"""Safety-Gymnasium 1.0.0 as it comes from PyPI, made to run on a current Python; nothing copied.

The package pins NumPy, Gymnasium, MuJoCo and Pygame of 2023 and does not import on Python 3.11.
Here its environment builder is imported alone, without registration and multi-agent parts, into
modules that nobody else sees: afterwards neither `sys.modules` nor a library that others use is
changed.
What differs from the published package:

- the agents carry the cameras `vision` and `vision_back` of the upstream repository, which the
  papers look through and the release lacks, and upstream's scale of the view;
- the sky's six textures, 3259 x 3259, are shrunk once: decoding them takes a second of every reset.

Source: Ji et al., Safety-Gymnasium: A Unified Safe Reinforcement Learning Benchmark, NeurIPS 2023.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import io
import os
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from safe_o2o.errors import MissingDependencyError
from safe_o2o.files import write_atomic

PACKAGE = "safety_gymnasium"
TODO = "run scripts/setup.sh --safety-gymnasium"
SKY_SIZE = 128
"""Pixels of a side of the sky's textures; a picture of 64 pixels sees at most a quarter of one."""

_CAMERAS: Mapping[str, tuple[dict[str, str], ...]] = {
    "point.xml": (
        {"@name": "vision", "@pos": "0 0 .15", "@xyaxes": "0 -1 0 .4 0 1", "@fovy": "90"},
        {"@name": "vision_back", "@pos": "0 0 .15", "@xyaxes": "0 1 0 0 0 1", "@fovy": "90"},
    ),
    "car.xml": (
        {"@name": "vision", "@pos": "0 0 .2", "@xyaxes": "-1 0 0 0 -.4 1", "@fovy": "90"},
        {"@name": "vision_back", "@pos": "0 0 .2", "@xyaxes": "1 0 0 0 0 1", "@fovy": "90"},
    ),
}
_VIEW = {"@meansize": "0.23", "@extent": "3.96"}
"""Upstream's constants: near plane and haze no longer depend on the layout."""

_lock = threading.Lock()
_NEEDED = ("gymnasium", "gymnasium.envs.mujoco.mujoco_rendering", "glfw", "mujoco", "xmltodict")


@functools.lru_cache(maxsize=1)
def builder_class() -> Any:
    """The package's `Builder`: `Builder(task_id=..., config={"agent_name": ...})` is a simulation.

    Raises:
        MissingDependencyError: the package or one of those it needs is not installed.
    """
    # The ordinary libraries first: what they take from `dataclasses` must be the real thing.
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingDependencyError(
                f"Safety-Gymnasium needs the package {name.partition('.')[0]!r} ({error})",
                todo=TODO,
            ) from error
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations or spec.origin is None:
        raise MissingDependencyError(f"the package {PACKAGE!r} is not installed", todo=TODO)
    with _lock, _own_modules(spec.origin, list(spec.submodule_search_locations)):
        with _arrays_as_defaults():
            builder = importlib.import_module(f"{PACKAGE}.builder")
        _accept_joint_arrays(sys.modules[f"{PACKAGE}.bases.base_agent"].BaseAgent)
        _adapt_world(sys.modules[f"{PACKAGE}.world"], Path(spec.origin).parent)
    return builder.Builder


@contextlib.contextmanager
def _own_modules(origin: str, locations: list[str]) -> Iterator[None]:
    """Import from the package without running its `__init__`, and hide the modules afterwards."""

    def ours() -> list[str]:
        return [n for n in sys.modules if n == PACKAGE or n.startswith(f"{PACKAGE}.")]

    theirs = {name: sys.modules.pop(name) for name in ours()}
    root = types.ModuleType(PACKAGE)
    root.__path__, root.__file__ = locations, origin
    sys.modules[PACKAGE] = root
    try:
        yield
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(theirs)


@contextlib.contextmanager
def _arrays_as_defaults() -> Iterator[None]:
    """Let dataclasses have arrays as defaults, as before Python 3.11: each instance gets a copy."""
    original = dataclasses.dataclass

    def dataclass(cls: Any = None, /, **settings: Any) -> Any:
        if cls is None:
            return functools.partial(dataclass, **settings)
        for name in inspect.get_annotations(cls):
            default = cls.__dict__.get(name)
            if isinstance(default, np.ndarray):
                setattr(cls, name, dataclasses.field(default_factory=default.copy))
        return original(cls, **settings)

    dataclasses.dataclass = dataclass  # type: ignore[assignment]
    try:
        yield
    finally:
        dataclasses.dataclass = original


def _accept_joint_arrays(agent: Any) -> None:
    """Let the agent look joints up by arrays of length one, as MuJoCo did in 2023."""
    original = agent._init_jnt_sensors

    class Model:
        def __init__(self, model: Any) -> None:
            self._model = model

        def __getattr__(self, name: str) -> Any:
            return getattr(self._model, name)

        def jnt(self, index: Any) -> Any:
            return self._model.jnt(int(np.asarray(index).item()))

    def init_joint_sensors(self: Any) -> None:
        engine = self.engine
        self.engine = types.SimpleNamespace(model=Model(engine.model), data=engine.data)
        try:
            original(self)
        finally:
            self.engine = engine

    agent._init_jnt_sensors = init_joint_sensors


def _adapt_world(world: Any, package: Path) -> None:
    """Give the module that writes the scene's XML its own parsers: cameras added, sky shrunk."""
    xmltodict, yaml = world.xmltodict, world.yaml
    cameras = {
        (package / "assets" / "xmls" / name).read_text("utf-8"): entry
        for name, entry in _CAMERAS.items()
    }

    def parse(text: str) -> Any:
        tree = xmltodict.parse(text)
        if text in cameras:
            tree["mujoco"]["worldbody"]["body"]["camera"] = [dict(c) for c in cameras[text]]
            tree["mujoco"]["statistic"] = dict(_VIEW)
        return tree

    @functools.lru_cache(maxsize=1)
    def assets(text: str) -> Any:
        found = yaml.safe_load(text)
        sky = found["textures"]["skybox"]
        for key in [key for key in sky if key.startswith("@file")]:
            sky[key] = str(_small(package / "assets" / "textures" / sky[key]))
        return found

    def load(file: Any, Loader: Any = None) -> Any:
        return assets(file.read())

    world.xmltodict = types.SimpleNamespace(parse=parse, unparse=xmltodict.unparse)
    world.yaml = types.SimpleNamespace(load=load, FullLoader=None)


def _small(path: Path) -> Path:
    """A small copy of a texture in the user's cache, made when it is not there yet.

    Raises:
        StorageError: the cache cannot be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    small = cache / "safe_o2o" / f"sky-{SKY_SIZE}" / path.name
    if not small.exists():
        from PIL import Image

        with Image.open(path) as picture:
            shrunk = picture.convert("RGB").resize((SKY_SIZE, SKY_SIZE), Image.Resampling.BOX)
        data = io.BytesIO()
        shrunk.save(data, "PNG")
        small.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(small, data.getvalue())
    return small

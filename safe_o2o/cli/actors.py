"""From what a user names to an environment and to who acts in it; picklable, for the workers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_o2o import catalog
from safe_o2o.data.behavior import FILE, read_behavior
from safe_o2o.errors import BundleError, ConfigError, UnknownNameError
from safe_o2o.interfaces import Env
from safe_o2o.runtime.actors import (
    Actor,
    BehaviorActor,
    PolicyActor,
    TrainedActor,
    UniformRandomActor,
)
from safe_o2o.runtime.rollout import MakeActor
from safe_o2o.safety.reachability_gate import GateMode
from safe_o2o.spaces import Spec

MIXTURE = ("expert", "unsafe", "random")
"""The offline data of FOSP: three scripted behaviours, 1:1:1 by episode."""


@dataclass(frozen=True)
class SceneMaker:
    """Makes the simulated environment of a task.

    Attributes:
        task: catalogue name.
        variant: scene variant of the task.
        camera: False leaves the pictures out of the observations.
    """

    task: str
    variant: str
    camera: bool = True

    def __post_init__(self) -> None:
        if self.task.replace("-", "_") not in catalog.tasks:
            raise UnknownNameError("task", self.task, catalog.tasks)

    @property
    def imports(self) -> tuple[str, ...]:
        """What takes long to import, for workers to share; nothing that starts a thread is here."""
        module = catalog.tasks[self.task.replace("-", "_")].partition(":")[0]
        twin = ("safe_o2o_sim.pybullet_twin", "safe_o2o_sim.twin_camera")
        on_robot = module.startswith("safe_o2o_sim.tasks.")
        return ("safe_o2o_sim.make", module, *(twin if on_robot else ()))

    def __call__(self) -> Env:
        """A fresh environment."""
        from safe_o2o_sim.make import make_env

        env: Env = make_env(self.task, self.variant, camera=self.camera)
        return env

    def spec(self) -> Spec:
        """What the task's policies see and do."""
        env = self()
        try:
            return env.spec
        finally:
            env.close()


@dataclass(frozen=True)
class BehaviorMaker:
    """Makes behaviours: one, or several that take turns by episode number.

    Attributes:
        names: of scripted ones in the catalogue, or paths of trained ones.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in self.names:
            if name in catalog.behaviors:
                continue
            if not ("/" in name or is_trained(Path(name))):
                raise UnknownNameError("behavior", name, catalog.behaviors)
            read_behavior(Path(name))  # refused before anything has run

    def __call__(self, env: Any) -> list[Actor]:
        """The behaviours, each given what it knows: its task, or the vector it was trained on."""
        return [self._make(name, env) for name in self.names]

    def _make(self, name: str, env: Any) -> Actor:
        if name not in catalog.behaviors:
            behavior = read_behavior(Path(name))
            if not hasattr(env, "vector"):
                raise ConfigError("needs a task with lidar", where=f"behaviour {name}")
            behavior.spec.require_same(env.vector_spec, mine=f"behaviour {name}", theirs="the task")
            return TrainedActor(behavior, env.vector)
        if hasattr(env, "task"):
            return BehaviorActor(catalog.load("behavior", name)(env.task), name)
        if name != "random":  # chance alone needs to know nothing
            raise ConfigError(
                "is written for the twin; this task's are trained",
                where=f"behaviour {name}",
                todo="train them with `safe-o2o behaviors` and name their folders",
            )
        return UniformRandomActor(env.spec.action.dim, name)


@dataclass(frozen=True)
class BundleMaker:
    """Makes the policy of an exported bundle; `gate` as `load_policy` takes it."""

    directory: Path
    name: str
    gate: GateMode = "on"

    def __call__(self, env: Env) -> Actor:
        """The ONNX policy, refused unless it was made for this task's spec."""
        from safe_o2o.runtime.gated_policy import load_policy

        policy = load_policy(self.directory, env.spec, gate=self.gate)
        return PolicyActor(policy, self.name)


@dataclass(frozen=True)
class CheckpointMaker:
    """Makes the policy of a training checkpoint, in torch."""

    path: Path
    name: str

    def __call__(self, env: Env) -> Actor:
        """The algorithm's policy, refused unless it was trained for this task's spec."""
        from safe_o2o.training.restore import load_algorithm

        algorithm = load_algorithm(self.path)
        algorithm.spec.require_same(env.spec, mine=f"checkpoint {self.path}", theirs="the task")
        return PolicyActor(algorithm.policy, self.name)


def is_trained(path: Path) -> bool:
    """Whether a trained behaviour is at a path: its file, or the folder of its training."""
    return path.name == FILE or (path / FILE).exists()


def looks(make_actor: MakeActor) -> bool:
    """Whether an actor that `resolve` made looks at pictures: scripts and chance do not."""
    return isinstance(make_actor, BundleMaker | CheckpointMaker)


def uniform(env: Env) -> Actor:
    """Independent uniform actions."""
    return UniformRandomActor(env.spec.action.dim)


def resolve(who: str, name: str | None = None, gate: GateMode = "on") -> tuple[str, MakeActor]:
    """Turn what a user typed into a label and a maker of actors.

    Args:
        who: `mixture`, `uniform`, a behaviour's name, or the path of a bundle, of a folder of
            bundles (the newest counts), of a checkpoint, or of a trained behaviour.
        name: the label; by default the behaviour's name, or `policy-` with the folder's.
        gate: see `load_policy`; what has no gate does not mind.

    Raises:
        UnknownNameError: neither a name nor a path; the message has the near miss.
        BundleError: the path is there but holds neither a bundle nor a checkpoint.
        DataError: the trained behaviour is damaged.
    """
    if who == "mixture":
        return name or who, BehaviorMaker(MIXTURE)
    if who == "uniform":
        return name or who, uniform
    if who in catalog.behaviors:
        return name or who, BehaviorMaker((who,))
    path = Path(who)
    if not path.exists():
        if "/" in who:
            raise BundleError("no such bundle or checkpoint", where=who, todo="check the path")
        raise UnknownNameError("actor", who, [*catalog.behaviors, "mixture", "uniform"])
    return _from_path(path, name, gate)


def _from_path(path: Path, name: str | None, gate: GateMode) -> tuple[str, MakeActor]:
    """A checkpoint is a file, or a folder of them; a bundle is a folder, or one of a folder's.

    The folder of a behaviour's training holds checkpoints too: what it is for comes first.
    """
    if is_trained(path):
        return name or read_behavior(path).name, BehaviorMaker((str(path),))
    is_checkpoint = path.suffix == ".safetensors" or any(path.glob("step_*.safetensors"))
    if is_checkpoint:
        label = name or f"checkpoint-{path.stem}"
        return label, CheckpointMaker(path, label)
    from safe_o2o.runtime.live_policy import promoted_bundle

    directory = promoted_bundle(path)
    label = name or f"policy-{directory.name}"
    return label, BundleMaker(directory, label, gate)

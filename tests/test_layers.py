"""Who may import whom, read from the syntax trees: the house's table, kept true.

Names in the catalogue are strings and do not count: that is what the catalogue is for.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    "safe_o2o": ROOT / "safe_o2o",
    "safe_o2o_sim": ROOT / "sim" / "safe_o2o_sim",
    "safe_o2o_hardware": ROOT / "hardware" / "safe_o2o_hardware",
    "safe_o2o_ros": ROOT / "ros2_ws" / "src" / "safe_o2o_ros" / "safe_o2o_ros",
}
GROUND = (
    "types",
    "interfaces",
    "spaces",
    "catalog",
    "config",
    "errors",
    "intervals",
    "files",
    "bundle",
    "lifecycle",
    "workers",
)
G = tuple(f"safe_o2o.{name}" for name in GROUND)

# Longest prefix wins. A module may always import its own package.
OURS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(G, G),
    "safe_o2o.safety": G,
    "safe_o2o.data": G,
    "safe_o2o.nets": G,
    "safe_o2o.algorithms": (*G, "safe_o2o.data", "safe_o2o.nets"),
    "safe_o2o.runtime": (*G, "safe_o2o.safety", "safe_o2o.data"),
    "safe_o2o.training": (*G, "safe_o2o.data", "safe_o2o.nets", "safe_o2o.algorithms"),
    # What was learned between two rounds leaves as a bundle.
    "safe_o2o.training.finetune": (
        *(*G, "safe_o2o.data", "safe_o2o.nets", "safe_o2o.algorithms", "safe_o2o.export"),
        "safe_o2o.safety.gate_file",  # and with thresholds of its own, where it has a gate
    ),
    # A promotion tries the bundle with the very code that will run it.
    "safe_o2o.training.promotion": (*G, "safe_o2o.data", "safe_o2o.runtime.onnx_policy"),
    "safe_o2o.training.recalibration": (
        *(*G, "safe_o2o.data", "safe_o2o.safety"),
        *("safe_o2o.runtime.onnx_policy", "safe_o2o.runtime.gate_calibration"),
    ),
    "safe_o2o.export": (*G, "safe_o2o.data", "safe_o2o.nets", "safe_o2o.algorithms"),
    "safe_o2o.report": (*G, "safe_o2o.data"),
    "safe_o2o.cli": ("safe_o2o", "safe_o2o_sim", "safe_o2o_hardware"),
    "safe_o2o_sim": (*G, "safe_o2o.safety"),
    "safe_o2o_sim.make": (*G, "safe_o2o.safety", "safe_o2o.runtime"),
    "safe_o2o_sim.tasks": (*G, "safe_o2o.safety", "safe_o2o.runtime.cartesian"),
    "safe_o2o_hardware": (*G, "safe_o2o.safety"),
    "safe_o2o_ros": (*G, "safe_o2o.safety", "safe_o2o.data.recorder", "safe_o2o.runtime"),
    # The twin's camera only: it builds its own copy of the scene.
    "safe_o2o_ros.twin_camera_node": (*G, "safe_o2o.runtime", "safe_o2o_sim"),
    "safe_o2o_ros.bag_node": (*G, "safe_o2o.data.formats.bag_writer"),
    "safe_o2o_ros.learner_node": (
        *(*G, "safe_o2o.safety", "safe_o2o.data", "safe_o2o.runtime"),
        *("safe_o2o.training", "safe_o2o.export"),
    ),
}

# Third party -> where it may stand. What is not listed here is free.
TORCH = (
    *("safe_o2o.nets", "safe_o2o.algorithms", "safe_o2o.training", "safe_o2o.export"),
    "safe_o2o.cli.train",
    *(f"safe_o2o.data.{n}" for n in ("batch", "dataset", "replay", "mixture", "statistics")),
)
THEIRS: dict[str, tuple[str, ...]] = {
    "torch": TORCH,
    "onnx": ("safe_o2o.export", "safe_o2o.training.promotion"),
    "onnxruntime": ("safe_o2o.runtime.onnx_policy", "safe_o2o.export"),
    "cv2": (
        *("safe_o2o.data.episode", "safe_o2o.data.formats", "safe_o2o.report"),
        *("safe_o2o_sim.twin_camera", "safe_o2o_hardware.cameras"),
    ),
    "av": ("safe_o2o.report",),
    "jinja2": ("safe_o2o.report",),
    "matplotlib": ("safe_o2o.report",),
    "pinocchio": ("safe_o2o.safety", "safe_o2o.runtime.cartesian"),
    "pink": ("safe_o2o.runtime.cartesian",),
    "qpsolvers": ("safe_o2o.safety", "safe_o2o.runtime.cartesian"),
    "scipy": ("safe_o2o.safety.calibration",),
    "pybullet": ("safe_o2o_sim",),
    "pybullet_data": ("safe_o2o_sim",),
    "mujoco": ("safe_o2o_sim",),
    "safety_gymnasium": ("safe_o2o_sim",),
    "gymnasium": ("safe_o2o_sim",),
    "timm": (),  # by name only, where a setting asks for it
    "torchvision": (),
    "rclpy": ("safe_o2o_ros",),
    "sensor_msgs": ("safe_o2o_ros",),
    "std_msgs": ("safe_o2o_ros",),
    "std_srvs": ("safe_o2o_ros",),
    "trajectory_msgs": ("safe_o2o_ros",),
    "diagnostic_msgs": ("safe_o2o_ros",),
    "tyro": ("safe_o2o.cli",),
    "rich": ("safe_o2o.cli", "safe_o2o_ros.board", "safe_o2o_ros.watch", "safe_o2o_ros.operate"),
    "rerun": ("safe_o2o_ros.rerun_stream",),
}
# Inside an allowed place, yet without it: the arithmetic of an evaluation must run anywhere.
WITHOUT: dict[str, tuple[str, ...]] = {
    "torch": ("safe_o2o.training.evaluate", "safe_o2o.training.promotion")
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of ours: dotted name and file."""
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join([package, *(p for p in parts if p != "__init__")]), path


def imports(tree: ast.Module, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported, inside functions as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*parent, base]).rstrip(".")
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def longest(name: str, table: dict[str, tuple[str, ...]]) -> str:
    found = [prefix for prefix in table if within(name, (prefix,))]
    return max(found, key=len, default="")


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """What a module's source imports and may not, in words."""
    found = []
    layer = longest(module, OURS)
    own = ".".join(module.split(".")[: 2 if module.startswith("safe_o2o.") else 1])
    for line, name in imports(ast.parse(source), module, is_package):
        top = name.partition(".")[0]
        if top in SOURCES:
            if not layer:
                found.append(f"{module}:{line} belongs to no layer")
            elif not within(name, (own, *OURS[layer])):
                found.append(f"{module}:{line} ({layer}) imports {name}")
        elif top in THEIRS and (
            not within(module, THEIRS[top]) or within(module, WITHOUT.get(top, ()))
        ):
            found.append(
                f"{module}:{line} imports {top}, which belongs to {', '.join(THEIRS[top])}"
            )
    return found


def test_every_import_points_down() -> None:
    found = [
        violation
        for name, path in modules()
        for violation in violations(name, path.read_text("utf-8"), path.name == "__init__.py")
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("safe_o2o.safety.filter", "import torch"),
        ("safe_o2o.safety.filter", "from safe_o2o.data.episode import Episode"),
        ("safe_o2o.safety.filter", "def f():\n    from ..nets import mlp"),
        ("safe_o2o.data.recorder", "import torch.nn as nn"),
        ("safe_o2o.data.episode", "from safe_o2o.nets.mlp import Mlp"),
        ("safe_o2o.runtime.robot_env", "from safe_o2o import training"),
        ("safe_o2o.runtime.robot_env", "import onnxruntime"),
        ("safe_o2o.types", "from safe_o2o.safety.filter import SafetyFilter"),
        ("safe_o2o.training.evaluate", "import torch"),
        ("safe_o2o.training.offline", "import rclpy"),
        ("safe_o2o_sim.pybullet_twin", "from safe_o2o.runtime.robot_env import RobotEnv"),
        ("safe_o2o_ros.policy_node", "from safe_o2o.training import offline"),
        ("safe_o2o.newcomer", "from safe_o2o import types"),
    ],
)
def test_the_check_sees_what_is_forbidden(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("safe_o2o.safety.filter", "import numpy as np\nfrom safe_o2o.types import Decision"),
        ("safe_o2o.safety.filter", "from .kinematics import Kinematics"),
        ("safe_o2o.data.batch", "import torch"),
        ("safe_o2o.runtime.onnx_policy", "import onnxruntime as ort"),
        ("safe_o2o_sim.make", "from safe_o2o.runtime.robot_env import RobotEnv"),
        ("safe_o2o_ros.learner_node", "from safe_o2o.training import offline"),
        ("safe_o2o.catalog", "x = 'safe_o2o.safety.filter:SafetyFilter'"),
    ],
)
def test_the_check_lets_pass_what_is_allowed(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_packages_are_empty_so_that_importing_one_module_stays_light() -> None:
    full = [
        str(path.relative_to(ROOT))
        for _, path in modules()
        if path.name == "__init__.py" and any(_code(path))
    ]
    assert not full, f"code in {full}"


def _code(path: Path) -> list[ast.stmt]:
    """What stands in a file besides docstrings and comments."""
    body = ast.parse(path.read_text("utf-8")).body
    return [
        node
        for node in body
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]


def loads_tensors_only(node: ast.AST) -> bool:
    """Whether it is a call with `weights_only=True`, which executes nothing of a file."""
    return isinstance(node, ast.Call) and any(
        word.arg == "weights_only" and getattr(word.value, "value", None) is True
        for word in node.keywords
    )


def test_nothing_of_ours_is_pickled() -> None:
    pickles = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
    found = []
    for name, path in modules():
        tree = ast.parse(path.read_text("utf-8"))
        found += [
            f"{name}:{line}"
            for line, what in imports(tree, name)
            if what.partition(".")[0] in pickles
        ]
        safe = {id(node.func) for node in ast.walk(tree) if loads_tensors_only(node)}
        for node in ast.walk(tree):  # torch.save and torch.load pickle as well
            if isinstance(node, ast.Attribute) and node.attr in ("save", "load"):
                owner = node.value
                if isinstance(owner, ast.Name) and owner.id == "torch" and id(node) not in safe:
                    found.append(f"{name}:{node.lineno}")
    assert not found, found


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("safe_o2o.safety.filter", ("torch", "rclpy", "pybullet", "onnxruntime", "cv2")),
        ("safe_o2o.runtime.robot_env", ("torch", "rclpy", "pybullet")),
        ("safe_o2o.data.recorder", ("torch", "rclpy")),
        ("safe_o2o.training.evaluate", ("torch", "rclpy")),
        ("safe_o2o.cli.main", ("numpy", "torch", "rich", "tyro")),
    ],
)
def test_importing_a_module_does_not_load_what_it_must_not_need(
    module: str, unwanted: tuple[str, ...]
) -> None:
    probe = f"import sys, {module}; print([m for m in {unwanted!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_only_the_filter_makes_certified_commands() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for _, path in modules()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name | ast.Attribute)
        and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr)
        == "CertifiedCommand"
    }
    assert found == {"safe_o2o/safety/filter.py"}

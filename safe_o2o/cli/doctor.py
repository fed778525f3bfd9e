"""`safe-o2o doctor`: is this machine fit? `safe-o2o doctor DATASET [--repair]`: is this dataset?"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from safe_o2o.cli import console
from safe_o2o.cli.parse import parse
from safe_o2o.data import doctor

# Distribution -> (module to import, extra that brings it).
PACKAGES: dict[str, tuple[str, str]] = {
    "numpy": ("numpy", ""),
    "pin": ("pinocchio", ""),
    "safetensors": ("safetensors.numpy", ""),
    "torch": ("torch", "learn"),
    "onnx": ("onnx", "learn"),
    "onnxscript": ("onnxscript", "learn"),
    "onnxruntime": ("onnxruntime", "runtime"),
    "opencv-python-headless": ("cv2", "runtime"),
    "pin-pink": ("pink", "runtime"),
    "pybullet": ("pybullet", "sim"),
    "av": ("av", "report"),
    "jinja2": ("jinja2", "report"),
    "matplotlib": ("matplotlib", "report"),
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NEEDED_MB = 2000  # a default run: episodes, checkpoints, bundles, the report

Level = Literal["ok", "note", "bad"]


@dataclass(frozen=True)
class Arguments:
    """Check this machine, or find and mend what is wrong with a dataset.

    Attributes:
        dataset: a dataset's folder; without it the machine is checked.
        repair: set damaged files aside and rebuild the header; nothing is deleted.
    """

    dataset: Annotated[Path | None, tyro.conf.arg(metavar="DATASET"), tyro.conf.Positional] = None
    repair: bool = False


@dataclass(frozen=True)
class Finding:
    """One thing about the machine; `bad` means that a verb will fail for it."""

    level: Level
    name: str
    what: str


def main(argv: Sequence[str]) -> int:
    """Returns 0 if all is well (or mended), 1 if something is wrong."""
    arguments = parse(Arguments, argv, verb="doctor")
    if arguments.dataset is not None:
        return examine_dataset(arguments.dataset, arguments.repair)
    bad = 0
    for finding in examine_machine():
        print(f"{finding.level:<5}{finding.name:<24}{finding.what}", flush=True)
        bad += finding.level == "bad"
    print("all is well" if not bad else f"{bad} things are wrong")
    return 1 if bad else 0


def examine_dataset(directory: Path, repair: bool) -> int:
    """Print what is wrong with a dataset, and with `repair` mend it."""
    with console.progress("examining") as update:
        findings = (doctor.repair if repair else doctor.diagnose)(directory, update)
    for finding in findings:
        print(finding)
    left = [f for f in findings if f.kind == "version"] if repair else findings
    if not findings:
        print(f"{directory}: sound")
    elif repair:
        print(f"{directory}: {len(findings) - len(left)} of {len(findings)} dealt with")
    else:
        print(
            f"{directory}: {len(findings)} findings; --repair deals with them, nothing is deleted"
        )
    return 1 if left else 0


def examine_machine() -> Iterator[Finding]:
    """Everything that the set-up is supposed to have brought, and what the system adds."""
    version = sys.version_info[:2]
    fits = (3, 10) <= version < (3, 13)
    yield Finding("ok" if fits else "note", "python", f"{platform.python_version()} {sys.prefix}")
    yield Finding("ok", "machine", f"{platform.platform()}, {os.cpu_count()} cores")
    for distribution, (module, extra) in PACKAGES.items():
        yield _package(distribution, module, extra)
    yield _cuda()
    yield _ros()
    yield _sourced_ros()
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    yield Finding(
        "ok" if browser else "note",
        "browser",
        browser or "none: the test that opens the report in one is skipped",
    )
    free = shutil.disk_usage(Path.cwd()).free // 1_000_000
    yield Finding("ok" if free > NEEDED_MB else "bad", "disk", f"{free} MB free in {Path.cwd()}")


def _package(distribution: str, module: str, extra: str) -> Finding:
    install = f"pip install 'safe_o2o{f'[{extra}]' if extra else ''}'"
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return Finding("bad", distribution, f"not installed: {install}")
    problem = _import_problem(module)
    if problem:
        return Finding("bad", distribution, f"{version} does not import: {problem}")
    return Finding("ok", distribution, version)


def _import_problem(module: str) -> str:
    """Import in a process of its own: a broken library may take its process down with it."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"], capture_output=True, text=True, timeout=120
    )
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"died with {done.returncode}"


def _cuda() -> Finding:
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    name = done.stdout.strip()
    return (
        Finding("ok", "gpu", name) if name else Finding("note", "gpu", "none: training on the CPU")
    )


def _ros() -> Finding:
    problem = _import_problem("rclpy, sensor_msgs.msg, trajectory_msgs.msg, safe_o2o_ros.node")
    if not problem:
        version = importlib.metadata.version("rclpy")
        return Finding("ok", "ros 2", f"rclpy {version} imports")
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        what = f"no wheels for {platform.system()} {platform.machine()}"
    else:
        what = problem
    return Finding("note", "ros 2", f"{what}; the same loop runs in one process")


def _sourced_ros() -> Finding:
    """The wheels' libraries and a system's ROS in one process do not mix."""
    mixed = [
        name
        for name in ("PYTHONPATH", "LD_LIBRARY_PATH", "AMENT_PREFIX_PATH")
        if "/opt/ros/" in os.environ.get(name, "")
    ]
    wheels = any(name == "ros-rclpy" for name in _distributions())
    if mixed and wheels:
        return Finding("bad", "sourced ros", f"/opt/ros is in {', '.join(mixed)}: use a new shell")
    return Finding("ok", "sourced ros", "none" if not mixed else "the system's, without wheels")


def _distributions() -> set[str]:
    return {str(found.metadata["Name"]) for found in importlib.metadata.distributions()}

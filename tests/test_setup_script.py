"""The set-up asks before it touches the system, and says exactly what it would do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the set-up reads, and a PATH on which it finds our stand-ins first."""
    root = tmp_path / "checkout"
    root.mkdir()
    for name in ("scripts", "requirements"):
        shutil.copytree(ROOT / name, root / name)
    shutil.copy(ROOT / "pyproject.toml", root)
    for name in ("ros2_ws", "launch"):
        (root / name).mkdir()
    (tmp_path / "bin").mkdir()
    return root


def stand_in(checkout: Path, name: str, body: str) -> None:
    path = checkout.parent / "bin" / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def setup(checkout: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    names = ("SAFE_O2O_YES", "SAFE_O2O_PYTHON", "SAFE_O2O_TORCH", "CI")
    env = {key: value for key, value in os.environ.items() if key not in names}
    env["PATH"] = f"{checkout.parent / 'bin'}:/usr/bin:/bin"
    return subprocess.run(
        [str(checkout / "scripts" / "setup.sh")],
        env={**env, **extra},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def python_without_venv(checkout: Path) -> None:
    """Every Python on the PATH is one that, as Debian has it, lacks ensurepip."""
    body = f'case "$*" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"'
    for name in ("python3.10", "python3.11", "python3.12", "python3"):
        stand_in(checkout, name, body)
    stand_in(checkout, "sudo", 'exec "$@"')
    stand_in(checkout, "apt-get", f'echo "$@" >> {checkout}/apt.log')


def test_without_consent_it_names_the_line_to_run_and_changes_nothing(checkout: Path) -> None:
    python_without_venv(checkout)
    done = setup(checkout, SAFE_O2O_PYTHON="python3")
    assert done.returncode != 0
    assert f"apt-get install -y --no-install-recommends python{VERSION}-venv" in done.stderr
    assert not (checkout / "apt.log").exists()
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("agreed", [{"SAFE_O2O_YES": "1"}, {"CI": "true"}])
def test_with_consent_it_installs_what_it_named(checkout: Path, agreed: dict[str, str]) -> None:
    python_without_venv(checkout)
    done = setup(checkout, SAFE_O2O_PYTHON="python3", **agreed)
    calls = (checkout / "apt.log").read_text().splitlines()
    assert calls == [
        "update -qq",
        f"install -y -qq --no-install-recommends python{VERSION}-venv",
    ]
    # Our stand-in installs nothing, so it still cannot go on, and says so.
    assert done.returncode != 0 and "still cannot make virtual environments" in done.stderr


def test_an_unfit_interpreter_is_refused_by_name(checkout: Path) -> None:
    stand_in(checkout, "python9", "exit 1")
    done = setup(checkout, SAFE_O2O_PYTHON="python9")
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1 and "SAFE_O2O_PYTHON=python9" in done.stderr


def test_scripts_leave_other_environments_aside() -> None:
    probe = '. scripts/environment.sh; echo "[${LD_LIBRARY_PATH:-}][${PYTHONPATH:-}]"'

    def left(**extra: str) -> str:
        env = {"PATH": os.environ["PATH"], **extra}
        done = subprocess.run(
            ["bash", "-c", probe], cwd=ROOT, env=env, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert left(LD_LIBRARY_PATH="/mine") == "[/mine][]"
    assert left(LD_LIBRARY_PATH="/wheels", _ROS_WHEELS_BOOTSTRAP_COMPLETE="1") == "[][]"
    ros = "/opt/ros/jazzy/lib/python3.12/site-packages"
    assert left(PYTHONPATH=ros, LD_LIBRARY_PATH="/opt/ros/jazzy/lib") == "[][]"

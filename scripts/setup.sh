#!/usr/bin/env bash
# Makes .venv with everything the demo and the tests need. Quick when nothing has changed.
#
#   scripts/setup.sh                       the Python side
#   scripts/setup.sh --browser             and a browser, for the test that opens the report in one
#   scripts/setup.sh --safety-gymnasium    and Safety-Gymnasium with what its pictures need, and mazes (70 MB)
#   scripts/setup.sh --rerun               and the Rerun viewer, for `safe-o2o watch --rerun` (170 MB)
#
# System packages are installed with consent only: asked on a terminal, given by SAFE_O2O_YES=1 (or CI=true),
# else the line to run is printed. Settings from the environment:
#   SAFE_O2O_PYTHON   the interpreter to use                       (default: the first fit of 3.11, 3.10, 3.12)
#   SAFE_O2O_TORCH    cpu, or default: whatever pip finds by itself (default: cpu where no NVIDIA GPU answers)
set -eEuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/environment.sh

VENV=.venv
STAMP=$VENV/.safe_o2o_stamp
TORCH=2.13.0                            # the same as in requirements/constraints.txt
CPU_INDEX=https://download.pytorch.org/whl/cpu
NEEDS_MB=6000                           # the environment (2.5 GB), pip's copies on the way, and a run

say() { printf 'setup: %s\n' "$*" >&2; }  # stdout belongs to what runs afterwards
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# consent QUESTION: 0 if the user, or the environment, agrees.
consent() {
  [ "${SAFE_O2O_YES:-}" = 1 ] || [ "${CI:-}" = true ] && return 0
  [ -t 0 ] && [ -t 1 ] || return 1
  read -r -p "setup: $1 [y/N] " answer
  [ "$answer" = y ] || [ "$answer" = Y ] || [ "$answer" = yes ]
}

# apt_install WHY PACKAGE...: 0 when they are installed afterwards; never silently.
apt_install() {
  local why=$1 root=""
  shift
  [ "$(id -u)" = 0 ] || root="sudo "
  local line="${root}apt-get install -y --no-install-recommends $*"
  if ! command -v apt-get >/dev/null; then
    say "$why: install $* with your system's package manager"
    return 1
  fi
  if ! consent "$why. May I run: $line ?"; then
    say "$why; run: $line"
    return 1
  fi
  say "$line"
  ${root}apt-get update -qq && ${root}env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# fits PYTHON: it runs (a pyenv shim may not) and its version is one we support.
fits() {
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1
}

# can_make_venv PYTHON: Debian and Ubuntu split ensurepip from python3.
can_make_venv() { "$1" -c 'import venv, ensurepip' >/dev/null 2>&1; }

find_python() {
  local name fallback=""
  if [ -n "${SAFE_O2O_PYTHON:-}" ]; then
    fits "$SAFE_O2O_PYTHON" || die "SAFE_O2O_PYTHON=$SAFE_O2O_PYTHON is not a Python 3.10, 3.11 or 3.12"
    PYTHON=$SAFE_O2O_PYTHON
    return
  fi
  for name in python3.11 python3.10 python3.12 python3 /usr/bin/python3; do
    fits "$name" || continue
    [ -n "$fallback" ] || fallback=$name
    can_make_venv "$name" && { PYTHON=$name; return; }
  done
  PYTHON=$fallback
  [ -n "$PYTHON" ] && return
  apt_install "no Python 3.10 to 3.12 found" python3 python3-venv || exit 1
  PYTHON=/usr/bin/python3
  fits "$PYTHON" || die "this system's python3 is $("$PYTHON" -V 2>&1); set SAFE_O2O_PYTHON to a 3.10, 3.11 or 3.12"
}

# What the environment depends on. The project itself is installed editable; the ROS package is not, because
# pip leaves out an editable package's data files, so its sources count too.
python_fingerprint() {
  {
    "$PYTHON" -c 'import sys; print(sys.version, sys.base_prefix)'
    pwd
    cat pyproject.toml requirements/*.txt scripts/setup.sh scripts/environment.sh
  } | sha256sum | cut -d' ' -f1
}

ros_fingerprint() {
  find ros2_ws launch -type f -not -path '*/__pycache__/*' -not -path '*.egg-info/*' -not -path '*/build/*' -print0 |
    sort -z | xargs -0 -r sha256sum | sha256sum | cut -d' ' -f1
}

# fresh FILE FINGERPRINT: the stamp says that this very state was installed.
fresh() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

make_venv() {
  if ! can_make_venv "$PYTHON"; then
    local version
    version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    apt_install "Python $version here cannot make virtual environments" "python$version-venv" || exit 1
    can_make_venv "$PYTHON" || die "$PYTHON still cannot make virtual environments"
  fi
  # An interpreter that was upgraded or moved leaves an environment that does not start.
  if [ -d "$VENV" ] && ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then rm -rf "$VENV"; fi
  [ -d "$VENV" ] || "$PYTHON" -m venv "$VENV"
}

pip() {
  local quiet=-q
  [ -t 1 ] && quiet=
  "$VENV/bin/python" -m pip install $quiet --disable-pip-version-check -c requirements/constraints.txt "$@"
}

has() { "$VENV/bin/python" -c "import $1" >/dev/null 2>&1; }

# The CPU build is a tenth of the CUDA build: a machine without a GPU should not load gigabytes in vain.
install_torch() {
  local have
  have=$("$VENV/bin/python" -c 'import torch; print(torch.__version__)' 2>/dev/null || true)
  [ "${have%%+*}" = "$TORCH" ] && return
  local build=${SAFE_O2O_TORCH:-}
  [ -n "$build" ] || { nvidia-smi -L >/dev/null 2>&1 && build=default || build=cpu; }
  say "torch $TORCH ($build build)"
  if [ "$build" = cpu ]; then
    pip "torch==$TORCH+cpu" >/dev/null 2>&1 && return  # pip is configured for it
    if "$VENV/bin/python" -c "import urllib.request as u; u.urlopen('$CPU_INDEX/', timeout=10)" 2>/dev/null; then
      pip "torch==$TORCH" --index-url "$CPU_INDEX" && return
    fi
    say "no CPU build within reach: taking what pip finds, which may be the larger CUDA build"
  fi
  pip "torch==$TORCH"
}

# PyBullet has wheels up to Python 3.11. Elsewhere it is built, with NumPy present: without it pictures
# come back as tuples of numbers, ten times slower.
install_pybullet() {
  has pybullet && return
  if "$VENV/bin/python" -m pip install -q --disable-pip-version-check --only-binary pybullet \
    -c requirements/constraints.txt pybullet >/dev/null 2>&1; then return; fi
  local packages=() version
  version=$("$VENV/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  command -v g++ >/dev/null || packages+=(g++)
  "$VENV/bin/python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || packages+=("python$version-dev")
  if [ ${#packages[@]} -gt 0 ]; then
    apt_install "PyBullet has no wheel for Python $version and building it needs ${packages[*]}" "${packages[@]}" || exit 1
  fi
  say "building PyBullet for Python $version (about ten minutes, once)"
  pip numpy "setuptools>=77" wheel
  pip --no-build-isolation pybullet
}

# ROS 2 comes as wheels for x86_64 Linux. `ros2 run` and `ros2 launch` look for nodes in lib/<package>,
# where pip, unlike colcon, does not put them.
ros_wheels() { [ "$(uname -sm)" = "Linux x86_64" ]; }

install_ros_package() {
  pip --no-deps --force-reinstall --no-build-isolation ./ros2_ws/src/safe_o2o_ros
  "$VENV/bin/python" - <<'PY'
import importlib.metadata
import os
import sys
from pathlib import Path

distribution = importlib.metadata.distribution("safe_o2o_ros")
folder = Path(sys.prefix, "lib", "safe_o2o_ros")
folder.mkdir(parents=True, exist_ok=True)
for entry in distribution.entry_points:
    link = folder / entry.name
    if entry.group == "console_scripts" and not link.exists():
        link.symlink_to(os.path.relpath(Path(sys.prefix, "bin", entry.name), folder))
PY
}

install_browser() {
  local name
  for name in chromium chromium-browser google-chrome google-chrome-stable; do
    command -v "$name" >/dev/null && return
  done
  if apt-cache show chromium >/dev/null 2>&1 || [ "$(. /etc/os-release 2>/dev/null; echo "${ID:-}")" = debian ]; then
    apt_install "one test opens the report in a browser" chromium && return
  else  # Ubuntu has it as a snap only
    say "no Chromium or Chrome found (Ubuntu: install google-chrome or the chromium snap)"
  fi
  say "going on: the test that opens the report in a browser will be skipped"
}

# Its own pins cannot be met, so that no extra may name it: see requirements/safety_gymnasium.txt.
install_safety_gymnasium() {
  local list=requirements/safety_gymnasium.txt now
  now=$(sha256sum "$STAMP" "$list" | sha256sum)
  if ! fresh "$STAMP.safety_gymnasium" "$now"; then
    say "Safety-Gymnasium, Gymnasium-Robotics and MuJoCo (about 70 MB to download, once)"
    pip --no-deps -r "$list"
    echo "$now" >"$STAMP.safety_gymnasium"
  fi
  draws && return
  apt_install "Safety-Gymnasium's pictures need OpenGL without a screen" libosmesa6 && draws && return
  say "going on: Safety-Gymnasium works without pictures; its tests that draw will be skipped"
}

# draws: MuJoCo finds an OpenGL that draws without a screen.
draws() {
  "$VENV/bin/python" -c 'from safe_o2o_sim.safety_gymnasium_renderer import context_class; context_class()' \
    >/dev/null 2>&1
}

trap 'die "failed in line $LINENO: $BASH_COMMAND"' ERR
find_python
python_now=$(python_fingerprint) ros_now=$(ros_fingerprint)
if fresh "$STAMP" "$python_now" && fresh "$STAMP.ros" "$ros_now" && [ -x "$VENV/bin/safe-o2o" ]; then
  say "$VENV is up to date"
else
  if ! fresh "$STAMP" "$python_now" || [ ! -x "$VENV/bin/safe-o2o" ]; then
    free=$(df -Pm . | awk 'NR == 2 { print $4 }')
    [ -d "$VENV" ] || [ "$free" -ge "$NEEDS_MB" ] || die "needs $NEEDS_MB MB of free disk, there are $free"
    say "installing into $VENV with $("$PYTHON" -V) (about 1.5 GB to download, a few minutes, once)"
    rm -f "$STAMP" "$STAMP.ros"
    make_venv
    install_torch
    install_pybullet
    pip "setuptools>=77" wheel -e ".[learn,runtime,sim,hardware,bags,hdf5,report,dev]"
    if ros_wheels; then pip -e ".[ros]"; fi
    echo "$python_now" >"$STAMP"
  fi
  if ros_wheels; then
    install_ros_package
  else
    say "no ROS 2 wheels for $(uname -sm): going on without; the demo runs the same loop in one process"
  fi
  echo "$ros_now" >"$STAMP.ros"
  say "done"
fi
for wish in "$@"; do
  case "$wish" in
    --browser) install_browser ;;
    --safety-gymnasium) install_safety_gymnasium ;;
    --rerun) pip -e ".[rerun]" ;;
    *) die "unknown option $wish" ;;
  esac
done

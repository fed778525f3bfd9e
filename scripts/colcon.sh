#!/usr/bin/env bash
# Build and test the ROS workspace with the real colcon, and find its executables the ament way.
# Needs the environment that ./run set up; colcon gets one of its own beside it, in FOLDER.
#
#     scripts/colcon.sh [FOLDER]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-}
[ -n "$folder" ] || { folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT; }
python=$PWD/.venv/bin/python
[ -x "$python" ] || { echo "colcon: there is no .venv: ./run doctor sets it up" >&2; exit 2; }

# colcon wants an older setuptools than torch brings, hence the second environment; it sees the first.
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check 'colcon-common-extensions==0.3.0' 'setuptools<80'
site=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' >"$site/first.pth"

cd ros2_ws
colcon=("$folder/venv/bin/python" -m colcon --log-base "$folder/log")
"${colcon[@]}" build --base-paths src --build-base "$folder/build" --install-base "$folder/install"
"${colcon[@]}" test --base-paths src --build-base "$folder/build" --install-base "$folder/install" \
  --test-result-base "$folder/build" --event-handlers console_direct+
tested=$("${colcon[@]}" test-result --test-result-base "$folder/build" --verbose) || { echo "$tested" >&2; exit 1; }
grep -q '^Summary: [1-9]' <<<"$tested" || { echo "colcon: no test ran" >&2; exit 1; }

# As `ros2 run` looks: a prefix whose index names the package, then PREFIX/lib/PACKAGE/EXECUTABLE.
set +u
. "$folder/install/local_setup.bash"
set -u
nodes=$("$python" -c 'import ast, pathlib
tree = ast.parse(pathlib.Path("src/safe_o2o_ros/setup.py").read_text())
print(*next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "NODES"))')
for prefix in ${AMENT_PREFIX_PATH//:/ }; do
  [ -e "$prefix/share/ament_index/resource_index/packages/safe_o2o_ros" ] || continue
  for node in $nodes; do
    [ -x "$prefix/lib/safe_o2o_ros/$node" ] || { echo "colcon: no executable $node" >&2; exit 1; }
  done
  for file in twin real record replay; do
    [ -f "$prefix/share/safe_o2o_ros/launch/$file.launch.py" ] || { echo "colcon: no $file.launch.py" >&2; exit 1; }
  done
  # It starts, reads its parameters, and says what is missing.
  said=$(PATH="$(dirname "$python"):$PATH" "$prefix/lib/safe_o2o_ros/policy_node" 2>&1) && { echo "colcon: policy_node needs bundles" >&2; exit 1; }
  grep -q 'bundles: is needed' <<<"$said" || { echo "$said" >&2; exit 1; }
  echo "colcon: built; ${tested##*$'\n'}; $(wc -w <<<"$nodes") executables found"
  exit 0
done
echo "colcon: the package is in no ament prefix" >&2
exit 1

"""What `colcon test` runs: the package says what it needs, and avoids what is known to hurt."""

import ast
import pathlib
import re
import sys
import xml.etree.ElementTree

PACKAGE = pathlib.Path(__file__).resolve().parent.parent
SOURCES = sorted((PACKAGE / "safe_o2o_ros").glob("*.py"))
# Python packages that no ROS package key stands for: our own, and what pip brings along with them.
TRAPS = {"spin", "spin_until_future_complete", "tobytes"}
NOT_ROS = {"safe_o2o", "safe_o2o_ros", "safe_o2o_sim", "numpy", "rerun", "rich"}


def imported():
    """Top-level names that the nodes import."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found


def test_every_ros_package_that_is_imported_is_declared():
    """Because rosdep installs what package.xml says, no more."""
    root = xml.etree.ElementTree.parse(PACKAGE / "package.xml").getroot()
    declared = {element.text for element in root.findall("exec_depend")}
    needed = imported() - NOT_ROS - set(sys.stdlib_module_names)
    needed.discard("rcl_interfaces")  # comes with rclpy, which cannot exist without it
    assert needed <= declared, sorted(needed - declared)


def test_known_traps_are_not_in_the_code():
    """Each of these calls has hung or slowed a node before."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                where = f"{path.name}:{node.lineno}"
                assert node.func.attr not in TRAPS, f"{where}: {node.func.attr}"


def test_every_console_script_has_its_module():
    """And so `python -m` works as well."""
    setup = (PACKAGE / "setup.py").read_text("utf-8")
    names = re.search(r"NODES = \((.*?)\)", setup, re.DOTALL)[1]
    for name in re.findall(r'"(\w+)"', names):
        assert (PACKAGE / "safe_o2o_ros" / f"{name}.py").is_file()

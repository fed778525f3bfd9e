"""The process runner starts what the graph says, notices deaths, and leaves nothing behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from safe_o2o.errors import ConfigError
from safe_o2o.runtime import process_group
from safe_o2o.runtime.deployment import DeployConfig
from safe_o2o.runtime.process_group import (
    DeploymentError,
    NodeSpec,
    ProcessGroup,
    free_domain,
    read_graph,
)

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"])
open(sys.argv[0] + f".{os.getpid()}.{child.pid}", "w").close()
print("up", os.environ["ROS_DOMAIN_ID"], os.environ["OMP_NUM_THREADS"], sys.argv[1:], flush=True)
time.sleep(60)
"""
POLITE = """
import signal, sys, threading
stop = threading.Event()
signal.signal(signal.SIGINT, lambda *_: stop.set())
print("up", flush=True)
stop.wait(60)
print("bye", flush=True)
"""
DYING = "import sys; sys.exit('no camera found')"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "nodes" / "fake_nodes"
    folder.mkdir(parents=True)
    for name, text in (("stubborn", STUBBORN), ("polite", POLITE), ("dying", DYING)):
        (folder / f"{name}.py").write_text(text)
    (folder / "__init__.py").touch()
    return folder


def until(condition, timeout: float = 15.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def group(package: Path, *names: str) -> ProcessGroup:
    nodes = tuple(NodeSpec(name, "fake_nodes", name) for name in names)
    return ProcessGroup(
        nodes,
        {names[0]: {"rate": 5.0, "name": "x"}},
        package.parent / "run",
        domain=7,
        environment={"PYTHONPATH": str(package.parent)},
    )


def test_a_stubborn_node_and_its_children_are_killed_and_a_polite_one_is_asked(package) -> None:
    running = group(package, "stubborn", "polite")
    with running:
        until(lambda: "up" in running.last_words("polite"))
        until(lambda: "up" in running.last_words("stubborn"))
        words = running.last_words("stubborn")
        assert "up 7 1" in words and "__node:=stubborn" in words and "--params-file" in words
        pids = [int(part) for p in package.glob("stubborn.py.*") for part in p.name.split(".")[2:]]
        assert len(pids) == 2
        running.stop(grace=0.5)
        codes = {name: process.returncode for name, process in running.processes.items()}
    assert codes == {"stubborn": -signal.SIGKILL, "polite": 0}
    assert running.last_words("polite") == "bye"
    until(lambda: all(gone(pid) for pid in pids))


def test_a_death_is_reported_once_with_its_last_words(package) -> None:
    with group(package, "dying", "polite") as running:
        assert running.wait(15.0) == "dying"
        with pytest.raises(DeploymentError, match=r"dying ended with code 1: no camera found"):
            running.require("dying")
        assert running.wait(0.05) is None


def test_a_death_is_noticed_beside_a_thousand_open_files(package) -> None:
    """A process that has a dataset mapped has descriptors beyond what `select` takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip(f"this machine allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    many = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with group(package, "dying") as running:
            assert running.wait(15.0) == "dying"
    finally:
        for descriptor in many:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_node_reads_its_own_parameters_from_one_block(package) -> None:
    with group(package, "polite") as running:
        text = (running.folder / "params" / "polite.yaml").read_text()
    assert yaml.safe_load(text) == {"/**": {"ros__parameters": {"rate": 5.0, "name": "x"}}}


def test_two_runs_get_two_domains_and_a_dead_run_frees_its_own() -> None:
    with free_domain() as first, free_domain() as second:
        assert first != second and {first, second} <= set(process_group.DOMAINS)
    holder = (
        "from safe_o2o.runtime.process_group import free_domain\n"
        "with free_domain() as d:\n    print(d, flush=True); input()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    domain = int(process.stdout.readline())
    lock = Path(process_group.tempfile.gettempdir()) / "safe_o2o_ros_domains" / f"{domain}.lock"
    import fcntl

    with open(lock, "a") as file:
        with pytest.raises(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.kill()
        process.communicate()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("name", ("twin", "real"))
def test_a_graph_names_modules_that_exist_and_parameters_of_theirs(name: str) -> None:
    graph, parameters = read_graph(name)
    for settings, driver in (
        (DeployConfig(bundles=Path("b")), "policy_node"),
        (DeployConfig(drive="demonstrate", takeover=True), "demonstration_node"),
        (DeployConfig(drive="replay", episode=Path("e")), "replay_node"),
    ):
        wanted = [node for node in graph.nodes if node.wanted(settings)]
        assert [node.name for node in wanted if node.drives] == [driver]
        names = {node.name for node in wanted}
        assert ("takeover_node" in names) == settings.takeover and "bag_node" not in names
    folder = Path(__file__).parents[1] / "ros2_ws" / "src"
    for node in graph.nodes:
        assert (folder / node.package / node.package / f"{node.executable}.py").is_file()
    assert set(parameters) == {node.name for node in graph.nodes}


def test_a_malformed_graph_is_refused_by_name(tmp_path, monkeypatch) -> None:
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "bad.yaml").write_text("params_file: x.yaml\nnodes: [{nme: a}]\n")
    monkeypatch.setattr(process_group, "launch_folder", lambda: tmp_path)
    with pytest.raises(ConfigError, match=r"nme.*did you mean 'name'"):
        read_graph("bad")

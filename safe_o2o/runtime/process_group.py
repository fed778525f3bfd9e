"""Start a graph of ROS nodes as processes of our own, without `ros2 launch`; never leak one.

Reads the same graph description and parameter file as the launch file. Imports no ROS: a node is
`python -m PACKAGE.EXECUTABLE`, watched by its process descriptor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from safe_o2o.config import from_json, read
from safe_o2o.errors import ConfigError, MissingDependencyError, SafeO2OError

DOMAINS = range(1, 102)  # ports below 32768, clear of the ephemeral ones
RANGE = "ROS_AUTOMATIC_DISCOVERY_RANGE"
PARENT_VARIABLE = "SAFE_O2O_PARENT_PID"
"""A node whose parent is no longer this process ends itself: killing us leaves nobody behind."""


GRAPH_FILE = "deploy/graph.json"
"""In a run: where its graph runs, for as long as it does."""


@dataclass(frozen=True)
class Whereabouts:
    """Where a graph runs.

    Attributes:
        domain: ROS domain id.
        namespace: of its nodes and relative topics.
        reach: discovery range.
    """

    domain: int
    namespace: str
    reach: str


class DeploymentError(SafeO2OError):
    """The graph did not come up or lost a node that it needs; has the node's last words."""


@dataclass(frozen=True)
class NodeSpec:
    """One process of a graph.

    Attributes:
        name: node name.
        package: Python (and ament) package.
        executable: module in it, and console script.
        required: its death ends the run.
        drives: the run is over when it ends.
        when: the argument that has to be true for it to be started (`bags`), or to have a value
            (`drive=replay`); empty is always.
        nice: added to the niceness.
        restarts: how often it is started again after a signal ended it; a failure that it reports
            itself would come again.
    """

    name: str
    package: str
    executable: str
    required: bool = False
    drives: bool = False
    when: str = ""
    nice: int = 0
    restarts: int = 0

    def wanted(self, settings: Any) -> bool:
        """Whether these settings, an attribute an argument, start it."""
        argument, _, value = self.when.partition("=")
        if not argument:
            return True
        given = getattr(settings, argument)
        return bool(given == value if value else given)


@dataclass(frozen=True)
class Graph:
    """Nodes and the file with their parameters (a name in `launch/params`)."""

    params_file: str
    nodes: tuple[NodeSpec, ...]


def ros_missing() -> str:
    """Why the ROS graph cannot run here, one clause; `""` when it can."""
    for module, package in (
        ("rclpy", "safe_o2o[ros]"),
        ("safe_o2o_ros", "./ros2_ws/src/safe_o2o_ros"),
    ):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed here (pip install '{package}')"
    return ""


def launch_folder() -> Path:
    """The folder `launch` of this checkout, or where the ROS package's installation put its copy.

    Raises:
        MissingDependencyError: neither is there.
    """
    checkout = Path(__file__).resolve().parents[2] / "launch"
    installed = Path(sys.prefix) / "share" / "safe_o2o_ros" / "launch"
    for folder in (checkout, installed):
        if (folder / "graphs").is_dir():
            return folder
    raise MissingDependencyError(
        "the ROS package safe_o2o_ros is not installed",
        todo="pip install ./ros2_ws/src/safe_o2o_ros from a checkout",
    )


def read_graph(
    name: str, params_file: Path | None = None
) -> tuple[Graph, dict[str, dict[str, Any]]]:
    """A graph by name, and the parameters of its nodes.

    Args:
        name: of its file in `launch/graphs`.
        params_file: the parameters; by default those that the graph comes with.

    Raises:
        ConfigError: a file is missing or malformed.
    """
    folder = launch_folder()
    path = folder / "graphs" / f"{name}.yaml"
    graph = from_json(Graph, read(path), where=path)
    params_path = params_file or folder / "params" / graph.params_file
    params = read(params_path)
    out: dict[str, dict[str, Any]] = {}
    for node in graph.nodes:
        block = params.get(f"/**/{node.name}", {})
        block = {} if block is None else block
        if not isinstance(block, Mapping) or set(block) - {"ros__parameters"}:
            raise ConfigError("holds something else than ros__parameters", where=params_path)
        out[node.name] = dict(block.get("ros__parameters", {}))
    return graph, out


def where_it_runs(run_dir: Path) -> Whereabouts | None:
    """Where a run's graph runs; None where none does.

    Raises:
        ConfigError: the file is damaged.
    """
    path = run_dir / GRAPH_FILE
    return from_json(Whereabouts, read(path), where=path) if path.exists() else None


@contextlib.contextmanager
def free_domain() -> Iterator[int]:
    """A ROS domain id that no other run on this machine uses, held by a file lock.

    Raises:
        DeploymentError: all are taken.
    """
    folder = Path(tempfile.gettempdir()) / "safe_o2o_ros_domains"
    folder.mkdir(mode=0o777, exist_ok=True)
    # Start at a place of our own, so that a graph that just ended does not meet its successor.
    count = len(DOMAINS)
    for offset in range(count):
        domain = DOMAINS[(os.getpid() + offset) % count]
        try:
            file = open(folder / f"{domain}.lock", "a")  # noqa: SIM115  (held for the whole run)
        except PermissionError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        try:
            yield domain
        finally:
            file.close()
        return
    raise DeploymentError("no free ROS domain id", todo="wait until other runs have ended")


class ProcessGroup:
    """The running nodes of a graph. Use as a context manager: leaving stops all of them.

    Args:
        nodes: what to start, in this order.
        parameters: parameters of each node by node name, complete.
        folder: for parameter files, logs and ROS's own logs; made when missing.
        domain: ROS domain id.
        environment: additional environment variables.
        namespace: of all nodes and relative topics.
    """

    def __init__(
        self,
        nodes: tuple[NodeSpec, ...],
        parameters: Mapping[str, Mapping[str, Any]],
        folder: Path,
        domain: int,
        environment: Mapping[str, str] | None = None,
        namespace: str = "/",
    ) -> None:
        self.nodes, self.parameters, self.folder, self.domain = nodes, parameters, folder, domain
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.namespace = namespace
        self._environment = dict(environment or {})
        self._descriptors: dict[int, str] = {}

    def __enter__(self) -> ProcessGroup:
        (self.folder / "params").mkdir(parents=True, exist_ok=True)
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        reach = self._environment.get(RANGE, "LOCALHOST")
        here = Whereabouts(self.domain, self.namespace, reach)
        self._graph_file.write_text(json.dumps(dataclasses.asdict(here)) + "\n")
        try:
            for node in self.nodes:
                self.start(node)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def _graph_file(self) -> Path:
        return self.folder / Path(GRAPH_FILE).name

    def start(self, node: NodeSpec) -> subprocess.Popen[bytes]:
        """Start one node (again)."""
        params = self.folder / "params" / f"{node.name}.yaml"
        block = {"/**": {"ros__parameters": dict(self.parameters.get(node.name, {}))}}
        params.write_text(yaml.safe_dump(block, sort_keys=True))
        command = [sys.executable, "-m", f"{node.package}.{node.executable}"]
        command += ["--ros-args", "-r", f"__node:={node.name}", "-r", f"__ns:={self.namespace}"]
        command += ["--params-file", str(params)]
        # Read under SROS2 alone: what this node may say and hear (docs/security.md).
        command += ["--enclave", f"{self.namespace.rstrip('/')}/{node.name}"]
        with open(self.log_path(node.name), "ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._node_environment(node),
                start_new_session=True,  # its own group; SIGINT not inherited as ignored
            )
        if node.nice:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, node.nice)
        self.processes[node.name] = process
        self._descriptors[os.pidfd_open(process.pid)] = node.name
        return process

    def wait(self, timeout: float) -> str | None:
        """Sleep until a node has ended, at most `timeout` s; returns its name, or None.

        A node is reported once.
        """
        # Not `select`: it takes no descriptor above 1023, and a process that has many episodes
        # mapped has those.
        poll = select.poll()
        for descriptor in self._descriptors:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(1e3 * timeout):
            name = self._descriptors.pop(descriptor)
            os.close(descriptor)
            self.processes[name].wait()
            return name
        return None

    def require(self, name: str) -> None:
        """Raise for a node that ended, with its last words.

        Raises:
            DeploymentError: always.
        """
        code = self.processes[name].returncode
        raise DeploymentError(
            f"{name} ended with code {code}: {self.last_words(name)}",
            todo=f"see {self.log_path(name)}",
        )

    def log_path(self, name: str) -> Path:
        """Where a node's output goes."""
        return self.folder / "logs" / f"{name}.log"

    def last_words(self, name: str) -> str:
        """The last line that a node wrote."""
        try:
            lines = self.log_path(name).read_text(errors="replace").strip().splitlines()
        except OSError:
            return "no output"
        return lines[-1] if lines else "no output"

    def stop(self, grace: float = 5.0) -> None:
        """SIGINT to every node; after `grace` s, SIGKILL to the groups of those still there."""
        alive = [process for process in self.processes.values() if process.poll() is None]
        for process in alive:
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + grace
        for process in alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self._graph_file.unlink(missing_ok=True)

    def _node_environment(self, node: NodeSpec) -> dict[str, str]:
        discovery = launch_folder() / "dds" / "quick_discovery.xml"
        # Pools of threads would take turns with the control loop; what runs nice gives way anyhow.
        one_core = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        return {
            "FASTRTPS_DEFAULT_PROFILES_FILE": str(discovery),  # unless the user has one
            **os.environ,
            **({} if node.nice else one_core),
            "PYTHONUNBUFFERED": "1",
            RANGE: "LOCALHOST",
            "ROS_DOMAIN_ID": str(self.domain),
            "ROS_LOG_DIR": str(self.folder / "logs" / "ros"),
            PARENT_VARIABLE: str(os.getpid()),
            **self._environment,
        }

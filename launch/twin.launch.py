"""The twin's whole graph: `ros2 launch safe_o2o_ros twin.launch.py bundles:=/abs/path/to/bundles`.

Reads the graph from graphs/twin.yaml and the parameters from params/twin.yaml, the same files that
`safe-o2o deploy` reads; imports nothing of safe_o2o. Ctrl-C ends every node cleanly; under systemd
use KillSignal=SIGINT, because SIGTERM leaves the nodes of any `ros2 launch` behind.
"""

from pathlib import Path

import yaml
from launch.actions import (
    DeclareLaunchArgument,
    OpaqueFunction,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.conditions import IfCondition
from launch.substitutions import (
    EnvironmentVariable,
    LaunchConfiguration,
    PathJoinSubstitution,
    PythonExpression,
)
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

FOLDER = Path(__file__).resolve().parent
GRAPH = yaml.safe_load((FOLDER / "graphs" / "twin.yaml").read_text())

ARGUMENTS = {
    "bundles": ("", "folder of versioned policy bundles, or one bundle (absolute path)"),
    "run_dir": ("runs/ros", "where episodes, latency and logs of this run go"),
    "task": ("safe_reach", "catalogue name of the task"),
    "variant": ("standard", "scene variant of the task"),
    "speed": ("1.0", "twin time per wall time"),
    "first_seed": ("0", "seed of the first layout"),
    "episodes": ("0", "episodes to run; 0 goes on until stopped"),
    "learner": ("false", "fine-tune online between rounds of episodes"),
    "bags": ("false", "beside each episode keep what passed on the topics, in RUN_DIR/bags"),
    "namespace": ("", "namespace of all nodes and topics"),
    "episodes_per_round": ("10", "with a learner: episodes before each fine-tuning"),
    "rounds": ("4", "with a learner: rounds of fine-tuning"),
    "wait_for_learner": ("300.0", "with a learner: longest wait after a round, s"),
    "gate": ("on", "the bundle's reachability gate: on, shadow (decides only) or off"),
    "autostart": ("true", "configure and activate the nodes at once"),
    "params_file": (str(FOLDER / "params" / GRAPH["params_file"]), "parameters of the nodes"),
    "log_level": ("info", "log level of the nodes"),
}

ENVIRONMENT = {  # unless the user has set them
    "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    "FASTRTPS_DEFAULT_PROFILES_FILE": str(FOLDER / "dds" / "quick_discovery.xml"),
}


def value(name, kind=str):
    return ParameterValue(LaunchConfiguration(name), value_type=kind)


def overrides():
    """What the launch arguments set on which node; named blocks, so they win over the file."""
    run_dir = LaunchConfiguration("run_dir")
    learner, size = LaunchConfiguration("learner"), LaunchConfiguration("episodes_per_round")
    # Without a learner there is nobody to wait for between rounds.
    rounds_matter = PythonExpression(["'", size, "' if '", learner, "'.lower() == 'true' else '0'"])
    return {
        "robot_node": {
            "task": value("task"),
            "variant": value("variant"),
            "speed": value("speed", float),
            "first_seed": value("first_seed", int),
        },
        "policy_node": {
            "bundles": value("bundles"),
            "run_dir": value("run_dir"),
            "episodes": value("episodes", int),
            "exit_when_done": True,
            "episodes_per_round": ParameterValue(rounds_matter, value_type=int),
            "wait_for_learner": value("wait_for_learner", float),
            "gate": value("gate"),
        },
        "recorder_node": {"run_dir": value("run_dir")},
        "bag_node": {"run_dir": value("run_dir")},
        "learner_node": {
            "run_dir": value("run_dir"),
            "episodes_per_round": value("episodes_per_round", int),
            "rounds": value("rounds", int),
        },
        "": {
            "autostart": value("autostart", bool),
            "latency_dir": PathJoinSubstitution([run_dir, "deploy", "latency"]),
        },
    }


def end_of(node):
    """Stop the graph when a node that it needs has died, or the one that drives it is done."""
    reason = f"{node['name']} ended"

    def stop(context):
        # A plain on_exit=Shutdown() would make every Ctrl-C end with an error.
        return [] if context.is_shutdown else [Shutdown(reason=reason)]

    return [OpaqueFunction(function=stop)]


def generate_launch_description():
    settings = overrides()
    actions = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    actions += [
        SetEnvironmentVariable(name, EnvironmentVariable(name, default_value=default))
        for name, default in ENVIRONMENT.items()
    ]
    for node in GRAPH["nodes"]:
        extra = {**settings[""], **settings.get(node["name"], {})}
        ends = node.get("required") or node.get("drives")
        prefix = f"nice -n {node['nice']}" if node.get("nice") else ""
        actions.append(
            LifecycleNode(
                package=node["package"],
                executable=node["executable"],
                name=node["name"],
                namespace=LaunchConfiguration("namespace"),
                parameters=[LaunchConfiguration("params_file"), extra],
                arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
                additional_env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                prefix=prefix,
                output="screen",
                on_exit=end_of(node) if ends else None,
                respawn=bool(node.get("restarts")),
                respawn_max_retries=node.get("restarts", 0),
                condition=IfCondition(LaunchConfiguration(node["when"]))
                if "when" in node
                else None,
            )
        )
    return LaunchDescription(actions)

"""What the launch files of this folder share: a graph's description becomes launch actions.

Imports nothing of safe_o2o. Ctrl-C ends every node cleanly; so does the death of `ros2 launch` in
any other way, which would leave other nodes behind.
"""

import os
from pathlib import Path

import yaml
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    OpaqueFunction,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.conditions import IfCondition
from launch.events import matches_action
from launch.events.process import ShutdownProcess
from launch.launch_description_sources import PythonLaunchDescriptionSource
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

ARGUMENTS = {
    "bundles": ("", "folder of versioned policy bundles, or one bundle (absolute path)"),
    "run_dir": ("runs/ros", "where episodes, latency and logs of this run go"),
    "episodes": ("0", "episodes to run; 0 goes on until stopped"),
    "learner": ("false", "fine-tune online between rounds of episodes"),
    "bags": ("false", "beside each episode keep what passed on the topics, in RUN_DIR/bags"),
    "drive": ("policy", "who drives the episodes: policy, demonstrate (a person), replay"),
    "folder": ("online", "folder of the run that episodes go to"),
    "episode": ("", "with replay: the episode file (absolute path)"),
    "takeover": ("false", "a person's device may take the arm from the policy"),
    "episodes_per_round": ("10", "with a learner: episodes before each fine-tuning"),
    "rounds": ("4", "with a learner: rounds of fine-tuning"),
    "wait_for_learner": ("300.0", "with a learner: longest wait after a round, s"),
    "gate": ("on", "the bundle's reachability gate: on, shadow (decides only) or off"),
    "autostart": ("true", "configure and activate the nodes at once"),
    "log_level": ("info", "log level of the nodes"),
}
"""What every graph takes: default and description."""

DDS = {"FASTRTPS_DEFAULT_PROFILES_FILE": str(FOLDER / "dds" / "quick_discovery.xml")}
HERE_ONLY = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}


def value(name, kind=str):
    """A launch argument as a parameter of one type."""
    return ParameterValue(LaunchConfiguration(name), value_type=kind)


class Given:
    """A text argument as a parameter; where it is empty, the parameter file has its say.

    Args:
        name: of the argument.
    """

    def __init__(self, name):
        self.name = name

    def text(self, context):
        """What the argument says, once that is known."""
        return LaunchConfiguration(self.name).perform(context)


def common_overrides():
    """What the common arguments set on which node; named blocks, so they win over the file."""
    run_dir = LaunchConfiguration("run_dir")
    learner, size = LaunchConfiguration("learner"), LaunchConfiguration("episodes_per_round")
    # Without a learner there is nobody to wait for between rounds.
    rounds_matter = PythonExpression(["'", size, "' if '", learner, "'.lower() == 'true' else '0'"])
    driving = {
        "run_dir": value("run_dir"),
        "episodes": value("episodes", int),
        "exit_when_done": True,
    }
    return {
        "robot_node": {"takeover": value("takeover", bool)},
        "demonstration_node": driving,
        "replay_node": {**driving, "episode": value("episode")},
        "policy_node": {
            **driving,
            "bundles": Given("bundles"),
            "episodes_per_round": ParameterValue(rounds_matter, value_type=int),
            "wait_for_learner": value("wait_for_learner", float),
            "gate": value("gate"),
        },
        "recorder_node": {"run_dir": value("run_dir"), "folder": value("folder")},
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


def for_good(node):
    """End the restarts of a node that was not killed, or was as often as the graph allows.

    Counted here, because launch restarts whatever the exit status, and in Humble without a limit.
    """
    left = node["restarts"]

    def ended(event, context):
        nonlocal left
        left -= 1
        if event.returncode < 0 <= left or context.is_shutdown:
            return None
        return EmitEvent(event=ShutdownProcess(process_matcher=matches_action(event.action)))

    return ended


def another(arguments, defaults):
    """A launch description that is the twin's or a real arm's with other defaults.

    Args:
        arguments: those of its own: default and description by name.
        defaults: what it says to the other. All other arguments of that one can be given too.
    """
    every = {"hardware": ("twin", "where: twin or real"), **arguments}
    file = [f"{FOLDER}/", LaunchConfiguration("hardware"), ".launch.py"]
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(argument, default_value=default, description=text)
                for argument, (default, text) in every.items()
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(file), launch_arguments=defaults.items()
            ),
        ]
    )


def describe(name, arguments, overrides, environment, namespace=""):
    """The launch description of a graph.

    Args:
        name: of its file in `graphs`, without the ending.
        arguments: those that only it takes: default and description by name.
        overrides: what they set on which node.
        environment: variables to set unless the user has.
        namespace: default namespace of all nodes and topics.
    """
    graph = yaml.safe_load((FOLDER / "graphs" / f"{name}.yaml").read_text())
    params = str(FOLDER / "params" / graph["params_file"])
    every = {
        **ARGUMENTS,
        "namespace": (namespace, "namespace of all nodes and topics"),
        "params_file": (params, "parameters of the nodes"),
        **arguments,
    }
    settings = common_overrides()
    for node, block in overrides.items():
        settings[node] = {**settings.get(node, {}), **block}
    actions = [
        DeclareLaunchArgument(argument, default_value=default, description=text)
        for argument, (default, text) in every.items()
    ]
    actions += [
        SetEnvironmentVariable(variable, EnvironmentVariable(variable, default_value=default))
        for variable, default in environment.items()
    ]
    actions += [
        _node(node, {**settings[""], **settings.get(node["name"], {})}) for node in graph["nodes"]
    ]
    return LaunchDescription(actions)


def enclave(node):
    """Arguments that name a node's SROS2 enclave, by its namespace; read under SROS2 alone."""
    where = ["'", LaunchConfiguration("namespace"), f"/{node['name']}'.strip('/')"]
    return ["--enclave", ["/", PythonExpression(where)]]


def _node(node, extra):
    """A node's action, once the arguments are known."""

    def make(context):
        given = {key: entry for key, entry in extra.items() if isinstance(entry, Given)}
        said = {key: entry.text(context) for key, entry in given.items()}
        texts = {key: ParameterValue(text, value_type=str) for key, text in said.items() if text}
        fixed = {key: entry for key, entry in extra.items() if key not in given}
        return [_lifecycle_node(node, {**fixed, **texts})]

    return OpaqueFunction(function=make)


def _lifecycle_node(node, extra):
    on_exit = end_of(node) if node.get("required") or node.get("drives") else None
    if node.get("restarts"):
        on_exit = for_good(node)
    return LifecycleNode(
        package=node["package"],
        executable=node["executable"],
        name=node["name"],
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("params_file"), extra],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level"), *enclave(node)],
        additional_env={
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            # A launch that is killed, or that fails half way, would leave its nodes behind.
            "SAFE_O2O_PARENT_PID": str(os.getpid()),
        },
        prefix=f"nice -n {node['nice']}" if node.get("nice") else "",
        output="screen",
        on_exit=on_exit,
        respawn=bool(node.get("restarts")),
        respawn_delay=1.0,  # in which `for_good` has its say
        condition=_condition(node.get("when", "")),
    )


def _condition(when):
    argument, _, wanted = when.partition("=")
    if not argument:
        return None
    given = LaunchConfiguration(argument)
    return IfCondition(PythonExpression(["'", given, f"' == '{wanted}'"]) if wanted else given)

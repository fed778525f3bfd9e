"""ROS parameters from the same frozen dataclasses that configure everything else.

A field of type bool, int, float, str or tuple of those becomes one read-only parameter of that
name; the dataclass checks the ranges. So there is one table of names, types and defaults, and it is
the code.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, get_args, get_type_hints

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.node import Node
from rclpy.parameter import Parameter

from safe_o2o.config import from_json
from safe_o2o.errors import ConfigError

T = TypeVar("T")
_ARRAYS = {
    bool: Parameter.Type.BOOL_ARRAY,
    int: Parameter.Type.INTEGER_ARRAY,
    float: Parameter.Type.DOUBLE_ARRAY,
    str: Parameter.Type.STRING_ARRAY,
}


def declare_config(node: Node, config_cls: type[T]) -> T:
    """Declare one parameter for every field of a dataclass; returns the dataclass, filled.

    Args:
        node: the node to declare on; overrides come from its arguments and parameter files.
        config_cls: a frozen dataclass whose fields all have defaults. A field's `metadata["doc"]`
            becomes the description that `ros2 param describe` shows.

    Raises:
        ConfigError: an override has the wrong type (a YAML `50` for a float) or is out of range.
    """
    values: dict[str, Any] = {}
    hints = get_type_hints(config_cls)
    for field in dataclasses.fields(config_cls):  # type: ignore[arg-type]
        default = field.default
        if default == ():
            # An empty list says nothing about its type; the field does, and stays empty unless set.
            default = _ARRAYS[get_args(hints[field.name])[0]]
        default = list(default) if isinstance(default, tuple) else default
        descriptor = ParameterDescriptor(
            description=field.metadata.get("doc", field.name), read_only=True
        )
        try:
            parameter = node.declare_parameter(field.name, default, descriptor)
        except InvalidParameterTypeException as error:
            raise ConfigError(str(error), where=f"{node.get_name()}.{field.name}") from error
        unset = parameter.type_ == Parameter.Type.NOT_SET
        values[field.name] = [] if unset else parameter.value
    return from_json(config_cls, values, where=node.get_name())


def setting(default: Any, doc: str) -> Any:
    """A dataclass field with the description that its ROS parameter shows."""
    return dataclasses.field(default=default, metadata={"doc": doc})

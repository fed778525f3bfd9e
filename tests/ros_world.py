"""A ROS context of its own for a node under test, and a client beside it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import rclpy
from rclpy.signals import SignalHandlerOptions

from safe_o2o.runtime.process_group import free_domain
from safe_o2o_ros import node as node_module


@dataclass
class World:
    context: rclpy.Context
    executor: object
    client_node: object

    def until(self, condition: Callable[[], bool], timeout: float = 15.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "timed out"
            self.executor.spin_once(timeout_sec=0.05)

    def call(self, kind, name: str, request, until: Callable | None = None):
        """Call a service; `until(condition)` is how to wait where a node has a loop of its own."""
        until = until or self.until
        client = self.client_node.create_client(kind, name)
        until(client.service_is_ready)
        future = client.call_async(request)
        until(future.done)
        return future.result()


@pytest.fixture(name="world")
def make_world(monkeypatch, tmp_path) -> Iterator[World]:
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))
    with free_domain() as domain:
        context = rclpy.Context()
        rclpy.init(
            context=context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO
        )
        executor = node_module.make_executor(context)
        client_node = rclpy.create_node("client", context=context)
        executor.add_node(client_node)
        yield World(context, executor, client_node)
        for node in list(executor.get_nodes()):
            node.destroy_node()
        executor.shutdown()
        rclpy.try_shutdown(context=context)
    # A running node freezes the heap, and its DDS participant lives as long as the node's object:
    # thirty of them in this process, and new ones' ports are beyond where others look for peers.
    gc.unfreeze()
    gc.collect()

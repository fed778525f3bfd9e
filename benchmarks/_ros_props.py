"""What faults are done with: a disk that is soon full, a camera that freezes, a spoilt bundle."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import onnx
from _ros_rig import Swing, write_bundle

from safe_o2o import bundle


class NotHere(Exception):
    """This machine does not permit the fault."""


def promote_spoilt(bundles: Path) -> str:
    """A bundle as a broken learner would promote one: good when exported, spoilt afterwards."""
    path = write_bundle(bundles, Swing())
    file = path / bundle.GRAPH
    graph = onnx.load(str(file))
    for tensor in graph.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype.kind == "f":
            spoilt = onnx.numpy_helper.from_array(values * float("nan"), tensor.name)
            tensor.CopyFrom(spoilt)
    file.write_bytes(graph.SerializeToString())
    manifest = path / "manifest.json"
    said = json.loads(manifest.read_text())
    said["graph_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(said))
    bundle.set_current(bundles, path.name)
    return path.name


def fill(folder: Path) -> None:
    with suppress(OSError), open(folder / "full", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of eight megabytes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        raise NotHere("needs the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@contextmanager
def webcam() -> Iterator[tuple[str, Callable[[], None]]]:
    """A network camera on this machine with noise in its pictures, and what freezes it."""
    done, frozen = threading.Event(), threading.Event()

    class Stream(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            rng, picture = np.random.default_rng(0), b""
            while not done.wait(1 / 30):
                if not (frozen.is_set() and picture):
                    noise = rng.integers(60, 120, (120, 160, 3), np.uint8)
                    picture = cv2.imencode(".jpg", noise)[1].tobytes()
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                try:
                    self.wfile.write(b"--frame\r\n" + head.encode() + picture + b"\r\n")
                except OSError:
                    return

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Stream)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/stream.mjpg", frozen.set
    finally:
        done.set()
        server.shutdown()

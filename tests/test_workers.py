"""Worker processes do not outlive the one that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ALONE = """
import multiprocessing, signal
from safe_o2o.workers import started_quietly

def deaf(pipe):
    pipe.send(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    mine, theirs = context.Pipe()
    process = context.Process(target=deaf, args=(theirs,))
    with started_quietly():
        process.start()
    print(mine.recv(), signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
    process.join()
"""

SCRIPT = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from safe_o2o.workers import end_with_parent, started_quietly
if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(1, context, end_with_parent)
    before = os.environ.get("OMP_NUM_THREADS")
    with started_quietly():
        work = pool.submit(os.getenv, "OMP_NUM_THREADS"), pool.submit(os.getpid)
    assert os.environ.get("OMP_NUM_THREADS") == before
    print(*(w.result() for w in work), flush=True)
    time.sleep(60)
"""


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_the_first_child_of_all_is_deaf_to_ctrl_c_too(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ALONE)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_a_killed_parent_takes_its_workers_with_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert parent.stdout is not None
        threads, worker = parent.stdout.readline().split()
        assert threads == "1" and running(int(worker))
        os.kill(int(worker), signal.SIGINT)  # of the terminal: the parent's business
        time.sleep(0.5)
        assert running(int(worker))
    finally:
        parent.kill()
        parent.wait()
    end = time.monotonic() + 10.0
    while running(int(worker)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not running(int(worker))

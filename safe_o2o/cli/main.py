"""`safe-o2o VERB ...`: picks the verb's module, and turns errors into one line and an exit code.

Nothing heavy is imported here: `safe-o2o --help` and `safe-o2o list` answer at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from safe_o2o.errors import MissingDependencyError, SafeO2OError, UnknownNameError

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("safe_o2o.cli.demo", "the whole circle on the twin: collect to report"),
    "collect": ("safe_o2o.cli.collect", "record episodes with scripted behaviours"),
    "calibrate": ("safe_o2o.cli.calibrate", "thresholds of a bundle's reachability gate"),
    "encode": ("safe_o2o.cli.encode", "a dataset of what a trained world model makes of another"),
    "behaviors": ("safe_o2o.cli.behaviors", "train the behaviours that data are recorded with"),
    "train": ("safe_o2o.cli.train", "train an algorithm offline on a dataset"),
    "finetune": ("safe_o2o.cli.finetune", "go on training between rounds of new episodes"),
    "evaluate": ("safe_o2o.cli.evaluate", "run policies on fresh layouts and count"),
    "export": ("safe_o2o.cli.export", "turn a checkpoint into an ONNX policy bundle"),
    "deploy": ("safe_o2o.cli.deploy", "run a bundle on a robot through the safety filter"),
    "record": ("safe_o2o.cli.record", "record demonstrations of a person"),
    "replay": ("safe_o2o.cli.replay", "a recorded episode once more, through the filter"),
    "watch": ("safe_o2o.cli.watch", "a running graph at a glance, in the terminal or in Rerun"),
    "operate": ("safe_o2o.cli.operate", "an operator's console: arm, begin, label, stop, drive"),
    "data": ("safe_o2o.cli.data", "show, hash and verify datasets and episodes"),
    "protocol": ("safe_o2o.cli.protocol", "the paper's protocol for methods and seeds: one table"),
    "limits": ("safe_o2o.cli.limits", "what a filter holds an arm to, and how far it goes to stop"),
    "horizon": ("safe_o2o.cli.horizon", "is a critic's lookahead long enough to stay bounded"),
    "list": ("safe_o2o.cli.list_", "list the names you can use: algorithms, tasks, robots, ..."),
    "doctor": ("safe_o2o.cli.doctor", "check this machine, or find and mend a damaged dataset"),
    "bench": ("safe_o2o.cli.bench", "run the benchmarks that the README quotes"),
    "report": ("safe_o2o.cli.report", "one self-contained HTML page of a run"),
}
"""Verb -> module with `main(argv) -> int | None`, and the line that the help shows."""

# What a verb's module may miss -> the extra that brings it.
EXTRAS: dict[str, str] = {
    "torch": "learn",
    "onnx": "learn",
    "onnxscript": "learn",
    "onnxruntime": "runtime",
    "cv2": "runtime",
    "pink": "runtime",
    "qpsolvers": "runtime",
    "pybullet": "sim",
    "pybullet_data": "sim",
    "rclpy": "ros",
    "av": "report",
    "jinja2": "report",
    "matplotlib": "report",
    "PIL": "report",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        Exit code: 0 done, 2 the input was at fault (one line on stderr), 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except SafeO2OError as error:
        _say(f"safe-o2o: error: {' '.join(str(error).split())}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("safe-o2o: interrupted; run the same command again to go on")
        return 130
    except BrokenPipeError:  # `safe-o2o list | head`: nobody reads any more, and nobody minds
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    verb, rest = arguments[0], arguments[1:]
    if verb == "--version":
        from importlib.metadata import version

        print(f"safe_o2o {version('safe_o2o')}")
        return 0
    if verb not in VERBS:
        raise UnknownNameError("verb", verb, VERBS)
    try:
        code = importlib.import_module(VERBS[verb][0]).main(rest)
        return 0 if code is None else int(code)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            raise
        raise MissingDependencyError(
            f"`safe-o2o {verb}` needs the package {missing!r}, which is not installed",
            todo=f"pip install 'safe_o2o[{EXTRAS[missing]}]'",
        ) from error


def usage() -> str:
    """The help text of `safe-o2o` itself."""
    width = max(map(len, VERBS)) + 2
    lines = [f"  {verb:<{width}}{line}" for verb, (_, line) in VERBS.items()]
    return "\n".join(
        [
            "usage: safe-o2o VERB [ARGUMENTS]",
            "",
            "Train a policy offline, deploy it through a safety filter, fine-tune it on the arm.",
            "",
            *lines,
            "",
            "safe-o2o VERB --help shows a verb's arguments; safe-o2o --version the version.",
        ]
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

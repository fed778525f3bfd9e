"""One episode on disk: a safetensors file, written once, read lazily through a memory map.

T transitions and T + 1 observations. Arrays of the file, in *transition* alignment
(`reward[t]` is what `action[t]` caused, unlike the record alignment of `safe_o2o.data.batch`):

    obs.<name>                     [T + 1, *shape]   as in the observation spec
    action, proposed_action        [T, A] float32    executed; asked for (may hold NaN: the truth)
    reward, cost, margin           [T] float32
    terminated, truncated          [T] bool          only the last entry may be True
    verdict, source                [T] uint8
    reason                         [T] uint16        row of the metadata's table `reasons`
    stamp                          [T + 1] float64   of each observation, s
    force                          [T] float32       largest contact force, N; NaN: not measured.
                                                     Left out where no transition has one
    clearance                      [T] float32       distance to what must not be touched after
                                                     the action, m; likewise
    gate                           [T] uint8         what the reachability gate did; 255: none
                                                     acted. Left out where none did at all

Everything else is JSON under the metadata key `episode`. The bytes are a function of the content
alone: no clock, no random name, so that the same seed gives the same file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from safe_o2o.data.mapped import MappedTensors
from safe_o2o.errors import DataError, SafeO2OError
from safe_o2o.files import write_atomic
from safe_o2o.spaces import Spec
from safe_o2o.types import Array, GateState, Observation, Source, Transition, Verdict

SCHEMA_VERSION = 1
_TODO = "run `safe-o2o doctor` on its folder to set damaged files aside"
_STEP_DTYPES = {
    "reward": "float32",
    "cost": "float32",
    "margin": "float32",
    "terminated": "bool",
    "truncated": "bool",
    "verdict": "uint8",
    "source": "uint8",
    "reason": "uint16",
}
MEASURED, GATE = ("force", "clearance"), "gate"
NO_GATE = 255


class SchemaVersionError(DataError):
    """The file is sound, but another version of the package wrote it."""


@dataclass(frozen=True)
class EpisodeMeta:
    """What is known about an episode before it starts.

    Attributes:
        task: catalogue name of the task.
        variant: scene variant of the task.
        behavior: who acted ("expert", "policy v000003", ...).
        seed: seed of the reset.
        provenance: anything else worth keeping, JSON-ready; part of the bytes and of the hash, so
            no wall clock and no machine name in it.
    """

    task: str
    variant: str = ""
    behavior: str = ""
    seed: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)


def write_episode(
    path: str | Path,
    transitions: Sequence[Transition],
    final_obs: Observation,
    final_stamp: float,
    *,
    spec: Spec,
    meta: EpisodeMeta,
    success: bool | None = None,
    gaps: Sequence[tuple[int, int]] = (),
) -> str:
    """Write an episode, atomically; an existing file is never replaced.

    Args:
        path: the file to make.
        transitions: T >= 1 transitions in order.
        final_obs: the observation after the last action.
        final_stamp: its stamp, s.
        spec: both specs; every observation and action is checked against it.
        meta: what was known at the start.
        success: whether the task was solved; None derives it: terminated with a positive reward.
        gaps: `(t, n)`: n transitions were lost right before transition t (t = T: before the end).

    Returns:
        The content's SHA-256, hexadecimal.

    Raises:
        DataError: no transitions, a number that is not finite, a negative cost, an early end.
        SpecMismatchError: an observation or action does not fit the spec.
        StorageError: the disk refused, or the file exists; nothing half-written is left.
    """
    path = Path(path)
    arrays, reasons = _stack(path, transitions, final_obs, final_stamp, spec)
    last = transitions[-1]
    header: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "length": len(transitions),
        "spec": spec.to_json(),
        **asdict(meta),
        "seed": int(meta.seed),
        "success": bool(last.terminated and last.reward > 0) if success is None else bool(success),
        "reasons": reasons,
        "gaps": [[int(t), int(n)] for t, n in gaps],
        "drops": sum(int(n) for _, n in gaps),
    }
    header["content_sha256"] = content_sha256(header, arrays)
    # One metadata key: the library keeps several in an order that changes from run to run.
    write_atomic(path, save(arrays, {"episode": _canonical(header)}), overwrite=False)
    return str(header["content_sha256"])


def content_sha256(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    """SHA-256 over metadata (its own entry left out) and arrays: names, dtypes, shapes, bytes."""
    digest = hashlib.sha256()
    kept = {key: value for key, value in header.items() if key != "content_sha256"}
    digest.update(_canonical(kept).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"\n{name} {array.dtype.str} {list(array.shape)}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class Episode:
    """A committed episode. Opening reads the header; arrays are views of a memory map, read-only.

    Args:
        path: an `episode_*.safetensors` file.

    Raises:
        DataError: missing, truncated, damaged, or of another schema version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = MappedTensors(self.path)
            self.metadata: dict[str, Any] = json.loads(self._file.metadata["episode"])
            self._check()
        except SafeO2OError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise self._damaged(f"is no readable episode ({error})") from error

    def _check(self) -> None:
        version = self.metadata["schema_version"]
        if version != SCHEMA_VERSION:
            raise SchemaVersionError(
                f"has episode schema {version}, this version reads {SCHEMA_VERSION}",
                where=self.path,
                todo="read it with the version that wrote it, or collect again",
            )
        steps, spec = len(self), self.spec
        expected: dict[str, tuple[str, tuple[int, ...]]] = {
            f"obs.{name}": (array.dtype, (steps + 1, *array.shape))
            for name, array in spec.observation.arrays.items()
        }
        for name in ("action", "proposed_action"):
            expected[name] = ("float32", (steps, spec.action.dim))
        expected |= {name: (dtype, (steps,)) for name, dtype in _STEP_DTYPES.items()}
        expected["stamp"] = ("float64", (steps + 1,))
        measured = [name for name in MEASURED if name in self._file.layout]
        expected |= {name: ("float32", (steps,)) for name in measured}
        if GATE in self._file.layout:
            expected[GATE] = ("uint8", (steps,))
        found = {name: (dtype.name, shape) for name, (dtype, shape, _) in self._file.layout.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise self._damaged(
                    f"array {name!r} is {found.get(name)}, its own spec says {expected.get(name)}"
                )

    def _damaged(self, what: str) -> DataError:
        return DataError(what, where=self.path, todo=_TODO)

    def __len__(self) -> int:
        """Number of transitions T."""
        return int(self.metadata["length"])

    @cached_property
    def spec(self) -> Spec:
        """Observation and action spec of the arrays."""
        return Spec.from_json(self.metadata["spec"])

    @property
    def meta(self) -> EpisodeMeta:
        """What was known at the start."""
        known = ("task", "variant", "behavior", "seed", "provenance")
        return EpisodeMeta(**{key: self.metadata[key] for key in known})

    @property
    def success(self) -> bool:
        """Whether the task was solved."""
        return bool(self.metadata["success"])

    @property
    def drops(self) -> int:
        """Number of transitions that the recorder had to drop."""
        return int(self.metadata["drops"])

    @property
    def content_hash(self) -> str:
        """SHA-256 of the content as stored; `verify` compares it with the content."""
        return str(self.metadata["content_sha256"])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all arrays in the file."""
        return tuple(self._file.layout)

    def array(self, name: str) -> Array:
        """One array as a read-only view of the file; only the pages that are touched are read.

        Raises:
            DataError: no such array, or the file changed or vanished since it was opened.
        """
        return self._file.array(name)

    @property
    def obs(self) -> dict[str, Array]:
        """Observations by name `[T + 1, *shape]`."""
        return {name: self.array(f"obs.{name}") for name in self.spec.observation.arrays}

    def measured(self, name: str) -> Array:
        """`force` or `clearance` of each transition `[T]`; NaN where nobody measured it."""
        if name in self._file.layout:
            return self.array(name)
        return np.full(len(self), np.nan, np.float32)

    @property
    def force(self) -> Array:
        """Largest contact force of each transition `[T]`, N; NaN where nobody measured it."""
        return self.measured("force")

    @property
    def clearance(self) -> Array:
        """Distance after each transition `[T]`, m; see `Transition`."""
        return self.measured("clearance")

    @property
    def violation(self) -> bool:
        """Whether anything cost."""
        return bool((self.array("cost") > 0).any())

    @property
    def gate(self) -> Array:
        """`GateState` of each transition `[T]`, uint8; 255 where no reachability gate acted."""
        if GATE in self._file.layout:
            return self.array(GATE)
        return np.full(len(self), NO_GATE, np.uint8)

    @property
    def reasons(self) -> list[str]:
        """The filter's reason of each transition, `""` where the proposal passed."""
        table = self.metadata["reasons"]
        return [table[row] for row in self.array("reason")]

    def segments(self) -> list[tuple[int, int]]:
        """Stretches `(start, stop)` of transitions without a loss between them.

        Without drops this is `[(0, T)]`. The transition before a gap lost the observation that it
        led to, so it belongs to no stretch.
        """
        found, start = [], 0
        for gap, _ in self.metadata["gaps"]:
            if gap - 1 > start:
                found.append((start, gap - 1))
            start = gap
        if start < len(self):
            found.append((start, len(self)))
        return found

    def transitions(self) -> list[Transition]:
        """The episode as the recorder got it, arrays copied."""
        obs, reasons, gate = self.obs, self.reasons, self.gate
        force, clearance = self.force, self.clearance
        column = {name: self.array(name) for name in (*_STEP_DTYPES, "stamp")}
        return [
            Transition(
                obs={name: array[t].copy() for name, array in obs.items()},
                action=self.array("action")[t].copy(),
                proposed_action=self.array("proposed_action")[t].copy(),
                reward=float(column["reward"][t]),
                cost=float(column["cost"][t]),
                terminated=bool(column["terminated"][t]),
                truncated=bool(column["truncated"][t]),
                verdict=Verdict(int(column["verdict"][t])),
                reason=reasons[t],
                margin=float(column["margin"][t]),
                source=Source(int(column["source"][t])),
                stamp=float(column["stamp"][t]),
                force=float(force[t]),
                clearance=float(clearance[t]),
                gate=None if gate[t] == NO_GATE else GateState(int(gate[t])),
            )
            for t in range(len(self))
        ]

    def verify(self) -> None:
        """Read everything and compare with the stored hash.

        Raises:
            DataError: the content is not what was written.
        """
        arrays = {name: self.array(name) for name in self.names}
        if content_sha256(self.metadata, arrays) != self.content_hash:
            raise self._damaged("content does not match its hash")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _stack(
    path: Path,
    transitions: Sequence[Transition],
    final_obs: Observation,
    final_stamp: float,
    spec: Spec,
) -> tuple[dict[str, Array], list[str]]:
    """Check the transitions and turn them into the file's arrays and its table of reasons."""
    if not transitions:
        raise DataError("an episode without transitions cannot be written", where=path)
    observations = [*(t.obs for t in transitions), final_obs]
    for obs in observations:
        spec.observation.check(obs)
    arrays: dict[str, Array] = {
        f"obs.{name}": np.stack([np.asarray(obs[name]) for obs in observations])
        for name in spec.observation.arrays
    }
    for name in ("action", "proposed_action"):
        rows = [np.asarray(getattr(t, name), np.float32) for t in transitions]
        if any(row.shape != (spec.action.dim,) for row in rows):
            raise DataError(f"{name} is not {spec.action.dim} numbers", where=path)
        arrays[name] = np.stack(rows)
    reasons = sorted({t.reason for t in transitions})
    row_of = {reason: row for row, reason in enumerate(reasons)}
    for name, dtype in _STEP_DTYPES.items():
        column = [row_of[t.reason] if name == "reason" else getattr(t, name) for t in transitions]
        arrays[name] = np.asarray(column, dtype)
    for name in MEASURED:
        values = np.asarray([getattr(t, name) for t in transitions], np.float32)
        if not (np.isnan(values) | (np.isfinite(values) & (values >= 0))).all():
            todo = "check what produces it"
            raise DataError(f"{name} is negative or infinite", where=path, todo=todo)
        if not np.isnan(values).all():
            arrays[name] = values
    if any(t.gate is not None for t in transitions):
        states = [NO_GATE if t.gate is None else t.gate for t in transitions]
        arrays[GATE] = np.asarray(states, np.uint8)
    arrays["stamp"] = np.asarray([*(t.stamp for t in transitions), final_stamp], np.float64)
    for name in ("action", "reward", "cost", "stamp"):
        if not np.isfinite(arrays[name]).all():
            raise DataError(f"{name} is not finite", where=path, todo="check what produces it")
    if not (arrays["cost"] >= 0).all():
        raise DataError("cost is negative", where=path, todo="a cost is 0 or more")
    if (arrays["terminated"] | arrays["truncated"])[:-1].any():
        raise DataError("ends before its last transition", where=path, todo="split it")
    if not arrays["terminated"][-1]:
        arrays["truncated"][-1] = True  # whoever ended it here cut it off
    return arrays, reasons

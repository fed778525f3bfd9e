"""Observation and action specs: names, shapes, units, bounds; the only place that scales.

Both specs travel inside episodes, checkpoints and bundles as JSON; whoever loads one checks it with
`require_same` and refuses a mismatch by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from safe_o2o.errors import ConfigError, SpecMismatchError
from safe_o2o.types import Array, Observation


@dataclass(frozen=True)
class ArraySpec:
    """One named array of an observation.

    Attributes:
        shape: shape without batch or time.
        dtype: NumPy dtype name (`uint8` images, `float32` vectors).
        unit: SI unit of the entries, or `intensity` for images.
        names: names of the entries of a vector (empty for images).
        low: smallest value (scalar, same unit).
        high: largest value.
    """

    shape: tuple[int, ...]
    dtype: str
    unit: str
    names: tuple[str, ...] = ()
    low: float = -np.inf
    high: float = np.inf

    @property
    def is_image(self) -> bool:
        """True for `[H, W, C]` uint8 arrays."""
        return self.dtype == "uint8" and len(self.shape) == 3


@dataclass(frozen=True)
class ObservationSpec:
    """What a policy sees: an ordered mapping from name to `ArraySpec`."""

    arrays: Mapping[str, ArraySpec]

    def check(self, obs: Observation) -> None:
        """Refuse an observation that does not fit, by name.

        Raises:
            SpecMismatchError: an array is missing, extra, of another shape or dtype, or not finite.
        """
        if set(obs) != set(self.arrays):
            raise SpecMismatchError(
                f"observation has {sorted(obs)}, the spec says {sorted(self.arrays)}",
                where="observation",
            )
        for name, spec in self.arrays.items():
            array = obs[name]
            if tuple(array.shape) != tuple(spec.shape) or str(array.dtype) != spec.dtype:
                raise SpecMismatchError(
                    f"is {array.dtype}{list(array.shape)}, "
                    f"the spec says {spec.dtype}{list(spec.shape)}",
                    where=f"observation {name!r}",
                )
            if spec.dtype != "uint8" and not np.isfinite(array).all():
                raise SpecMismatchError("is not finite", where=f"observation {name!r}")

    @property
    def image_names(self) -> tuple[str, ...]:
        """Names of the image arrays, in order."""
        return tuple(name for name, spec in self.arrays.items() if spec.is_image)

    @property
    def vector_names(self) -> tuple[str, ...]:
        """Names of the vector arrays, in order."""
        return tuple(name for name, spec in self.arrays.items() if not spec.is_image)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready description; infinities become None."""
        out: dict[str, Any] = {}
        for name, spec in self.arrays.items():
            entry = asdict(spec)
            entry["shape"], entry["names"] = list(spec.shape), list(spec.names)
            for bound in ("low", "high"):
                entry[bound] = float(entry[bound]) if np.isfinite(entry[bound]) else None
            out[name] = entry
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ObservationSpec:
        """Inverse of `to_json`."""
        arrays: dict[str, ArraySpec] = {}
        for name, raw in data.items():
            entry = dict(raw)
            entry["shape"], entry["names"] = tuple(entry["shape"]), tuple(entry["names"])
            entry["low"] = -np.inf if entry["low"] is None else float(entry["low"])
            entry["high"] = np.inf if entry["high"] is None else float(entry["high"])
            arrays[name] = ArraySpec(**entry)
        return cls(arrays)


@dataclass(frozen=True)
class ActionSpec:
    """What a policy commands: A named numbers in [-1, 1] with SI bounds and a rate.

    Attributes:
        names: one name an entry, e.g. `("dx", "dy", "dz")`.
        unit: SI unit of the entries.
        low: SI value of -1, one an entry.
        high: SI value of +1, one an entry.
        period: policy period, s.
    """

    names: tuple[str, ...]
    unit: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    period: float

    def __post_init__(self) -> None:
        low, high = np.asarray(self.low), np.asarray(self.high)
        ok = low.shape == high.shape == (len(self.names),) and np.isfinite([*low, *high]).all()
        if not (ok and (low < high).all()):
            raise ConfigError(
                f"needs finite low < high for each of {list(self.names)}, "
                f"got {self.low} and {self.high}",
                where="action spec",
            )
        if not (np.isfinite(self.period) and self.period > 0):
            raise ConfigError(f"period must be positive, got {self.period}", where="action spec")

    @property
    def dim(self) -> int:
        """Number of entries A."""
        return len(self.names)

    def to_si(self, action: Array) -> Array:
        """Map `[..., A]` from [-1, 1] to SI; values outside are clipped first, NaN stays NaN."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        clipped = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        return np.asarray(low + 0.5 * (clipped + 1.0) * (high - low))

    def from_si(self, value: Array) -> Array:
        """Map `[..., A]` from SI to [-1, 1] as float32; not clipped, so that it tells the truth."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        return np.asarray(2.0 * (np.asarray(value) - low) / (high - low) - 1.0, np.float32)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {
            "names": list(self.names),
            "unit": self.unit,
            "low": [float(value) for value in self.low],
            "high": [float(value) for value in self.high],
            "period": float(self.period),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ActionSpec:
        """Inverse of `to_json`."""
        return cls(
            names=tuple(data["names"]),
            unit=data["unit"],
            low=tuple(data["low"]),
            high=tuple(data["high"]),
            period=float(data["period"]),
        )


@dataclass(frozen=True)
class Spec:
    """Both halves of what connects a policy with a body."""

    observation: ObservationSpec
    action: ActionSpec

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {"observation": self.observation.to_json(), "action": self.action.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Spec:
        """Inverse of `to_json`."""
        return cls(
            ObservationSpec.from_json(data["observation"]), ActionSpec.from_json(data["action"])
        )

    def require_same(self, other: Spec, *, mine: str, theirs: str) -> None:
        """Refuse another spec that differs, naming the first difference.

        Args:
            other: the spec to compare with.
            mine: what this spec belongs to, for the message ("checkpoint runs/a").
            theirs: what the other one belongs to ("dataset data/reach").

        Raises:
            SpecMismatchError: with the name of the first field that differs.
        """
        for path, here, there in _differences(self.to_json(), other.to_json(), ""):
            raise SpecMismatchError(
                f"{mine} and {theirs} disagree about {path}: {here!r} against {there!r}",
                todo="use artefacts made from the same task and camera",
            )


def _differences(here: Any, there: Any, path: str) -> list[tuple[str, Any, Any]]:
    if isinstance(here, dict) and isinstance(there, dict):
        found: list[tuple[str, Any, Any]] = []
        for key in [*here, *(k for k in there if k not in here)]:
            found += _differences(here.get(key), there.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if here == there else [(path, here, there)]

"""`gate.json` beside a bundle's graph: the thresholds of its reachability gate, for no other graph.

Scores are functions of encoder and heads. A threshold that another graph was calibrated with says
nothing about this one, so that a file with another hash is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safe_o2o import config as settings
from safe_o2o.bundle import Manifest, read_manifest
from safe_o2o.errors import BundleError, ConfigError
from safe_o2o.files import write_atomic
from safe_o2o.safety.reachability_gate import GateConfig, GateThresholds

GATE = "gate.json"
SCHEMA_VERSION = 1
CALIBRATE = "calibrate it: safe-o2o calibrate"


@dataclass(frozen=True)
class GateFile:
    """What a bundle's gate acts by.

    Attributes:
        graph_sha256: of the graph that was calibrated.
        thresholds: of its scores.
        config: how the gate behaves.
        calibration: what the thresholds rest on (n, k, alpha, intervals, episodes), JSON-ready.
    """

    graph_sha256: str
    thresholds: GateThresholds
    config: GateConfig = field(default_factory=GateConfig)
    calibration: Mapping[str, Any] = field(default_factory=dict)

    @property
    def calibrated(self) -> bool:
        """Whether one threshold keeps both promises: false alarms and misses."""
        return bool(self.calibration.get("calibrated", False))


def has_gate(manifest: Manifest) -> bool:
    """Whether a graph says what a gate asks for."""
    names = {port.name for port in manifest.ports("diagnostic", output=True)}
    return {"candidates", "candidate_risk", "disagreement", "surprise"} <= names


def write_gate(directory: str | Path, manifest: Manifest, gate: GateFile) -> Path:
    """Write a bundle's thresholds; a calibration that is there is replaced.

    Raises:
        BundleError: they belong to another graph, or the graph has no gate.
        StorageError: the disk refused; what was there stays.
    """
    _require(directory, manifest, gate)
    path = Path(directory) / GATE
    text = json.dumps(
        {"schema_version": SCHEMA_VERSION, **settings.to_json(gate)}, indent=2, allow_nan=False
    )
    write_atomic(path, (text + "\n").encode())
    return path


def read_gate(directory: str | Path, manifest: Manifest) -> GateFile | None:
    """A bundle's thresholds; None where its graph has no gate.

    Raises:
        BundleError: the graph has a gate and no thresholds, or another graph's, or damaged ones.
    """
    path = Path(directory) / GATE
    if not path.exists():
        if has_gate(manifest):
            raise BundleError(
                "has a reachability gate without thresholds", where=directory, todo=CALIBRATE
            )
        return None
    try:
        data = json.loads(path.read_bytes())
        version = data.pop("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema {version!r}")
        gate = settings.from_json(GateFile, data, where=path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise BundleError(f"is damaged ({error})", where=path, todo=CALIBRATE) from error
    _require(directory, manifest, gate)
    return gate


def gate_of(directory: str | Path) -> GateFile | None:
    """`read_gate` of a bundle's folder; a bundle without a manifest is refused as well."""
    return read_gate(directory, read_manifest(directory))


def _require(directory: str | Path, manifest: Manifest, gate: GateFile) -> None:
    if not has_gate(manifest):
        raise BundleError(
            "has thresholds of a gate and a graph without one",
            where=directory,
            todo="export it with --gate",
        )
    if gate.graph_sha256 != manifest.graph_sha256:
        raise BundleError(
            "has a gate's thresholds that were calibrated with another graph",
            where=Path(directory) / GATE,
            todo=CALIBRATE,
        )

"""The policy that acts now, and the bundle that acts next: swapped between episodes, never in one.

A bundle that does not load, was changed after its promotion, or belongs to another task is refused
once, and the last good one goes on acting.
"""

from __future__ import annotations

from pathlib import Path

from safe_o2o.bundle import MANIFEST, POINTER, current
from safe_o2o.errors import BundleError, SafeO2OError
from safe_o2o.runtime.gated_policy import GatedPolicy, load_policy
from safe_o2o.safety.reachability_gate import GateMode
from safe_o2o.spaces import Spec


def promoted_bundle(bundles: str | Path) -> Path:
    """The bundle that an actor may load.

    Args:
        bundles: one bundle (it has a manifest), or a folder of versions with its pointer.

    Raises:
        BundleError: none was promoted, or the pointer is damaged, or its bundle was changed.
    """
    folder = Path(bundles)
    if (folder / MANIFEST).exists():
        return folder
    pointer = current(folder)
    if pointer is None:
        raise BundleError(
            "holds no promoted policy bundle",
            where=folder,
            todo="make one with `safe-o2o export`, or name one version's folder",
        )
    return pointer.directory


class LivePolicy:
    """Holds the acting policy and swaps in a newer promoted one when asked.

    Args:
        bundles: one bundle, or a folder of versions.
        expect: spec of the task at hand; None takes the bundle's own until `require` is called.
        gate: see `load_policy`.

    Attributes:
        policy: the acting policy.
        version: its bundle's name.
        refused: why other versions were refused, by name.

    Raises:
        BundleError: no bundle was promoted, it does not load, or it belongs to another task.
    """

    def __init__(
        self, bundles: str | Path, expect: Spec | None = None, *, gate: GateMode = "on"
    ) -> None:
        self.bundles, self.expect, self.gate = Path(bundles), expect, gate
        self.refused: dict[str, str] = {}
        self.policy = load_policy(promoted_bundle(self.bundles), expect, gate=gate)

    @property
    def version(self) -> str:
        """Name of the acting bundle."""
        return self.policy.version

    @property
    def provenance(self) -> dict[str, str]:
        """Who acts, for an episode's metadata: bundle, hash of its graph, what its gate may do."""
        return {
            "bundle": self.version,
            "graph": self.policy.manifest.graph_sha256,
            "gate": self.policy.mode if isinstance(self.policy, GatedPolicy) else "off",
        }

    def require(self, spec: Spec) -> None:
        """From now on only bundles of this spec will do, the acting one included.

        Raises:
            SpecMismatchError: the acting policy belongs to another task.
        """
        self.policy.spec.require_same(spec, mine=f"bundle {self.version}", theirs="the robot")
        self.expect = spec

    def swap(self) -> bool:
        """Load the promoted bundle if it is another one than the acting; True when it acts now.

        Never raises for a bad bundle: it is noted in `refused`, and the acting policy stays.
        """
        try:
            path = promoted_bundle(self.bundles)
        except SafeO2OError as error:
            self.refused[POINTER] = str(error)
            return False
        self.refused.pop(POINTER, None)
        if path.name == self.version or path.name in self.refused:
            return False
        try:
            self.policy = load_policy(path, self.expect, gate=self.gate)
        except SafeO2OError as error:
            self.refused[path.name] = str(error)
            return False
        return True

    def figures(self) -> dict[str, float]:
        """What else the graph said at the last decision: risk, values; one number each.

        Of what it said about many candidates nothing; a gate says what counted of it.
        """
        out: dict[str, float] = {}
        for name, array in self.policy.last_outputs.items():
            row = array[0].reshape(-1)
            if row.size == 1:
                out[name] = float(row[0])
            elif row.size <= 8:
                out |= {f"{name}.{i}": float(value) for i, value in enumerate(row)}
        return out

"""The policy that acts now, and the bundle that acts next: swapped between episodes, never in one.

`<bundles>/current.json` names the promoted version, `{"bundle": "v000003"}`; whoever promotes
writes it atomically. Without it the newest version counts, as after a plain export. A bundle that
does not load, or belongs to another task, is refused once and the last good one goes on.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from safe_o2o.errors import BundleError, SafeO2OError
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.spaces import Spec

CURRENT = "current.json"
_VERSION = re.compile(r"v\d{6}")


def current_bundle(bundles: str | Path) -> Path:
    """The bundle that should act.

    Args:
        bundles: one bundle (it has a manifest), or a folder of versions.

    Raises:
        BundleError: there is none, or `current.json` is damaged or names none.
    """
    folder = Path(bundles)
    if (folder / "manifest.json").exists():
        return folder
    current = folder / CURRENT
    try:
        name = str(json.loads(current.read_text())["bundle"])
    except FileNotFoundError:
        versions = sorted(p.name for p in folder.glob("v*") if _VERSION.fullmatch(p.name))
        if not versions:
            raise BundleError(
                "has no policy bundle", where=folder, todo="make one with `safe-o2o export`"
            ) from None
        name = versions[-1]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"is damaged ({error})", where=current) from error
    if not _VERSION.fullmatch(name) or not (folder / name).is_dir():
        raise BundleError(f"names {name!r}, which is not there", where=current)
    return folder / name


class LivePolicy:
    """Holds the acting policy and swaps in a newer promoted one when asked.

    Args:
        bundles: one bundle, or a folder of versions.
        expect: spec of the task at hand; None takes the bundle's own until `require` is called.

    Attributes:
        policy: the acting policy.
        version: its bundle's name.
        refused: why other versions were refused, by name.

    Raises:
        BundleError: no bundle loads.
        SpecMismatchError: it belongs to another task.
    """

    def __init__(self, bundles: str | Path, expect: Spec | None = None) -> None:
        self.bundles, self.expect = Path(bundles), expect
        self.refused: dict[str, str] = {}
        path = current_bundle(self.bundles)
        self.policy = OnnxPolicy.load(path, expect=expect)
        self.version = path.name

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
            path = current_bundle(self.bundles)
        except SafeO2OError as error:
            self.refused[CURRENT] = str(error)
            return False
        if path.name == self.version or path.name in self.refused:
            return False
        try:
            policy = OnnxPolicy.load(path, expect=self.expect)
        except SafeO2OError as error:
            self.refused[path.name] = str(error)
            return False
        self.policy, self.version = policy, path.name
        return True

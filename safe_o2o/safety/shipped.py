"""The files about arms that come with the package: one folder a kind, one file an arm."""

from __future__ import annotations

from importlib import resources

from safe_o2o.errors import UnknownNameError


def shipped_names(folder: str) -> tuple[str, ...]:
    """Arms that a folder has a file of (`robot_limits`, `robot_models`, ...), sorted."""
    found = resources.files("safe_o2o.safety") / folder
    endings = (".yaml", ".urdf")
    return tuple(sorted(p.name[:-5] for p in found.iterdir() if p.name.endswith(endings)))


def shipped_text(folder: str, robot: str, ending: str) -> str:
    """The file of an arm.

    Raises:
        UnknownNameError: no such arm; the message names the near miss.
    """
    known = shipped_names(folder)
    if robot not in known:
        raise UnknownNameError("arm", robot, known)
    return (resources.files("safe_o2o.safety") / folder / f"{robot}{ending}").read_text("utf-8")

"""Episodes of a run: counted by round, behaviour and verdict, and prepared as films."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import Episode
from safe_o2o.errors import SafeO2OError
from safe_o2o.report.figures import VERDICTS
from safe_o2o.report.intervals import Interval, wilson
from safe_o2o.report.overlay import Film
from safe_o2o.report.run_files import RunFiles
from safe_o2o.types import Array

Lines = Mapping[str, Mapping[str, Any]]
"""Lines of `deploy/episodes.jsonl` by the episode's file name."""
Render = Callable[[Episode], "Array | None"]
"""Larger pictures `[T + 1, H, W, 3]` of an episode, or None where they cannot be made."""


@dataclass(frozen=True)
class Round:
    """Episodes between two updates of the policy.

    Attributes:
        number: the round.
        episodes: what was recorded in it, empty where only the decision is on file.
        success: rate with interval, None without episodes.
        violation: rate with interval, None without episodes.
        bundles: versions that acted.
        updates: gradient steps after the round, None where unknown.
        seconds: how long the learner took, None where unknown.
        candidate: bundle that was made after the round.
        promoted: whether it went live; None where no decision is on file.
        reason: why or why not.
        checks: of the promotion: name, value, bound, passed.
    """

    number: int
    episodes: tuple[Episode, ...]
    success: Interval | None
    violation: Interval | None
    bundles: tuple[str, ...]
    updates: int | None
    seconds: float | None
    candidate: str
    promoted: bool | None
    reason: str
    checks: tuple[tuple[str, float, float, bool], ...] = ()

    @property
    def n(self) -> int:
        """Number of episodes."""
        return len(self.episodes)


@dataclass(frozen=True)
class FilterRecord:
    """What the filter did over the policy steps of some episodes.

    Attributes:
        label: which episodes.
        episodes: how many.
        verdict: `[N]`.
        margin: `[N]`.
        reasons: count of each reason among steps that did not pass.
    """

    label: str
    episodes: int
    verdict: Array
    margin: Array
    reasons: Counter[str]

    @property
    def share(self) -> dict[str, float]:
        """Share of steps by verdict name."""
        return {name: float((self.verdict == i).mean()) for i, name in enumerate(VERDICTS)}


def load(files: RunFiles, folder: str) -> list[Episode]:
    """Readable episodes of a dataset folder of the run; what is damaged becomes a note."""
    path = files.run_dir / folder
    if not path.is_dir():
        return []
    try:
        dataset = Dataset(path)
    except SafeO2OError as error:
        files.note(path, error.what)
        return []
    found = []
    for name in dataset.names:
        try:
            found.append(dataset.open(name))
        except SafeO2OError as error:
            files.note(path / name, error.what)
    return found


def bundle_of(episode: Episode) -> str:
    """The bundle version that acted, empty where none did."""
    for key in ("bundle", "bundle_version", "version"):
        value = episode.meta.provenance.get(key)
        if value is not None:
            return _version(value)
    match = re.search(r"v\d+", episode.meta.behavior)
    return match[0] if match else ""


def rounds(
    episodes: Sequence[Episode],
    decisions: Sequence[Mapping[str, Any]],
    lines: Lines | None = None,
) -> list[Round]:
    """Rounds from the episodes on disk (counts) and from the learner's decisions (reasons).

    An episode belongs to the round that its line of `deploy/episodes.jsonl` or its provenance says,
    else to the one whose learner was the first to see it.

    A decision is an entry of `rounds.json`: `index` (or `round`), `episodes` (committed when the
    learner began), `bundle`, and `refusal` (or `promoted` and `reason`).
    """
    decided = {int(d.get("round", d.get("index", i))): d for i, d in enumerate(decisions)}
    members: dict[int, list[Episode]] = {}
    for position, episode in enumerate(episodes):
        members.setdefault(_round_of(episode, position, decided, lines or {}), []).append(episode)
    found = []
    for number in sorted(members.keys() | decided.keys()):
        group, entry = members.get(number, []), decided.get(number, {})
        success = violation = None
        if group:
            success = wilson(sum(e.success for e in group), len(group))
            violation = wilson(sum(e.violation for e in group), len(group))
        refusal = entry.get("refusal")
        promoted = entry.get("promoted", None if refusal is None else refusal == "")
        updates, seconds = entry.get("updates"), entry.get("seconds")
        found.append(
            Round(
                number=number,
                episodes=tuple(group),
                success=success,
                violation=violation,
                bundles=tuple(sorted({b for b in map(bundle_of, group) if b})),
                updates=int(updates) if isinstance(updates, (int, float)) else None,
                seconds=float(seconds) if isinstance(seconds, (int, float)) else None,
                candidate=_version(entry.get("candidate", entry.get("bundle", ""))),
                promoted=None if promoted is None else bool(promoted),
                reason=str(entry.get("reason") or refusal or ""),
                checks=tuple(_check(check) for check in entry.get("checks", ())),
            )
        )
    return found


def _check(check: Any) -> tuple[str, float, float, bool]:
    """A promotion check as an object or as a row; a value that was not finite is NaN."""
    if isinstance(check, Mapping):
        check = [check[key] for key in ("name", "value", "bound", "passed")]
    name, value, bound, passed = check
    return str(name), math.nan if value is None else float(value), float(bound), bool(passed)


def _round_of(
    episode: Episode, position: int, decided: Mapping[int, Mapping[str, Any]], lines: Lines
) -> int:
    line = lines.get(episode.path.name, {})
    said = line.get("round", episode.meta.provenance.get("round"))
    if isinstance(said, int):
        return said
    for number in sorted(decided):
        if position < int(decided[number].get("episodes", 0)):
            return number
    return max(decided, default=-1) + 1


def filter_record(label: str, episodes: Sequence[Episode]) -> FilterRecord | None:
    """Verdicts, margins and reasons of episodes; None for none."""
    if not episodes:
        return None
    reasons: Counter[str] = Counter()
    for episode in episodes:
        pairs = zip(episode.reasons, episode.array("verdict"), strict=True)
        reasons.update(reason or "(no reason given)" for reason, verdict in pairs if verdict > 0)
    return FilterRecord(
        label=label,
        episodes=len(episodes),
        verdict=np.concatenate([e.array("verdict") for e in episodes]),
        margin=np.concatenate([e.array("margin") for e in episodes]),
        reasons=reasons,
    )


def by_behavior(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    """Episodes by who acted, sorted by name."""
    found: dict[str, list[Episode]] = {}
    for episode in sorted(episodes, key=lambda e: e.meta.behavior):
        found.setdefault(episode.meta.behavior or "unnamed", []).append(episode)
    return found


def choose(episodes: Sequence[Episode], count: int) -> list[Episode]:
    """Episodes to show, by a rule that cannot flatter.

    The first with contact, the first success without, then the first ones that are left.
    """
    kinds = [lambda e: e.violation, lambda e: e.success and not e.violation]
    firsts = [next(filter(kind, episodes), None) for kind in kinds]
    picked = [episode for episode in firsts if episode is not None]
    picked += [episode for episode in episodes if episode not in picked]
    return sorted(picked[:count], key=lambda e: e.path.name)


def film(
    episode: Episode, title: str, subtitle: str, render: Render, lines: Lines | None = None
) -> Film | None:
    """What an overlay shows of an episode; None where it holds no picture."""
    spec = episode.spec
    names = spec.observation.image_names
    pictures = render(episode)
    if pictures is None or len(pictures) != len(episode) + 1:
        if not names:
            return None
        pictures = episode.array(f"obs.{names[0]}")
    return Film(
        title=title,
        subtitle=subtitle,
        pictures=pictures,
        action=episode.array("action"),
        proposed=episode.array("proposed_action"),
        action_names=spec.action.names,
        action_scale=spec.action.high,
        action_unit=spec.action.unit,
        verdict=episode.array("verdict"),
        reason=episode.reasons,
        cost=episode.array("cost"),
        success=episode.success,
        stamp=episode.array("stamp"),
        risk=_risk(episode, lines or {}),
    )


def _risk(episode: Episode, lines: Lines) -> Array | None:
    """The predicted risk at each step `[T]`, None unless it was recorded for all of them."""
    outputs = lines.get(episode.path.name, {}).get("outputs", [])
    values = [out.get("risk") for out in outputs if isinstance(out, Mapping)]
    if len(values) < len(episode) or not all(isinstance(v, (int, float)) for v in values):
        return None
    risk = np.asarray(values[: len(episode)], np.float64)
    return risk if np.isfinite(risk).all() else None


def content_hash(files: RunFiles, folder: str) -> str:
    """Content hash of a dataset folder of the run, empty where there is none or it is damaged."""
    try:
        return Dataset(files.run_dir / folder).content_hash()
    except SafeO2OError:
        return ""


def _version(value: Any) -> str:
    return (
        f"v{value:06d}"
        if isinstance(value, int) and not isinstance(value, bool)
        else str(value or "")
    )

"""Section of films: episodes before and after fine-tuning, and the scripts behind the data."""

from __future__ import annotations

import atexit
import base64
import io
import multiprocessing
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from safe_o2o.data.episode import Episode
from safe_o2o.errors import SafeO2OError
from safe_o2o.report import episodes as ep
from safe_o2o.report.blocks import Clip, Clips, Missing, Section, Text
from safe_o2o.report.closeup import CloseUp
from safe_o2o.report.overlay import HEIGHT, HOLD, WIDTH, compose
from safe_o2o.report.videos import MIME, best_format, encode_video
from safe_o2o.types import Array
from safe_o2o.workers import end_with_parent, started_quietly

SPEED = 2.0  # films run at twice real time
BUDGET = 9_000_000  # bytes of film in the page; base64 adds a third
_SCRIPTS = "Offline data: the scripts that were mixed"


@dataclass(frozen=True)
class Shot:
    """A film that is wanted; picklable.

    Attributes:
        path: the episode's file.
        group: title of the group that it belongs to.
        note: what is said of the group.
        scripted: whether a script acted.
        line: what is noted of the episode in `deploy/episodes.jsonl`.
    """

    path: Path
    group: str
    note: str
    scripted: bool
    line: Mapping[str, Any]


Make = Callable[[Sequence[Shot]], Iterable[Clip | None]]
"""Makes films, in order; None for an episode without pictures."""


def one_by_one(render: ep.Render) -> Make:
    """Films made in this process."""
    return lambda shots: (_clip(shot, render) for shot in shots)


@contextmanager
def in_workers(workers: int) -> Iterator[Make]:
    """Films made by processes of their own, each with its own twin, from when they are asked for.

    Args:
        workers: processes.

    Raises:
        SafeO2OError: one of them died.
    """
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(workers, context, end_with_parent)

    def make(shots: Sequence[Shot]) -> Iterable[Clip | None]:
        with started_quietly():
            return pool.map(_clip_in_worker, shots)

    try:
        yield make
    except BrokenProcessPool as error:
        raise SafeO2OError(
            "a process that made a film died (out of memory, or killed)",
            where="report",
            todo="make the page again: safe-o2o report RUN --workers 0",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_closeup: list[CloseUp] = []
"""The worker's twin, from its first film on."""


def _clip_in_worker(shot: Shot) -> Clip | None:
    if not _closeup:
        _closeup.append(CloseUp())
        atexit.register(_closeup[0].close)
    return _clip(shot, _closeup[0])


class Films:
    """Section 5: episodes as films, by group, within the page's budget.

    Args:
        before: note and episodes of the first round.
        after: note and episodes of the last round.
        scripted: one episode of each script.
        make: makes the films; asked here, waited for in `section`.
        lines: of `deploy/episodes.jsonl`.
    """

    def __init__(
        self,
        before: tuple[str, Sequence[Episode]],
        after: tuple[str, Sequence[Episode]],
        scripted: Sequence[Episode],
        make: Make,
        lines: ep.Lines,
    ) -> None:
        groups = (
            ("Before fine-tuning", before[0], ep.choose(before[1], 2)),
            ("After fine-tuning", after[0], ep.choose(after[1], 2)),
            (_SCRIPTS, "", scripted[:3]),
        )
        self._shots = [
            Shot(
                episode.path,
                title,
                note,
                title == _SCRIPTS,
                {} if title == _SCRIPTS else lines.get(episode.path.name, {}),
            )
            for title, note, members in groups
            for episode in members
        ]
        self._titles = [title for title, _, _ in groups]
        self._made = make(self._shots)

    def section(self, command: str) -> Section:
        """The section, once the films are there.

        Args:
            command: what makes missing episodes.
        """
        section = Section(
            "films",
            "Episodes before and after",
            f"At {SPEED:g} times real time. Top: the whole episode; left: the camera's picture; "
            "right: time, the filter's verdict, the action asked for and done, contact. Chosen by "
            "rule: the first episode with contact and the first clean success of each group, where "
            "there are such.",
        )
        left, skipped = BUDGET, 0
        clips: dict[str, list[Clip]] = {title: [] for title in self._titles}
        for shot, clip in zip(self._shots, self._made, strict=True):
            if clip is None:
                continue
            size = (len(clip.uri) + len(clip.poster)) * 3 // 4
            if size > left:
                skipped += 1
                continue
            left -= size
            clips[shot.group].append(clip)
        for title, found in clips.items():
            if found:
                section.blocks.append(Clips(title, found))
            elif title != _SCRIPTS:
                section.blocks.append(
                    Missing(f"No episodes {title.lower()} with pictures.", command)
                )
        if skipped:
            section.blocks.append(Text(f"{skipped} films were left out to keep the page small."))
        return section


def _clip(shot: Shot, render: ep.Render) -> Clip | None:
    episode, kind = Episode(shot.path), best_format()
    outcome = "goal reached" if episode.success else "goal not reached"
    contacts = int((episode.array("cost") > 0).sum())
    seconds = float(episode.array("stamp")[-1] - episode.array("stamp")[0])
    name = episode.path.stem.replace("_", " ")
    subtitle = episode.meta.behavior if shot.scripted else shot.note
    short = re.sub(r"_0*(?=\d)", " ", episode.path.stem)
    heading = episode.meta.behavior if shot.scripted else shot.group.lower()
    film = ep.film(
        episode,
        heading,
        f"{short} · seed {episode.meta.seed}",
        render,
        {episode.path.name: shot.line},
    )
    if film is None:
        return None
    period = episode.spec.action.period
    frames = compose(film)
    uri = _uri(MIME[kind], encode_video(frames, SPEED / period, kind=kind))
    poster = _uri("image/webp", _still(frames[(len(frames) - HOLD) // 2]))
    where = f", scene variant “{episode.meta.variant}”" if episode.meta.variant else ""
    text = (
        f"{subtitle or heading}: {name}, seed {episode.meta.seed}{where}. "
        f"{outcome.capitalize()} after {seconds:.1f} s; {contacts} steps with contact."
    )
    return Clip(uri, poster, MIME[kind], text, WIDTH, HEIGHT)


def _still(frame: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "webp", quality=70, method=6)
    return buffer.getvalue()


def _uri(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"

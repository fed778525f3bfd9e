"""Section of films: episodes before and after fine-tuning, and the scripts behind the data."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence

from PIL import Image

from safe_o2o.data.episode import Episode
from safe_o2o.report import episodes as ep
from safe_o2o.report.blocks import Clip, Clips, Missing, Section, Text
from safe_o2o.report.overlay import HEIGHT, HOLD, WIDTH, compose
from safe_o2o.report.videos import MIME, best_format, encode_video
from safe_o2o.types import Array

SPEED = 2.0  # films run at twice real time
BUDGET = 9_000_000  # bytes of film in the page; base64 adds a third


def films(
    before: tuple[str, Sequence[Episode]],
    after: tuple[str, Sequence[Episode]],
    scripted: Sequence[Episode],
    render: ep.Render,
    lines: ep.Lines,
    command: str,
) -> Section:
    """Section 5: episodes as films, by group, within the page's budget."""
    section = Section(
        "films",
        "Episodes before and after",
        f"At {SPEED:g} times real time. Top: the whole episode; left: the camera's picture; "
        "right: time, the filter's verdict, the action asked for and done, contact. Chosen by "
        "rule: the first episode with contact and the first clean success of each group, where "
        "there are such.",
    )
    kind, left = best_format(), BUDGET
    groups = (
        ("Before fine-tuning", *before, 2),
        ("After fine-tuning", *after, 2),
        ("Offline data: the scripts that were mixed", "", scripted, 3),
    )
    skipped = 0
    for title, note, members, count in groups:
        clips: list[Clip] = []
        chosen = list(members) if members is scripted else ep.choose(members, count)
        for episode in chosen[:count]:
            clip = _clip(episode, title, note, render, lines, kind, members is scripted)
            if clip is None:
                continue
            size = (len(clip.uri) + len(clip.poster)) * 3 // 4
            if size > left:
                skipped += 1
                continue
            left -= size
            clips.append(clip)
        if clips:
            section.blocks.append(Clips(title, clips))
        elif members is not scripted:
            section.blocks.append(Missing(f"No episodes {title.lower()} with pictures.", command))
    if skipped:
        section.blocks.append(Text(f"{skipped} films were left out to keep the page small."))
    return section


def _clip(
    episode: Episode,
    title: str,
    note: str,
    render: ep.Render,
    lines: ep.Lines,
    kind: str,
    scripted: bool,
) -> Clip | None:
    outcome = "goal reached" if episode.success else "goal not reached"
    contacts = int((episode.array("cost") > 0).sum())
    seconds = float(episode.array("stamp")[-1] - episode.array("stamp")[0])
    name = episode.path.stem.replace("_", " ")
    subtitle = episode.meta.behavior if scripted else note
    short = re.sub(r"_0*(?=\d)", " ", episode.path.stem)
    heading = episode.meta.behavior if scripted else title.lower()
    film = ep.film(
        episode, heading, f"{short} · seed {episode.meta.seed}", render, {} if scripted else lines
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

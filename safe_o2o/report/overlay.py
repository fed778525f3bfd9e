"""An episode as a film: pictures beside what was asked, done, and said by the filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from safe_o2o.types import Array, Verdict

PICTURE = 384  # side of the square picture, pixels
TOP = 44  # the episode's timeline above the picture, where a player's controls do not hide it
WIDTH, HEIGHT = PICTURE + 224, PICTURE + TOP
HOLD = 8  # frames for which the last picture stands, so that the outcome can be read

_PAPER, _INK, _MUTED, _LINE = (17, 21, 28), (236, 240, 246), (147, 158, 174), (52, 60, 73)
_BLUE, _RED = (90, 169, 255), (255, 106, 77)
_VERDICT = {
    Verdict.PASS: ((46, 184, 134), "✓ passed"),
    Verdict.CORRECTED: ((240, 164, 58), "↘ corrected"),
    Verdict.STOPPED: (_RED, "■ stopped"),
}


@dataclass(frozen=True)
class Film:
    """What an overlay shows; T transitions, T + 1 pictures.

    Attributes:
        title: first line ("after fine-tuning").
        subtitle: second line ("round 4 · bundle v000004").
        pictures: `[T + 1, H, W, 3]` uint8 RGB.
        action: executed actions `[T, A]` in [-1, 1].
        proposed: proposed actions `[T, A]`.
        action_names: names of the A entries.
        action_scale: SI size of +1, one an entry.
        action_unit: their unit.
        verdict: `[T]` of `Verdict`.
        reason: the filter's reasons, one a transition.
        cost: `[T]`.
        success: whether the task was solved.
        stamp: `[T + 1]`, s.
        risk: predicted risk `[T]` in [0, 1], None where none was recorded.
    """

    title: str
    subtitle: str
    pictures: Array
    action: Array
    proposed: Array
    action_names: Sequence[str]
    action_scale: Sequence[float]
    action_unit: str
    verdict: Array
    reason: Sequence[str]
    cost: Array
    success: bool
    stamp: Array
    risk: Array | None = None

    def __len__(self) -> int:
        """Number of transitions."""
        return len(self.action)


@lru_cache(maxsize=16)
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as it comes with matplotlib, so that every machine draws the same letters."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", name)), size)


def compose(film: Film) -> Array:
    """Draw all frames of a film `[T + 1 + HOLD, HEIGHT, WIDTH, 3]`."""
    frames = [_frame(film, t) for t in range(len(film) + 1)]
    return np.stack([*frames, *[frames[-1]] * HOLD])


def caption(picture: Array, text: str, *, size: int = 13) -> Array:
    """Burn a line of text into the foot of a picture `[H, W, 3]`."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image, "RGBA")
    height = size + 12
    draw.rectangle((0, image.height - height, image.width, image.height), fill=(10, 13, 18, 190))
    draw.text((8, image.height - height / 2), text, font=font(size), fill=_INK, anchor="lm")
    return np.asarray(image)


def _frame(film: Film, t: int) -> Array:
    image = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
    picture = Image.fromarray(film.pictures[t])
    exact = PICTURE % picture.width == 0 and picture.width < PICTURE // 2
    # Policy pictures are few pixels, and those are the truth: show them as they are.
    how = Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS
    if picture.size != (PICTURE, PICTURE):
        picture = picture.resize((PICTURE, PICTURE), how)
    strip = Image.new("RGB", (WIDTH, PICTURE), _PAPER)
    _strip(ImageDraw.Draw(strip), film, t)
    strip.paste(picture, (0, 0))
    image.paste(strip, (0, TOP))
    _timeline(ImageDraw.Draw(image), film, t)
    return np.asarray(image)


def _strip(draw: ImageDraw.ImageDraw, film: Film, t: int) -> None:
    x, right, steps = PICTURE + 16, WIDTH - 16, len(film)
    shown = min(t, steps - 1)  # the last picture has no action of its own: keep the one before
    draw.text((x, 14), film.title, font=font(16, bold=True), fill=_INK)
    draw.text((x, 37), film.subtitle, font=font(11), fill=_MUTED)
    draw.text(
        (x, 58), f"{film.stamp[t] - film.stamp[0]:.1f} s", font=font(26, bold=True), fill=_INK
    )
    draw.text((right, 74), f"step {t} / {steps}", font=font(11), fill=_MUTED, anchor="rm")

    tint, text = _VERDICT[Verdict(int(film.verdict[shown]))]
    draw.text((x, 102), "filter", font=font(11), fill=_MUTED)
    draw.rounded_rectangle((x, 118, right, 142), 6, fill=tint)
    draw.text(((x + right) / 2, 130), text, font=font(13, bold=True), fill=_PAPER, anchor="mm")
    draw.text((x, 148), film.reason[shown][:30], font=font(11), fill=tint)

    draw.text((x, 172), "action", font=font(11), fill=_MUTED)
    draw.text((right, 172), "▮ done  ▯ asked", font=font(10), fill=_MUTED, anchor="ra")
    for i, name in enumerate(film.action_names[:4]):
        _bar(draw, film, shown, i, name, 192 + 22 * i)

    y = 194 + 22 * min(4, len(film.action_names)) + 8
    contact = t > 0 and film.cost[t - 1] > 0
    total = int((film.cost[:t] > 0).sum())
    draw.text((x, y), "contact", font=font(11), fill=_MUTED)
    draw.rounded_rectangle((x, y + 16, right, y + 40), 6, fill=_RED if contact else _LINE)
    text = "✗ contact" if contact else ("none so far" if not total else f"{total} steps so far")
    ink = _PAPER if contact else _INK
    draw.text(((x + right) / 2, y + 28), text, font=font(13, bold=contact), fill=ink, anchor="mm")
    if film.risk is not None:
        risk = float(np.clip(film.risk[shown], 0, 1))
        draw.text((x, y + 50), "predicted risk", font=font(11), fill=_MUTED)
        draw.text((right, y + 50), f"{100 * risk:.0f} %", font=font(11), fill=_INK, anchor="ra")
        draw.rectangle((x, y + 68, right, y + 76), fill=_LINE)
        draw.rectangle(
            (x, y + 68, x + risk * (right - x), y + 76), fill=_RED if risk > 0.5 else _BLUE
        )
    if t == steps:
        text = "✓ goal reached" if film.success else "goal not reached"
        tint = _VERDICT[Verdict.PASS][0] if film.success else _MUTED
        draw.text((x, PICTURE - 14), text, font=font(14, bold=True), fill=tint, anchor="lm")


def _bar(draw: ImageDraw.ImageDraw, film: Film, t: int, i: int, name: str, y: int) -> None:
    """One action entry: filled is what was executed, the outline what was asked for."""
    x, middle, half = PICTURE + 16, PICTURE + 102, 54
    draw.text((x, y + 6), name, font=font(12), fill=_INK, anchor="lm")
    draw.line((middle, y - 2, middle, y + 14), fill=_MUTED)
    done = float(np.clip(film.action[t, i], -1.2, 1.2))
    asked = float(np.clip(np.nan_to_num(film.proposed[t, i]), -1, 1))
    ends = sorted((middle, middle + done * half))
    draw.rectangle((ends[0], y + 1, ends[1], y + 11), fill=_BLUE)
    ends = sorted((middle, middle + asked * half))
    draw.rectangle((ends[0], y - 1, ends[1], y + 13), outline=_INK)
    value = film.action[t, i] * film.action_scale[i]
    metres = film.action_unit == "m"
    text = f"{1e3 * value:+.0f} mm" if metres else f"{value:+.2f} {film.action_unit}"
    draw.text((WIDTH - 16, y + 6), text.replace("-", "−"), font=font(11), fill=_INK, anchor="rm")


def _timeline(draw: ImageDraw.ImageDraw, film: Film, t: int) -> None:
    """The whole episode as a strip: verdicts up to now, contacts as red marks, a cursor."""
    left, right, y, steps = 16, WIDTH - 16, 14, len(film)

    def at(step: float) -> float:
        return left + (right - left) * step / steps

    draw.rectangle((left, y, right, y + 8), fill=_LINE)
    for step in range(t):
        tint = _VERDICT[Verdict(int(film.verdict[step]))][0]
        draw.rectangle((at(step), y, at(step + 1), y + 8), fill=tint)
        if film.cost[step] > 0:
            draw.rectangle((at(step), y - 8, max(at(step + 1) - 1, at(step) + 1), y - 3), fill=_RED)
    draw.rectangle((at(t) - 1, y - 4, at(t) + 1, y + 12), fill=_INK)
    draw.text(
        (left, y + 20),
        "filter verdict; red marks above: contact",
        font=font(9),
        fill=_MUTED,
        anchor="lm",
    )

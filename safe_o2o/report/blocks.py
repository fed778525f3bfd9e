"""What a section of the page is made of. The template knows these and nothing about learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    """An inline SVG with a caption and the command that reproduces it."""

    svg: str
    caption: str
    command: str = ""
    kind: str = "figure"


@dataclass(frozen=True)
class Figures:
    """Figures side by side where there is room; `dense` for small multiples."""

    figures: Sequence[Figure]
    title: str = ""
    dense: bool = False
    folded: bool = False
    kind: str = "figures"


@dataclass(frozen=True)
class Table:
    """A table; columns whose index is in `text` are left-aligned, the others are numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    command: str = ""
    text: frozenset[int] = frozenset({0})
    mono: frozenset[int] = frozenset()
    title: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Clip:
    """A film and its still as data URIs."""

    uri: str
    poster: str
    mime: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True)
class Clips:
    """Films side by side."""

    title: str
    clips: Sequence[Clip]
    kind: str = "clips"


@dataclass(frozen=True)
class Missing:
    """A stage that has not run: what is missing and which command makes it."""

    what: str
    command: str
    kind: str = "missing"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Listing:
    """Folded text in a fixed-width font: a configuration, commands."""

    title: str
    text: str
    open: bool = False
    kind: str = "listing"


@dataclass(frozen=True)
class Command:
    """A command by itself."""

    text: str
    kind: str = "command"


Block = Figures | Table | Clips | Missing | Text | Listing | Command


@dataclass(frozen=True)
class Card:
    """One headline number.

    Attributes:
        label: what it is.
        value: the number, large.
        detail: interval and sample size.
        verdict: comparison with a bar, empty for none.
        met: whether the bar is met; None where there is none.
    """

    label: str
    value: str
    detail: str
    verdict: str = ""
    met: bool | None = None


@dataclass
class Section:
    """A section of the page, in reading order."""

    id: str
    title: str
    lead: str
    blocks: list[Block] = field(default_factory=list)

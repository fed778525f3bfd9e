"""The look of every figure: one palette of roles, and matplotlib SVG that follows the page's theme.

Figures are drawn with stand-in colours that the page's style sheet resolves (`var(--policy)`, ...),
so that one SVG serves the light and the dark page; text stays text in the page's own font.
"""

from __future__ import annotations

import io
import re

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROLES = (
    "ink",
    "muted",
    "grid",
    "card",
    "policy",
    "finetuned",
    "mixture",
    "random",
    "expert",
    "unsafe",
    "success",
    "violation",
    "pass",
    "corrected",
    "stopped",
    "other",
)
"""Names of the style sheet's colour variables."""

_STAND_IN = {role: f"#fe{number:02x}ed" for number, role in enumerate(ROLES)}
_VARIABLE = {stand_in: f"var(--{role})" for role, stand_in in _STAND_IN.items()}
_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "safe_o2o",
    "font.size": 11.5,
    "font.family": "DejaVu Sans",
    "axes.unicode_minus": True,
    "path.simplify": True,
}


def colour(role: str) -> str:
    """The stand-in of a palette role, for matplotlib.

    Raises:
        KeyError: no such role.
    """
    return _STAND_IN[role]


def panel(
    width: float, height: float, *, left: float, right: float, top: float, bottom: float
) -> tuple[Figure, Axes]:
    """A figure of `width` x `height` CSS pixels with one pair of axes, margins in pixels."""
    figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
    axes = figure.add_axes(
        (
            left / width,
            bottom / height,
            (width - left - right) / width,
            (height - top - bottom) / height,
        )
    )
    axes.set_facecolor("none")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, pad=6, labelcolor=colour("muted"), labelsize=10.5)
    axes.set_axisbelow(True)
    return figure, axes


def gridlines(axes: Axes, axis: str) -> None:
    """Thin lines behind the data, along one axis."""
    axes.grid(True, axis="x" if axis == "x" else "y", color=colour("grid"), linewidth=0.8)


def to_svg(figure: Figure, name: str, label: str) -> str:
    """Serialise a figure for inlining.

    Args:
        figure: what to draw.
        name: unique in the page; prefixes every id.
        label: text for those who cannot see the figure.

    Returns:
        An `<svg>` element whose bytes depend on the figure alone.
    """
    buffer = io.StringIO()
    with rc_context(_RC):  # type: ignore[arg-type]
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Its style element would hold for the whole page; report.css has the rule for figures alone.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"#fe[0-9a-f]{2}ed", lambda m: _VARIABLE.get(m[0], m[0]), svg)
    svg = re.sub(r"font-family: [^;\"]+;?\s*", "", svg)
    svg = re.sub(r"font: ((?:\S+ )*?[\d.]+px) [^;\"]+", r"font: \1 var(--sans)", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'xlink:href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    width = float(box[1]) if box else 400.0
    head = (
        f'<svg class="figure" role="img" aria-label="{_attribute(label)}" '
        f'style="max-width:{width * 1.15:.0f}px" viewBox="{box[0][9:-1] if box else ""}" '
        'xmlns="http://www.w3.org/2000/svg">'
    )
    body = svg[svg.index(">") + 1 :]
    return head + re.sub(r"\n\s*", "\n", body).strip()


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")

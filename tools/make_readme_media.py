"""Make the README's pictures from a run: the arm at work and the report's first screen.

    python tools/make_readme_media.py runs/demo --out docs/media

The animation is the first clean success of the run's last round of online episodes (else of its
expert), by rule and not by looks. The screenshot needs Chromium or Chrome and websocket-client.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from browser import Browser
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import Episode
from safe_o2o.errors import DataError, SafeO2OError
from safe_o2o.files import write_atomic
from safe_o2o.report import episodes as ep
from safe_o2o.report.closeup import CloseUp
from safe_o2o.report.films import SPEED
from safe_o2o.report.overlay import PICTURE, compose
from safe_o2o.report.page import build_report
from safe_o2o.report.run_files import RunFiles
from safe_o2o.report.videos import animation

ANIMATION_BYTES, SCREENSHOT_BYTES = 1_500_000, 400_000


def choose(run: Path) -> tuple[Episode, str]:
    """The episode to show, and its title.

    Raises:
        DataError: the run has no clean success.
    """
    files = RunFiles(run)
    rounds = [
        r for r in ep.rounds(ep.load(files, "online"), files.rounds(), files.episode_lines()) if r.n
    ]
    candidates = [(e, "fine-tuned policy") for r in rounds[-1:] for e in r.episodes]
    if (run / "dataset").is_dir():
        candidates += [(e, e.meta.behavior) for e in Dataset(run / "dataset")]
    for episode, title in candidates:
        if episode.success and not ep.violated(episode):
            return episode, title
    raise DataError("has no episode that succeeded without contact", where=run)


def arm(run: Path) -> bytes:
    """The animation, at the best quality that keeps it small.

    Raises:
        DataError: no episode, or one without pictures.
    """
    episode, title = choose(run)
    variant = f" · {episode.meta.variant}" if episode.meta.variant else ""
    # Offline episodes have the same names, and no lines.
    lines = RunFiles(run).episode_lines() if episode.path.parent.name == "online" else {}
    with CloseUp(PICTURE) as closeup:
        film = ep.film(episode, title, f"seed {episode.meta.seed}{variant}", closeup, lines)
    if film is None:
        raise DataError("holds no pictures", where=episode.path)
    frames, fps = compose(film), SPEED / episode.spec.action.period
    for quality in (80, 65, 50, 35, 20):
        data = animation(frames, fps, quality=quality)
        if len(data) < ANIMATION_BYTES:
            return data
    raise DataError(f"is too long to show in {ANIMATION_BYTES} bytes", where=episode.path)


def screenshot(page: Path, *, width: int = 1280, height: int = 1000) -> bytes:
    """The first screen of a page, small enough for a README."""
    # The browser's helpers may still write to their profile when it has closed.
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with folder as profile, Browser(profile) as browser:
        browser.open(page, width=width, height=height)
        picture = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
    for colours in (None, 256, 128, 64):  # a palette only where true colour is too large
        buffer = io.BytesIO()
        reduced = picture if colours is None else picture.quantize(colours)
        reduced.save(buffer, "png", optimize=True)
        if buffer.tell() < SCREENSHOT_BYTES:
            break
    return buffer.getvalue()


def main() -> int:
    """Make both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, default=Path("docs/media"), help="folder to write to")
    arguments = parser.parse_args()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, make in (
            ("arm.webp", lambda: arm(arguments.run)),
            ("report.png", lambda: screenshot(build_report(arguments.run))),
        ):
            data = make()
            write_atomic(arguments.out / name, data)
            print(f"{arguments.out / name}: {len(data) / 1e3:.0f} kB")
    except SafeO2OError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

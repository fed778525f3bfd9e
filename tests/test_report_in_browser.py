"""The report in a real browser, from disk: it is quiet, asks nobody, and everything plays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from safe_o2o.report.page import build_report
from tests.report_fakes import make_run

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
pytest.importorskip("websocket", reason="needs the package websocket-client")
import browser

pytestmark = pytest.mark.skipif(
    browser.find() is None, reason=f"no Chromium or Chrome on PATH ({', '.join(browser.NAMES)})"
)

PLAY = """(async () => {
  const out = [];
  for (const film of document.querySelectorAll("video")) {
    film.pause();
    film.muted = true;
    film.scrollIntoView();
    for (let i = 0; i < 100 && film.readyState < 2; i++) await new Promise(r => setTimeout(r, 50));
    const ready = film.readyState, start = film.currentTime;
    await film.play();
    for (let i = 0; i < 60 && film.currentTime === start; i++)
      await new Promise(r => setTimeout(r, 50));
    out.push({ready, advanced: film.currentTime !== start, seconds: film.duration,
              width: film.videoWidth, error: film.error && film.error.message});
    film.pause();
  }
  return out;
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    return build_report(make_run(tmp_path_factory.mktemp("runs") / "demo"))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser.Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def opened(chromium, page):
    chromium.events.clear()
    chromium.open(page)
    return chromium


def test_quiet_and_alone(opened) -> None:
    films = opened.evaluate(PLAY)
    assert len(films) == 7
    for film in films:
        assert film["error"] is None and film["ready"] >= 2 and film["advanced"], film
        assert film["seconds"] > 1 and film["width"] == 608
    loud = [
        event["params"]
        for event in opened.events
        if event["method"]
        in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    ]
    assert loud == []
    urls = [
        event["params"]["request"]["url"]
        for event in opened.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert urls and all(url.startswith(("file:", "data:", "blob:")) for url in urls)
    assert not [e for e in opened.events if e["method"] == "Network.loadingFailed"]


def test_every_picture_is_there(opened) -> None:
    widths = opened.evaluate("[...document.images].map(i => i.complete && i.naturalWidth)")
    assert all(widths)
    sizes = opened.evaluate(
        "[...document.querySelectorAll('svg.figure')].map(s => s.getBoundingClientRect())"
        ".filter(b => b.width || b.height).map(b => [b.width, b.height])"
    )
    assert len(sizes) > 25 and all(w > 150 and h > 50 for w, h in sizes)
    posters = opened.evaluate(
        "Promise.all([...document.querySelectorAll('video')].map(v => { const i = new Image();"
        " i.src = v.poster; return i.decode().then(() => i.naturalWidth); }))"
    )
    assert posters == [608] * 7


@pytest.mark.parametrize("width", [360, 1280])
def test_fits_the_window_in_both_themes(chromium, page, width) -> None:
    backgrounds = set()
    for dark in (False, True):
        chromium.open(page, width=width, dark=dark)
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width
        backgrounds.add(chromium.evaluate("getComputedStyle(document.body).backgroundColor"))
        # Text of a figure takes the theme's ink, not black.
        ink = chromium.evaluate(
            "[...new Set([...document.querySelectorAll('svg.figure text')]"
            ".map(t => getComputedStyle(t).fill))]"
        )
        assert "rgb(0, 0, 0)" not in ink
    assert len(backgrounds) == 2


def test_text_of_figures_stays_inside_and_apart(opened) -> None:
    spilled = opened.evaluate(
        "[...document.querySelectorAll('svg.figure')].flatMap(s => { const b ="
        " s.getBoundingClientRect(); return [...s.querySelectorAll('text')].filter(t => { const c ="
        " t.getBoundingClientRect(); return b.width && c.width && (c.left < b.left - 1 ||"
        " c.right > b.right + 1 || c.bottom > b.bottom + 1 || c.top < b.top - 1); })"
        ".map(t => s.getAttribute('aria-label').slice(0, 30) + ': ' + t.textContent); })"
    )
    assert spilled == []

"""The page: whole, partial and damaged runs; nothing from outside; same files, same bytes."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from safe_o2o.errors import DataError, StorageError
from safe_o2o.report import films
from safe_o2o.report.page import build_report
from safe_o2o.report.theme import ROLES
from tests.report_fakes import make_dataset, make_eval, make_metrics, make_run

STYLE = Path(films.__file__).parent / "templates" / "report.css"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def page(run) -> str:
    return build_report(run).read_text()


def text_of(page: str) -> str:
    """What a reader sees, figures included; thin spaces become none."""
    page = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", " ", page).replace("\u2009", "")
    return " ".join(text.split())


def section(page: str, name: str) -> str:
    return text_of(page[page.index(f'<section id="{name}">') :].partition("</section>")[0])


def test_headline_says_what_the_files_say(page) -> None:
    text = section(page, "headline")
    assert "96% (90–98)" in text and "57% (47–66)" in text and "4% (2–10)" in text
    assert "1.68× (1.41–2.01) ≥ 1.50× ✓ met" in text
    assert "0.11× (0.04–0.30) ≤ 0.50× ✓ met" in text
    header = text_of(page.partition("<main>")[0])
    assert "50 → 97%" in header and "41 → 3%" in header and "✗" not in header


def test_every_section_has_its_content(page) -> None:
    assert "reward prediction loss" in section(page, "train")
    assert "Lagrange multiplier" in section(page, "train")
    assert "safe-o2o evaluate random --out runs/demo" in section(page, "evaluation")
    online = section(page, "online")
    assert "50% (24–76)" in online and "100% (72–100)" in online  # Wilson for 5 and 10 of 10
    assert "clock ran at up to 5.9 times real time" in online
    assert "✗ refused" in online and "held-out loss rose" in online and "v000004" in online
    assert "mean disagreement 0.6 ✓ 0.21 ✓ 0.34 ✗ 0.72 ✓ 0.3" in online
    assert "75 updates so far" in online and "300 updates so far" in online
    bundles = section(page, "bundles")
    assert "v000004 (live) fosp step 1500, round 2 9.6e−6 ✓ met 200 4444444444444444" in bundles
    assert bundles.count("(live)") == 1 and bundles.count("✓ met") == 4
    assert "blue_obstacles" in section(page, "films")
    assert "11.8 ms" in section(page, "latency")
    provenance = section(page, "provenance")
    assert (
        "ab" * 32 in provenance and "AMD EPYC" in provenance and "8 min 42 s in all" in provenance
    )
    assert page.count("<video ") == 7  # two before, two after, three scripts
    assert "Not here yet" not in page


def test_filter_section_counts_the_episodes(run, page) -> None:
    from safe_o2o.data.dataset import Dataset

    verdicts: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    for folder in ("dataset", "online"):
        for episode in Dataset(run / folder):
            verdicts.update(episode.array("verdict").tolist())
            reasons.update(reason for reason in episode.reasons if reason)
    touched, total = verdicts[1] + verdicts[2], verdicts.total()
    text = section(page, "filter")
    assert f"the {touched} policy steps that did not simply pass, of {total} in all" in text
    for reason, count in reasons.items():
        assert re.search(rf"{count} \({round(100 * count / touched)}%\)", text), reason
        assert reason in text


class References(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "poster", "srcset", "action", "data"):
                self.found.append(value)
            if name == "id":
                self.ids.append(value)


def test_nothing_comes_from_outside_and_links_hit(page) -> None:
    parser = References()
    parser.feed(page)
    assert parser.found and all(ref.startswith(("data:", "#")) for ref in parser.found)
    inner = {ref[1:] for ref in parser.found if ref.startswith("#")}
    inner |= set(re.findall(r"url\(#([^)\"']+)\)", page))
    assert inner <= set(parser.ids)
    assert len(parser.ids) == len(set(parser.ids))
    outside = set(re.findall(r"https?://[^\s\"'<)]+", page)) - {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink",
    }  # fmt: skip
    assert not outside and "@import" not in page
    assert "url(" not in STYLE.read_text()


def test_figures_are_well_formed_and_follow_the_theme(page) -> None:
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(svgs) > 25
    defined = set(re.findall(r"--([a-z]+):", STYLE.read_text()))
    for svg in svgs:
        ElementTree.fromstring(svg)
        assert 'aria-label="' in svg
        assert not re.search(r"#fe[0-9a-f]{2}ed", svg)
        assert set(re.findall(r"var\(--([a-z]+)\)", svg)) <= defined
        assert not re.findall(r"(?:fill|stroke): #(?!000000)\w+", svg), "a colour outside the theme"


def test_colours_have_enough_contrast() -> None:
    # WCAG 2.1, 1.4.3: text 4.5 : 1 against its background, in both themes.
    light, dark = STYLE.read_text().split("@media (prefers-color-scheme: dark)")
    for css in (light, dark.partition("}\n}")[0]):
        colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", css))
        for role in (set(ROLES) | {"accent"}) - {"grid", "card"}:
            assert contrast(colours[role], colours["card"]) >= 4.5, role
        assert contrast(colours["muted"], colours["page"]) >= 4.5


def contrast(one: str, other: str) -> float:
    def luminance(text: str) -> float:
        channels = np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(
            channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ (0.2126, 0.7152, 0.0722))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_same_files_same_bytes(run, page, tmp_path) -> None:
    assert build_report(run, tmp_path / "new" / "again.html").read_text() == page


def test_page_stays_small(run, monkeypatch, tmp_path) -> None:
    assert (run / "report.html").stat().st_size < 2_000_000
    monkeypatch.setattr(films, "BUDGET", 60_000)
    page = build_report(run, tmp_path / "small.html").read_text()
    assert 0 < page.count("<video ") < 7 and "films were left out" in page


def test_empty_run_names_the_commands(tmp_path) -> None:
    page = build_report(tmp_path).read_text()
    assert page.count("Not here yet") >= 8
    for verb in ("train", "evaluate", "demo"):
        assert f"safe-o2o {verb} " in page
    assert "<svg" not in page and "<video" not in page


@pytest.mark.parametrize("stage", ["dataset", "train", "eval"])
def test_partial_run_shows_what_there_is(tmp_path, stage) -> None:
    make = {
        "dataset": lambda: make_dataset(tmp_path),
        "train": lambda: make_metrics(tmp_path / "checkpoints" / "metrics.jsonl", steps=90),
        "eval": lambda: make_eval(tmp_path),
    }
    made = {"dataset": "filter", "train": "train", "eval": "evaluation"}
    make[stage]()
    page = build_report(tmp_path).read_text()
    for name in ("train", "evaluation", "filter", "latency", "online"):
        says_missing = "Not here yet" in section(page, name)
        shown = name == made[stage] or (stage == "eval" and name == "filter")
        assert says_missing != shown, name


def test_damaged_files_become_notes(run, tmp_path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    episode = sorted((copy / "online").glob("episode_*"))[3]
    episode.write_bytes(episode.read_bytes()[:-100])
    (copy / "eval" / "mixture.json").write_text("{")
    (copy / "deploy" / "rounds.json").write_text('{"rounds": 3}')
    (copy / "deploy" / "latency.json").write_text("[1]")
    (copy / "run.json").write_text("")
    (copy / "bundles" / "v000004" / "manifest.json").write_text("[")
    page = build_report(copy).read_text()
    text = section(page, "provenance")
    assert "What could not be read (7)" in text
    for name in (
        episode.name,
        "mixture.json",
        "rounds.json",
        "latency.json",
        "run.json",
        "manifest.json",
    ):
        assert name in text
    assert "No evaluation of the behaviour mixture" in page
    assert "39 episodes" in section(page, "filter")


def test_names_cannot_inject_markup(tmp_path) -> None:
    make_eval(tmp_path)
    path = tmp_path / "eval" / "offline.json"
    evil = '<script>alert("x")</script>'
    path.write_text(json.dumps({**json.loads(path.read_text()), "name": evil, "command": evil}))
    page = build_report(tmp_path).read_text()
    assert evil not in page and "<script>alert" not in page
    assert "&lt;script&gt;" in page


def test_no_such_run_and_no_such_place(run, tmp_path) -> None:
    with pytest.raises(DataError, match="no such run folder"):
        build_report(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        build_report(run, tmp_path / "file" / "report.html")


def test_larger_pictures_are_taken_where_they_fit(run, tmp_path) -> None:
    asked = []

    def render(episode):
        asked.append(len(episode))
        return np.full((len(episode) + 1, 96, 96, 3), 255, np.uint8) if len(asked) % 2 else None

    build_report(run, tmp_path / "big.html", render=render)
    assert len(asked) == 7

"""The table of methods: nothing measured twice, nothing pooled that was not made alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from safe_o2o.errors import ConfigError, DataError
from safe_o2o.report import standings
from safe_o2o.report.learning_curve import draw
from safe_o2o.report.standings import Row

ROW = Row(
    task="safe_reach",
    method="fosp",
    seed=0,
    scene="standard",
    phase="before",
    settings={"updates": 6000},
    n=200,
    success=190,
    violation=4,
    return_=0.95,
    cost=0.1,
    updates=6000,
    seconds=1500.0,
    cpu_seconds=1490.0,
    made_by={"commit": "abc"},
)


def cells(table: str, line: int) -> list[str]:
    return [cell.strip() for cell in table.splitlines()[line].strip("|").split("|")]


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    rows = [ROW, replace(ROW, seed=1)]
    for row in rows:
        standings.append(path, row)
    assert standings.read(path) == rows
    assert standings.read(tmp_path / "none.jsonl") == []


def test_only_what_was_chosen_makes_a_measurement_another_one() -> None:
    remade = replace(ROW, n=7, success=1, seconds=3.0, made_by={"commit": "other"})
    assert remade.key == ROW.key
    for change in (
        {"task": "safe_reach_2"},
        {"method": "dreamer"},
        {"seed": 1},
        {"scene": "shape"},
        {"phase": "after"},
        {"settings": {"updates": 7000}},
    ):
        assert replace(ROW, **change).key != ROW.key


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    standings.append(path, ROW)
    with open(path, "a") as file:
        file.write('{"task": "safe_re\n')
    with pytest.raises(DataError, match="line 2"):
        standings.read(path)


def test_rates_are_pooled_over_seeds_with_their_interval() -> None:
    rows = [ROW, replace(ROW, seed=1, success=200, violation=0)]
    rows += [
        replace(ROW, scene="shape", phase=phase, n=40, success=30) for phase in standings.PHASES
    ]
    table = standings.table(rows, "safe_reach")
    found = dict(zip(cells(table, 0), cells(table, 2), strict=True))
    # 390 and 4 of 400, Wilson by hand: centre (p + z^2/2n)/(1 + z^2/n), z = 1.96.
    assert found["seen"] == "97.5 (95 to 99)/1 (0 to 3)"
    assert found["seeds"] == "0, 1" and found["n"] == "40 to 200"
    assert found["shape"] == "75/10 → 75/10 → 75/10" and found["training, processor min"] == "25"


def test_other_settings_are_another_line() -> None:
    rows = [ROW, replace(ROW, settings={"updates": 100}, success=0), replace(ROW, method="dreamer")]
    table = standings.table(rows, "safe_reach")
    assert [cells(table, line)[0] for line in (2, 3, 4)] == ["fosp", "fosp", "dreamer"]
    assert cells(table, 3)[3].startswith("0 ")


def test_navigation_stands_beside_the_paper() -> None:
    task = "safety_point_goal1"
    rows = [
        replace(ROW, task=task, seed=seed, phase=phase, return_=r, cost=c)
        for seed, phase, r, c in (
            (0, "before", 10.0, 4.0),
            (1, "before", 14.0, 6.0),
            (0, "after", 15.0, 1.0),
        )
    ]
    table = standings.table(rows, task)
    found = dict(zip(cells(table, 0), cells(table, 2), strict=True))
    assert found["offline R / C"] == "12 ± 2.8 / 5 ± 1.4"
    assert found["after R / C"] == "15 / 1"
    assert (found["paper offline"], found["paper after"]) == ("18.7 / 1.4", "21.5 / 0.2")
    assert "Nothing was measured" in standings.table(rows, "safe_reach")


def test_one_seed_has_the_spread_of_its_episodes() -> None:
    task = "safety_point_goal1"
    row = replace(ROW, task=task, n=100, return_=12.0, cost=3.0, return_sd=5.0, cost_sd=10.0)
    mean, side = standings.spread([row], "return")
    assert (mean, side) == pytest.approx((12.0, 0.98))
    assert "12 ± 0.98 / 3 ± 2" in standings.table([row], task)
    old = replace(row, return_sd=None, cost_sd=None)  # a line of before
    assert "12 / 3" in standings.table([old], task)
    assert standings.spread([row, replace(row, return_=14.0)], "return") == pytest.approx(
        (13, 2**0.5)
    )


def test_the_way_through_training_is_a_table_and_a_picture(tmp_path: Path) -> None:
    task = "safety_point_goal1"
    rows = [
        replace(ROW, task=task, phase=phase, updates=updates, return_=r, return_sd=4.0, cost_sd=9.0)
        for phase, updates, r in (
            ("learning", 2000, 5.0), ("learning", 4000, 8.0), ("before", 6000, 9.0),
            ("after", 6320, 10.0),
        )
    ]  # fmt: skip
    assert [row.updates for row in standings.curve(rows)] == [2000, 4000, 6000]
    assert rows[0].key != rows[1].key
    table = standings.table(rows, task)
    assert "| 2000 | 5 ±" in table and "| 6000 | 9 ±" in table and "10 ±" in table
    for ending, magic in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        path = tmp_path / "new" / f"curve.{ending}"
        draw(rows, task, path)
        assert path.read_bytes().startswith(magic)
    draw([ROW], ROW.task, tmp_path / "rates.png")
    with pytest.raises(DataError, match="nothing of safe_reach"):
        draw(rows, "safe_reach", tmp_path / "none.png")
    with pytest.raises(ConfigError, match="png"):
        draw(rows, task, tmp_path / "curve.txt")

"""Every row of the fault matrix, on the mock and on the twin."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fault_rows import ROWS, Row
from tests.rig import Body


@pytest.mark.parametrize("body", ["mock", "twin"])
@pytest.mark.parametrize("row", ROWS, ids=[row.run.__name__ for row in ROWS])
def test_a_fault_has_the_expected_reaction_within_its_bound(row: Row, body: Body) -> None:
    if body == "twin":
        pytest.importorskip("pybullet", reason="needs the simulator (pip install pybullet)")
    assert row.run(body)


def test_the_page_of_the_filter_has_every_row() -> None:
    page = (Path(__file__).parents[1] / "docs" / "filter.md").read_text("utf-8")
    for row in ROWS:
        assert f"| {row.fault} | {row.reaction} | {row.bound} | " in page

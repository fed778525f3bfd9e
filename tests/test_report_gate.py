"""The page on a gate says what its calibration says, and nothing where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from safe_o2o import config
from safe_o2o.report.gate import gate
from safe_o2o.report.intervals import wilson
from safe_o2o.report.page import build_report
from safe_o2o.runtime.gate_calibration import calibrate
from safe_o2o.safety.calibration import NOMINAL, reliability
from tests.report_fakes import make_run
from tests.test_gate_bundle import made_up


def with_gate(run: Path) -> Path:
    """The newest bundle of a run gets thresholds."""
    bundle = sorted((run / "bundles").glob("v*"))[-1]
    made = calibrate("graph", made_up(320, 40, 3.0)).gate
    (bundle / "gate.json").write_text(json.dumps(config.to_json(made)))
    return bundle


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = make_run(tmp_path_factory.mktemp("report") / "run")
    assert "The reachability gate" not in build_report(run).read_text()
    with_gate(run)
    return build_report(run).read_text()


def test_the_page_shows_scores_leads_and_reliability(page: str) -> None:
    assert "The reachability gate" in page
    for name in ("gate-scores", "gate-leads", "gate-reliability"):
        assert f'id="{name}' in page or name in page
    assert "own episodes" in page and "Detection is measured, not promised" in page


def test_a_gate_that_was_never_calibrated_is_said_to_be_idle() -> None:
    manifest = {"name": "v000001", "live": True, "outputs": [{"name": "candidate_risk"}]}
    (section,) = gate([manifest], "safe-o2o calibrate X")
    assert section.blocks[0].what.startswith("The gate was never calibrated")  # type: ignore[union-attr]
    assert not gate([{"name": "v000001", "live": True, "outputs": []}], "")


def test_the_reliability_is_that_of_exchangeable_episodes() -> None:
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(40):
        found = [(alpha, wilson(k, n)) for alpha, k, n in reliability(rng.random(200))]
        assert [alpha for alpha, _ in found] == list(NOMINAL)
        inside += [share.low <= alpha <= share.high for alpha, share in found]
    assert np.mean(inside) > 0.85
    # Episodes that become worse while they are recorded are not: the alarm is told to be off.
    drifting = np.where(np.arange(200) % 2, 1.0, 0.0) + 0.1 * rng.random(200)
    (rate,) = [wilson(k, n) for alpha, k, n in reliability(drifting) if alpha == 0.05]
    assert rate.low > 0.3

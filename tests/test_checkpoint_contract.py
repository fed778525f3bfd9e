"""Every algorithm of the catalogue goes on bit for bit from a checkpoint file."""

from __future__ import annotations

from pathlib import Path

import pytest

from safe_o2o import catalog
from safe_o2o import config as settings
from safe_o2o.training import checkpoint
from tests.synthetic import batch_of
from tests.test_algorithm_contract import build, require_same_state


@pytest.mark.parametrize("name", sorted(catalog.algorithms))
def test_resume_from_a_file_is_bitwise(name: str, tmp_path: Path) -> None:
    whole = build(name)
    for seed in range(2):
        whole.update(batch_of(whole, seed))
    meta = checkpoint.Meta(name, settings.to_json(whole.config), whole.spec.to_json())
    checkpoint.save(tmp_path, {"algorithm": whole.state_dict()}, meta, step=2)
    resumed = build(name)
    resumed.load_state_dict(checkpoint.load(tmp_path, meta)["algorithm"])
    for seed in range(2, 4):
        whole.update(batch_of(whole, seed))
        resumed.update(batch_of(resumed, seed))
    require_same_state(whole.state_dict(), resumed.state_dict())

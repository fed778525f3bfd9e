"""The gain of a critic's regression: known for a linear one, measured for others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safe_o2o import catalog
from safe_o2o.cli import main as cli
from safe_o2o.errors import ConfigError
from safe_o2o.training.offline import OfflineConfig, train_offline
from safe_o2o.training.regression_gain import Gain, regression_gain
from tests.test_learners import build


class Linear(nn.Module):
    """Q = w x: two members."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[1.0], [3.0]]))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.w * obs[:, 0]


def test_a_linear_critic_has_the_theorems_gain() -> None:
    """Fitted where the feature is 1, judged where it is 2: what is wrong there counts twice."""
    critic = Linear()
    learner: Any = SimpleNamespace(
        net={"value": SimpleNamespace(critic=critic)},
        config=SimpleNamespace(tau=0.001, learning_rate=0.05, batch_size=64, discount=0.9),
    )
    obs = torch.ones(600, 1)
    obs[:200] = 2.0
    action = torch.zeros(600, 1)
    found = regression_gain(learner, obs, action, held_out=200, patterns=2)
    assert found.constant == pytest.approx(2.0, rel=0.02) and found.worst >= found.constant
    assert found.steps_needed == 9  # 2 * 0.9^9 = 0.77, below 0.8
    assert [p.requires_grad for p in critic.parameters()] == [True]
    assert critic.w.flatten().tolist() == [1.0, 3.0]


def test_a_gain_below_the_margin_needs_one_step() -> None:
    assert Gain(0.5, 0.7, 0.5, 0.99).steps_needed == 1
    assert Gain(1.1, 1.1, 1.0, 0.99).steps_needed == 32
    assert Gain(1.1, 2.0, 1.0, 0.99).steps_needed == 92


def test_who_has_no_critic_says_so() -> None:
    with pytest.raises(ConfigError, match="no critic"):
        regression_gain(build("cloning"), torch.zeros(40, 7), torch.zeros(40, 3), held_out=8)
    with pytest.raises(ConfigError, match="needs 80 transitions"):
        regression_gain(build("iql"), torch.zeros(40, 7), torch.zeros(40, 3), held_out=40)


def test_the_verb_warns_of_a_lookahead_that_is_too_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gymnasium_robotics", reason="scripts/setup.sh --safety-gymnasium")
    words = ["collect", "--task", "point_maze_umaze", "--behaviors", "maze_wanderer"]
    words += ["--episodes", "24"]
    words = [*words, "--workers", "0", "--out", str(tmp_path / "data")]
    assert cli.main(words) == 0
    config = catalog.load("algorithm", "iql").preset("tiny")
    train_offline(
        "iql", config, tmp_path / "data", tmp_path / "checkpoints", OfflineConfig(threads=1)
    )
    verb = ["horizon", str(tmp_path / "checkpoints"), "--data", str(tmp_path / "data")]
    verb += ["--transitions", "1100"]
    capsys.readouterr()
    assert cli.main(verb) == 0
    assert "warning: m + H - 1 = 1 is short of" in capsys.readouterr().out
    assert cli.main([*verb, "--steps", "200", "--lookahead", "200"]) == 0
    assert "m + H - 1 = 399 is enough" in capsys.readouterr().out
    assert cli.main([*verb, "--steps", "0"]) == 2

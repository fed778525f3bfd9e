"""What the gate's heads learn: where there is no way out any more, and who would know."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from safe_o2o.algorithms.reachability import PRESETS, Reachability, ReachabilityConfig
from safe_o2o.data.batch import Batch, Index
from safe_o2o.errors import ConfigError, SpecMismatchError, UnknownNameError
from safe_o2o.spaces import ActionSpec, ArraySpec, ObservationSpec, Spec
from safe_o2o.training.latents import tracker
from tests.data_fakes import make_dataset
from tests.synthetic import SPEC, transition_batch
from tests.test_latents import save

LINE = Spec(
    ObservationSpec({"deter": ArraySpec((2,), "float32", "1")}),
    ActionSpec(("a",), "1", (-1,), (1,), 1),
)
CLIFF = 0.8


def moved(x: Tensor, a: Tensor) -> Tensor:
    """Beyond 0.4 the wind is stronger than any action: the cliff at 0.8 cannot be avoided there."""
    return x + 0.2 * a + 0.3 * (x > 0.4).float()


def transitions(seed: int, size: int = 128) -> Batch:
    g = torch.Generator().manual_seed(seed)
    x, a = torch.rand(size, 1, generator=g) * 1.6 - 0.8, torch.rand(size, 1, generator=g) * 2 - 1
    after = moved(x, a)
    flag, number = torch.zeros(size, dtype=torch.bool), torch.arange(size)
    return Batch(
        obs={"deter": torch.cat([x, x**2], -1)},
        next_obs={"deter": torch.cat([after, after**2], -1)},
        action=a,
        reward=torch.zeros(size),
        cost=(after[:, 0] >= CLIFF).float(),
        terminated=flag,
        truncated=flag,
        is_first=flag,
        mask=~flag,
        action_mask=~flag,
        index=Index(
            episode=number, step=number, record=number, origin=torch.zeros(size, dtype=torch.int64)
        ),
    )


@pytest.fixture(scope="module")
def learned() -> Reachability:
    config = replace(
        PRESETS["tiny"], reads=("deter",), total_updates=800, hidden_dims=(64, 64),
        critic_lr=2e-3, actor_lr=2e-3, predictor_lr=2e-3, margin_lr=2e-3, tau=0.02, novelty=False,
    )  # fmt: skip
    algorithm = Reachability(config, LINE)
    for update in range(config.total_updates):
        algorithm.update(transitions(update))
    return algorithm


def risk(algorithm: Reachability, x: float, a: float) -> float:
    state = torch.tensor([[x, x**2]])
    with torch.no_grad():
        return float(algorithm.heads.risks(state, torch.tensor([[a]])).amax(0))


def test_what_can_be_avoided_is_told_from_what_cannot(learned: Reachability) -> None:
    for x in (0.5, 0.6, 0.75):
        assert all(risk(learned, x, a) > 0.5 for a in (-1.0, 0.0, 1.0)), x  # nobody gets out
    for x in (-0.6, -0.2, 0.05):
        assert all(risk(learned, x, a) < 0.2 for a in (-1.0, 0.0, 1.0)), x
    # At 0.3 one action still decides it: 0.3 + 0.2 is beyond, 0.3 - 0.2 is not.
    assert risk(learned, 0.3, 1.0) > risk(learned, 0.3, -1.0) + 0.25


@pytest.mark.parametrize("told", [1.0, 0.5], ids=["all distances", "half of them"])
def test_where_distances_are_told_they_are_what_is_learned(told: float) -> None:
    config = replace(
        PRESETS["tiny"], reads=("deter",), total_updates=600, hidden_dims=(64, 64), novelty=False,
        critic_lr=2e-3, margin_lr=1e-2, tau=0.02, safe_distance=0.1, distance_scale=0.5,
    )  # fmt: skip
    algorithm = Reachability(config, LINE)
    for update in range(config.total_updates):
        batch = transitions(update)
        assert batch.next_obs is not None
        clearance = (CLIFF - batch.next_obs["deter"][:, 0]).clamp(min=0.0)
        clearance[int(told * len(clearance)) :] = torch.nan  # a real arm's, nobody knows
        metrics = algorithm.update(replace(batch, clearance=clearance))
        assert all(math.isfinite(value) for value in metrics.values())
    assert "margin/error" in metrics and "margin/loss" not in metrics
    x = torch.linspace(-0.7, 0.6, 8)  # up to the jump at the cliff
    with torch.no_grad():
        margin = torch.tanh(algorithm.heads.margin(torch.stack([x, x**2], -1)))
    expected = -((0.1 - (CLIFF - x)) / 0.5).clamp(-1.0, 1.0)
    assert (margin - expected).abs().max() < 0.15
    # Far from the cliff the risk says how far: what contacts alone cannot tell.
    assert risk(algorithm, -0.3, 0.0) < -0.6 and risk(algorithm, 0.6, 0.0) > 0.5


def test_the_recovery_policy_leads_away(learned: Reachability) -> None:
    for x in (0.3, 0.38):
        action = learned.policy.act({"deter": torch.tensor([[x, x**2]])}, {})[0]
        assert float(action) < -0.3, x
        assert float(moved(torch.tensor([[x]]), action)) < 0.4


def test_the_ensemble_disagrees_about_what_it_has_not_seen(learned: Reachability) -> None:
    heads, a = learned.heads, torch.zeros(1, 1)
    with torch.no_grad():
        known = [
            float(heads.disagreement(torch.tensor([[x, x**2]]), a)) for x in (-0.5, 0.1, 0.3, 0.6)
        ]
        odd = [
            float(heads.disagreement(torch.tensor([state]), a))
            for state in ((-0.5, 2.5), (-3.0, -3.0))
        ]
    assert min(odd) > max(known) + 1.0


def test_each_predictor_has_its_own_share_of_the_episodes() -> None:
    algorithm = Reachability(replace(PRESETS["small"], reads=("deter",)), LINE)
    sees = algorithm._sees(transitions(0, size=4000))
    np.testing.assert_allclose(sees.mean(1).numpy(), 0.8, atol=0.03)
    pairs = np.corrcoef(sees.numpy()) - np.eye(len(sees))
    assert np.abs(pairs).max() < 0.1  # each its own
    assert torch.equal(sees, algorithm._sees(transitions(1, size=4000)))  # and always the same


def test_the_schedule_begins_without_a_future_and_ends_at_the_discount() -> None:
    algorithm = Reachability(replace(PRESETS["tiny"], total_updates=1000), LINE_STATES)
    found = []
    for step in (0, 24, 25, 500, 1000):
        algorithm.step = step
        found.append(algorithm.discount)
    assert found[:2] == [0.0, 0.0] and found[2] == 0.85
    assert found[3] < found[4] < 0.99
    assert found[4] == pytest.approx(0.99 - 0.14 * 0.95 ** (975 // 20))


LINE_STATES = Spec(
    ObservationSpec({n: ArraySpec((4,), "float32", "1") for n in ("deter", "stoch", "embed")}),
    SPEC.action,
)


def test_imagined_states_are_learned_from_where_no_embedding_is_read(tmp_path: Path) -> None:
    raw = make_dataset(tmp_path / "raw", [30, 20], size=64)
    save(tmp_path / "model", raw, "fosp", "tiny", updates=1)
    made = tracker(tmp_path / "model", "state")
    config = replace(PRESETS["tiny"], reads=("deter", "stoch"))
    algorithm = Reachability(config, made.latent_spec)
    assert algorithm.imagines and not Reachability(PRESETS["tiny"], made.latent_spec).imagines
    algorithm.use_model(made)
    sizes = {name: array.shape[0] for name, array in made.latent_spec.observation.arrays.items()}
    base = transition_batch(0)

    def state() -> dict[str, Tensor]:
        return {name: torch.rand(len(base), size) for name, size in sizes.items()}

    batch = replace(base, obs=state(), next_obs=state(), action=base.action[:, :1])
    metrics = algorithm.update(batch)
    assert all(math.isfinite(value) for value in metrics.values())
    feature, action, after, violated, ended, novelty, told = algorithm._imagined(batch)
    assert bool((told.isfinite() == (violated > 0)).all())  # nobody measures what is imagined
    rows = len(feature)
    assert config.imagined <= rows <= config.imagined * config.horizon
    assert after.shape == feature.shape == (rows, sizes["deter"] + sizes["stoch"])
    assert action.shape == (rows, 1) and float(action.abs().max()) <= 1.0
    assert violated.shape == ended.shape == novelty.shape == (rows,)
    with torch.no_grad():  # a cost head that sees violations everywhere ends each at its first step
        for parameter in made.net.model.cost.mlp.output.parameters():
            parameter.fill_(0.0)
        made.net.model.cost.mlp.output.bias.fill_(1.0 if made.net.model.cost.two_hot is None else 0)
    algorithm.use_model(made)
    violated = algorithm._imagined(batch)[3]
    assert len(violated) == config.imagined and bool(violated.all())


def test_settings_that_make_no_sense_are_refused() -> None:
    for change, word in (
        ({"reads": ("stoch",)}, "needs deter"),
        ({"reads": ("stoch", "deter")}, "in this order"),
        ({"discount": 0.5}, "discount"),
        ({"predictor_share": 0.0}, "predictor_share"),
        ({"critics": 0}, "critics"),
    ):
        with pytest.raises(ConfigError, match=word):
            ReachabilityConfig(**change)  # type: ignore[arg-type]
    with pytest.raises(SpecMismatchError, match="--what state"):
        Reachability(PRESETS["tiny"], SPEC)
    with pytest.raises(UnknownNameError, match="small"):
        Reachability.preset("smal")

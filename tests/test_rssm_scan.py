"""The recurrence written out by hand against autograd through the plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from safe_o2o.nets.distribution import gumbel_noise, straight_through_sample, unimix
from safe_o2o.nets.rssm import RSSM, NormGRUCell
from safe_o2o.nets.rssm_recurrence import RecurrenceWeights
from safe_o2o.nets.rssm_scan import scan

T, B, D, L, C, H, EPS, MIX = 6, 5, 7, 3, 4, 8, 1e-3, 0.02
NAMES = ("moved", "seen", "deter", *RecurrenceWeights._fields)


def _inputs(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    given = {"moved": draw(T, B, H), "seen": draw(T, B, H), "deter": draw(D)}
    shapes = ((H, L * C), (H,), (H,), (3 * D, D + H), (3 * D,), (3 * D,), (H, D), (H,), (H,))
    shapes = (*shapes, (L * C, H), (L * C,))
    given |= {
        name: draw(*shape) for name, shape in zip(RecurrenceWeights._fields, shapes, strict=True)
    }
    return {name: value.requires_grad_() for name, value in given.items()}


def _constants(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Episode starts in the middle, at record 0 of some rows; noise; the initial one-hots."""
    generator = torch.Generator().manual_seed(4)
    first = torch.zeros(T, B, 1, dtype=dtype)
    first[0, :3], first[2, 1], first[3, 4], first[4, 4] = 1.0, 1.0, 1.0, 1.0
    noise = gumbel_noise((T, B, L, C), generator, first)
    stoch = nn.functional.one_hot(torch.tensor([1, 0, 3]), C).to(dtype).flatten()
    return first, noise, stoch


def _plain(
    x: dict[str, Tensor], dtype: torch.dtype, mix: float = MIX
) -> tuple[Tensor, Tensor, Tensor]:
    first, noise, stoch0 = _constants(dtype)
    norm, silu = nn.functional.layer_norm, nn.functional.silu
    deter, stoch = x["deter"].expand(B, -1), stoch0.expand(B, -1)
    out: list[tuple[Tensor, Tensor, Tensor]] = []
    for t in range(T):
        if t > 0:
            deter = deter * (1 - first[t]) + x["deter"] * first[t]
            stoch = stoch * (1 - first[t]) + stoch0 * first[t]
        pre = x["moved"][t] + stoch @ x["by_stoch"].T
        layer = silu(norm(pre, (H,), x["in_scale"], x["in_shift"], EPS))
        y = torch.cat([deter, layer], -1) @ x["gru"].T
        y = norm(y, (3 * D,), x["gru_scale"], x["gru_shift"], EPS)
        deter = NormGRUCell.gate(y, deter)
        pre = x["seen"][t] + deter @ x["by_deter"].T
        layer = silu(norm(pre, (H,), x["out_scale"], x["out_shift"], EPS))
        logits = layer @ x["stats"].T + x["stats_shift"]
        log_p = unimix(logits.unflatten(-1, (L, C)), mix)
        stoch = straight_through_sample(log_p, noise[t]).flatten(-2)
        out.append((deter, stoch, log_p))
    deters, stochs, log_ps = (torch.stack(parts) for parts in zip(*out, strict=True))
    return deters, stochs, log_ps


def _by_hand(
    x: dict[str, Tensor], dtype: torch.dtype, mix: float = MIX
) -> tuple[Tensor, Tensor, Tensor]:
    first, noise, stoch = _constants(dtype)
    weights = RecurrenceWeights(**{name: x[name] for name in RecurrenceWeights._fields})
    return scan(x["moved"], x["seen"], first, noise, x["deter"], stoch, weights, mix=mix, eps=EPS)


def _gradients(
    x: dict[str, Tensor], out: tuple[Tensor, Tensor, Tensor], used: tuple[int, ...]
) -> dict[str, Tensor]:
    """Of a sum that weighs every entry of the outputs in use differently."""
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in out]
    total = sum((out[i] * weights[i].to(out[i].dtype)).sum() for i in used)
    assert isinstance(total, Tensor)
    found = torch.autograd.grad(total, [x[name] for name in NAMES])
    return dict(zip(NAMES, found, strict=True))


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1, 2)])
def test_gradients_are_those_of_autograd(used: tuple[int, ...]) -> None:
    dtype = torch.float64
    x = _inputs(dtype)
    want, got = _plain(x, dtype), _by_hand(x, dtype)
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)
    expected, found = _gradients(x, want, used), _gradients(x, got, used)
    for name in NAMES:
        assert expected[name].abs().max() > 1e-6, name  # nothing is compared with nothing
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-11, msg=name)


def test_without_a_uniform_share_nothing_is_infinite() -> None:
    """Also where a class is so unlikely that its probability is zero in float32."""
    dtype = torch.float64
    x = _inputs(dtype)
    want, got = _plain(x, dtype, 0.0), _by_hand(x, dtype, 0.0)
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)
    expected, found = _gradients(x, want, (0, 1, 2)), _gradients(x, got, (0, 1, 2))
    for name in NAMES:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-11, msg=name)
    sharp = {name: value.detach().float().requires_grad_() for name, value in x.items()}
    with torch.no_grad():
        sharp["stats_shift"][0] = -300.0
    out = _by_hand(sharp, torch.float32, 0.0)
    assert float(torch.softmax(torch.tensor([-300.0, 0.0]), 0)[0]) == 0.0
    grads = _gradients(sharp, out, (0, 1, 2))
    assert all(bool(torch.isfinite(value).all()) for value in (*out, *grads.values()))


def test_half_of_the_products_precision_moves_the_gradients_by_little() -> None:
    dtype = torch.float32
    x = _inputs(dtype)
    exact = _gradients(x, _by_hand(x, dtype), (0, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = _by_hand(x, dtype)
    assert all(y.dtype == dtype for y in out)
    rough = _gradients(x, out, (0, 2))
    for name in NAMES:
        cosine = nn.functional.cosine_similarity(rough[name].flatten(), exact[name].flatten(), 0)
        assert rough[name].dtype == dtype
        assert cosine > 0.9, name
        assert not torch.equal(rough[name], exact[name]), name


def test_sequences_are_filtered_as_step_by_step() -> None:
    """`observe` against the steps that a deployed policy takes."""
    torch.manual_seed(0)
    model = RSSM(11, 2, deter_dim=D, latents=L, classes=C, hidden_dim=H)
    nn.init.normal_(model.initial_deter)
    embed, action = torch.randn(B, T, 11), torch.randn(B, T, 2)
    first = torch.zeros(B, T)
    first[2, 3] = first[0, 0] = 1.0
    latent, post, prior = model.observe(embed, action, first, sample=False)
    state, before = model.initial(B), torch.zeros(B, 2)
    for t in range(T):
        state, before = model.reset(state, before, first[:, t : t + 1])
        deter = model.advance(state, before)
        log_p = model.posterior_log_p(deter, embed[:, t])
        stoch = nn.functional.one_hot(log_p.argmax(-1), C).float().flatten(-2)
        state, before = state._replace(deter=deter, stoch=stoch), action[:, t]
        torch.testing.assert_close(latent.deter[:, t], deter)
        assert torch.equal(latent.stoch[:, t], stoch)
        torch.testing.assert_close(post[:, t], log_p)
        torch.testing.assert_close(prior[:, t], model.prior_log_p(deter))

"""Recurrent state-space model with categorical latents (DreamerV3; sizes of fosp.md 2.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from safe_o2o.nets.distribution import categorical_mode, gumbel_noise, unimix
from safe_o2o.nets.mlp import LAYER_NORM_EPS, NormLinear, init_hidden, init_output
from safe_o2o.nets.parallel import Draws
from safe_o2o.nets.rssm_recurrence import RecurrenceWeights
from safe_o2o.nets.rssm_scan import scan
from safe_o2o.nets.rssm_step import step


class Latent(NamedTuple):
    """State of the model: deterministic `[..., D]`, stochastic `[..., L * C]` (one-hots)."""

    deter: Tensor
    stoch: Tensor

    @property
    def feature(self) -> Tensor:
        """What heads read: `[..., D + L * C]`."""
        return torch.cat([self.deter, self.stoch], -1)


class NormGRUCell(nn.Module):
    """GRU with one LayerNorm over its three gates and an update bias of -1.

    y = LN(W [deter, x]); reset, candidate, update = split(y); k = tanh(sig(reset) * candidate);
    u = sig(update - 1); deter' = u * k + (1 - u) * deter.
    """

    def __init__(self, in_dim: int, deter_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim + deter_dim, 3 * deter_dim, bias=False)
        self.norm = nn.LayerNorm(3 * deter_dim, eps=LAYER_NORM_EPS)
        init_hidden(self.linear)

    @staticmethod
    def gate(y: Tensor, deter: Tensor) -> Tensor:
        """Apply normalised pre-activations `[..., 3D]` to the old state `[..., D]`."""
        reset, candidate, update = y.chunk(3, -1)
        k = torch.tanh(torch.sigmoid(reset) * candidate)
        u = torch.sigmoid(update - 1.0)
        return u * k + (1.0 - u) * deter

    def forward(self, x: Tensor, deter: Tensor) -> Tensor:
        """`[B, in_dim], [B, D] -> [B, D]`."""
        return self.gate(self.norm(self.linear(torch.cat([deter, x], -1)).float()), deter)


class RSSM(nn.Module):
    """Prior, posterior and the recurrence between them.

    Args:
        embed_dim: size of the encoder's output.
        action_dim: A.
        deter_dim: size of the recurrent state D.
        latents: number of categoricals L.
        classes: classes of each C.
        hidden_dim: width of the layers around the GRU.
        mix: share of the uniform distribution in every categorical.
    """

    def __init__(
        self,
        embed_dim: int,
        action_dim: int,
        deter_dim: int,
        latents: int,
        classes: int,
        hidden_dim: int,
        mix: float = 0.01,
    ) -> None:
        super().__init__()
        self.deter_dim, self.latents, self.classes, self.mix = deter_dim, latents, classes, mix
        self.stoch_dim, self.action_dim = latents * classes, action_dim
        self.feature_dim = deter_dim + self.stoch_dim
        self.img_in = NormLinear(self.stoch_dim + action_dim, hidden_dim)
        self.gru = NormGRUCell(hidden_dim, deter_dim)
        self.img_out = NormLinear(deter_dim, hidden_dim)
        self.img_stats = nn.Linear(hidden_dim, self.stoch_dim)
        self.obs_out = NormLinear(deter_dim + embed_dim, hidden_dim)
        self.obs_stats = nn.Linear(hidden_dim, self.stoch_dim)
        init_output(self.img_stats, 1.0)
        init_output(self.obs_stats, 1.0)
        self.initial_deter = nn.Parameter(torch.zeros(deter_dim))

    def initial(self, n: int) -> Latent:
        """State at the start of an episode: deter = tanh(v), stoch = mode of the prior there."""
        deter = torch.tanh(self.initial_deter)
        stoch = categorical_mode(self.prior_log_p(deter)).flatten(-2)
        return Latent(deter.expand(n, -1), stoch.expand(n, -1))

    def _log_p(self, logits: Tensor) -> Tensor:
        return unimix(logits.float().unflatten(-1, (self.latents, self.classes)), self.mix)

    def prior_log_p(self, deter: Tensor) -> Tensor:
        """Log-probabilities `[..., L, C]` of the prior at deter `[..., D]`."""
        return self._log_p(self.img_stats(self.img_out(deter)))

    def posterior_log_p(self, deter: Tensor, embed: Tensor) -> Tensor:
        """Log-probabilities `[..., L, C]` of the posterior at deter and embedding."""
        return self._log_p(self.obs_stats(self.obs_out(torch.cat([deter, embed], -1))))

    def advance(self, latent: Latent, action: Tensor) -> Tensor:
        """Next deter `[B, D]` from a latent and an action `[B, A]` (scaled into [-1, 1])."""
        action = self._scaled(action)
        return self.gru(self.img_in(torch.cat([latent.stoch, action], -1)), latent.deter)

    @staticmethod
    def _scaled(action: Tensor) -> Tensor:
        return action / torch.clamp(action.abs(), min=1.0).detach()

    def step_weights(self, dtype: torch.dtype) -> tuple[Tensor, RecurrenceWeights]:
        """What `img_step` reads, once for a rollout; cut from the graph.

        Args:
            dtype: arithmetic of the matrix products.

        Returns:
            From the action to the layer before the GRU `[H, A]`, and the prior's weights.
        """
        weight = self.img_in.linear.weight
        by_stoch, by_action = weight.split([self.stoch_dim, self.action_dim], 1)
        weights = RecurrenceWeights(
            by_stoch, self.img_in.norm.weight, self.img_in.norm.bias,
            self.gru.linear.weight, self.gru.norm.weight, self.gru.norm.bias,
            self.img_out.linear.weight, self.img_out.norm.weight, self.img_out.norm.bias,
            self.img_stats.weight, self.img_stats.bias,
        )  # fmt: skip
        constant = RecurrenceWeights(*(tensor.detach() for tensor in weights))
        return by_action.detach(), constant.products_in(dtype)

    def img_step(
        self,
        latent: Latent,
        action: Tensor,
        uniform: Tensor,
        weights: tuple[Tensor, RecurrenceWeights],
    ) -> Latent:
        """One imagined step: sample the prior of a constant model.

        Args:
            latent: `[N, ...]`; its one-hots in the arithmetic of the products.
            action: `[N, A]`.
            uniform: `[N, L]` in [0, 1), the draws.
            weights: from `step_weights`.
        """
        deter, stoch = step(
            latent.deter, latent.stoch, self._scaled(action), uniform, *weights,
            classes=self.classes, mix=self.mix, eps=LAYER_NORM_EPS,
        )  # fmt: skip
        return Latent(deter, stoch)

    def reset(self, latent: Latent, action: Tensor, is_first: Tensor) -> tuple[Latent, Tensor]:
        """Put the initial state and a zero action where `is_first` `[B, 1]` is one."""
        initial = self.initial(latent.deter.shape[0])
        keep = 1.0 - is_first
        deter = latent.deter * keep + initial.deter * is_first
        stoch = latent.stoch * keep + initial.stoch * is_first
        return Latent(deter, stoch), action * keep

    def observe(
        self,
        embed: Tensor,
        action: Tensor,
        is_first: Tensor,
        source: Draws | torch.Generator | None = None,
        sample: bool = True,
    ) -> tuple[Latent, Tensor, Tensor]:
        """Filter sequences.

        Args:
            embed: `[B, T, E]`.
            action: `[B, T, A]`; `action[:, t]` was chosen at record t, so record t + 1 sees it.
            is_first: `[B, T]` in {0, 1}; record 0 always starts from the initial state.
            source: of the posterior samples.
            sample: False takes the mode instead of a sample.

        Returns:
            latent `[B, T, ...]`, posterior and prior log-probabilities `[B, T, L, C]`.
        """
        # Whatever does not wait for the recurrence is one batched call, before or after the loop:
        # this is where an update spends its time.
        batch, steps = embed.shape[:2]
        first = is_first.clone()
        first[:, 0] = 1.0
        before = torch.cat([torch.zeros_like(action[:, :1]), action[:, :-1]], 1)
        before = self._scaled(before) * (1.0 - first).unsqueeze(-1)
        by_stoch, by_action = self.img_in.linear.weight.split([self.stoch_dim, action.shape[-1]], 1)
        by_deter, by_embed = self.obs_out.linear.weight.split([self.deter_dim, embed.shape[-1]], 1)
        moved, seen = (before @ by_action.T).float(), (embed @ by_embed.T).float()
        shape = (steps, batch, self.latents, self.classes)
        noise = gumbel_noise(shape, source, embed, 1) if sample else embed.new_zeros(shape)
        initial = self.initial(1)
        deter, stoch, log_p = scan(
            moved.transpose(0, 1),
            seen.transpose(0, 1),
            first.t().unsqueeze(-1),
            noise,
            initial.deter[0],
            initial.stoch[0],
            RecurrenceWeights(
                by_stoch, self.img_in.norm.weight, self.img_in.norm.bias,
                self.gru.linear.weight, self.gru.norm.weight, self.gru.norm.bias,
                by_deter, self.obs_out.norm.weight, self.obs_out.norm.bias,
                self.obs_stats.weight, self.obs_stats.bias,
            ),
            mix=self.mix,
            eps=LAYER_NORM_EPS,
        )  # fmt: skip
        deter, stoch, log_p = (x.transpose(0, 1) for x in (deter, stoch, log_p))
        return Latent(deter, stoch), log_p, self.prior_log_p(deter)

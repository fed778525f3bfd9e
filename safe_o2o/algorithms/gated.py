"""A policy's decision with what the reachability gate asks about it, as one graph.

The gate itself (`safety.reachability_gate`) is NumPy and decides from what stands here: candidate
actions, their risk, the ensemble's disagreement about each, and how surprising the picture was.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from safe_o2o.algorithms.fosp_net import FospNet, stack_images
from safe_o2o.algorithms.fosp_policy import Decided
from safe_o2o.algorithms.reachability_nets import Heads
from safe_o2o.algorithms.safety_value import surprise
from safe_o2o.errors import CheckpointError
from safe_o2o.spaces import Spec

SAMPLES = 8
"""Candidates of each kind: near the policy's action, near the recovery's, and between the two."""
CANDIDATES = 3 * SAMPLES + 2
GATE_NOISE = "gate_noise"
DIAGNOSTICS = ("candidates", "candidate_risk", "disagreement", "surprise", "recon_nll")


def fingerprint(net: FospNet) -> bytes:
    """SHA-256 of a world model's numbers: heads belong to the states of one model alone."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.world_model.state_dict().items()):
        digest.update(f"\n{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.digest()


class GatedModule(nn.Module):
    """One decision with plain tensors in and out; see `export.onnx.Exportable`.

    Outputs are the policy's, and `candidates` `[N, K, A]` (its own action first, standing still
    last), `candidate_risk` and `disagreement` `[N, K]`, `surprise` `[N, 1]`, and `recon_nll`
    `[N, 1]` where the picture is decoded.

    Args:
        policy: `export_module()` of a policy with a world model.
        heads: trained on that model's states.
        reach: weight of the policy's own reachability critic, where it has one, beside the heads'.
        reconstruct: whether the picture is decoded and compared; costs a decoder's forward pass.
        sample_std: standard deviation of the candidates near the policy's action.
        recovery_std: of those near the recovery policy's.

    Raises:
        CheckpointError: the policy has no world model, or acts in chunks.
    """

    def __init__(
        self,
        policy: nn.Module,
        heads: Heads,
        *,
        reach: float = 0.0,
        reconstruct: bool = False,
        sample_std: float = 0.3,
        recovery_std: float = 0.1,
    ) -> None:
        super().__init__()
        net: FospNet | None = getattr(policy, "watching", None)
        if net is None:
            raise CheckpointError("has no world model for a gate to look through", where="policy")
        self.policy, self.heads, self.reconstruct = policy, heads, reconstruct
        self.reach = reach if hasattr(policy, "reach_risk") else 0.0
        self.sample_std, self.recovery_std = sample_std, recovery_std
        self.spec: Spec = policy.spec
        self.carry_names = dict(policy.carry_names)
        self.noise_inputs = dict(policy.noise_inputs) | {
            GATE_NOISE: (2 * SAMPLES, self.spec.action.dim)
        }
        self.deterministic_noise = dict(policy.deterministic_noise) | {GATE_NOISE: "fixed"}
        self.input_names = [*policy.input_names, GATE_NOISE]
        added = DIAGNOSTICS if reconstruct else DIAGNOSTICS[:-1]
        self.output_names = [*policy.output_names, *added]

    def export_module(self) -> GatedModule:
        """Itself: it is what is exported."""
        return self

    def example_inputs(self) -> tuple[Tensor, ...]:
        """One valid input of every name, batch size 1."""
        noise = torch.zeros(1, *self.noise_inputs[GATE_NOISE])
        return (*self.policy.example_inputs(), noise)

    def candidates(self, action: Tensor, recovery: Tensor, noise: Tensor) -> Tensor:
        """Actions to choose from `[N, K, A]`: see the class.

        Args:
            action: the policy's `[N, A]`.
            recovery: the recovery policy's `[N, A]`.
            noise: `[N, 2 SAMPLES, A]`, standard normal.
        """
        wish, out = action.unsqueeze(1), recovery.unsqueeze(1)
        near, away = noise.split(SAMPLES, 1)
        share = torch.arange(1, SAMPLES + 1, device=action.device) / SAMPLES
        between = wish + share.view(1, -1, 1) * (out - wish)
        parts = [
            wish,
            wish + self.sample_std * near,
            out + self.recovery_std * away,
            between,
            torch.zeros_like(wish),
        ]
        return torch.cat(parts, 1).clamp(-1.0, 1.0)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See the class; every tensor has a leading batch axis N."""
        *given, noise = inputs
        found: Decided = self.policy.decide(*given)
        net, moment = self.policy.watching, found.watched
        assert moment is not None
        latent = moment.latent
        feature = self.heads.feature(moment.state)
        action = found.outputs[self.policy.output_names.index("action")]
        offered = self.candidates(action, self.heads.recovery(feature), noise)
        expected = net.model.rssm.prior_log_p(latent.deter)
        risk = self.heads.risks(feature, offered).amax(0)
        if self.reach:
            risk = risk + self.reach * self.policy.reach_risk(found.feature, offered)
        said = [
            offered,
            risk,
            self.heads.disagreement(feature, offered),
            surprise(moment.posterior, expected).unsqueeze(-1),
        ]
        if self.reconstruct:
            said.append(self._error(net, latent.feature, given).unsqueeze(-1))
        return (*found.outputs, *said)

    def undecided(self, *inputs: Tensor) -> Tensor:
        """The policy's own close calls; the gate's heads choose nothing, `[N]`."""
        close: Tensor = self.policy.undecided(*inputs[:-1])
        return close

    def _error(self, net: FospNet, feature: Tensor, given: list[Tensor]) -> Tensor:
        """How unlikely the picture is to the decoder `[N]`, up to a constant."""
        named = dict(zip(self.policy.input_names, given, strict=True))
        image = stack_images(self.spec.observation, named)
        decoder = net.model.decoder
        assert decoder is not None
        if net.model.config.decoder_size == 32:
            image = nn.functional.avg_pool2d(image, 2)
        return (decoder(feature) - image).square().flatten(1).sum(-1)

"""A trained world model as an encoder: observations to latents, for policies that read only those.

`Tracker` is one step of filtering. `PairModule` is a tracker and the policy behind it as one
decision, which is what becomes one ONNX graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from safe_o2o.algorithms.fosp_policy import UNDECIDED, FospNet, stack_images, stack_vectors
from safe_o2o.nets.rssm import Latent
from safe_o2o.spaces import ArraySpec, ObservationSpec, Spec

LATENT = "latent"
"""Name of the array that replaces an observation."""
SHARED = ("started", "previous_action")
"""Carried by tracker and policy alike: the same numbers, told once."""
ENCODER = "encoder_"


class Tracker(nn.Module):
    """One step of a trained world model: what is seen, after what was done, as one latent.

    The latent is what the model's own actor and critics read, with the posterior's mode, as the
    deployed policy has it. A carry of zeros starts an episode.

    Args:
        net: networks of a policy with a world model.
        spec: what it sees and does.
    """

    def __init__(self, net: FospNet, spec: Spec) -> None:
        super().__init__()
        self.net, self.spec = net, spec
        rssm = net.model.rssm
        self.carry_sizes = {
            "started": 1,
            "previous_action": spec.action.dim,
            "deter": rssm.deter_dim,
            "stoch": rssm.stoch_dim,
        }

    @property
    def latent_spec(self) -> Spec:
        """The spec of whoever reads the latents."""
        array = ArraySpec((self.net.feature_dim,), "float32", "1")
        return Spec(ObservationSpec({LATENT: array}), self.spec.action)

    def initial_carry(self, n: int) -> dict[str, Tensor]:
        """The state at the start of n episodes, `[n, ...]`."""
        device = next(self.parameters()).device
        return {
            name: torch.zeros(n, size, device=device) for name, size in self.carry_sizes.items()
        }

    def forward(
        self, obs: Mapping[str, Tensor], carry: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Filter one step.

        Args:
            obs: arrays `[N, ...]` by name.
            carry: with `previous_action` as it was executed.

        Returns:
            latents `[N, F]`, the new `deter` and `stoch`, and the log-probabilities of the classes.
        """
        seen = self.net.world_model.look(stack_images(self.spec.observation, obs))
        vector = stack_vectors(self.spec.observation, obs)
        state = Latent(carry["deter"], carry["stoch"])
        first = 1.0 - carry["started"]
        state, feature, log_p = self.net.track(seen, vector, state, carry["previous_action"], first)
        return feature, {"deter": state.deter, "stoch": state.stoch}, log_p


class PairModule(nn.Module):
    """A tracker and a policy on its latents as one decision; see `export.onnx.Exportable`.

    Args:
        tracker: the encoder.
        head: `export_module()` of a policy whose observation is the tracker's latent.
    """

    def __init__(self, tracker: Tracker, head: nn.Module) -> None:
        super().__init__()
        self.tracker, self.head = tracker, head
        self.carry_names: dict[str, str] = {name: f"next_{name}" for name in SHARED}
        for name in tracker.carry_sizes:
            if name not in SHARED:
                self.carry_names[ENCODER + name] = f"next_{ENCODER}{name}"
        self.carry_names |= {
            name: after for name, after in head.carry_names.items() if name not in SHARED
        }
        self.noise_inputs = dict(head.noise_inputs)
        self.deterministic_noise = dict(head.deterministic_noise)
        self.input_names = [
            *tracker.spec.observation.arrays,
            *self.carry_names,
            *self.noise_inputs,
        ]
        carried = set(head.carry_names.values())
        self.diagnostics = [
            name for name in head.output_names if name != "action" and name not in carried
        ]
        self.output_names = ["action", *self.carry_names.values(), *self.diagnostics]

    def example_inputs(self) -> tuple[Tensor, ...]:
        """One valid input of every name, batch size 1."""
        dtype = {"uint8": torch.uint8, "float32": torch.float32}
        inputs = {
            name: torch.zeros(1, *array.shape, dtype=dtype[array.dtype])
            for name, array in self.tracker.spec.observation.arrays.items()
        }
        for name, tensor in self.tracker.initial_carry(1).items():
            inputs[name if name in SHARED else ENCODER + name] = tensor
        inputs |= dict(zip(self.head.input_names, self.head.example_inputs(), strict=True))
        return tuple(inputs[name] for name in self.input_names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See the class; every tensor has a leading batch axis N."""
        named = dict(zip(self.input_names, inputs, strict=True))
        latent, state, _ = self._track(named)
        said = dict(
            zip(self.head.output_names, self.head(*self._for_head(named, latent)), strict=True)
        )
        out = {"action": said["action"], "next_started": torch.ones_like(named["started"])}
        out["next_previous_action"] = said["action"]
        out |= {f"next_{ENCODER}{name}": tensor for name, tensor in state.items()}
        out = said | out
        return tuple(out[name] for name in self.output_names)

    def undecided(self, *inputs: Tensor) -> Tensor:
        """Where a class of a latent, or a choice of the policy, hangs on rounding, `[N]`."""
        named = dict(zip(self.input_names, inputs, strict=True))
        latent, _, log_p = self._track(named)
        two = log_p.topk(2, -1).values
        close = (two[..., 0] - two[..., 1] <= UNDECIDED).flatten(1).any(1)
        ask = getattr(self.head, "undecided", None)
        return close if ask is None else close | ask(*self._for_head(named, latent))

    def _track(self, named: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        carry = {
            name: named[name if name in SHARED else ENCODER + name]
            for name in self.tracker.carry_sizes
        }
        found: tuple[Tensor, dict[str, Tensor], Tensor] = self.tracker(named, carry)
        return found

    def _for_head(self, named: Mapping[str, Tensor], latent: Tensor) -> Sequence[Tensor]:
        known = {**named, LATENT: latent}
        return [known[name] for name in self.head.input_names]


class PairPolicy:
    """What is exported of a policy on latents: the pair, on observations."""

    def __init__(self, tracker: Tracker, head: nn.Module) -> None:
        self._module = PairModule(tracker, head)

    def export_module(self) -> PairModule:
        """One decision with plain tensors in and out."""
        return self._module

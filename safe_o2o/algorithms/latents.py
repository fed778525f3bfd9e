"""A trained world model as an encoder: observations to latents, for policies that read only those.

`Tracker` is one step of filtering. `PairModule` is a tracker and the policy behind it as one
decision, which is what becomes one ONNX graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from safe_o2o.algorithms.fosp_net import FospNet, Tracked, stack_images, stack_vectors
from safe_o2o.algorithms.fosp_policy import Decided
from safe_o2o.nets.rssm import Latent
from safe_o2o.spaces import ArraySpec, ObservationSpec, Spec

LATENT = "latent"
"""Name of the array that replaces an observation."""
STATE = ("deter", "stoch", "embed")
"""Names of the arrays that replace it for those who look into the model's state."""
What = Literal["features", "state"]
SHARED = ("started", "previous_action")
"""Carried by tracker and policy alike: the same numbers, told once."""
ENCODER = "encoder_"


class Tracker(nn.Module):
    """One step of a trained world model: what is seen, after what was done, as one latent.

    The latent has the posterior's mode, as the deployed policy has it. A carry of zeros starts an
    episode.

    Args:
        net: networks of a policy with a world model.
        spec: what it sees and does.
        what: `features`, what the model's own actor and critics read, as one array; or `state`, all
            of it: deter, stoch and the embedding of the moment.
    """

    def __init__(self, net: FospNet, spec: Spec, what: What = "features") -> None:
        super().__init__()
        self.net, self.spec, self.what = net, spec, what
        rssm = net.model.rssm
        self._state_sizes = {"deter": rssm.deter_dim, "stoch": rssm.stoch_dim}
        shared = {"started": 1, "previous_action": spec.action.dim}
        self.carry_sizes = shared | self._state_sizes

    @property
    def latent_spec(self) -> Spec:
        """The spec of whoever reads the latents."""
        model = self.net.model
        sizes = dict(
            zip(STATE, (*self._state_sizes.values(), model.encoder.out_dim), strict=True)
            if self.what == "state"
            else [(LATENT, self.net.feature_dim)]
        )
        arrays = {name: ArraySpec((size,), "float32", "1") for name, size in sizes.items()}
        return Spec(ObservationSpec(arrays), self.spec.action)

    def says(self, moment: Tracked) -> dict[str, Tensor]:
        """The arrays `[N, ...]` of `latent_spec`."""
        if self.what == "features":
            return {LATENT: moment.feature}
        return moment.state

    def initial_carry(self, n: int) -> dict[str, Tensor]:
        """The state at the start of n episodes, `[n, ...]`."""
        device = next(self.parameters()).device
        return {
            name: torch.zeros(n, size, device=device) for name, size in self.carry_sizes.items()
        }

    def forward(self, obs: Mapping[str, Tensor], carry: Mapping[str, Tensor]) -> Tracked:
        """Filter one step.

        Args:
            obs: arrays `[N, ...]` by name.
            carry: with `previous_action` as it was executed.
        """
        seen = self.net.world_model.look(stack_images(self.spec.observation, obs))
        vector = stack_vectors(self.spec.observation, obs)
        state = Latent(carry["deter"], carry["stoch"])
        first = 1.0 - carry["started"]
        return self.net.track(seen, vector, state, carry["previous_action"], first)


class PairModule(nn.Module):
    """A tracker and a policy on its latents as one decision; see `export.onnx.Exportable`.

    Args:
        tracker: the encoder.
        head: `export_module()` of a policy whose observation is the tracker's latent.
    """

    def __init__(self, tracker: Tracker, head: nn.Module) -> None:
        super().__init__()
        self.tracker, self.head, self.spec = tracker, head, tracker.spec
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

    def export_module(self) -> PairModule:
        """Itself: it is what is exported."""
        return self

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

    @property
    def watching(self) -> FospNet:
        """The networks whose world model `Decided.watched` is of."""
        return self.tracker.net

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See the class; every tensor has a leading batch axis N."""
        return self.decide(*inputs).outputs

    def decide(self, *inputs: Tensor) -> Decided:
        """`forward`, and what it came from; the policy's own choices are its own to tell."""
        named = dict(zip(self.input_names, inputs, strict=True))
        moment = self._track(named)
        head = self.head(*self._for_head(named, moment))
        said = dict(zip(self.head.output_names, head, strict=True))
        out = {"action": said["action"], "next_started": torch.ones_like(named["started"])}
        out["next_previous_action"] = said["action"]
        for name in ("deter", "stoch"):
            out[f"next_{ENCODER}{name}"] = getattr(moment.latent, name)
        out = said | out
        outputs = tuple(out[name] for name in self.output_names)
        return Decided(outputs, [moment.posterior], moment)

    def undecided(self, *inputs: Tensor) -> Tensor:
        """Where a class of a latent, or a choice of the policy, hangs on rounding, `[N]`."""
        named = dict(zip(self.input_names, inputs, strict=True))
        moment = self._track(named)
        ask = getattr(self.head, "undecided", None)
        if ask is None:
            return moment.undecided
        close: Tensor = moment.undecided | ask(*self._for_head(named, moment))
        return close

    def _for_head(self, named: Mapping[str, Tensor], moment: Tracked) -> list[Tensor]:
        known = {**named, LATENT: moment.feature}
        return [known[name] for name in self.head.input_names]

    def _track(self, named: Mapping[str, Tensor]) -> Tracked:
        moment: Tracked = self.tracker(
            named,
            {
                name: named[name if name in SHARED else ENCODER + name]
                for name in self.tracker.carry_sizes
            },
        )
        return moment

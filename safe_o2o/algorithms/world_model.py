"""The world model: encoder, RSSM, decoder, and heads for reward, cost, continue (fosp.md 2)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from safe_o2o.algorithms import losses
from safe_o2o.errors import ConfigError
from safe_o2o.nets.backbone import Backbone, BackboneConfig
from safe_o2o.nets.critic import NumberHead
from safe_o2o.nets.encoder import (
    Decoder,
    Encoder,
    KeypointCNN,
    PatchCNN,
    StridedCNN,
    VectorDecoder,
)
from safe_o2o.nets.mlp import MLP, constant
from safe_o2o.nets.normalizer import VectorNormalizer
from safe_o2o.nets.parallel import Draws
from safe_o2o.nets.precision import Precision
from safe_o2o.nets.rssm import RSSM, Latent
from safe_o2o.spaces import Spec


@dataclass(frozen=True)
class WorldModelConfig:
    """Sizes and loss weights; the defaults are the paper's (fosp.md 5)."""

    encoder: Literal["strided", "keypoint", "patch", "backbone"] = "strided"
    """paper: strided. `keypoint` ends in a spatial softmax (learns positions from little data).
    `patch` keeps a map, which can say that something is not there, or there twice.
    `backbone` is a network of torchvision or timm."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """which one, with encoder `backbone`"""
    depth: int = 32
    """channels of the strided encoder's first layer, or number of keypoints (of a backbone: a
    camera)"""
    embed_dim: int = 0
    """size of a joint embedding; 0 concatenates (paper)"""
    deter_dim: int = 512
    latents: int = 48
    classes: int = 48
    hidden_dim: int = 512
    head_layers: int = 2
    head_units: int = 512
    unimix: float = 0.01
    decoder_size: Literal[64, 32] = 64
    """paper: 64. 32 decodes the image averaged over 2x2 pixels."""
    decoder_depth: int = 32
    decode_every: int = 1
    """decode one record in so many of each window, others at each update; paper: 1, all"""
    number_output: Literal["two_hot", "scalar"] = "two_hot"
    """likelihood of the reward and cost heads; paper: two_hot"""
    image_scale: float = 1.0
    vector_scale: float = 1.0
    reward_scale: float = 1.0
    cost_scale: float = 1.0
    cont_scale: float = 1.0
    cost_weight: float = 10.0
    """weight of records with cost >= 1 in the cost loss"""
    free_nats: float = 1.0
    dyn_scale: float = 0.5
    rep_scale: float = 0.1
    precision: Precision = "auto"
    """arithmetic of convolutions and matrix products while training, the critics' and the actor's
    too; auto takes bf16 where the processor is fast at it. Deployed policies compute in fp32."""

    def __post_init__(self) -> None:
        for name in (
            "decode_every",
            "depth",
            "deter_dim",
            "latents",
            "classes",
            "hidden_dim",
            "head_units",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}", where=name)
        if self.encoder != "backbone" and self.backbone != BackboneConfig():
            raise ConfigError(
                f"means nothing to encoder {self.encoder}",
                where="backbone",
                todo="set encoder backbone too",
            )
        if self.encoder == "backbone" and self.backbone.frozen and not self.backbone.weights:
            raise ConfigError(
                "is empty: a frozen backbone would stay as random as it starts",
                where="backbone.weights",
                todo="name a weights file, or set backbone.frozen false",
            )


class Observed(NamedTuple):
    """A batch of sequences seen through the model.

    Attributes:
        embed: encoder output `[B, T, E]`.
        latent: posterior states `[B, T, ...]`.
        post: posterior log-probabilities `[B, T, L, C]`.
        prior: prior log-probabilities `[B, T, L, C]`.
    """

    embed: Tensor
    latent: Latent
    post: Tensor
    prior: Tensor


@dataclass(frozen=True)
class Imagined:
    """A rollout in the model; time on axis 0, states 0..H, actions 0..H-1.

    Attributes:
        feature: of the states `[H+1, N, F]`, in the arithmetic of the matrix products.
        action: `[H, N, A]`.
        mean: of the actor's distribution at states 0..H-1 `[H, N, A]`.
        std: its standard deviation `[H, N, A]`.
        x: predicted `reward` and `cost` `[H+1, N]`; those have a gradient in the actions whose
            names were asked for.
        cont: continue flags `[H+1, N]`.
        said: what critics and values said of it so far, for those who ask again.
    """

    feature: Tensor
    action: Tensor
    mean: Tensor
    std: Tensor
    x: dict[str, Tensor]
    cont: Tensor
    said: dict[str, Tensor] = field(default_factory=dict)


class Perception(nn.Module):
    """What is seen now, as one vector: normaliser and encoder, without memory.

    Args:
        config: sizes and weights.
        spec: observation and action spec: 64x64 camera images, vectors, or both.
        vector_mean: dataset mean of the concatenated vectors `[V]`; V may be 0.
        vector_std: dataset standard deviation `[V]`.

    Raises:
        ConfigError: an image of another size, or an observation of nothing.
    """

    def __init__(
        self, config: WorldModelConfig, spec: Spec, vector_mean: Tensor, vector_std: Tensor
    ) -> None:
        super().__init__()
        self.config = config
        images = [spec.observation.arrays[name] for name in spec.observation.image_names]
        self.channels = sum(image.shape[-1] for image in images)
        self.vector_dim = vector_mean.shape[0]
        if any(image.shape[:2] != (64, 64) for image in images):
            raise ConfigError("needs camera images of 64x64", where="observation spec")
        if not images and not self.vector_dim:
            raise ConfigError("has neither an image nor a vector", where="observation spec")
        self.vector_normalizer = VectorNormalizer(vector_mean, vector_std)
        if config.encoder == "backbone" and not images:
            raise ConfigError(
                "a backbone needs a camera", where="observation spec", todo="use another encoder"
            )
        cnn = self._cnn() if images else None
        self.encoder = Encoder(cnn, self.vector_dim, config.embed_dim or None)

    def _cnn(self) -> nn.Module:
        if self.config.encoder == "backbone":
            return Backbone(self.config.backbone, self.channels, self.config.depth)
        if self.config.encoder == "keypoint":
            return KeypointCNN(self.channels, self.config.depth)
        if self.config.encoder == "patch":
            return PatchCNN(self.channels, self.config.depth)
        return StridedCNN(self.channels, self.config.depth)

    def look(self, image: Tensor) -> Tensor:
        """Images `[N, C, 64, 64]` around zero to what `encode` reads: see `Encoder.look`.

        Copies of a model share a frozen backbone: what one of them has seen, the others have too.
        """
        return self.encoder.look(image)

    def encode(self, seen: Tensor, vector: Tensor) -> Tensor:
        """What `look` made of images, and vectors `[N, V]` (SI), to `[N, E]`.

        C or V is 0 where the observation has no image or no vector.
        """
        return self.encoder(seen, self.vector_normalizer(vector))

    def embed(self, image: Tensor, vector: Tensor) -> Tensor:
        """`encode` of sequences `[B, T, ...]`, float32 `[B, T, E]`."""
        flat = self.encode(self.look(image.flatten(0, 1)), vector.flatten(0, 1))
        return flat.float().unflatten(0, image.shape[:2])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything that is trained, for an optimiser; `factor` is relative to its rate."""
        image = self.encoder.image
        tuned = isinstance(image, Backbone) and not image.config.frozen
        slow = list(image.trunk.parameters()) if isinstance(image, Backbone) and tuned else []
        apart = {id(p) for p in slow}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in apart]
        groups: list[dict[str, Any]] = [{"params": rest}]
        if isinstance(image, Backbone) and slow:
            groups.append({"params": slow, "factor": image.config.lr_factor})
        return groups

    def load_backbone(self, weights: Mapping[str, Tensor], where: str) -> None:
        """Fill the backbone; see `Backbone.fill`."""
        assert isinstance(self.encoder.image, Backbone)
        self.encoder.image.fill(weights, where)


class WorldModel(Perception):
    """World model of DreamerV3 with a cost head; see `Perception` for the arguments."""

    def __init__(
        self, config: WorldModelConfig, spec: Spec, vector_mean: Tensor, vector_std: Tensor
    ) -> None:
        super().__init__(config, spec, vector_mean, vector_std)
        channels, vector_dim = self.channels, self.vector_dim
        self.rssm = RSSM(
            self.encoder.out_dim,
            spec.action.dim,
            config.deter_dim,
            config.latents,
            config.classes,
            config.hidden_dim,
            config.unimix,
        )
        size, hidden = self.rssm.feature_dim, [config.head_units] * config.head_layers
        self.decoder = (
            Decoder(size, channels, config.decoder_depth, config.decoder_size) if channels else None
        )
        self.vector_decoder = VectorDecoder(size, vector_dim, hidden) if vector_dim else None
        self.reward = NumberHead(size, hidden, config.number_output, out_scale=0.0)
        self.cost = NumberHead(size, hidden, config.number_output, out_scale=1.0)
        self.cont = MLP(size, 1, hidden)

    def observe(
        self,
        image: Tensor,
        vector: Tensor,
        action: Tensor,
        is_first: Tensor,
        source: Draws | torch.Generator | None = None,
    ) -> Observed:
        """Filter sequences `[B, T, ...]`; see `RSSM.observe` for the alignment of actions."""
        embed = self.embed(image, vector)
        latent, post, prior = self.rssm.observe(embed, action, is_first, source)
        return Observed(embed, latent, post, prior)

    def loss(
        self,
        seen: Observed,
        image: Tensor,
        vector: Tensor,
        reward: Tensor,
        cost: Tensor,
        terminated: Tensor,
        mask: Tensor,
        decode: bool = True,
        offset: int = 0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """All model losses, means over the valid records (fosp.md 2.2).

        Args:
            seen: from `observe`.
            image: `[B, T, C, 64, 64]` around zero.
            vector: `[B, T, V]` SI.
            reward: on arrival `[B, T]`.
            cost: on arrival `[B, T]`.
            terminated: on arrival `[B, T]`.
            mask: `[B, T]`, 0 on padding.
            decode: False leaves the image decoder out (fine-tuning on little data).
            offset: any number that changes from update to update: which records are decoded.

        Returns:
            scalar loss and detached metrics.
        """
        cfg, feature = self.config, seen.latent.feature
        kl, plain_kl = losses.kl_loss(
            seen.post, seen.prior, cfg.free_nats, cfg.dyn_scale, cfg.rep_scale
        )
        cost_nll = self.cost.nll(self.cost(feature), cost)
        terms = {
            "kl": kl,
            "reward": cfg.reward_scale * self.reward.nll(self.reward(feature), reward),
            "cost": cfg.cost_scale * losses.cost_weight(cost, cfg.cost_weight) * cost_nll,
            "cont": cfg.cont_scale
            * nn.functional.binary_cross_entropy_with_logits(
                self.cont(feature)[..., 0], 1.0 - terminated, reduction="none"
            ),
        }
        if self.vector_decoder is not None:
            error = self.vector_decoder(feature) - self.vector_normalizer(vector)
            terms["vector"] = cfg.vector_scale * error.square().sum(-1)
        means = {name: losses.masked_mean(term, mask) for name, term in terms.items()}
        if decode and self.decoder is not None:
            image_loss = self._image_loss(self.decoder, feature, image, mask, offset)
            means["image"] = cfg.image_scale * image_loss
        total = torch.stack(list(means.values())).sum()
        metrics = {f"model/{name}": value.detach() for name, value in means.items()}
        metrics["model/loss"] = total.detach()
        metrics["model/plain_kl"] = losses.masked_mean(plain_kl, mask)
        return total, metrics

    def _image_loss(
        self, decoder: Decoder, feature: Tensor, image: Tensor, mask: Tensor, offset: int
    ) -> Tensor:
        every = min(self.config.decode_every, image.shape[1])
        first = offset % every
        shown = image[:, first::every]
        target = shown.flatten(0, 1)
        if self.config.decoder_size == 32:
            target = nn.functional.avg_pool2d(target, 2)
        decoded = decoder(feature[:, first::every].flatten(0, 1))
        error = losses.image_loss(decoded, target).unflatten(0, shown.shape[:2])
        return losses.masked_mean(error, mask[:, first::every])

    def imagine(
        self,
        start: Latent,
        actor: nn.Module,
        horizon: int,
        source: Draws | torch.Generator | None,
        paths: Collection[str] = ("reward", "cost"),
    ) -> Imagined:
        """Roll the prior out under an actor, re-parameterised (fosp.md 2.5).

        The model's parameters are constants here: gradients reach the actor alone.

        Args:
            start: states `[N, ...]`, detached by the caller.
            actor: feature `[N, F]` -> (mean, std) `[N, A]`; reads a detached feature.
            horizon: H.
            source: of all samples.
            paths: predictions that are to be differentiable in the actions; with none of them the
                rollout is cut from the graph, but for mean and std.
        """
        rssm, deter = self.rssm, start.deter
        kind = deter.device.type
        on = torch.is_autocast_enabled(kind)
        low = torch.get_autocast_dtype(kind) if on else deter.dtype
        draws = source if isinstance(source, Draws) else Draws(source)
        size = len(deter)
        uniform = draws.draw(torch.rand, (horizon, size, rssm.latents), deter, 1)
        noise = draws.draw(torch.randn, (horizon, size, rssm.action_dim), deter, 1)
        weights = rssm.step_weights(low)
        latent = Latent(deter, start.stoch.to(low))
        # The one-hots are exact in any arithmetic; the state itself stays float32 throughout.
        features = [torch.cat([latent.deter.to(low), latent.stoch], -1)]
        actions, means, stds = [], [], []
        for h in range(horizon):
            mean, std = actor(features[-1].detach())
            action = mean + std * noise[h]
            latent = rssm.img_step(
                latent, action if paths else action.detach(), uniform[h], weights
            )
            features.append(torch.cat([latent.deter.to(low), latent.stoch], -1))
            actions.append(action)
            means.append(mean)
            stds.append(std)
        feature = torch.stack(features)
        x = {}
        with constant(self):
            for name, head in (("reward", self.reward), ("cost", self.cost)):
                x[name] = head.predict(feature if name in paths else feature.detach())
            cont = (self.cont(feature.detach())[..., 0] > 0).to(deter.dtype)
        # Costs are never negative; a regression head may dip below (fosp.md 3.6).
        x["cost"] = x["cost"].clamp(min=0.0)
        return Imagined(
            feature, torch.stack(actions), torch.stack(means), torch.stack(stds), x, cont
        )

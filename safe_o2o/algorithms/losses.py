"""Losses and targets shared by the algorithms; pure functions of tensors.

Time runs along axis 1 of `[B, T]` unless said otherwise. Record alignment (fosp.md 2.4): record t
holds o_t, the r_t and c_t that a_{t-1} caused, and a_t; the transition of critics is
(s_t, a_t, r_{t+1}, c_{t+1}, s_{t+1}).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from safe_o2o.nets.distribution import categorical_kl
from safe_o2o.nets.parallel import Draws, everywhere, world

_BRIGHTEST = 1.75
"""Of a drawn colour, times a thing's own strength: a dark green one may become bright yellow."""


class Pairs(NamedTuple):
    """Which neighbours of a batch `[B, T]` are transitions, and how they continue.

    Attributes:
        valid: `[B, T-1]` 1 where records t and t+1 belong to one episode and a_t was executed.
        cont: `[B, T-1]` 0 where s_{t+1} is terminal, else 1.
        last: `[B, T-1]` 1 where s_{t+1} has no successor inside the window (episode end or window
            end), so that a recursion has to bootstrap there.
    """

    valid: Tensor
    cont: Tensor
    last: Tensor


def transition_pairs(is_first: Tensor, terminated: Tensor, mask: Tensor) -> Pairs:
    """Find the transitions of a batch of sequences; no pair crosses an episode start.

    Args:
        is_first: `[B, T]`, 1 at the first record of an episode.
        terminated: `[B, T]`, 1 where the episode terminated on arrival.
        mask: `[B, T]`, 0 on padding.
    """
    is_first, terminated, mask = is_first.float(), terminated.float(), mask.float()
    valid = mask[:, :-1] * mask[:, 1:] * (1.0 - is_first[:, 1:])
    end = torch.ones_like(valid[:, :1])
    last = torch.cat([1.0 - valid[:, 1:], end], 1)
    return Pairs(valid, 1.0 - terminated[:, 1:], last)


def one_step_target(x: Tensor, pairs: Pairs, value: Tensor, discount: float) -> Tensor:
    """x_{t+1} + discount * cont_{t+1} * V(s_{t+1}) for the pair (s_t, a_t), `[B, T-1]` (L2, 3.3).

    Args:
        x: reward or cost on arrival `[B, T]`.
        pairs: from `transition_pairs`.
        value: V of every record `[B, T]`.
        discount: per-step discount.
    """
    return x[:, 1:] + discount * pairs.cont * value[:, 1:]


def recorded_lambda_return(
    x: Tensor, pairs: Pairs, value: Tensor, discount: float, lambda_: float
) -> Tensor:
    """Lambda-return of every recorded pair (s_t, a_t), `[B, T-1]`.

    G_t = x_{t+1} + discount * cont_{t+1} * [(1 - lambda) V_{t+1} + lambda G_{t+1}], with
    G_{t+1} = V_{t+1} where s_{t+1} has no successor in the window.
    """
    value = value[:, 1:]
    returns: list[Tensor] = []
    following = value[:, -1]
    for t in range(value.shape[1] - 1, -1, -1):
        last = pairs.last[:, t]
        following = last * value[:, t] + (1.0 - last) * following
        mixed = (1.0 - lambda_) * value[:, t] + lambda_ * following
        following = x[:, t + 1] + discount * pairs.cont[:, t] * mixed
        returns.append(following)
    return torch.stack(returns[::-1], 1)


def imagined_lambda_return(
    x: Tensor, value: Tensor, cont: Tensor, discount: float, lambda_: float
) -> Tensor:
    """Lambda-return along an imagined rollout (fosp.md 3.1), time on axis 0.

    X_h = x_{h+1} + discount * cont_{h+1} * [(1 - lambda) V_{h+1} + lambda X_{h+1}], X_H = V_H.

    Args:
        x: predicted reward or cost of states 0..H, `[H+1, N]`; entry 0 is not used.
        value: V of states 0..H, `[H+1, N]`; entry 0 is not used.
        cont: continue flags of states 0..H, `[H+1, N]`; entry 0 is not used.
        discount: per-step discount.
        lambda_: lambda.

    Returns:
        `[H, N]`, the returns of states 0..H-1.
    """
    following = value[-1]
    returns: list[Tensor] = []
    for h in range(value.shape[0] - 2, -1, -1):
        mixed = (1.0 - lambda_) * value[h + 1] + lambda_ * following
        following = x[h + 1] + discount * cont[h + 1] * mixed
        returns.append(following)
    return torch.stack(returns[::-1])


def imagination_weight(cont: Tensor, discount: float) -> Tensor:
    """W_h = prod_{j<=h}(discount * cont_j) / discount, time on axis 0 (fosp.md 2.5)."""
    return torch.cumprod(discount * cont, 0) / discount


def expectile_weight(difference: Tensor, expectile: float) -> Tensor:
    """|tau - 1{q - v < 0}| of IQL (fosp.md 3.2), for `difference` = q - v."""
    return torch.where(difference < 0, 1.0 - expectile, expectile)


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """|tau - 1{q - v < 0}| (q - v)^2, elementwise (IQL eq. 5)."""
    return expectile_weight(difference, expectile) * difference.square()


def reach_target(violation: Tensor, p_next: Tensor, discount: float) -> Tensor:
    """max(violation, discount * p_next): probability of ever violating (RESPO, fosp.md 3.4)."""
    return torch.maximum(violation, discount * p_next)


def imagined_reach_target(violation: Tensor, p_last: Tensor, discount: float) -> Tensor:
    """Backward recursion of `reach_target` along axis 0; the last state bootstraps with `p_last`.

    Args:
        violation: 1 where a state violates, `[H+1, N]`.
        p_last: slow prediction at state H `[N]`.
        discount: gamma_p.

    Returns:
        `[H+1, N]`.
    """
    following = torch.maximum(violation[-1], p_last)
    targets = [following]
    for h in range(violation.shape[0] - 2, -1, -1):
        following = reach_target(violation[h], following, discount)
        targets.append(following)
    return torch.stack(targets[::-1])


def kl_loss(
    post: Tensor, prior: Tensor, free_nats: float, dyn_scale: float, rep_scale: float
) -> tuple[Tensor, Tensor]:
    """Balanced KL with free nats (DreamerV3 eq. 4, fosp.md 2.2).

    Args:
        post: posterior log-probabilities `[..., L, C]`.
        prior: prior log-probabilities `[..., L, C]`.
        free_nats: KL below this costs and teaches nothing.
        dyn_scale: weight of KL[sg(post) || prior].
        rep_scale: weight of KL[post || sg(prior)].

    Returns:
        loss `[...]` and the plain KL `[...]`.
    """
    dyn = categorical_kl(post.detach(), prior)
    rep = categorical_kl(post, prior.detach())
    loss = dyn_scale * dyn.clamp(min=free_nats) + rep_scale * rep.clamp(min=free_nats)
    return loss, dyn.detach()


def image_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Sum of squared errors over an image `[..., C, H, W] -> [...]`; no factor 1/2.

    Computed in the dtype of `target`, which gets no gradient.
    """
    return _SquaredError.apply(prediction, target)  # type: ignore[no-any-return,no-untyped-call]


class _SquaredError(torch.autograd.Function):
    """By itself, because autograd goes through as many numbers six times, and images are many."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor) -> Tensor:
        error = prediction - target
        ctx.save_for_backward(error)
        ctx.dtype = prediction.dtype
        return error.square().sum((-3, -2, -1))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (error,) = ctx.saved_tensors
        return (error * (2.0 * grad[..., None, None, None])).to(ctx.dtype), None


def cost_weight(cost: Tensor, weight: float) -> Tensor:
    """`weight` on every record with cost >= 1, else 1: the rare-cost weighting of fosp.md 2.2."""
    return torch.where(cost >= 1.0, weight, 1.0)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` where `mask` is one; 0 when it is nowhere.

    In a group of processes this one's share of the mean over all of them (see `nets.parallel`).
    """
    return (x * mask).sum() / everywhere(mask.sum()).clamp(min=1.0)


def mean(x: Tensor) -> Tensor:
    """Mean of all entries; in a group of processes this one's share of it."""
    if world() == 1:
        return x.mean()
    return x.sum() / everywhere(x.new_tensor(float(x.numel())))


def offline_weight(u: Tensor, adv_reward: Tensor, adv_cost: Tensor, beta: float = 1.0) -> Tensor:
    """W = u exp(beta A^r) + (1 - u) exp(-beta A^c) (FOSP closed form, fosp.md 3.5)."""
    return u * torch.exp(beta * adv_reward) + (1.0 - u) * torch.exp(-beta * adv_cost)


def online_weight(u: Tensor, adv_reward: Tensor, adv_cost: Tensor, beta: float = 1.0) -> Tensor:
    """W = u beta A^r - (1 - u) beta A^c (fosp.md 4.2)."""
    return beta * (u * adv_reward - (1.0 - u) * adv_cost)


def expansion_log_weight(
    q_reward: Tensor, q_cost: Tensor, cost_coefficient: float, inverse_temperature: float
) -> Tensor:
    """Logits of safe policy expansion over candidates `[..., K]` (fosp.md 4.1).

    score = Q^r - k_c Q^c; P = softmax(score / alpha).
    """
    return inverse_temperature * (q_reward - cost_coefficient * q_cost)


def random_shift(image: Tensor, pixels: int, generator: torch.Generator | None = None) -> Tensor:
    """Shift windows of images by up to `pixels` in x and y, edges replicated (DrQ).

    One shift a window: frames that jump against each other would look like a moving arm.

    Args:
        image: `[B, T, H, W, C]`, any dtype; uint8 moves the fewest bytes.
        pixels: largest shift; 0 returns the input.
        generator: source of the shifts.
    """
    if pixels == 0:
        return image

    def make(shape: tuple[int, ...], generator: Any, device: Any, dtype: Any) -> Tensor:
        return torch.randint(-pixels, pixels + 1, shape, generator=generator, device=device)

    size = image.shape[0]
    offset = Draws.batch(generator, size).draw(make, (2, size, 1), image, 1)
    shift = shift_by_blocks if image.device.type == "cpu" else shift_by_index
    return shift(image, offset[..., 0])


PURE_COLOURS = ("red", "green", "blue", "cyan", "magenta", "yellow")


def random_colours(
    image: Tensor,
    share: float,
    generator: torch.Generator | None = None,
    keep: Sequence[str] = (),
) -> Tensor:
    """Give windows of images other colours: what is grey stays, what is green may become yellow.

    Each of red, green, blue and of cyan, magenta, yellow becomes, with this probability, a colour
    drawn evenly from black to brighter than any, independently of the others: no turn of hues
    brings a yellow thing beside a red one where the data have green beside red. One draw a window
    and for all of its cameras: a scene that changes colour would be news.

    Args:
        image: `[B, T, C, H, W]` float in [-0.5, 0.5], channels in groups of red, green and blue.
        share: probability of another colour, 0 to 1; 0 returns the input.
        generator: source of the colours.
        keep: of `PURE_COLOURS`, those that stay: they mean something, the goal's say.
    """
    if share == 0.0:
        return image
    draws = Draws.batch(generator, image.shape[0])
    palette = _BRIGHTEST * draws.draw(torch.rand, (image.shape[0], 6, 3), image)
    kept = draws.draw(torch.rand, (image.shape[0], 6, 1), image) >= share
    kept[:, [PURE_COLOURS.index(name) for name in keep]] = True
    return repaint(image, torch.where(kept, pure_colours(image), palette))


def repaint(image: Tensor, palette: Tensor) -> Tensor:
    """Images with other pure colours, clipped to the colours there are.

    A colour is a grey, a pure colour of one channel and one of two: (r, g, b) with r > g > b is
    b white + (g - b) yellow + (r - g) red. Those two change, the grey does not.

    Args:
        image: `[B, T, C, H, W]` in [-0.5, 0.5].
        palette: what red, green, blue, cyan, magenta and yellow become `[B, 6, 3]`, 0 to 1 or more.
    """
    # Window by window on a CPU: what one of them takes stays in its cache.
    step = 1 if image.device.type == "cpu" else len(image)
    painted = torch.empty_like(image)
    for part, colours, out in zip(
        image.split(step), palette.split(step), painted.split(step), strict=True
    ):
        red, green, blue = part.unflatten(2, (-1, 3)).unbind(3)
        least, most = torch.minimum(green, blue), torch.maximum(green, blue)
        parts = [red - most, green - torch.maximum(red, blue), blue - torch.maximum(red, green)]
        parts += [least - red, torch.minimum(red, blue) - green, torch.minimum(red, green) - blue]
        pure = torch.stack(parts, 1).relu_().flatten(2)
        mixed = (colours.mT @ pure).unflatten(2, red.shape[1:])
        mixed += torch.minimum(red, least)[:, None]
        out.copy_(mixed.clamp_(-0.5, 0.5).movedim(1, 3).flatten(2, 3))
    return painted


def pure_colours(like: Tensor) -> Tensor:
    """Those of `PURE_COLOURS` `[6, 3]`: with these `repaint` changes nothing."""
    primary = torch.eye(3, dtype=like.dtype, device=like.device)
    return torch.cat([primary, 1.0 - primary])


def shift_by_index(image: Tensor, offset: Tensor) -> Tensor:
    """Move windows `[B, T, H, W, C]` by offsets (y, x) `[2, B]`, pixels; the way for a GPU."""
    batch, _, height, width, _ = image.shape
    row = (torch.arange(height, device=image.device) + offset[0, :, None]).clamp_(0, height - 1)
    column = (torch.arange(width, device=image.device) + offset[1, :, None]).clamp_(0, width - 1)
    window = torch.arange(batch, device=image.device)[:, None, None]
    # Indices with a slice between them: their axes come first.
    return image[window, :, row[:, :, None], column[:, None, :]].movedim(3, 1)


def shift_by_blocks(image: Tensor, offset: Tensor) -> Tensor:
    """The same by copies of whole blocks: a quarter of the time of indices on a CPU."""
    height, width = image.shape[2:4]
    shifted = torch.empty_like(image)
    for window, out, dy, dx in zip(image, shifted, *offset.tolist(), strict=True):
        top, bottom = max(0, -dy), height - max(0, dy)
        left, right = max(0, -dx), width - max(0, dx)
        out[:, top:bottom, left:right] = window[:, top + dy : bottom + dy, left + dx : right + dx]
        out[:, top:bottom, :left] = out[:, top:bottom, left : left + 1]
        out[:, top:bottom, right:] = out[:, top:bottom, right - 1 : right]
        out[:, :top] = out[:, top : top + 1]
        out[:, bottom:] = out[:, bottom - 1 : bottom]
    return shifted

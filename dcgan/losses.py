"""The losses of a GAN, on logits: one entry of `LOSSES` each.

Shapes: N batch, L lanes. Losses of lanes are to be summed, so that each one's gradient is its own.
All return float32 of shape (L,).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Loss(NamedTuple):
    """What D and G minimise, of logits (N, L) for real and for generated images."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    paired: bool = False
    """G's loss depends on the logits of real images, too, which the new D then gives."""
    labels: bool = False
    """It is a cross-entropy with labels for real and generated, which can be smoothed."""


def non_saturating_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E log D(x) - E log(1 - D(G(z))), nats.

    Goodfellow et al. 2014, arXiv 1406.2661, section 3. With s = D's logit and D(x) = sigmoid(s),
    -log D(x) is softplus(-s) and -log(1 - D(x)) is softplus(s), both exact where a sigmoid would
    round to 0 or 1.
    """
    wrong = torch.stack([-real_logits.float(), fake_logits.float()])  # (2, N, L)
    return F.softplus(wrong).mean(1).sum(0)


def non_saturating_g(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E log D(G(z)), nats: the non-saturating loss of the same section."""
    return F.softplus(-fake_logits.float()).mean(0)


def hinge_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E max(0, 1 - s(x)) + E max(0, 1 + s(G(z))) (Lim and Ye 2017, arXiv 1705.02894)."""
    wrong = torch.stack([-real_logits.float(), fake_logits.float()])
    return F.relu(1 + wrong).mean(1).sum(0)


def hinge_g(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E s(G(z)), of the same paper."""
    return -fake_logits.float().mean(0)


def least_squares_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E (s(x) - 1)^2 / 2 + E s(G(z))^2 / 2 (Mao et al. 2017, arXiv 1611.04076, equation 9)."""
    off = torch.stack([real_logits.float() - 1, fake_logits.float()])
    return off.square().mean(1).sum(0) / 2


def least_squares_g(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E (s(G(z)) - 1)^2 / 2, of the same equation."""
    return (fake_logits.float() - 1).square().mean(0) / 2


def relativistic_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E softplus(-(s(x) - s(G(z)))), of pairs (Jolicoeur-Martineau 2018, arXiv 1807.00734; with
    gradient penalties the loss of R3GAN, Huang et al. 2025, arXiv 2501.05441, equation 2)."""
    return F.softplus(fake_logits.float() - real_logits.float()).mean(0)


def relativistic_g(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E softplus(-(s(G(z)) - s(x))), of the same pairs."""
    return F.softplus(real_logits.float() - fake_logits.float()).mean(0)


LOSSES = {
    "non-saturating": Loss(non_saturating_d, non_saturating_g, labels=True),
    "hinge": Loss(hinge_d, hinge_g),
    "least-squares": Loss(least_squares_d, least_squares_g),
    "relativistic": Loss(relativistic_d, relativistic_g, paired=True),
}


def smoothing(real_logits: Tensor, amount: float) -> Tensor:
    """What one-sided label smoothing adds to D's non-saturating loss, whose target for real images
    becomes 1 - amount (Salimans et al. 2016, arXiv 1606.03498, section 3.4).

    (1 - a) softplus(-s) + a softplus(s) is softplus(-s) + a s.
    """
    return amount * real_logits.float().mean(0)


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """E |grad s(x)|^2, zero-centred: R1 of real images, R2 of generated ones (Mescheder et al.
    2018, arXiv 1801.04406, equation 9), whose graph is kept to be differentiated again.

    Args:
        logits: (N, L), of D at images (N, L C, S, S) that require a gradient.
    """
    (gradient,) = torch.autograd.grad(logits.float().sum(), images, create_graph=True)
    of_lane = gradient.float().unflatten(1, (logits.shape[1], -1))  # (N, L, C, S, S)
    squares: Tensor = of_lane.square().sum((2, 3, 4))  # (N, L)
    return squares.mean(0)

"""The losses of a GAN, on logits: one entry of `LOSSES` each.

Shapes: N batch, L lanes. Losses of lanes are to be summed, so that each one's gradient is its own.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Loss(NamedTuple):
    """What D and G minimise; both return float32 of shape (L,)."""

    discriminator: Callable[[Tensor, Tensor], Tensor]  # of logits for real and generated images
    generator: Callable[[Tensor], Tensor]  # of logits for generated images, (N, L)


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E log D(x) - E log(1 - D(G(z))), nats. Logits (N, L); returns (L,) in float32.

    Goodfellow et al. 2014, arXiv 1406.2661, section 3. With s = D's logit and D(x) = sigmoid(s),
    -log D(x) is softplus(-s) and -log(1 - D(x)) is softplus(s), both exact where a sigmoid would
    round to 0 or 1.
    """
    wrong = torch.stack([-real_logits.float(), fake_logits.float()])  # (2, N, L)
    return F.softplus(wrong).mean(1).sum(0)


def generator_loss(fake_logits: Tensor) -> Tensor:
    """-E log D(G(z)), nats: the non-saturating loss. Logits (N, L); returns (L,) in float32."""
    return F.softplus(-fake_logits.float()).mean(0)


LOSSES = {"non-saturating": Loss(discriminator_loss, generator_loss)}

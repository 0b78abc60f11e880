"""The non-saturating GAN loss (Goodfellow et al. 2014, arXiv 1406.2661, section 3), on logits.

With s = D's logit and D(x) = sigmoid(s): -log D(x) = softplus(-s) and -log(1 - D(x)) = softplus(s), both exact where a
sigmoid would round to 0 or 1.

Shapes: N batch, R replicas. Losses of replicas are to be summed, so that each one's gradient is its own.
"""

from torch import Tensor
from torch.nn import functional as F


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E log D(x) - E log(1 - D(G(z))), nats. Logits (N, R); returns (R,) in float32."""
    return F.softplus(-real_logits.float()).mean(0) + F.softplus(fake_logits.float()).mean(0)


def generator_loss(fake_logits: Tensor) -> Tensor:
    """-E log D(G(z)), nats. Logits (N, R); returns (R,) in float32."""
    return F.softplus(-fake_logits.float()).mean(0)

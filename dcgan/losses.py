"""The non-saturating GAN loss (Goodfellow et al. 2014, arXiv 1406.2661, section 3), on logits.

With s = D's logit and D(x) = sigmoid(s): -log D(x) = softplus(-s) and -log(1 - D(x)) = softplus(s), both exact where a
sigmoid would round to 0 or 1.
"""

from torch import Tensor
from torch.nn import functional as F


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E log D(x) - E log(1 - D(G(z))), nats. Logits (N,); returns a scalar in float32."""
    return F.softplus(-real_logits.float()).mean() + F.softplus(fake_logits.float()).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """-E log D(G(z)), nats. Logits (N,); returns a scalar in float32."""
    return F.softplus(-fake_logits.float()).mean()

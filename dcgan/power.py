"""Averages of weights whose length is chosen after training (Karras et al. 2024, EDM2, arXiv
2312.02696, section 3 and appendix C).

The power-function average of exponent γ at time t takes the weights of time τ in proportion to
its profile, (γ + 1) τ^γ / t^(γ + 1) for 0 < τ <= t. Its length is the profile's standard
deviation over t, the paper's σ_rel. Of two averages, snapshots are kept as training goes. Any
other average is close to a combination of the snapshots: to the one whose profile is nearest by
least squares.

Shapes: n snapshots, of either exponent.
"""

import numpy as np
import torch
from torch import Tensor

KEPT = {"short": 0.05, "long": 0.10}
"""The averages that are kept, by name: their lengths, which are the paper's."""
MOST_LENGTH = 0.28
"""Just below that of the plain mean of all weights, 12^-0.5, whose exponent is 0."""


def exponent(length: float) -> float:
    """The γ of a length, which is (γ + 1)^0.5 / ((γ + 2) (γ + 3)^0.5): the largest root of
    (γ + 2)^2 (γ + 3) = (γ + 1) / length^2."""
    square = length**-2
    roots = np.roots([1, 7, 16 - square, 12 - square])
    return float(roots.real.max())


EXPONENTS = {name: exponent(length) for name, length in KEPT.items()}


def share(updates: Tensor, gamma: float) -> Tensor:
    """How far an average moves towards the weights at the update of this number, from 1: 1 - β(t)
    with β(t) = (1 - 1/t)^(γ + 1), so at first all of the way.

    It is worked out on the device, since it may be captured; and by logarithms, since β(t) is
    nearly 1 in float32.
    """
    return -torch.expm1((gamma + 1) * torch.log1p(-1 / updates))


def product(time_a: Tensor, gamma_a: Tensor, time_b: Tensor, gamma_b: Tensor) -> Tensor:
    """Inner products over time of profiles, float64."""
    first, last = torch.minimum(time_a, time_b), torch.maximum(time_a, time_b)
    gamma_of_last = torch.where(time_a < time_b, gamma_b, gamma_a)
    factor = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return factor * (first / last) ** gamma_of_last / last


def combination(times: Tensor, gammas: Tensor, length: float) -> tuple[Tensor, float]:
    """The combination of snapshots that is nearest to an average of this length.

    Its coefficients add up to 1, unlike the paper's, whose nets do not depend on the scale of their
    weights: these do.

    Args:
        times: of the snapshots, over that at which the average is wanted. (n,) float64
        gammas: of the snapshots. (n,) float64

    Returns:
        The coefficients (n,), and the error: the norm of what the combination misses of the
        average's profile, over the norm of that profile.
    """
    n = len(times)
    wanted = torch.tensor([1.0, exponent(length)], dtype=torch.float64)
    products = product(times[:, None], gammas[:, None], times, gammas)  # (n, n)
    targets = product(times, gammas, *wanted)  # (n,)
    norm = product(*wanted, *wanted)
    # least squares under the constraint, by a Lagrange multiplier
    system = torch.ones(n + 1, n + 1, dtype=torch.float64)
    system[:n, :n], system[n, n] = products, 0
    x = torch.linalg.solve(system, torch.cat([targets, torch.ones_like(targets[:1])]))[:n]
    missed = (norm - 2 * x @ targets + x @ products @ x).clamp(min=0)
    return x, (missed / norm).sqrt().item()

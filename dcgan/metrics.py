"""Quality metrics of generated images: pure functions of feature and probability arrays.

Shapes: N real and M generated images, F features, K classes. Every function takes float32 tensors;
what is summed over many items or subtracted is in float64. Features are expected to be finite:
`dcgan.evaluate.score` refuses others.

- Fréchet distance: Heusel et al. 2017, arXiv 1706.08500, equation 6 (without the square root).
- Kernel distance (KID): Bińkowski et al. 2018, arXiv 1801.01401, unbiased, over all pairs.
- Precision and recall: Kynkäänniemi et al. 2019, arXiv 1904.06991. Density and coverage: Naeem et
  al. 2020, arXiv 2002.09797.
- Classifier score: Salimans et al. 2016, arXiv 1606.03498, of the yardstick, not of Inception.
- Path length: Karras et al. 2019, arXiv 1812.04948, section 4.1, here of whole paths.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NEIGHBOURS = 5  # k of the manifold metrics, as in arXiv 2002.09797
CONFIDENT = 0.9  # probability from which on the classifier counts as sure of a class
# cycles a pixel, half of what an image can hold: edges and noise lie above, strokes below
HIGH_FREQUENCY = 0.25
COVERED_SHARE = 0.1  # a class counts as covered from this part of an equal share of the samples on
# samples this much closer to each other than real images are (medians) are repeats
REPEAT_RATIO = 0.1
# of a pairwise matrix held at a time, which bounds memory to ROWS x N
ROWS = {"cpu": 512, "cuda": 1024}


class Gaussian(NamedTuple):
    """Mean and covariance of features, float64, on the CPU: too small to be worth a GPU's while."""

    mean: Tensor  # (F,)
    covariance: Tensor  # (F, F)


def gaussian(features: Tensor) -> Gaussian:
    """Sample mean and unbiased covariance of features (N, F)."""
    x = features.double()
    return Gaussian(x.mean(0).cpu(), x.T.cov().cpu())


def frechet_distance(real: Gaussian, fake: Gaussian) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), two Gaussians' squared 2-Wasserstein distance.

    tr (C1 C2)^(1/2) is the sum of the roots of the eigenvalues of the symmetric R C2 R with R =
    C1^(1/2), which stays real where the covariances are singular. Rounding can leave the distance
    of equal sets a little below 0: by about 1e-11, or 1e-6 where they are singular.
    """
    values, vectors = torch.linalg.eigh(real.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T  # (F, F)
    eigenvalues = torch.linalg.eigvalsh(root @ fake.covariance @ root)  # (F,)
    cross = eigenvalues.clamp(min=0).sqrt().sum()
    squared = (real.mean - fake.mean).square().sum()
    return float(squared + real.covariance.trace() + fake.covariance.trace() - 2 * cross)


def in_rows(x: Tensor) -> tuple[Tensor, ...]:
    """Items (N, ...) in blocks, for pairwise matrices a block of rows at a time."""
    return torch.split(x, ROWS[x.device.type])


def kernel_sum(x: Tensor, y: Tensor) -> float:
    """Sum over all pairs of the cubic kernel (a.b / F + 1)^3 of features (N, F) and (M, F)."""
    F = y.shape[1]
    sums = [(rows @ y.T).div_(F).add_(1).pow_(3).sum(dtype=torch.float64) for rows in in_rows(x)]
    return torch.stack(sums).sum().item()


def within_kernel_mean(x: Tensor) -> float:
    """Mean of the cubic kernel over the pairs of different items in features (N, F)."""
    n = len(x)
    diagonal = (x.double().square().sum(1) / x.shape[1] + 1).pow(3).sum().item()
    return (kernel_sum(x, x) - diagonal) / (n * (n - 1))


def kernel_distance(real: Tensor, fake: Tensor, real_within: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy of features (N, F) and (M, F); may be slightly
    negative. `real_within`, if known, is `within_kernel_mean(real)`."""
    within = within_kernel_mean(real) if real_within is None else real_within
    return within + within_kernel_mean(fake) - 2 * kernel_sum(real, fake) / (len(real) * len(fake))


def neighbour_radii(features: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Distance from each item of features (N, F) to its k-th nearest other item. (N,)"""
    if len(features) <= k:
        raise ValueError(
            f"{len(features)} images; the {k}-th nearest neighbour needs at least {k + 1}"
        )
    nearest = [
        torch.cdist(rows, features).topk(k + 1, largest=False).values for rows in in_rows(features)
    ]
    return torch.cat(nearest)[:, -1]  # each item's nearest is itself


def manifold(
    real: Tensor, fake: Tensor, real_radii: Tensor, fake_radii: Tensor, k: int = NEIGHBOURS
) -> dict[str, float]:
    """Precision, recall, density and coverage of features (N, F), (M, F) with `neighbour_radii`."""
    # (M,) real neighbourhoods around each generated image
    inside_real = torch.zeros(len(fake), device=fake.device)
    recalled, covered = [], []
    for rows, radii in zip(in_rows(real), in_rows(real_radii), strict=True):
        distances = torch.cdist(rows, fake)  # (rows, M)
        inside_real += (distances < radii[:, None]).sum(0)
        recalled.append((distances < fake_radii).any(1))
        covered.append(distances.amin(1) < radii)
    return {
        "precision": (inside_real > 0).double().mean().item(),
        "recall": torch.cat(recalled).double().mean().item(),
        "density": inside_real.double().mean().item() / k,
        "coverage": torch.cat(covered).double().mean().item(),
    }


def classifier_score(probabilities: Tensor) -> float:
    """exp E KL(p(class | image) || p(class)) of predictions (M, K): 1 to K."""
    p = probabilities.double()
    # KL(p || q) = sum p log p - sum p log q; xlogy gives 0 for p = 0
    kl = torch.xlogy(p, p).sum(1) - torch.xlogy(p, p.mean(0)).sum(1)
    return kl.mean().exp().item()


def confident_share(probabilities: Tensor) -> float:
    """Share of predictions (M, K) with a class of a probability of at least `CONFIDENT`."""
    return (probabilities.amax(1) >= CONFIDENT).double().mean().item()


def high_frequency_energy(images: Tensor) -> Tensor:
    """Mean square of the part of each image (N, C, S, S) that lies above `HIGH_FREQUENCY`, by
    Parseval's theorem. (N,)"""
    frequencies = torch.fft.fftfreq(images.shape[-1], device=images.device)  # (S,) cycles a pixel
    high = torch.hypot(frequencies[:, None], frequencies) > HIGH_FREQUENCY  # (S, S)
    energies = []
    for rows in in_rows(images):
        spectrum = torch.view_as_real(torch.fft.fft2(rows, norm="forward"))  # (rows, C, S, S, 2)
        energies.append((spectrum.square().sum(-1) * high).sum((-2, -1)).mean(1))
    return torch.cat(energies)


def path_length(features: Tensor) -> float:
    """Mean length of paths of T steps through feature space (P, T, F)."""
    return float(features.double().diff(dim=1).norm(dim=-1).sum(1).mean())


def class_shares(probabilities: Tensor) -> Tensor:
    """Share of each class among the predictions (M, K), by the most likely class. (K,) float64"""
    counts = torch.bincount(probabilities.argmax(1), minlength=probabilities.shape[1])
    return counts.double() / len(probabilities)


def classes_covered(shares: Tensor) -> int:
    """Number of classes with at least `COVERED_SHARE` / K of the images, from shares (K,)."""
    return int((shares >= COVERED_SHARE / len(shares)).sum())


def kl_from_uniform(shares: Tensor) -> float:
    """KL of a histogram of shares (K,) from the uniform one, nats: 0 to log K."""
    return torch.xlogy(shares, shares * len(shares)).sum().item()


def collapsed(shares: Tensor | None, real_radii: Tensor, fake_radii: Tensor) -> bool:
    """Mode collapse: fewer than half of the classes appear, or the typical image nearly repeats its
    neighbours. The second part catches one perfect image of each class, over and over, which
    neither the histogram nor, by much, the Fréchet distance can see; up to five copies pass."""
    if fake_radii.median() < REPEAT_RATIO * real_radii.median():
        return True
    return shares is not None and 2 * classes_covered(shares) < len(shares)
